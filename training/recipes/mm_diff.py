"""MM-Diff (arXiv 2403.15059): subjects in the prompt and in image attention, both bound to the subjects' places.

The published files are for SDXL; those for SD1.5 and the rehearsal world, with one text encoder, have the same layout.
No training code was published. Our choices: image tokens come from a head for any object (the published one reads
faces), both constraints have FastComposer's factor and layers, the image encoder is frozen, and of the text encoders
only CLIP-L has a LoRA (the published pipeline does not load bigG's).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ...model_patches.adapter import Adapter, ImageAttentionSpec, PromptSpec
from ...model_patches.attention.decoupled import Mixing
from ...model_patches.encoders.decoupled import layers_of
from ...model_patches.encoders.lora import LowRank
from ...model_patches.encoders.mm_diff import LoraLayer, LoraLayers, MMDiffHeads
from ...model_patches.encoders.refiner import REFINER_HEAD_WIDTH
from ...model_patches.encoders.words import WordFusion
from ...model_patches.errors import MismatchError
from ...model_patches.families.mm_diff import layout
from ...model_patches.families.mm_diff.encode import IDENTITY_FEATURES
from ...model_patches.families.mm_diff.unet import BLOCKS_OF, LORA_TARGETS
from ...model_patches.hosts.diffusers.encoders import Prompt
from ...model_patches.hosts.diffusers.prompt import TextsPromptEncoder
from ...model_patches.hosts.diffusers.unet_blocks import transformer_blocks
from ...model_patches.prompt.fusion import fuse_prompts
from ...model_patches.subjects import References, ReferenceSubject
from ..config.setting import chance, setting
from ..examples.draws import Draw
from ..examples.example import ExampleSubject
from ..losses import image_constraint, localization_losses
from ..model.base import Base
from ..model.captions import token_positions, unmarked
from ..model.features import Features
from ..model.image_attention import BatchAttention, BatchReferences
from ..model.low_rank import PairSwitch, begin, new_pair
from ..model.text_maps import TextMaps
from .drops import dropped
from .mm_diff_start import begin_with_file, begin_with_images
from .recipe import Batch, Exported, Losses, PassSettings, Trainee

HEAD_OF = {
    feature: head for head, feature in IDENTITY_FEATURES.items()
}  # what the head reads -> as the loader recognises it
SHARED = ("to_k_lora", "to_v_lora")  # pairs of a cross-attention that its image tokens are projected without
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")

uses_every_parameter = True


@dataclass(frozen=True)
class Options:
    """`[recipe]` of mm_diff. drop_text, drop_images and drop_both exclude each other."""

    start: str = ""  # a file of this recipe that the training begins with, of the sizes set here
    start_images: str = (
        ""  # an IP-Adapter file whose image attention the training begins with, as near as image_rank allows
    )
    # what image tokens are made of beside the patches: CLIP's projected embedding, or CLS before the projection
    identity: str = setting("pooled", choices=tuple(HEAD_OF))
    tokens: int = setting(4, least=1)  # image tokens of a subject
    hidden: int = setting(1024, least=1)  # size between the head's two linear layers
    depth: int = setting(4, least=1)  # layers of the SE-Refiner
    rank: int = setting(64, least=1)  # of the UNet's LoRAs
    image_rank: int = setting(0, least=0)  # of those for image tokens, 0 for `rank`; a small one rounds start_images
    text_rank: int = setting(64, least=1)  # of the text encoder's LoRA; the published rank is not known
    text_constraint: float = setting(1e-3, least=0.0)  # factor of the localization loss; it needs masks or boxes
    image_constraint: float = setting(1e-3, least=0.0)  # the same, of image attention
    drop_text: float = chance(0.05)  # part of the pictures whose caption is empty
    drop_images: float = chance(0.05)  # ... that have no subjects, neither in the prompt nor in image attention
    drop_both: float = chance(0.05)


@dataclass(frozen=True, eq=False)
class Sights:
    """Subjects of a batch on the UNet's device, M of each picture at most.

    captions: "" where dropped; subjects: () where dropped; words, identity: [B * M, E] and dense: [B * M, P, D] of the
    image encoder; valid: [B, M] bool, whole if all are; masks: [B, M, S, S]; rows: [B, M] of the text; in_text,
    in_picture: [B, M] bool, subjects with a mask whose word, or whose image tokens, are there.
    """

    captions: tuple[str, ...]
    subjects: tuple[tuple[ExampleSubject, ...], ...]
    words: torch.Tensor
    identity: torch.Tensor
    dense: torch.Tensor
    valid: torch.Tensor
    masks: torch.Tensor
    rows: torch.Tensor
    in_text: torch.Tensor
    in_picture: torch.Tensor
    whole: bool


class MMDiffTrainee(Trainee):
    """An MM-Diff in training: heads, word fusion, image attention, and LoRAs of the UNet and of CLIP-L.

    options: of the recipe; the other arguments as in `Trainee`.
    """

    in_prompt = True

    def __init__(self, base: Base, features: Features, settings: PassSettings, options: Options):
        super().__init__(base, features, settings)
        self.options = options
        self.heads, self.fusion = _heads(base, features, options)
        self.layers, self.unet_pairs = _unet_pairs(base, options.rank, options.image_rank or options.rank)
        self.text_pairs = _text_pairs(base, options.text_rank)
        self.spec = layout.describe(self.heads, self.fusion, self.layers, "the adapter in training")
        self.attention, self.in_unet, self.in_text = BatchAttention(Mixing("joint"), 1.0), PairSwitch(), PairSwitch()
        for layer, pair in _paired_unet_layers(base, self.layers, self.unet_pairs):
            self.in_unet.put(layer, pair)
        for layer, pair in _paired_text_layers(base, self.text_pairs):
            self.in_text.put(layer, pair)
        self.attention.install(base.unet, list(layers_of(self.layers)))
        self.maps = TextMaps()
        self.maps.install(base.unet)
        self.weights: Mapping[str, float] = {
            "diffusion": 1.0,
            "text_constraint": options.text_constraint,
            "image_constraint": options.image_constraint,
        }
        self._pooled: torch.Tensor | None = None

    def captions(self, draws: Sequence[Draw]) -> list[str]:
        """Return captions, some of them dropped."""
        return ["" if dropped(draw, self.options).text else draw.example.caption for draw in draws]

    def prompts(self, draws: Sequence[Draw]) -> Sequence[Prompt]:
        """Return none: the text encoder changes."""
        return ()

    def add(self, draws: Sequence[Draw]) -> Sights:
        """Return the image encoder's views of every subject, and where the subjects are."""
        subjects = [() if dropped(draw, self.options).images else draw.example.subjects for draw in draws]
        m = max([1, *map(len, subjects)])
        words, identity, dense = (
            self._views(subjects, m, kind, framing)
            for kind, framing in (("pooled", "black"), (self.options.identity, "pad"), ("penultimate", "pad"))
        )
        captions, side = self.captions(draws), draws[0].example.pixels.shape[-1]
        masks, rows = torch.zeros(len(draws), m, side, side), torch.zeros(len(draws), m, dtype=torch.long)
        valid, in_text, in_picture = (torch.zeros(len(draws), m, dtype=torch.bool) for _ in range(3))
        for b, (caption, row) in enumerate(zip(captions, subjects, strict=True)):
            found = token_positions(self.base.texts, caption, [s.name for s in row]) if caption and row else ()
            for i, subject in enumerate(row):
                valid[b, i] = True
                if subject.mask is not None:
                    masks[b, i], in_picture[b, i], in_text[b, i] = subject.mask, True, bool(found)
            for i, at in enumerate(found):
                rows[b, i] = at.row
        device = self.base.unet.device
        tensors = (words, identity, dense, valid, masks, rows, in_text, in_picture)
        on_device = (tensor.to(device) for tensor in tensors)
        return Sights(tuple(captions), tuple(map(tuple, subjects)), *on_device, whole=bool(valid.all()))

    def context(self, batch: Batch) -> torch.Tensor:
        """Return text states with the subjects in them, through the LoRA; image tokens go to the layers."""
        sights: Sights = batch.extra
        b, m = sights.valid.shape
        *words, tokens = self.heads(sights.words, sights.identity, sights.dense)
        shown = tokens.unflatten(0, (b, m))  # B, M, T, C
        valid = sights.valid.unsqueeze(-1).expand(-1, -1, shown.shape[2]).flatten(1)
        self.attention.references = BatchReferences(shown.flatten(1, 2), None if sights.whole else valid, m)
        self.in_unet.on = True
        self.maps.begin(self.options.text_constraint > 0 or self.options.image_constraint > 0)
        with self.in_text.acting():
            each = [w.unflatten(0, (b, m)) for w in words]
            prompts = [self._prompt(sights, i, [w[i] for w in each]) for i in range(b)]
            encoded = fuse_prompts(prompts, TextsPromptEncoder(self.base.texts, self.fusion))
        found = [text.fused for (text,), _ in encoded]
        pooled = [text.pooled for text in found if text.pooled is not None]
        self._pooled = torch.cat(pooled) if pooled else None
        return self.maps.join([text.states for text in found]).to(self.base.unet.device) + self._unused()

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Return the pooled texts of the present pass, with the subjects in them. Raises ValueError outside of one."""
        if self._pooled is None:
            raise ValueError("pooled texts: expected those of a pass, found none")
        return self._pooled

    def finish(self) -> None:
        """Take references, LoRAs and kept maps off the UNet."""
        self.attention.references, self.in_unet.on, self._pooled = None, False, None
        self.maps.begin(False)

    def more_losses(self, batch: Batch) -> Losses:
        """Return the constraints of text and image attention, means over the middle blocks' layers."""
        sights: Sights = batch.extra
        if not self.maps.on:
            none = batch.noised.weights.new_zeros(len(sights.rows))
            return {"text_constraint": none, "image_constraint": none}
        text, images = (list(maps.values()) for maps in (self.maps.maps, self.maps.image_maps))
        return {
            "text_constraint": localization_losses(text, sights.masks, sights.rows, sights.in_text),
            "image_constraint": image_constraint(images, sights.masks, sights.in_picture),
        }

    def export(self) -> Exported:
        """Return the three published files as one bundle."""
        metadata = {"format": layout.FORMAT, "version": str(layout.VERSION)}
        return Exported({name: value.float().cpu().clone() for name, value in self.published().items()}, metadata)

    def published(self) -> dict[str, torch.Tensor]:
        """Return the trained weights by the bundle's names, sharing memory."""
        modules = nn.ModuleDict({"heads": self.heads, "fusion": self.fusion})
        state = {layout.file_name(name): value for name, value in modules.state_dict().items()}
        for name, value in self.layers.state_dict().items():
            _, j, rest = name.split(".", 2)
            state[f"{layout.BELOW}{2 * int(j) + 1}.{rest}"] = value
        state |= {f"{layout.BELOW}{name}": value for name, value in self.unet_pairs.state_dict().items()}
        for name, value in self.text_pairs.state_dict().items():
            n, target, rest = name.split(".", 2)
            where = f"text_encoder.text_model.encoder.layers.{n}.self_attn.{target}"
            state[f"{where}.lora_linear_layer.{rest}"] = value
        return state

    def adapter(self) -> Adapter:
        """Return the adapter as the loader reads it."""
        exported = self.export()
        return layout.build(exported.state, "the adapter in training", metadata=exported.metadata)

    def _views(self, subjects: Sequence[Sequence[ExampleSubject]], m: int, kind: str, framing: str) -> torch.Tensor:
        """Output of the image encoder for every place of a subject, [B * M, ...]; for empty ones no photo's."""
        found = iter(self.features.photos([s for row in subjects for s in row], kind, framing))
        nothing = self.features.no_photo(kind)
        return torch.stack([next(found) if i < len(row) else nothing for row in subjects for i in range(m)])

    def _prompt(self, sights: Sights, number: int, vectors: Sequence[torch.Tensor]) -> tuple[References, str]:
        """One picture's subjects and its caption for `fuse_prompts`. vectors: [M, d] for each text encoder."""
        caption = sights.captions[number]
        subjects = sights.subjects[number] if caption else ()
        each = [dict(zip(self.spec.part(PromptSpec).streams, pair, strict=True)) for pair in zip(*vectors, strict=True)]
        made = [
            ReferenceSubject(s.name, None, None, words={stream: v.unsqueeze(0) for stream, v in words.items()})
            for s, words in zip(subjects, each, strict=False)
        ]
        shell = Adapter(self.spec, None, None, fusion=self.fusion)
        return References(shell, tuple(made), None), unmarked(caption)

    def _unused(self) -> torch.Tensor:
        """0, with gradients of 0 for what makes words: in a batch without subjects it has no others."""
        return torch.stack(
            [0.0 * p.sum() for module in (self.heads.words, self.fusion) for p in module.parameters()]
        ).sum()


