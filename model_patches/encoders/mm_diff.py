"""MM-Diff as a whole: the heads that read a subject's photos, and the low-rank pairs that make its image attention
(arXiv 2403.15059).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..attention.lora import Projection, image_projection
from .decoupled import ImageLayers
from .lora import ImagePairs
from .refiner import SubjectHead
from .words import PhotoToWords


class MMDiffHeads(nn.Module):
    """`words` (PhotoToWords): a photo in the word space of each text encoder; `head` (SubjectHead): its tokens for
    image attention.

    Letters: m photos for words, n photos for tokens, E pooled width, V width of an identity vector, P patch tokens, D
    their width.

    Arguments:
        words: constructor arguments of PhotoToWords.
        head: constructor arguments of SubjectHead.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, words: dict[str, int], head: dict[str, Any], operations: Any = nn):
        super().__init__()
        self.words = PhotoToWords(**words, operations=operations)
        self.head = SubjectHead(**head, operations=operations)

    def forward(self, pooled: torch.Tensor, identity: torch.Tensor, dense: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map pooled [m, E], identity [n, V], dense [n, P, D] to words for CLIP-L [m, d1] and, where there is one,
        OpenCLIP-bigG [m, d2], and image tokens [n, T, C].
        """
        return *self.words(pooled), self.head(identity, dense)


class LoraLayer(ImagePairs):
    """One cross-attention layer, with the calls of a DecoupledLayer.

    It reads image tokens through the UNet's own projections.
    """

    needs_base = True

    def keys(self, tokens: torch.Tensor, to_k: Projection, merged: float = 1.0) -> torch.Tensor:
        """Map [..., S, D] image tokens to [..., S, C]; merged: strength of the text LoRA that is in `to_k`, the layer's
        own projection as it is now.
        """
        return image_projection(to_k, tokens, self.to_k_lora_image, self.to_k_lora, merged)

    def values(self, tokens: torch.Tensor, to_v: Projection, merged: float = 1.0) -> torch.Tensor:
        """Map [..., S, D] image tokens to [..., S, C]; the same with `to_v`."""
        return image_projection(to_v, tokens, self.to_v_lora_image, self.to_v_lora, merged)

    def gain_weights(self, device: torch.device, dtype: torch.dtype) -> None:
        """Return None: MM-Diff has no text gain, so text attention is unchanged (f = 1)."""


class LoraLayers(ImageLayers):
    """All layers in the order down, up, then mid.

    Arguments:
        context_dim: D, size of the text and image tokens.
        widths: C of each layer, in checkpoint order.
        ranks: of each layer's pairs for image tokens.
        text_ranks: of each layer's pairs for text.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(
        self,
        context_dim: int,
        widths: Sequence[int],
        ranks: Sequence[int],
        text_ranks: Sequence[int],
        operations: Any = nn,
    ):
        sizes = zip(widths, ranks, text_ranks, strict=True)
        layers = (
            LoraLayer(context_dim, width, rank, text_rank, operations=operations) for width, rank, text_rank in sizes
        )
        super().__init__(context_dim, widths, False, layers)
