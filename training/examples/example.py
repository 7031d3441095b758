"""One training picture with its subjects, as recipes get it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

import torch

from ...model_patches.encoding.framing import bounding_box
from ...model_patches.subjects import Box, Photo

LEAST_AREA = 200 / 512**2  # of the picture: a subject whose box is smaller after the cut is left out


@dataclass(frozen=True, eq=False)
class ExampleSubject:
    """A subject of a picture.

    name: as in the caption; photo: its reference; key: tells the reference from all others, "" if it is never seen
    again; mask: [h, w] in 0..1 where it is in the picture, or None.
    """

    name: str
    photo: Photo
    key: str = ""
    mask: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Example:
    """A training picture.

    label: its file, for messages; pixels: [3, S, S] in -1..1; key: tells the picture from all others, "" if it is
    never seen again; original: height and width before resizing; crop: top and left of the cut, in the resized picture.
    """

    label: str
    pixels: torch.Tensor
    caption: str
    subjects: tuple[ExampleSubject, ...] = ()
    key: str = ""
    original: tuple[int, int] = (0, 0)
    crop: tuple[int, int] = (0, 0)


class ExampleSet(Protocol):
    """Source of training pictures."""

    def __len__(self) -> int:
        """Return the number of pictures; 0 for an endless set."""
        ...

    def get(self, index: int, chance: random.Random) -> Example:
        """Return a picture. chance: decides what is drawn, such as which of several references; in an endless set
        everything.
        """
        ...


def box_in(mask: torch.Tensor) -> Box | None:
    """Return the box of a subject in its picture, from its mask [S, S]; None for one that is too small, or outside.

    As in Subject-Diffusion's published training, the last row and column are not in it.
    """
    found, side = bounding_box(mask), mask.shape[-1]
    if found is None:
        return None
    top, left, bottom, right = found
    box = Box(left / side, top / side, (right - 1 - left) / side, (bottom - 1 - top) / side)
    return box if box.w * box.h > LEAST_AREA else None
