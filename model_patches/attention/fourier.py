"""A box as numbers a network can read: Fourier embedding of its corners (GLIGEN, arXiv 2301.07093; Subject-Diffusion,
arXiv 2307.11410).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

FREQUENCIES = 8  # of every published file
TEMPERATURE = 100.0


def box_frequencies(count: int = FREQUENCIES, device: torch.device | str | None = None) -> Float[Tensor, "{count}"]:
    """Return `f_k = 100^(k / count)` for k = 0 .. count - 1: [count] float32, radians per picture side (no pi
    in them).
    """
    return TEMPERATURE ** (torch.arange(count, dtype=torch.float32, device=device) / count)


def box_fourier(boxes: Shaped[Tensor, "*any 4"], count: int = FREQUENCIES) -> Float[Tensor, "*any {count*8}"]:
    """Return the sines and cosines of a box's corners.

    Arguments:
        boxes: [..., 4], left, top, right, bottom in 0..1 of the picture's width and height; any dtype. An absent box is
            four zeros, which embed as sin 0 and cos 0.
        count: number of frequencies.
    Returns:
        [..., count * 8] float32, frequency slowest, then sine and cosine, then coordinate: sin(f_0 x1), sin(f_0 y1),
        sin(f_0 x2), sin(f_0 y2), cos(f_0 x1), ..., sin(f_1 x1), ... float32 because f reaches 56, where half precision
        loses two digits.
    """
    angles = boxes.float().unsqueeze(-2) * box_frequencies(count, boxes.device).unsqueeze(-1)  # ..., count, 4
    return torch.cat((angles.sin(), angles.cos()), -1).flatten(-2)
