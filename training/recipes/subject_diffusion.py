"""Subject-Diffusion (arXiv 2307.11410): a subject's patches with its box in gated layers, its vector at a placeholder
in the prompt, and a mask of all boxes as the UNet's fifth channel; with a loss that binds the words to their places.

Trained are the gated layers and their net, the MLP of the vectors, the UNet's text keys and values and first
convolution, and the text encoder. Unlike in the published code, references are encoded as they are: they are not pasted
into other photos, turned or warped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from ...model_patches.adapter import Adapter, AdapterSpec, PhotoSpec, PromptSpec
from ...model_patches.checkpoints.clip_text import ROOT, text_weights
from ...model_patches.checkpoints.gated_tensors import gated_names
from ...model_patches.checkpoints.tensors import part
from ...model_patches.checkpoints.unet_names import block_paths
from ...model_patches.encoders.gated import GatedLayers
from ...model_patches.encoders.grounding import GroundingNet
from ...model_patches.encoders.mlp import MLP
from ...model_patches.errors import MismatchError
from ...model_patches.families.subject_diffusion import layout
from ...model_patches.families.subject_diffusion.encode import INSIDE
from ...model_patches.hosts.diffusers.encoders import TextTower
from ...model_patches.hosts.diffusers.prompt import TextsPromptEncoder
from ...model_patches.hosts.diffusers.unet_blocks import transformer_blocks
from ...model_patches.prompt.fusion import fuse_prompts
from ...model_patches.prompt.template import PLACEHOLDER_ID
from ...model_patches.prompt.token_positions import TokenPosition
from ...model_patches.subjects import Box, ObjectFeatures, References, ReferenceSubject
from ..config.setting import chance, setting
from ..examples.draws import Draw
from ..examples.example import ExampleSubject, box_in
from ..losses import LOCALIZATIONS, localization_losses
from ..model.base import Base
from ..model.captions import placeholders, unmarked
from ..model.features import Features, Patches
from ..model.gated_layers import BatchGated
from ..model.text_maps import TextMaps
from .recipe import Batch, Exported, Losses, PassSettings, Trainee

IN_TRAINING = "the model in training"
TO_NAME = 2  # tokens from a placeholder back to the last one of its subject's name: ", the NAME is sks"

uses_every_parameter = True


@dataclass(frozen=True)
class Options:
    """`[recipe]` of subject_diffusion. The three drops exclude each other; the objects of the gated layers always stay.

    Published are localization 0.01, and the drops as they are here.
    """

    slots: int = setting(2, least=1)  # subjects of a picture at most; a picture with fewer has null tokens for the rest
    box_embedding: bool = True  # false: object tokens without boxes, in the exported file too
    photo_in_prompt: bool = True  # false: the placeholder's own embedding stays in the prompt, in the exported file too
    localization: float = setting(0.01, least=0.0)  # factor of the localization loss
    localization_form: str = setting("signed", choices=LOCALIZATIONS)  # the published code's, or the paper's |CA - M|
    drop_text: float = chance(0.05)  # part of the pictures whose prompt is empty
    drop_mask: float = chance(0.05)  # ... whose mask channel is 0 everywhere
    drop_both: float = chance(0.05)


@dataclass(frozen=True, eq=False)
class Shown:
    """Ingredients of a batch.

    captions: "" where dropped; subjects: of each picture, those in it, each with its box; patches: of all of them in
    order; masked: whether a picture has its mask channel. For the localization loss, K words a picture: masks [B, K, S,
    S], rows [B, K] of the text, present [B, K] bool.
    """

    captions: tuple[str, ...]
    subjects: tuple[tuple[tuple[ExampleSubject, Box], ...], ...]
    patches: tuple[Patches, ...]
    masked: tuple[bool, ...]
    masks: torch.Tensor
    rows: torch.Tensor
    present: torch.Tensor


class SubjectDiffusionTrainee(Trainee):
    """A Subject-Diffusion model in training.

    options: of the recipe; the other arguments as in `Trainee`.
    """

    in_prompt = True
    needs_boxes = True

    def __init__(self, base: Base, features: Features, settings: PassSettings, options: Options):
        super().__init__(base, features, settings)
        self.options, dim, images = options, base.context, features.images
        self.paths, blocks = block_paths(base.unet.state_dict(), "attn2"), transformer_blocks(base.unet)
        channels = {block: blocks[block].dim for block in self.paths}
        self.mlp = MLP(images.pooled, dim, dim)
        if not options.photo_in_prompt:
            _make_constant(self.mlp, base.texts.towers[0].embed([PLACEHOLDER_ID])[0])
        net = GroundingNet(images.hidden, dim, dim, images.patches, boxed=options.box_embedding)
        self.gated = GatedLayers(net, list(channels.values()), dim, base.unet.conv_in.out_channels)
        nn.init.zeros_(self._mask_weight)
        self.spec: AdapterSpec = layout.spec_of(IN_TRAINING, channels, net, dim, options.slots)
        self.text, self.text_layers = trained_text(base.texts.towers[0])
        names = [f"{path}.{key.removesuffix('.weight')}" for path in self.paths.values() for key in layout.TRAINED_KEYS]
        trained = {name.replace(".", "/"): base.unet.get_submodule(name) for name in (*names, "conv_in")}
        self.unet = nn.ModuleDict(trained).requires_grad_(True)
        self.objects, self.maps = BatchGated(self.gated), TextMaps()
        self.objects.install(base.unet, list(channels))
        self.maps.install(base.unet)
        self.weights = {"diffusion": 1.0, "localization": options.localization}

    def modules_of_base(self) -> tuple[nn.Module, ...]:
        """Return the text encoder and the UNet."""
        return self.text, self.base.unet

    def captions(self, draws: Sequence[Draw]) -> list[str]:
        """Return no caption: the text encoder is trained."""
        return []

    def token_positions(self, caption: str, names: Sequence[str]) -> Sequence[TokenPosition]:
        """Return the placeholders' positions; of more names than slots, those of the longest ones.

        Raises SubjectError for a caption that has a placeholder itself, or leaves no room.
        """
        slots = self.options.slots
        shown = names if len(names) <= slots else sorted(names, key=len, reverse=True)[:slots]
        return placeholders(self.base.texts, caption, shown)

    def add(self, draws: Sequence[Draw]) -> Shown:
        """Return the image encoder's view of every subject, and where it is."""
        subjects = tuple(tuple(_seen(draw)[: self.options.slots]) for draw in draws)
        patches = self.features.patches(
            [subject for row in subjects for subject, _ in row], self.spec.part(PhotoSpec).framing, INSIDE
        )
        drops = [dropped_parts(draw, self.options) for draw in draws]
        captions = tuple("" if text else draw.example.caption for draw, (text, _) in zip(draws, drops, strict=True))
        words = [() if text else row for row, (text, _) in zip(subjects, drops, strict=True)]
        side, k = draws[0].example.pixels.shape[-1], self.options.slots
        masks, rows = torch.zeros(len(draws), 2 * k, side, side), torch.zeros(len(draws), 2 * k, dtype=torch.long)
        present = torch.zeros(len(draws), 2 * k, dtype=torch.bool)
        for b, (caption, row) in enumerate(zip(captions, words, strict=True)):
            found = self.token_positions(caption, [subject.name for subject, _ in row])
            for i, ((subject, _), position) in enumerate(zip(row, found, strict=True)):
                for j, at in ((i, position.row), (k + i, position.row - TO_NAME)):
                    masks[b, j], rows[b, j], present[b, j] = _mask(subject), at, True
        device = self.base.unet.device
        where = (tensor.to(device) for tensor in (masks, rows, present))
        return Shown(captions, subjects, tuple(patches), tuple(not mask for _, mask in drops), *where)

    def context(self, batch: Batch) -> torch.Tensor:
        """Return text states with the subjects in them, [B, L, D], and set the objects and the maps of the pass."""
        shown: Shown = batch.extra
        self.maps.begin(self.options.localization > 0)
        pictures, (h, w) = self._references(shown), batch.noised.latents.shape[-2:]
        self.objects.begin(pictures, shown.masked, (h, w))
        prompts = [
            (references if caption else replace(references, subjects=()), unmarked(caption))
            for caption, references in zip(shown.captions, pictures, strict=True)
        ]
        encoded = fuse_prompts(prompts, TextsPromptEncoder(self.base.texts, None))
        found = [text.fused.states for (text,), _ in encoded]
        unused = torch.stack([0.0 * p.sum() for p in self.mlp.parameters()]).sum()  # in a batch without any placeholder
        return self.maps.join(found).to(self.base.unet.device) + unused

    def finish(self) -> None:
        """Disable the batch's objects on the UNet, and use its usual attention."""
        self.objects.end()
        self.maps.begin(False)

    def more_losses(self, batch: Batch) -> Losses:
        """Return the localization loss of placeholders and names, the mean over the middle blocks' layers."""
        shown: Shown = batch.extra
        if not self.maps.on:
            return {"localization": batch.noised.weights.new_zeros(len(shown.rows))}
        form = self.options.localization_form
        return {
            "localization": localization_losses(self.maps.maps.values(), shown.masks, shown.rows, shown.present, form)
        }

    def export(self) -> Exported:
        """Return a bundle, with the metadata that the loader reads."""
        unet = {name.replace("/", "."): tensor for name, tensor in self.unet.state_dict().items()}
        unet["conv_in.weight"] = torch.cat((unet["conv_in.weight"], self._mask_weight), 1)
        names = gated_names(self.gated, list(self.paths.values()), "unet.", "proj.")
        named = {names[name]: tensor for name, tensor in self.gated.state_dict().items()}
        members = {
            "unet": unet | part(named, "unet."),
            "clip_text": self._text_state(),
            "mlp": self.mlp.state_dict(),
            "proj": part(named, "proj."),
        }
        state = {name: tensor.detach().float().cpu().clone() for name, tensor in layout.needed(members).items()}
        return Exported(state, self._metadata())

    def adapter(self) -> Adapter:
        """Return the model as the loader reads it."""
        given, metadata = self.export(), self._metadata()
        slots, boxed = layout.slots_of(metadata, IN_TRAINING), layout.boxed_of(metadata)
        return layout.build(layout.unbundled(given.state), IN_TRAINING, slots=slots, boxed=boxed)

    @property
    def _mask_weight(self) -> torch.Tensor:
        """[C, 1, 3, 3], what the first convolution makes of the mask."""
        return cast(nn.Conv2d, self.gated.mask_conv).weight

    def _text_state(self) -> dict[str, torch.Tensor]:
        """The text encoder by its published names, without layers behind the one that the base reads."""
        found = text_weights(self.text.state_dict(), self.base.context, IN_TRAINING, layout.KIND)
        start = f"{ROOT}encoder.layers."
        unread = {n for n in found if n.startswith(start) and int(n.split(".")[3]) >= self.text_layers}
        return {name: tensor for name, tensor in found.items() if name not in unread}

    def _metadata(self) -> dict[str, str]:
        return {
            "format": layout.FORMAT,
            "version": str(layout.VERSION),
            "slots": str(self.options.slots),
            layout.BOX_EMBEDDING: str(self.options.box_embedding).lower(),
        }

    def _references(self, shown: Shown) -> list[References]:
        """Each picture's subjects as the sampler has them."""
        shell, device = Adapter(self.spec, self.mlp, None, self.gated), self.base.unet.device
        (stream,), each = self.spec.part(PromptSpec).streams, iter(shown.patches)
        pictures = []
        for row in shown.subjects:
            made = []
            for subject, box in row:
                patches, pooled = next(each)
                words = {stream: self.mlp(pooled.to(device)).float().unsqueeze(0)}
                features = ObjectFeatures(image=patches)
                made.append(ReferenceSubject(subject.name, None, None, box=box, features=features, words=words))
            pictures.append(References(shell, tuple(made), None))
        return pictures


