"""A loaded subject adapter, free of any host: what it is, what it needs, its modules."""
from __future__ import annotations

from dataclasses import dataclass, field
from uuid import uuid4

from torch import nn

from .checkpoints.catalogue import encoder_of_width
from .encoders.decoupled import DecoupledLayers

BASES = {768: "SD1.5", 1024: "SD2.x", 2048: "SDXL"}  # context width -> base model


def base_name(context_dim: int) -> str:
    """'SDXL', or the width in words where no known base has it."""
    return BASES.get(context_dim, f"a base model with {context_dim}-wide text")


@dataclass(frozen=True)
class EncoderNeed:
    """Which output of which CLIP vision encoder an adapter reads: kind 'pooled' or 'penultimate', and its width."""

    kind: str
    width: int

    def fits(self, hidden: int, pooled: int) -> bool:
        """Whether an encoder with these widths serves. ViT-H's hidden and bigG's pooled width are both 1280: the kind tells them apart."""
        return self.width == (pooled if self.kind == "pooled" else hidden)

    def describe(self) -> str:
        """'CLIP ViT-H/14 (...)', or the widths where no published encoder has them."""
        known = encoder_of_width(self.kind, self.width)
        return known.name if known else f"a CLIP vision encoder with {self.kind} width {self.width}"


@dataclass(frozen=True)
class AdapterSpec:
    """What a file turned out to be.

    family: 'ip_adapter' or 'mip_adapter'; projection: 'ImageProj', 'Resampler' or 'FaceMLP'; file: label for messages; tokens: image tokens
    a subject (0: one per encoder token); widths: of the cross-attention layers in checkpoint order; framing, merge: as published.
    """

    family: str
    projection: str
    file: str
    context_dim: int
    tokens: int
    encoder: EncoderNeed
    widths: tuple[int, ...]
    text_gain: bool
    framing: str = "pad"
    merge: str = "relevance"

    @property
    def base(self) -> str:
        """Name of the base model that the file is for."""
        return base_name(self.context_dim)

    def describe(self) -> str:
        """One line for logs and errors."""
        kind = "MIP-Adapter" if self.family == "mip_adapter" else "IP-Adapter"
        return f"{kind} for {self.base} ({self.projection}, {len(self.widths)} layers)"


@dataclass(frozen=True, eq=False)
class Adapter:
    """Modules of one file: `projection` turns encoder output into tokens, `layers` attend to them."""

    spec: AdapterSpec
    projection: nn.Module
    layers: DecoupledLayers
    id: str = field(default_factory=lambda: uuid4().hex)
