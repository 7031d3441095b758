"""IP-Adapter (arXiv 2308.06721): an image projection, and keys and values beside those of the text; one reference a
picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ...model_patches.adapter import Adapter, EncoderNeed, PhotoSpec
from ...model_patches.attention.decoupled import Mixing
from ...model_patches.binding.checks import check_widths
from ...model_patches.encoders.decoupled import DecoupledLayer, DecoupledLayers, layers_of
from ...model_patches.encoders.projections import ImageProj, Resampler
from ...model_patches.encoding.interfaces import check_image_encoder
from ...model_patches.errors import MismatchError
from ...model_patches.families.ip_adapter import build as build_adapter
from ...model_patches.families.registry import read_adapter
from ...model_patches.hosts.diffusers.cross_layers import cross_layers
from ...model_patches.subjects import Photo
from ..config.setting import chance, setting
from ..examples.draws import Draw
from ..examples.example import Example, ExampleSubject
from ..model.base import Base
from ..model.features import Features
from ..model.image_attention import BatchAttention, BatchReferences
from .drops import dropped
from .recipe import Batch, Exported, PassSettings, Trainee, joined

RESAMPLER = {"depth": 4, "head_width": 64}  # of the published "plus" files

uses_every_parameter = True


@dataclass(frozen=True)
class Options:
    """`[recipe]` of ip_adapter. The three drops exclude each other."""

    start: str = ""  # an IP-Adapter file that the training begins with; "" begins with the UNet's own keys and values
    projection: str = setting("ImageProj", choices=("ImageProj", "Resampler"))  # without a start; Resampler is "plus"
    # image tokens of a reference, without a start; IPAdapter_plus loads 4 of ImageProj and 16 of Resampler
    tokens: int = setting(4, least=1)
    train_projection: bool = True
    drop_text: float = chance(0.05)  # part of the pictures whose caption is empty
    drop_images: float = chance(0.05)  # ... whose references are replaced by none
    drop_both: float = chance(0.05)


@dataclass(frozen=True, eq=False)
class BatchPhotos:
    """References of a batch on the UNet's device.

    features: [B * M, ...] of the image encoder, no photo for places without a subject; valid: [B, M] bool, whole if all
    are; names [B, L, D] and segments [B, M, L], see `BatchReferences`.
    """

    features: torch.Tensor
    valid: torch.Tensor
    whole: bool
    names: torch.Tensor | None = None
    segments: torch.Tensor | None = None


class ImageAttentionTrainee(Trainee):
    """An IP-Adapter in training.

    options: of the recipe; text_gain: whether the layers have MIP-Adapter's text gain; the others as in `Trainee`.
    """

    needs_subjects = False

    def __init__(self, base: Base, features: Features, settings: PassSettings, options: Any, text_gain: bool = False):
        super().__init__(base, features, settings)
        self.options = options
        self.projection, self.layers, self.need = _modules(base, features, options, text_gain)
        self.projection.requires_grad_(options.train_projection)
        self.attention = BatchAttention(Mixing("relevance"))
        self.attention.install(base.unet, list(layers_of(self.layers)))

    def captions(self, draws: Sequence[Draw]) -> list[str]:
        """Return captions, some of them dropped."""
        return ["" if dropped(draw, self.options).text else draw.example.caption for draw in draws]

    def chosen(self, draw: Draw) -> Sequence[ExampleSubject]:
        """Return the subjects that a picture is trained with: one of chance; the picture itself if it has none."""
        subjects = draw.example.subjects
        return [draw.chance("subject").choice(subjects)] if subjects else [_itself(draw.example)]

    def add(self, draws: Sequence[Draw]) -> BatchPhotos:
        """Return the image encoder's view of every reference, and the names where the recipe uses them."""
        chosen = [list(self.chosen(draw)) for draw in draws]
        m, nothing = max([1, *map(len, chosen)]), self.features.no_photo(self.need.kind)
        found = iter(self.features.photos([s for row in chosen for s in row], self.need.kind, "pad"))
        features = torch.stack([nothing] * (len(draws) * m))
        for b, (draw, row) in enumerate(zip(draws, chosen, strict=True)):
            for i in range(len(row)):
                photo = next(found)
                if not dropped(draw, self.options).images:
                    features[b * m + i] = photo
        valid = torch.tensor([[i < len(row) for i in range(m)] for row in chosen])
        names, segments = self.names(draws, chosen, m)
        device = self.base.unet.device
        return BatchPhotos(
            features.to(device),
            valid.to(device),
            bool(valid.all()),
            None if names is None else names.to(device),
            None if segments is None else segments.to(device),
        )

    def names(
        self, draws: Sequence[Draw], chosen: Sequence[Sequence[ExampleSubject]], m: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return name states and segments; a lone reference needs none."""
        return None, None

    def references(self, photos: BatchPhotos) -> BatchReferences:
        """Return what the layers read: image tokens through the projection."""
        b, m = photos.valid.shape
        tokens = self.projection(photos.features).unflatten(0, (b, m))  # B, M, T, D
        valid = photos.valid.unsqueeze(-1).expand(-1, -1, tokens.shape[2]).flatten(1)
        return BatchReferences(tokens.flatten(1, 2), None if photos.whole else valid, m, photos.names, photos.segments)

    def context(self, batch: Batch) -> torch.Tensor:
        """Return plain text; the references go to the layers."""
        self.attention.references = self.references(batch.extra)
        return joined(batch.prompts)

    def finish(self) -> None:
        """Disable the batch's references on the UNet."""
        self.attention.references = None

    def export(self) -> Exported:
        """Return `image_proj.*` and `ip_adapter.*`."""
        state = {f"image_proj.{published_name(name)}": value for name, value in self.projection.state_dict().items()}
        for name, value in self.layers.state_dict().items():
            _, j, rest = name.split(".", 2)
            state[f"ip_adapter.{2 * int(j) + 1}.{rest}"] = value
        return Exported({name: value.detach().float().cpu().clone() for name, value in state.items()}, {})

    def adapter(self) -> Adapter:
        """Return the adapter as the loader reads it."""
        return build_adapter(self.export().state, "the adapter in training")


def build(base: Base, features: Features, settings: PassSettings, options: Options) -> Trainee:
    """Return an IP-Adapter to train. Raises TroupeError if the start or the image encoder does not fit."""
    return ImageAttentionTrainee(base, features, settings, options)


def published_name(name: str) -> str:
    """Return the name that a tensor of a projection has in published files."""
    return "latents" if name == "latents.weight" else name


def _itself(example: Example) -> ExampleSubject:
    return ExampleSubject("", Photo((example.pixels.permute(1, 2, 0) + 1) / 2), example.key)


def _modules(
    base: Base, features: Features, options: Any, text_gain: bool
) -> tuple[nn.Module, DecoupledLayers, EncoderNeed]:
    """Projection, layers and what the projection reads; begun with a file or with the UNet's weights."""
    attentions = [layer.attention for layer in cross_layers(base.unet)]
    widths = [attention.to_q.out_features for attention in attentions]
    layers = DecoupledLayers(base.context, widths, text_gain)
    for layer, attention in zip(layers.layers, attentions, strict=True):
        layer = cast(DecoupledLayer, layer)
        layer.to_k_ip.weight.data.copy_(attention.to_k.weight)
        layer.to_v_ip.weight.data.copy_(attention.to_v.weight)
        if layer.text_to_weight is not None:  # f = 1
            nn.init.zeros_(layer.text_to_weight.weight)
    if options.start:
        start = read_adapter(Path(options.start))
        spec = start.spec
        if not isinstance(start.layers, DecoupledLayers) or start.projection is None:
            do = "Choose an IP-Adapter or MIP-Adapter file as 'start', or leave it out."
            raise MismatchError("an IP-Adapter or MIP-Adapter file to start from", spec.describe(), do)
        check_widths(spec, widths, base.context)
        check_image_encoder(spec, features.images)
        state = {name: value.float() for name, value in start.layers.state_dict().items()}
        layers.load_state_dict(state if text_gain else _without_gain(state), strict=False)
        return start.projection.float(), layers, spec.part(PhotoSpec).encoder
    if options.projection == "Resampler":
        dim = base.context if base.context < 1024 else 1280  # as in the published files
        heads = max(dim // RESAMPLER["head_width"], 1)
        need = EncoderNeed("penultimate", features.images.hidden)
        projection = Resampler(
            dim,
            RESAMPLER["depth"],
            heads * RESAMPLER["head_width"],
            options.tokens,
            need.width,
            base.context,
            4 * dim,
        )
        nn.init.normal_(projection.latents.weight, std=dim**-0.5)
        return projection, layers, need
    need = EncoderNeed("pooled", features.images.pooled)
    return ImageProj(need.width, base.context, options.tokens), layers, need


def _without_gain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.endswith("text_to_weight.weight")}
