"""One training picture with its subjects, as recipes get it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

import torch

from ...model_patches.subjects import Photo


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