def build(base: Base, features: Features, settings: PassSettings, options: Options) -> Trainee:
    """Return an MM-Diff to train. Raises MismatchError for a base that its files cannot be for, and for an image
    encoder whose sizes make a file that is read as of another kind.
    """
    streams, wanted = [tower.stream for tower in base.texts.towers], list(layout.FUSIONS)
    if _blocks(base) is None or streams != (wanted if _blocks(base) == BLOCKS_OF["SDXL"] else wanted[:1]):
        found = f"{len(transformer_blocks(base.unet))} transformer blocks and text encoders {', '.join(streams)}"
        do = 'Set kind = "diffusers" and the folder of SDXL or SD1.5 in [base], or kind = "rehearsal".'
        raise MismatchError("SDXL, SD1.5 or the rehearsal world as the base of MM-Diff", found, do)
    trainee = MMDiffTrainee(base, features, settings, options)
    head = trainee.spec.part(ImageAttentionSpec).projection
    if head != HEAD_OF[options.identity]:
        found = f"sizes with which it would be read as {head}"
        do = "Set image_encoder in [base] to CLIP ViT-L/14, as published."
        raise MismatchError(f"an image encoder whose {options.identity} output tells what the file reads", found, do)
    if options.start and options.start_images:
        do = 'Leave one of them out; to leave out that of a recipe\'s file, set it to "".'
        raise MismatchError("either 'start' or 'start_images'", "both", do)
    if options.start:
        begin_with_file(trainee.published(), trainee.spec, Path(options.start))
    if options.start_images:
        blocks, layers = transformer_blocks(base.unet), cast("list[LoraLayer]", list(trainee.layers.layers))
        attentions = [blocks[path].attn2 for path in _blocks(base) or []]
        begin_with_images(trainee.heads.head, layers, attentions, Path(options.start_images))
    return trainee


