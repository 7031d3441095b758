"""Attention heads apart and together again.

Letters: G groups of rows, T tokens or positions, H heads, d channels a head.
"""
from __future__ import annotations

import torch


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[G, T, H*d] -> [G*H, T, d], contiguous."""
    g, t, c = x.shape
    return x.reshape(g, t, heads, c // heads).transpose(1, 2).reshape(g * heads, t, c // heads)


def join_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[G*H, T, d] -> [G, T, H*d]."""
    _, t, d = x.shape
    return x.view(-1, heads, t, d).transpose(1, 2).reshape(-1, t, heads * d)
