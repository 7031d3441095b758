"""Attention heads apart and together again.

Letters: G groups of rows, T tokens or positions, H heads, d channels a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Shaped


def split_heads(x: Shaped[Tensor, "G T Hd"], heads: int) -> Shaped[Tensor, "G {heads} T d"]:
    """Map [G, T, H*d] to [G, H, T, d], contiguous."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()


def join_heads(x: Shaped[Tensor, "G H T d"]) -> Shaped[Tensor, "G T H*d"]:
    """Map [G, H, T, d] to [G, T, H*d]."""
    return x.transpose(1, 2).flatten(2)
