"""Where each subject is in a picture: from its relevance map, its box, its region, or what another node found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

import torch
from torch.nn.functional import max_pool2d, pad

from ..encoding.framing import WHITE, bounding_box, flatten_alpha, frame, on_white
from ..subjects import Box, Image

MAP_CUT = 0.5  # between a map's smallest and largest value: cells above it are the subject's
FLAT = 0.02  # of a map's largest value: a map that varies less shows nothing
SAME_REGION = 0.5  # intersection over union from which on two regions are one
MOST_SHARED = 0.5  # of the smaller region: two that share more are one figure, or a part of it
MOST_FURTHER = 8  # further regions that are compared in a picture
NEAR_WHITE = 0.05  # how far from white a pixel of a reference's empty border may be


OVAL = 1.1  # square of the ellipse's size, 1 being the one that touches the rectangle's sides


@dataclass(frozen=True, eq=False)
class SubjectRegion:
    """A rectangle of the picture, and what in it is the subject, [h, w] in 0..1 over the whole picture, or None: all of
    it. source: where it comes from, for the report; oval: leave out the corners, which are mostly background.
    """

    box: Box
    source: str
    mask: torch.Tensor | None = None
    oval: bool = False


def region_of_map(values: torch.Tensor) -> SubjectRegion | None:
    """Return the rectangle around a relevance map [h, w]: of the cells over `min + MAP_CUT * (max - min)` the connected
    part (by sides) with the largest sum. None for a map that is flat.
    """
    low, high = values.amin(), values.amax()
    if not bool(high - low > FLAT * high):
        return None
    region = region_of_mask(largest_part(values, values > low + MAP_CUT * (high - low)), "relevance map")
    return region and replace(region, oval=True)


def region_of_mask(mask: torch.Tensor, source: str, cut_out: bool = False) -> SubjectRegion | None:
    """Return the rectangle around a mask's pixels over 0.5, [h, w] in 0..1; None where there is none. cut_out: what is
    outside of the mask is not the subject.
    """
    found = bounding_box(mask)
    if found is None:
        return None
    (top, left, bottom, right), (h, w) = found, mask.shape
    return SubjectRegion(
        Box(left / w, top / h, (right - left) / w, (bottom - top) / h), source, mask if cut_out else None
    )


def largest_part(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the connected part (cells that touch by a side) of a mask whose values have the largest sum, [h, w] float
    0 or 1.
    """
    h, w = mask.shape
    labels = torch.where(mask, torch.arange(1, h * w + 1, dtype=torch.float32).view(h, w), 0.0)
    while True:  # every cell takes the largest number of its part
        rows = max_pool2d(labels[None, None], (3, 1), 1, (1, 0))
        grown = torch.where(mask, torch.maximum(rows, max_pool2d(labels[None, None], (1, 3), 1, (0, 1)))[0, 0], 0.0)
        if torch.equal(grown, labels):
            break
        labels = grown
    sums = torch.zeros(h * w + 1).index_add_(0, labels.flatten().long(), values.flatten().float())
    sums[0] = -torch.inf
    return (labels == sums.argmax()).float()


def filled(reference: torch.Tensor) -> float:
    """Return the part of a reference's side that its subject takes, 0..1: of the rectangle around everything that is
    not white, the longer side. 1 where there is no white border. reference: [S, S, 3].
    """
    found = bounding_box((reference < 1 - NEAR_WHITE).any(-1).float())
    if found is None:
        return 1.0
    top, left, bottom, right = found
    return max(bottom - top, right - left) / len(reference)


def crop(picture: Image, region: SubjectRegion, size: int, share: float = 1.0) -> torch.Tensor:
    """Return a subject as the encoder sees it, [size, size, 3]: the region's rectangle, what the mask and the oval
    leave out on white, on a white square of which it takes `share` of a side, as the subject does in its references.

    picture: [H, W, C].
    """
    image = flatten_alpha(picture.unsqueeze(0).float())
    if region.mask is not None:
        image = on_white(image, region.mask.unsqueeze(0).to(image))
    h, w = image.shape[1:3]
    left, top = min(floor(region.box.x * w), w - 1), min(floor(region.box.y * h), h - 1)
    right, bottom = ceil(min(region.box.x + region.box.w, 1.0) * w), ceil(min(region.box.y + region.box.h, 1.0) * h)
    cut = image[0, top : max(bottom, top + 1), left : max(right, left + 1)]
    h, w = cut.shape[:2]
    if region.oval:
        cut = on_white(cut[None], _ellipse(h, w)[None].to(cut))[0]
    side = max(round(max(h, w) / min(max(share, size**-1), 1.0)), h, w)
    y, x = (side - h) // 2, (side - w) // 2
    return frame(pad(cut, (0, 0, x, side - w - x, y, side - h - y), value=WHITE), size, "pad")


def _ellipse(h: int, w: int) -> torch.Tensor:
    """[h, w] of 1 in the ellipse around the middle, 0 in the corners."""
    y, x = ((torch.arange(side) * 2 + 1) / side - 1 for side in (h, w))
    return (y[:, None].square() + x.square() <= OVAL).float()


def same_regions(regions: list[SubjectRegion | None]) -> list[tuple[int, int]]:
    """Return the pairs of subjects whose rectangles are one, by their intersection over union."""
    return [
        (i, j)
        for j, second in enumerate(regions)
        for i, first in enumerate(regions[:j])
        if first is not None and second is not None and _meeting(first.box, second.box) >= SAME_REGION
    ]


def apart(regions: Sequence[SubjectRegion | None], further: Iterable[SubjectRegion]) -> list[SubjectRegion]:
    """Return the regions of `further` that are no part of a subject's region, of each other, or round one; the largest
    first.
    """
    taken = [region for region in regions if region is not None]
    found: list[SubjectRegion] = []
    for region in sorted(further, key=lambda one: -one.box.w * one.box.h):
        if all(_shared(region.box, other.box) <= MOST_SHARED for other in (*taken, *found)):
            found.append(region)
    return found


def _meeting(a: Box, b: Box) -> float:
    """Intersection over union."""
    inside = _intersection(a, b)
    return inside / max(a.w * a.h + b.w * b.h - inside, 1e-12)


def _shared(a: Box, b: Box) -> float:
    """Intersection over the smaller one."""
    return _intersection(a, b) / max(min(a.w * a.h, b.w * b.h), 1e-12)


def _intersection(a: Box, b: Box) -> float:
    width = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    height = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    return max(width, 0.0) * max(height, 0.0)
