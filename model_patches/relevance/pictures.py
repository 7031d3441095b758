"""Pictures of relevance maps: one row a subject, in its colour, alone and over the picture that was made."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate

from ..placement.palette import colour_of
from ..placement.preview import label_on
from ..subjects import Image
from .maps import RecordedRun, SubjectMap

SHEET_TALLEST, ROW_LONGEST, ROW_SHORTEST = (
    3072,
    512,
    192,
)  # pixels: of all rows together, and of the longer side of a row's picture
DARK = 24  # where a subject owns nothing
GAP = 4  # pixels between pictures
COVER = 0.8  # opacity of a map's brightest place over the picture
EMPTY_SHEET = (256, 512)  # pixels (h, w) of the picture where nothing was recorded


def draw_maps(run: RecordedRun | None, size: tuple[int, int], picture: Image | None = None) -> torch.Tensor:
    """Draw the maps of a run below each other, and beside each the same over `picture` [n, H, W, C] (the first,
    stretched to the size's proportions).

    All maps have one scale: full colour is the largest value of any subject, dark is 0. A subject that was not active
    has a dark row. Arguments:
        size: (h, w) of the picture that was sampled, in any unit.
    Returns:
        [1, h, w, 3] float 0..1; a small dark picture where nothing was recorded.
    """
    rows = (
        []
        if run is None
        else [
            (i, subject, f"{subject.name} ({applied.file})" if len(run.applied) > 1 else subject.name)
            for applied in run.applied
            for i, subject in enumerate(applied.subjects)
        ]
    )
    if not rows:
        return torch.full((1, *EMPTY_SHEET, 3), DARK / 255)
    longest = max(min(ROW_LONGEST, SHEET_TALLEST // len(rows)), ROW_SHORTEST)
    h, w = (max(round(side * longest / max(size)), 1) for side in size)
    top = max((float(subject.values.max()) for _, subject, _ in rows if subject.values is not None), default=0.0) or 1.0
    ground = None if picture is None else _fitted(picture, h, w)
    drawn = [_row(i, subject, name, top, (h, w), ground) for i, subject, name in rows]
    gap = torch.full((3, GAP, drawn[0].shape[2]), 255, dtype=torch.uint8)
    sheet = torch.cat([part for row in drawn for part in (row, gap)][:-1], 1)
    return sheet.permute(1, 2, 0)[None].float() / 255


def _row(
    index: int, subject: SubjectMap, name: str, top: float, size: tuple[int, int], ground: torch.Tensor | None
) -> torch.Tensor:
    """One subject's pictures side by side, uint8 [3, h, w], with its number and name."""
    heat = (
        torch.zeros(size)
        if subject.values is None
        else interpolate(subject.values[None, None] / top, size, mode="bilinear")[0, 0].clamp(0, 1)
    )
    colour = torch.tensor(list(bytes.fromhex(colour_of(index)[1:]))).view(3, 1, 1) / 255
    dark = torch.full((3, *size), DARK / 255)
    pictures = [_bytes(torch.lerp(dark, colour, heat))]
    if ground is not None:
        gap = torch.full((3, size[0], GAP), 255, dtype=torch.uint8)
        pictures += [gap, _bytes(torch.lerp(ground, colour, heat * COVER))]
    label_on(
        pictures[0], (0, 0, size[1], size[0]), index, name if subject.values is not None else f"{name}: not active", []
    )
    return torch.cat(pictures, 2)


def _fitted(picture: Image, h: int, w: int) -> torch.Tensor:
    """The first picture as grey of float 0..1, [3, h, w]: colour then means a subject."""
    image = picture[:1, ..., :3].detach().float().cpu().movedim(-1, 1)
    image = interpolate(image.nan_to_num(0.0).clamp(0, 1), (h, w), mode="bilinear", antialias=True)
    return image.mean(1).expand(3, -1, -1)


def _bytes(picture: torch.Tensor) -> torch.Tensor:
    return (picture * 255).round().to(torch.uint8)
