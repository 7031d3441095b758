"""Where each subject may act in a model call: regions and boxes as maps on the grids of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..attention.limits import WHOLE, Window, box_map, limit_map, region_map, union
from ..subjects import ReferenceSubject
from .settings import ImageAttentionSettings


def limited(subjects: Sequence[ReferenceSubject], boxed: bool) -> bool:
    """Return whether a region limits a subject, or a box while boxes limit."""
    return any(s.region is not None or (s.box is not None and boxed) for s in subjects)


def limits_on_grid(
    subjects: Sequence[ReferenceSubject],
    settings: ImageAttentionSettings,
    grid: tuple[int, int],
    boxed: bool,
    device: torch.device | str,
    window: Window = WHOLE,
    pictures: Sequence[int] = (),
) -> torch.Tensor:
    """Return the m of every subject on a layer's grid (h, w), row-major: [1, M, h*w] float32 in 0..1, 1 if nothing
    limits; [B, M, h*w] with `pictures`.

    boxed: whether boxes limit in this step; window: the part of the picture that the grid shows; pictures: which of its
    masks each of B pictures has, for subjects with several. Without it they have their union.
    """
    if pictures:
        each = {i: _limits(subjects, settings, grid, boxed, window, i) for i in dict.fromkeys(pictures)}
        return torch.stack([each[i] for i in pictures]).to(device)
    # made on the CPU: some devices lack float64 or uneven pooling
    return _limits(subjects, settings, grid, boxed, window, None)[None].to(device)


def with_masks_for(
    subjects: Sequence[ReferenceSubject], pictures: Sequence[int], whole: bool
) -> tuple[list[ReferenceSubject], list[int]]:
    """Return the subjects, with the union in place of masks that are not one for each picture; and which subjects those
    are.

    pictures: numbers of the pictures that are computed; whole: whether these are all there are.
    """

    def fit(masks: int) -> bool:
        return masks == len(pictures) if whole else masks > max(pictures)

    found, wrong = list(subjects), []
    for i, subject in enumerate(subjects):
        region = subject.region
        if region is not None and region.ndim == 3 and not fit(len(region)):
            found[i] = replace(subject, region=union(region))
            wrong.append(i)
    return found, wrong


@dataclass(frozen=True, eq=False)
class Pictured:
    """Subjects as a batch needs their regions.

    pictures: which of its masks each picture has, () where no region differs between pictures; wrong: numbers (from 0)
    of the subjects whose masks do not fit the batch and are replaced by their union.
    """

    subjects: Sequence[ReferenceSubject]
    pictures: tuple[int, ...] = ()
    wrong: Sequence[int] = ()


def pictured(subjects: Sequence[ReferenceSubject], pictures: Sequence[int], whole: bool) -> Pictured:
    """Return the subjects with regions that fit the pictures.

    pictures: numbers of the pictures that are computed, from 0; whole: whether these are all there are.
    """
    if not any(has_several_masks(s) for s in subjects):
        return Pictured(subjects)
    found, wrong = with_masks_for(subjects, pictures, whole)
    return Pictured(found, tuple(pictures) if any(has_several_masks(s) for s in found) else (), wrong)


def group_limits(
    subjects: Sequence[ReferenceSubject],
    settings: ImageAttentionSettings,
    grid: tuple[int, int],
    boxed: bool,
    device: torch.device | str,
    windows: Sequence[Window] = (WHOLE,),
    pictures: Sequence[int] = (),
) -> torch.Tensor:
    """Return `limits_on_grid` for each of G groups of rows, [G, 1 or B, M, h*w].

    windows: the part of the picture that each group shows; the rest as there.
    """
    each = [limits_on_grid(subjects, settings, grid, boxed, device, window, pictures) for window in windows]
    return torch.stack(each)


def _limits(
    subjects: Sequence[ReferenceSubject],
    settings: ImageAttentionSettings,
    grid: tuple[int, int],
    boxed: bool,
    window: Window,
    picture: int | None,
) -> torch.Tensor:
    maps = []
    for subject in subjects:
        mask = subject.region
        if mask is not None and mask.ndim == 3:
            mask = union(mask) if picture is None else mask[picture]
        region = None if mask is None else region_map(mask, grid, window)
        box = (
            None
            if subject.box is None or not boxed
            else box_map(
                (subject.box.x, subject.box.y, subject.box.w, subject.box.h), grid, settings.box_feather, window
            )
        )
        limit = limit_map(region, box, settings.box_strength)
        maps.append(torch.ones(grid) if limit is None else limit)
    return torch.stack(maps).flatten(1)


def has_several_masks(subject: ReferenceSubject) -> bool:
    """Return whether the subject's region has a mask for each picture of a batch."""
    return subject.region is not None and subject.region.ndim == 3
