"""Attention heads apart and together again.

Letters: G groups of rows, T tokens or positions, H heads, d channels a head.
"""

from __future__ import annotations

import torch


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Map [G, T, H*d] to [G, H, T, d], contiguous."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()


def join_heads(x: torch.Tensor) -> torch.Tensor:
    """Map [G, H, T, d] to [G, T, H*d]."""
    return x.transpose(1, 2).flatten(2)
