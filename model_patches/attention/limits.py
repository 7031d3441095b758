"""Where a subject may act: region masks and boxes on the grid of one attention layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

if TYPE_CHECKING:
    from jaxtyping import Float

Window = tuple[float, float, float, float]  # top, left, bottom, right of the visible part of the picture, 0..1
WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


def union(region: Float[Tensor, "*n H W"]) -> Float[Tensor, "H W"]:
    """Return the union [H, W] of a region's masks: one for all pictures, [H, W], or one for each, [n, H, W]."""
    return region.amax(0) if region.ndim == 3 else region


def region_map(
    region: Float[Tensor, "H W"], grid: tuple[int, int], window: Window = WHOLE
) -> Float[Tensor, "{grid[0]} {grid[1]}"]:
    """Return the mean of the mask over each grid cell. region [H, W] 0..1 over the whole picture -> [h, w] over the
    window (whole pixels of the mask).
    """
    h, w = region.shape
    top, left, bottom, right = window
    y, x = min(round(top * h), h - 1), min(round(left * w), w - 1)
    part = region[y : max(round(bottom * h), y + 1), x : max(round(right * w), x + 1)]
    return adaptive_avg_pool2d(part[None, None].float(), grid)[0, 0]


def box_map(
    box: tuple[float, float, float, float], grid: tuple[int, int], feather: float = 0.0, window: Window = WHOLE
) -> Float[Tensor, "{grid[0]} {grid[1]}"]:
    """Return the cell coverage of a box (x, y, w, h in 0..1 of the picture), with a linear ramp of `feather` (0..1 of
    the picture's side) centred on its edge.

    An edge on the picture's border has no ramp. Returns [h, w] float32 in 0..1 over the window; with feather 0 each
    cell holds the part of it that the box covers.
    """
    x, y, w, h = box
    top, left, bottom, right = window
    rows = _coverage(y, y + h, top, bottom, grid[0], feather)
    columns = _coverage(x, x + w, left, right, grid[1], feather)
    return rows[:, None] * columns[None, :]


def limit_map(
    region: Float[Tensor, "*grid"] | None, box: Float[Tensor, "*grid"] | None, box_strength: float
) -> Float[Tensor, "*grid"] | None:
    """Return `m = region * (1 - box_strength * (1 - box))`, or None if nothing limits."""
    if box is None or box_strength == 0.0:
        return region
    soft = 1.0 - box_strength * (1.0 - box)
    return soft if region is None else region * soft


def _coverage(start: float, end: float, low: float, high: float, cells: int, feather: float) -> torch.Tensor:
    """Mean over each of `cells` equal parts of [low, high] of the ramped interval [start, end]."""
    edges = torch.linspace(low, high, cells + 1, dtype=torch.float64)
    outside = -1.0 - feather, 2.0 + feather  # an edge so far out leaves the picture untouched
    start, end = outside[0] if start <= 0 else start, outside[1] if end >= 1 else end
    integral = _ramp_integral(edges, start, feather) - _ramp_integral(edges, end, feather)
    return (integral.diff() / ((high - low) / cells)).clamp(0, 1).float()


def _ramp_integral(t: torch.Tensor, edge: float, feather: float) -> torch.Tensor:
    """Antiderivative of the step at `edge` (0 before, 1 after), smoothed to a ramp of width `feather`."""
    if feather <= 0:
        return (t - edge).clamp(min=0)
    u = ((t - edge) / feather + 0.5).clamp(0, 1)
    return feather * u * u / 2 + (t - edge - feather / 2).clamp(min=0)
