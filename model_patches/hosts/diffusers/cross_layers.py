"""The text cross-attention layers of a diffusers UNet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from ...checkpoints.trained_ip import UNET_PARTS
from ...errors import MismatchError


class TextAttention(Protocol):
    """diffusers' Attention as it is in a text cross-attention layer: with every projection."""

    to_q: nn.Linear
    to_k: nn.Linear
    to_v: nn.Linear
    to_out: nn.ModuleList
    heads: int
    processor: Any

    def set_processor(self, processor: Any) -> None:
        """Put a processor in place of the present one."""
        ...

    def prepare_attention_mask(self, attention_mask: torch.Tensor, target_length: int, batch_size: int) -> torch.Tensor:
        """Return a mask [B, 1, T] for each head, [B*H, 1, T]."""
        ...


@dataclass(frozen=True, eq=False)
class CrossLayer:
    """One text cross-attention layer (`attn2`) and the transformer it is in, which knows the grid."""

    attention: TextAttention
    transformer: Transformer2DModel


def cross_layers(unet: UNet2DConditionModel) -> tuple[CrossLayer, ...]:
    """Return all text cross-attention layers in checkpoint order (down, up, mid): layer j has the published index 2j +
    1.

    Raises:
        MismatchError: the model has none.
    """
    transformers = (
        m for part in UNET_PARTS for m in getattr(unet, part).modules() if isinstance(m, Transformer2DModel)
    )
    blocks = (
        (block, t) for t in transformers for block in cast("Iterable[BasicTransformerBlock]", t.transformer_blocks)
    )
    found = tuple(CrossLayer(cast(TextAttention, block.attn2), t) for block, t in blocks if block.attn2 is not None)
    if not found:
        raise MismatchError(
            "a UNet of the SD1.5, SD2 or SDXL family",
            f"a {type(unet).__name__} without text cross-attention",
            "Load the 'unet' folder of such a model.",
        )
    return found
