"""A loaded subject adapter, free of any host: what it is, what it needs, its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, TypeAlias, TypeVar
from uuid import uuid4

import torch
from torch import nn

from .bases import base_name
from .checkpoints.catalogue import encoder_of_width
from .encoders.decoupled import ImageLayers
from .encoders.gated import GatedLayers


@dataclass(frozen=True)
class EncoderNeed:
    """The output of a CLIP vision encoder that an adapter reads: kind 'pooled', 'penultimate', 'last' or 'unprojected',
    and its width.

    'last' is the last hidden state before its norm, with the pooled vector beside it; 'unprojected' is CLS after the
    last norm, before the projection that makes it the pooled vector.
    """

    kind: str
    width: int

    def fits(self, hidden: int, pooled: int) -> bool:
        """Return whether an encoder with these widths serves.

        ViT-H's hidden and bigG's pooled width are both 1280: the kind distinguishes them.
        """
        return self.width == (pooled if self.kind == "pooled" else hidden)

    def describe(self) -> str:
        """Return 'CLIP ViT-H/14 (...)', or the widths where no published encoder has them."""
        known = encoder_of_width(self.kind, self.width)
        return (
            known.name
            if known
            else f"a CLIP vision encoder with {'projection' if self.kind == 'pooled' else 'hidden'} size {self.width}"
        )


@dataclass(frozen=True)
class PhotoSpec:
    """The way an adapter reads photos.

    encoder: the image encoder's output that it reads; framing: as published: 'pad', 'center', 'stretch' or 'black'.
    """

    EXPECTED: ClassVar[str] = "a file that reads photos"
    encoder: EncoderNeed
    framing: str = "pad"


@dataclass(frozen=True)
class ImageAttentionSpec:
    """The description of a file's image attention.

    projection: name of the net that makes the image tokens: 'ImageProj', 'Resampler', 'FaceMLP', ...; widths: of the
    layers in checkpoint order; tokens: image tokens a subject, 0: one per encoder token; text_gain: whether the layers
    have `text_to_weight`; merge: as published.
    """

    EXPECTED: ClassVar[str] = "a file with image attention"
    projection: str
    widths: tuple[int, ...]
    tokens: int
    text_gain: bool
    merge: str = "relevance"


@dataclass(frozen=True)
class GatedSpec:
    """The description of a file's gated layers.

    kind: name of the net that makes their object tokens, for messages and tests; nothing is decided by it.
    block_widths: path of each layer's transformer block in an LDM UNet -> its width C, as
        'input_blocks.1.1.transformer_blocks.0', in the order of the layers; object_dim: D of an object token;
        feature_dim: E of a feature; slots: objects that the layers were trained with, absent ones are null tokens;
        tokens: object tokens a slot.
    """

    EXPECTED: ClassVar[str] = "a file with gated layers"
    kind: str
    block_widths: Mapping[str, int]
    object_dim: int
    feature_dim: int
    slots: int
    tokens: int


@dataclass(frozen=True)
class PromptFusion:
    """A way to put a photo's vectors into an encoded prompt. The families combine these; `prompt.fusion` reads them.

    after_encoder: on the text encoder's output; otherwise on the word embeddings before it.
    learned: `Adapter.fusion` combines the word's vector with the photo's; otherwise the photo's vectors replace it.
    keeps_other_rows: of the output only the subjects' rows change; all others are the plain prompt's.
    in_suffix: at placeholders in a suffix of the prompt; otherwise at the subject's own word.
    starts_image_attention: the adapter's image attention begins with the fused prompt, not before it.
    """

    after_encoder: bool = False
    learned: bool = False
    keeps_other_rows: bool = False
    in_suffix: bool = False
    starts_image_attention: bool = False


@dataclass(frozen=True)
class PromptSpec:
    """The way an adapter adds subjects to the prompt.

    fusion: see `PromptFusion`; streams: the host's name of each text encoder it acts in ('l', 'g', 'h') -> its width;
    tokens: vectors a subject.
    """

    EXPECTED: ClassVar[str] = "a file that acts in the prompt"
    fusion: PromptFusion
    streams: Mapping[str, int]
    tokens: int = 1


PartSpec: TypeAlias = PhotoSpec | ImageAttentionSpec | GatedSpec | PromptSpec
AnyPart = TypeVar("AnyPart", bound=PartSpec)


@dataclass(frozen=True)
class AdapterSpec:
    """The description of an adapter file, composed of typed parts.

    family: a name in the LABELS of one of `families.registry.FAMILIES`; file: label for messages; context_dim: size of
    the base model's text embeddings; parts: what the adapter has, at most one of a type, in any order; label: the
    family's name in messages, '' for `family`. Raises ValueError for two parts of one type.
    """

    family: str
    file: str
    context_dim: int
    parts: tuple[PartSpec, ...]
    label: str = ""

    def __post_init__(self) -> None:
        # in one order, so that the given order makes no two specs differ
        parts = sorted(self.parts, key=lambda part: type(part).__name__)
        for one, following in pairwise(parts):
            if type(one) is type(following):
                raise ValueError(f"{self.file}: expected one part of a type, found two of {type(one).__name__}")
        object.__setattr__(self, "parts", tuple(parts))

    def has(self, kind: type[PartSpec]) -> bool:
        """Return whether the adapter has a part of that type."""
        return any(isinstance(part, kind) for part in self.parts)

    def part(self, kind: type[AnyPart]) -> AnyPart:
        """Return the part of that type. Raises ValueError if the adapter has none."""
        for part in self.parts:
            if isinstance(part, kind):
                return part
        raise ValueError(f"{self.file}: expected {kind.EXPECTED}, found {self.describe()}")

    @property
    def base(self) -> str:
        """Name of the base model that the file is for."""
        return base_name(self.context_dim)

    @property
    def node(self) -> str:
        """Display name of the node that applies the references."""
        if self.has(GatedSpec):
            return "Apply Gated Adapter"
        return "Encode Prompt with Subjects" if self.acts_in_prompt_only else "Apply Image Attention"

    @property
    def acts_in_prompt_only(self) -> bool:
        """Whether nothing of it acts in the UNet."""
        return not self.has(ImageAttentionSpec) and not self.has(GatedSpec)

    @property
    def acts_in(self) -> tuple[int, str]:
        """Number and name of the layers, or text encoders, that it acts in: (16, 'gated layers')."""
        if self.has(GatedSpec):
            return len(self.part(GatedSpec).block_widths), "gated layers"
        if self.has(ImageAttentionSpec):
            return len(self.part(ImageAttentionSpec).widths), "cross-attention layers"
        streams = len(self.part(PromptSpec).streams)
        return streams, "text encoder" if streams == 1 else "text encoders"

    def describe(self) -> str:
        """Return one line for logs and errors."""
        if self.has(GatedSpec):
            what = f"({len(self.part(GatedSpec).block_widths)} gated layers)"
        elif self.has(ImageAttentionSpec):
            attention = self.part(ImageAttentionSpec)
            what = f"({attention.projection}, {len(attention.widths)} layers)"
        else:
            what = "(subjects in the prompt)"
        return f"{self.label or self.family} for {self.base} {what}"


@dataclass(frozen=True, eq=False)
class LoraPair:
    """A low-rank change of one weight: `W + strength * (alpha / r) up down`. down [r, in], up [out, r]; alpha None:
    factor 1.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None = None


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of the base model that an adapter brings, by the host's names: whole tensors that replace the base's, and
    low-rank changes.

    unet, unet_lora: LDM names as 'input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight'; text: names of
    transformers' CLIPTextModel, as 'text_model.encoder.layers.0.mlp.fc1.weight', of the base's only text encoder;
    text_lora: the same names for each text encoder ('l', 'g', 'h'); vision: of transformers'
    CLIPVisionModelWithProjection.
    """

    unet: Mapping[str, torch.Tensor] = field(default_factory=dict)
    text: Mapping[str, torch.Tensor] = field(default_factory=dict)
    vision: Mapping[str, torch.Tensor] = field(default_factory=dict)
    unet_lora: Mapping[str, LoraPair] = field(default_factory=dict)
    text_lora: Mapping[str, Mapping[str, LoraPair]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Adapter:
    """Modules of one file (or set of files), None if it has none of a kind.

    projection: encoder output to tokens; layers: image attention; gated: gated layers and the net that makes their
    object tokens; weights: of the base model; fusion: by text encoder ('l', 'g', 'h'), what fuses a subject with its
    word there (kinds 'word' and 'postfuse').
    """

    spec: AdapterSpec
    projection: nn.Module | None
    layers: ImageLayers | None
    gated: GatedLayers | None = None
    weights: Weights = Weights()
    fusion: nn.ModuleDict | None = None
    id: str = field(default_factory=lambda: uuid4().hex)