def _heads(base: Base, features: Features, options: Options) -> tuple[MMDiffHeads, nn.ModuleDict]:
    """Heads and word fusion of the published sizes, where a base and an image encoder do not set them."""
    context, images = base.context, features.images
    widths = {tower.stream: tower.model.config.hidden_size for tower in base.texts.towers}
    words = {
        "embed_dim": images.pooled,
        "hidden_dim": images.pooled,
        "one_dim": widths["l"],
        "two_dim": widths.get("g", 0),
    }
    head = {
        "vector_dim": images.pooled if options.identity == "pooled" else images.hidden,
        "hidden_dim": options.hidden,
        "tokens": options.tokens,
        "context_dim": context,
        "refiner": {
            "dim": context,
            "depth": options.depth,
            "inner": max(context // REFINER_HEAD_WIDTH, 1) * REFINER_HEAD_WIDTH,
            "ff_inner": 2 * context,
            "embed_dim": images.hidden,
            "out_dim": context,
        },
    }
    fusion = nn.ModuleDict({stream: WordFusion(2 * d, d, d) for stream, d in widths.items()})
    return MMDiffHeads(words, head), fusion


def _blocks(base: Base) -> list[str] | None:
    """LDM paths of the base's transformer blocks in the order of the files; None for an unknown UNet."""
    there = transformer_blocks(base.unet).keys()
    return next((blocks for blocks in BLOCKS_OF.values() if there == set(blocks)), None)


def _unet_pairs(base: Base, rank: int, image_rank: int) -> tuple[LoraLayers, nn.ModuleList]:
    """Pairs that image attention knows, and all others: of each self- and cross-attention by its published number."""
    blocks, paths = transformer_blocks(base.unet), _blocks(base) or []
    widths = [blocks[path].attn1.to_q.out_features for path in paths]
    layers = LoraLayers(base.context, widths, [image_rank] * len(widths), [rank] * len(widths))
    for pair in layers.modules():
        if isinstance(pair, LowRank):
            begin(pair)
    pairs = []
    for path in paths:
        for attention, names in (
            (blocks[path].attn1, LORA_TARGETS),
            (blocks[path].attn2, LORA_TARGETS.keys() - SHARED),
        ):
            pairs.append(nn.ModuleDict({name: new_pair(_target(attention, name), rank) for name in sorted(names)}))
    return layers, nn.ModuleList(pairs)


def _paired_unet_layers(base: Base, layers: LoraLayers, pairs: nn.ModuleList) -> Iterable[tuple[nn.Module, LowRank]]:
    """Every linear layer of the UNet's attention with its pair; those for image tokens are no layer's."""
    blocks = transformer_blocks(base.unet)
    for j, path in enumerate(_blocks(base) or []):
        shared = cast(LoraLayer, layers.layers[j])
        for attention, own in ((blocks[path].attn1, pairs[2 * j]), (blocks[path].attn2, pairs[2 * j + 1])):
            for name in LORA_TARGETS:
                found = cast(nn.ModuleDict, own)
                yield _target(attention, name), cast(LowRank, found[name] if name in found else getattr(shared, name))


def _target(attention: Any, name: str) -> nn.Linear:
    return attention.get_submodule(LORA_TARGETS[name])


def _text_pairs(base: Base, rank: int) -> nn.ModuleList:
    """Pairs of CLIP-L's self-attention, as far as the base model reads it: SDXL does not read the last layer."""
    return nn.ModuleList(
        nn.ModuleDict({name: new_pair(cast(nn.Linear, layer.get_submodule(name)), rank) for name in TEXT_TARGETS})
        for layer in _text_layers(base)
    )


def _paired_text_layers(base: Base, pairs: nn.ModuleList) -> Iterable[tuple[nn.Module, LowRank]]:
    for layer, own in zip(_text_layers(base), pairs, strict=True):
        for name in TEXT_TARGETS:
            yield layer.get_submodule(name), cast(LowRank, cast(nn.ModuleDict, own)[name])


def _text_layers(base: Base) -> list[nn.Module]:
    """Self-attention of CLIP-L's layers that the base model reads."""
    tower = base.texts.towers[0]
    model: Any = getattr(tower.model, "text_model", tower.model)
    attentions = [layer.self_attn for layer in model.encoder.layers]
    return attentions[: len(attentions) + 1 + tower.layer]
