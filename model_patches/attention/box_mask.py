"""Boxes as the extra input channel of a UNet, on the latent grid: 0 inside any box, 1 outside all.

Boxes are left, top, right, bottom in 0..1 of the picture's width and height; four zeros are no box. Rows and columns
are never mixed, so any picture format works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

CELL = 8  # pixels a latent cell is wide and high


def box_mask(boxes: Float[Tensor, "*any M 4"], grid: tuple[int, int]) -> Float[Tensor, "*any {grid[0]} {grid[1]}"]:
    """Return Subject-Diffusion's mask channel, drawn at pixel size, then resized with `nearest`, which samples pixel
    `CELL * i` for cell i.

    A box's edges are whole pixels; cell i is inside iff `left <= CELL * i < right`. The channel is not scaled by sigma;
    several subjects are the product of their masks.

    Arguments:
        boxes: [..., M, 4]; grid: (h, w) of the latent; the picture has CELL times as many pixels a side.
    Returns:
        [..., h, w] float32, 0 or 1.
    """
    (h, w), (left, top, right, bottom) = grid, boxes.float().unbind(-1)
    columns = _between((left * (w * CELL)).round(), (right * (w * CELL)).round(), w)
    rows = _between((top * (h * CELL)).round(), (bottom * (h * CELL)).round(), h)
    return _outside(rows, columns)


def _between(low: torch.Tensor, high: torch.Tensor, cells: int) -> torch.Tensor:
    """[..., M] edges -> [..., M, cells] bool."""
    at = torch.arange(cells, device=low.device) * CELL
    return (low.unsqueeze(-1) <= at) & (at < high.unsqueeze(-1))


def _outside(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """[..., M, h] and [..., M, w] bool -> [..., h, w], 1 if no box has both."""
    inside = rows.unsqueeze(-1) & columns.unsqueeze(-2)  # ..., M, h, w
    return (~inside.any(-3)).float()
