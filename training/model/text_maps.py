"""Text attention, and image attention beside it, whose probabilities are kept for losses on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.nn.functional import pad

from ...model_patches.attention.heads import join_heads, split_heads
from ...model_patches.hosts.diffusers.cross_layers import TextAttention
from ...model_patches.hosts.diffusers.image_attention import CrossAttentionProcessor
from ...model_patches.hosts.diffusers.sampling import join_prompts
from .image_attention import BatchDelta


class TextMaps:
    """The text attention of a UNet's middle blocks in one pass: all blocks with text attention but the first and last.

    maps: [B * H, N, L] of each layer, batch-major, after the softmax, a token's share at its row of the prompt before
    `join`; image_maps: [B * H, N, S] over S image tokens, of layers with a `BatchDelta`, which is installed first; on:
    whether they are kept.
    """

    def __init__(self) -> None:
        self.maps: dict[int, torch.Tensor] = {}
        self.image_maps: dict[int, torch.Tensor] = {}
        self.on = False
        self.lengths: tuple[int, ...] = ()

    def join(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join the pass's prompts, each [1, T_i, D], to [B, L, D], see `join_prompts`."""
        self.lengths = tuple(one.shape[1] for one in states)
        return join_prompts(states, 1)

    def begin(self, on: bool) -> None:
        """Forget the maps of the pass before, and keep those of the next one if `on`."""
        self.maps, self.image_maps, self.on, self.lengths = {}, {}, on, ()

    def install(self, unet: UNet2DConditionModel) -> None:
        """Put processors on the layers, for good; they are the ones before unless `on`."""
        blocks = [block for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks) if _layers(block)]
        for index, attention in enumerate(layer for block in blocks[1:-1] for layer in _layers(block)):
            attention.set_processor(MapProcessor(self, index, attention.processor))


class MapProcessor:
    """One layer's text attention with its probabilities.

    owner: takes the maps; index: of the layer; previous: the processor that was there.
    """

    def __init__(self, owner: TextMaps, index: int, previous: Any):
        self.owner, self.index, self.previous = owner, index, previous

    def __call__(
        self,
        attention: TextAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Any = None,
        *more: Any,
        **named: Any,
    ) -> torch.Tensor:
        """hidden_states [B, N, C], encoder_hidden_states [B, L, D] -> [B, N, C], after `to_out`."""
        if not self.owner.on:
            return self.previous(attention, hidden_states, encoder_hidden_states, *more, **named)
        heads, visual = attention.heads, attention.to_q(hidden_states)
        query, keys, values = (
            split_heads(x, heads)
            for x in (visual, attention.to_k(encoder_hidden_states), attention.to_v(encoder_hidden_states))
        )
        logits = query @ keys.transpose(2, 3) * query.shape[-1] ** -0.5  # B, H, N, L
        shares = logits.softmax(-1, dtype=torch.float32)
        self.owner.maps[self.index] = _without_copies(shares, self.owner.lengths).flatten(0, 1)
        text = join_heads(shares.to(values.dtype) @ values)
        deltas = self.previous.deltas if isinstance(self.previous, CrossAttentionProcessor) else ()
        acting = [delta for delta in deltas if isinstance(delta, BatchDelta) and delta.active]
        for delta in acting:
            self.owner.image_maps[self.index] = delta.shares(visual).float()
        to_out, dropout = attention.to_out
        return dropout(to_out(sum((delta(visual, lambda: text) for delta in acting), text)))


def _without_copies(shares: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Each token's share [B, H, N, L] over all copies of a repeated prompt, in its first one, and 0 in the others.

    lengths: of the prompts; none if they were not joined.
    """
    whole = shares.shape[-1]
    if all(length == whole for length in lengths):
        return shares
    each = zip(shares, lengths, strict=True)
    return torch.stack([pad(one.unflatten(-1, (-1, t)).sum(-2), (0, whole - t)) for one, t in each])


def _layers(block: Any) -> list[TextAttention]:
    transformers = getattr(block, "attentions", None) or ()
    return [inner.attn2 for transformer in transformers for inner in transformer.transformer_blocks]
