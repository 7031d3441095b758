"""Image attention of a training batch, in which every picture has references of its own.

The attention is the embedded engine's: its processor, and `layer_delta` on tokens in which each picture is a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from ...model_patches.attention.decoupled import LayerTokens, Mixing, token_shares
from ...model_patches.attention.heads import split_heads
from ...model_patches.binding.layer_tokens import layer_delta
from ...model_patches.encoders.decoupled import ImageLayer
from ...model_patches.hosts.diffusers.cross_layers import TextAttention, cross_layers
from ...model_patches.hosts.diffusers.image_attention import CrossAttentionProcessor


@dataclass(frozen=True, eq=False)
class BatchReferences:
    """Input of the layers in one pass. Letters: B pictures, M subjects at most, T image tokens a subject.

    tokens: [B, M * T, D]; valid: [B, M * T] bool, tokens that are there, or None for all; subjects: M; names: [B, L, D]
    states of the names' tokens and segments: [B, M, L] float32, rows that average each subject's, or None and None.
    """

    tokens: torch.Tensor
    valid: torch.Tensor | None
    subjects: int
    names: torch.Tensor | None = None
    segments: torch.Tensor | None = None


class BatchAttention:
    """The references of the present batch, and what puts them on a UNet.

    mixing: how subjects share a position; merged: strength at which the adapter's own text LoRA is on the UNet, for
    layers that read image tokens through the UNet's projections.
    """

    def __init__(self, mixing: Mixing, merged: float = 0.0):
        self.mixing, self.merged, self.references = mixing, merged, None

    references: BatchReferences | None

    def install(self, unet: UNet2DConditionModel, layers: list[ImageLayer]) -> None:
        """Put a delta on every text cross-attention layer, for good; without references it is inactive."""
        for cross, layer in zip(cross_layers(unet), layers, strict=True):
            attention = cross.attention
            delta = BatchDelta(self, layer, attention)
            attention.set_processor(CrossAttentionProcessor.on(attention.processor, delta))


@dataclass(frozen=True, eq=False)
class BatchDelta:
    """Contribution of a batch's references to one layer; replaces `image_attention.LayerDelta`."""

    owner: BatchAttention
    layer: ImageLayer
    attention: TextAttention

    @property
    def active(self) -> bool:
        """Whether there are references."""
        return self.owner.references is not None

    def __call__(self, query: torch.Tensor, text: Callable[[], torch.Tensor]) -> torch.Tensor:
        """query [B, N, C] -> [B, N, C]; text() gives plain text attention."""
        given = self._given
        tokens = self._tokens(given)
        if given.names is not None:
            tokens = replace(tokens, name_keys=self.attention.to_k(given.names), segments=given.segments)
        gain = self.layer.gain_weights(query.device, given.tokens.dtype)
        delta = layer_delta(
            query.unsqueeze(1),
            tokens,
            torch.ones(given.subjects, device=query.device),
            self.attention.heads,
            self.owner.mixing,
            None,
            gain,
            None if gain is None else text().unsqueeze(1).to(gain.dtype),
            None,
        )
        return delta.flatten(0, 1).flatten(-2)

    def shares(self, query: torch.Tensor) -> torch.Tensor:
        """Return the share of every image token in the attention of query [B, N, C], [B * H, N, M * T], batch-major."""
        given, heads = self._given, self.attention.heads
        tokens = self._tokens(given).in_heads(heads)
        found = token_shares(
            split_heads(query, heads), tokens, given.subjects, given.valid, self.owner.mixing.rule.one_softmax
        )
        return found.flatten(2, 3).transpose(2, 3).flatten(0, 1)

    @property
    def _given(self) -> BatchReferences:
        if self.owner.references is None:
            raise ValueError("image attention: expected references, found none")
        return self.owner.references

    def _tokens(self, given: BatchReferences) -> LayerTokens:
        to_k, to_v = (self.attention.to_k, self.attention.to_v) if self.layer.needs_base else (None, None)
        return LayerTokens(
            self.layer.keys(given.tokens, to_k, self.owner.merged),
            self.layer.values(given.tokens, to_v, self.owner.merged),
            valid_tokens=given.valid,
        )