@torch.no_grad()
def _make_constant(mlp: MLP, value: torch.Tensor) -> None:
    """Let an MLP give one vector whatever it reads, for good."""
    mlp.fc2.weight.zero_()
    mlp.fc2.bias.copy_(value)
    mlp.requires_grad_(False)


def trained_text(tower: TextTower) -> tuple[nn.Module, int]:
    """Return a text encoder that is trained as far as the base model reads it, and the number of its layers so far."""
    model = tower.model.requires_grad_(True)
    encoder: Any = getattr(model, "text_model", model).encoder
    every = cast(nn.ModuleList, encoder.layers)
    read = len(every) + 1 + tower.layer
    for layer in every[read:]:
        layer.requires_grad_(False)
    return model, read


def build(base: Base, features: Features, settings: PassSettings, options: Any) -> Trainee:
    """Return a Subject-Diffusion model to train. Raises MismatchError for a base that its files cannot be for."""
    wanted, streams = layout.stream_of(base.context), [tower.stream for tower in base.texts.towers]
    inputs = base.unet.conv_in.in_channels
    if streams != [wanted] or inputs + 1 not in layout.INPUTS:
        found = f"text encoders {', '.join(streams)} and a UNet with {inputs} input channels"
        do = 'Set kind = "diffusers" and the folder of SD1.5 or SD2 in [base].'
        raise MismatchError("SD1.5, SD2 or the rehearsal world as the base of Subject-Diffusion", found, do)
    return SubjectDiffusionTrainee(base, features, settings, options)


def _seen(draw: Draw) -> list[tuple[ExampleSubject, Box]]:
    """The subjects that are in the picture as it was cut, with their boxes."""
    boxes = [None if s.mask is None else box_in(s.mask) for s in draw.example.subjects]
    return [(s, box) for s, box in zip(draw.example.subjects, boxes, strict=True) if box is not None]


def _mask(subject: ExampleSubject) -> torch.Tensor:
    if subject.mask is None:
        raise ValueError(f"'{subject.name}': expected a mask, found none")
    return subject.mask


def dropped_parts(draw: Draw, options: Options) -> tuple[bool, bool]:
    """Return whether a picture's text, and its mask channel, are left out."""
    number = draw.chance("drop").random()
    both, text = options.drop_both, options.drop_both + options.drop_text
    return number < text, number < both or text <= number < text + options.drop_mask
