"""FastComposer (arXiv 2305.10431): photos fused into the text encoder's output, and SD1.5's UNet trained as a whole,
with a loss that binds each subject's word to its place.

Unlike in the paper the image encoder is frozen. Its delayed conditioning belongs to sampling: `start_percent` of
`[sheet]`, and of Encode Prompt with Subjects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from ...model_patches.adapter import Adapter, AdapterSpec, EncoderNeed, PhotoSpec, PromptSpec
from ...model_patches.bases import REHEARSAL_BASE
from ...model_patches.checkpoints.unet_layout import REHEARSAL_UNET, SD
from ...model_patches.encoders.words import Postfuse
from ...model_patches.errors import MismatchError
from ...model_patches.families.fastcomposer import FUSION, LABELS
from ...model_patches.families.fastcomposer import build as build_adapter
from ..config.setting import chance, setting
from ..examples.draws import Draw
from ..examples.example import ExampleSubject
from ..losses import localization_losses
from ..model.base import Base
from ..model.captions import token_positions
from ..model.features import Features
from ..model.text_maps import TextMaps
from .prompt import PromptTrainee, check_small_base
from .recipe import Batch, Exported, Losses, PassSettings, Trainee

uses_every_parameter = True


@dataclass(frozen=True)
class Options:
    """`[recipe]` of fastcomposer."""

    localization: float = setting(1e-3, least=0.0)  # factor of the localization loss; it needs masks or boxes
    masked: float = chance(0.5)  # part of the pictures of which only the subjects' places count
    drop_text: float = chance(0.1)  # part of the pictures whose caption is empty
    drop_subjects: float = chance(0.1)  # part of the subjects that are not put into the prompt


@dataclass(frozen=True, eq=False)
class Where:
    """Places of the subjects.

    masks: [B, M, S, S]; rows: [B, M] of the text; present: [B, M] bool; cells: [B, 1, S, S], what counts.
    """

    masks: torch.Tensor
    rows: torch.Tensor
    present: torch.Tensor
    cells: torch.Tensor


class FastComposerTrainee(PromptTrainee):
    """A FastComposer model in training: what fuses photos, and the base's UNet.

    options: of the recipe; the other arguments as in `Trainee`.
    """

    def __init__(self, base: Base, features: Features, settings: PassSettings, options: Options):
        dim, photo = base.context, features.images.pooled
        spec = AdapterSpec(
            "fastcomposer",
            "the model in training",
            dim,
            (PhotoSpec(EncoderNeed("pooled", photo), framing="black"), PromptSpec(FUSION, {"l": dim})),
            LABELS["fastcomposer"],
        )
        super().__init__(base, features, settings, options, spec)
        self.postfuse = Postfuse(dim, photo, dim, dim)
        self.unet = base.unet.requires_grad_(True)
        self.maps = TextMaps()
        self.maps.install(base.unet)
        self.weights: Mapping[str, float] = {"diffusion": 1.0, "localization": options.localization}

    def modules_of_base(self) -> tuple[nn.Module, ...]:
        """Return the UNet."""
        return (self.unet,)

    def vectors(self, photos: torch.Tensor) -> torch.Tensor:
        """Return the photos' embeddings as they are; `fusion` reads them."""
        return photos.unsqueeze(1)

    def fusion(self) -> nn.ModuleDict:
        """Return what fuses a photo with its word."""
        return nn.ModuleDict({"l": self.postfuse})

    def kept(self, draw: Draw) -> Sequence[ExampleSubject]:
        """Return the subjects, some of them left out."""
        chance = draw.chance("subjects")
        return [s for s in draw.example.subjects if chance.random() >= self.options.drop_subjects]

    def add_more(self, draws: Sequence[Draw], subjects: Sequence[Sequence[ExampleSubject]]) -> Where:
        """Return where the subjects are, in the picture and in the text."""
        side, m = draws[0].example.pixels.shape[-1], max([1, *map(len, subjects)])
        masks, rows = torch.zeros(len(draws), m, side, side), torch.zeros(len(draws), m, dtype=torch.long)
        present, cells = torch.zeros(len(draws), m, dtype=torch.bool), torch.ones(len(draws), 1, side, side)
        for b, (draw, row) in enumerate(zip(draws, subjects, strict=True)):
            found = token_positions(self.base.texts, draw.example.caption, [s.name for s in row]) if row else ()
            for i, (subject, at) in enumerate(zip(row, found, strict=True)):
                if subject.mask is not None:
                    masks[b, i], rows[b, i], present[b, i] = subject.mask, at.row, True
            if masks[b].any() and draw.chance("masked").random() < self.options.masked:
                cells[b, 0] = masks[b].amax(0)
        device = self.base.unet.device
        return Where(*(tensor.to(device) for tensor in (masks, rows, present, cells)))

    def context(self, batch: Batch) -> torch.Tensor:
        """Return text states with the subjects in them, and keep the text attention of the pass."""
        self.maps.begin(self.options.localization > 0)
        return super().context(batch)

    def join(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join prompts, each [1, T_i, D], to [B, L, D]."""
        return self.maps.join(states)

    def finish(self) -> None:
        """Use the UNet's usual attention."""
        self.maps.begin(False)

    def pixel_weights(self, batch: Batch) -> torch.Tensor:
        """Return how much each latent cell counts: in some pictures only the subjects' places."""
        where: Where = batch.extra.more
        return interpolate(where.cells, size=batch.noised.latents.shape[-2:], mode="bilinear", antialias=True)

    def more_losses(self, batch: Batch) -> Losses:
        """Return the localization loss, the mean over the middle blocks' layers."""
        where: Where = batch.extra.more
        if not self.maps.on:
            return {"localization": batch.noised.weights.new_zeros(len(where.rows))}
        found = localization_losses(self.maps.maps.values(), where.masks, where.rows, where.present)
        return {"localization": found}

    def export(self) -> Exported:
        """Return `postfuse_module.*` and `unet.*`."""
        parts = {"postfuse_module": self.postfuse, "unet": self.unet}
        state = {
            f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()
        }
        return Exported({name: value.detach().float().cpu().clone() for name, value in state.items()}, {})

    def adapter(self) -> Adapter:
        """Return the model as the loader reads it."""
        return build_adapter(self.export().state, "the model in training")


def build(base: Base, features: Features, settings: PassSettings, options: Any) -> Trainee:
    """Return a FastComposer model to train. Raises MismatchError for a base other than SD1.5."""
    check_small_base(base, "FastComposer")
    levels, wanted = (
        len(base.unet.config["block_out_channels"]),
        len(REHEARSAL_UNET if base.context == REHEARSAL_BASE.width else SD),
    )
    if levels != wanted:
        do = "Set the folder of SD1.5 in [base]."
        raise MismatchError(f"a UNet of {wanted} levels, as SD1.5's", f"{levels} levels", do)
    return FastComposerTrainee(base, features, settings, options)
