"""Which things of a picture become subjects: the rules that MIP-Adapter and Subject-Diffusion trained with.

From both papers' code, as the defaults of Rules: area of the box, aspect ratio, score of the detector, part of the box
that the mask fills, containment in a kept box, at most two per picture with different names, highest score first. Not
applied: 'label is one word' (names such as 'teddy bear' work here) and 'two to five mask values in the box' (masks are
separate files here).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...model_patches.subjects import Box
from .pictures import PictureFault, box_of, pixels_of
from .words import find_name, place_of

OUT = 0.02  # how far a box may reach out of the picture before it is dropped; less is clipped
Note = tuple[str, str]  # reason, detail


@dataclass(frozen=True)
class Thing:
    """Something in a picture that may become a subject.

    words: names by which a caption may call it, its category first; box: 0..1; mask: makes [h, w] bool for a picture
    of size (width, height), None if there is none; score: of the detector, 0..1.
    """

    words: tuple[str, ...]
    box: Box
    mask: Callable[[tuple[int, int]], np.ndarray] | None = None
    score: float = 1.0

    @property
    def category(self) -> str:
        """The first of its words."""
        return self.words[0]


@dataclass(frozen=True)
class Rules:
    """Bounds for subjects: area and aspect (width / height) of the box, from and to; score, fill, contained: limits in
    0..1; most, least: number of subjects in a picture.
    """

    area: tuple[float, float] = (0.08, 0.7)
    aspect: tuple[float, float] = (0.3, 3.0)
    score: float = 0.3
    fill: float = 0.6
    contained: float = 0.8
    most: int = 2
    least: int = 1


@dataclass(frozen=True)
class Chosen:
    """A subject of a picture: name as the caption writes it, box, mask ([h, w] bool)."""

    name: str
    box: Box
    mask: np.ndarray | None

    @cached_property
    def area(self) -> float:
        """Part of the picture that the box covers, 0..1."""
        return self.box.w * self.box.h


def clipped(box: Box) -> Box | None:
    """Return a box clipped to the picture, or None if it is empty or reaches out by more than OUT."""
    sides = (box.x, box.y, box.x + box.w, box.y + box.h)
    if not all(np.isfinite(sides)) or min(sides) < -OUT or max(sides) > 1 + OUT:
        return None
    if min(sides) >= 0 and max(sides) <= 1:
        return box if box.w > 0 and box.h > 0 else None
    left, top, right, bottom = (float(min(max(side, 0.0), 1.0)) for side in sides)
    return Box(left, top, right - left, bottom - top) if right > left and bottom > top else None


def choose(
    things: Sequence[Thing], caption: str, size: tuple[int, int], rules: Rules
) -> tuple[list[Chosen], list[Note]]:
    """Return the subjects of a picture in the caption's order, and a note for each thing that was dropped.

    caption: the name of a subject is the text that it uses for it. size: width and height of the picture in pixels.
    Things with the highest score come first, of equal ones the largest. Of a name only one is kept: which of two dogs
    'dog' means is not known.
    """
    kept: list[Chosen] = []
    notes: list[Note] = []
    for thing in sorted(things, key=lambda thing: (-thing.score, -thing.box.w * thing.box.h)):
        try:
            kept.append(_chosen(thing, caption, size, rules, kept))
        except PictureFault as fault:
            notes.append((fault.reason, fault.detail))
    return sorted(kept, key=lambda subject: place_of(caption, subject.name)), notes


def _chosen(thing: Thing, caption: str, size: tuple[int, int], rules: Rules, kept: Sequence[Chosen]) -> Chosen:
    name = find_name(caption, thing.words)
    if name is None:
        raise PictureFault("caption without the name", thing.category)
    if thing.score < rules.score:
        raise PictureFault("score too low", f"{name} {thing.score:.2f}")
    box = clipped(thing.box)
    if box is None:
        sides = ", ".join(f"{side:.3g}" for side in (thing.box.x, thing.box.y, thing.box.w, thing.box.h))
        raise PictureFault("box outside of the picture", f"{name} [{sides}]")
    if not rules.area[0] <= box.w * box.h <= rules.area[1]:
        raise PictureFault("too small" if box.w * box.h < rules.area[0] else "too large", name)
    if not rules.aspect[0] <= (box.w * size[0]) / (box.h * size[1]) <= rules.aspect[1]:
        raise PictureFault("too long or too tall", name)
    if any(name.casefold() == other.name.casefold() for other in kept):
        raise PictureFault("second one of the same name", name)
    if any(overlap_share(box, other.box) > rules.contained for other in kept):
        raise PictureFault("inside another subject", name)
    if len(kept) == rules.most:
        raise PictureFault("more subjects than asked for", name)
    mask = None if thing.mask is None else thing.mask(size)
    if mask is not None:
        _check_mask(mask, box, name, size, rules)
        inside = np.zeros_like(mask)
        left, top, right, bottom = pixels_of(box, size)
        inside[top:bottom, left:right] = mask[top:bottom, left:right]
        mask, box = inside, box_of(inside)
    return Chosen(name, box, mask)


def _check_mask(mask: np.ndarray, box: Box, name: str, size: tuple[int, int], rules: Rules) -> None:
    left, top, right, bottom = pixels_of(box, size)
    inside = mask[top:bottom, left:right]
    if not inside.any():
        raise PictureFault("empty mask", name)
    if inside.mean() < rules.fill:
        raise PictureFault("mask fills too little of its box", f"{name} {inside.mean():.2f}")


def overlap_share(one: Box, other: Box) -> float:
    """Return the common area of two boxes, as a part of the smaller one."""
    width = min(one.x + one.w, other.x + other.w) - max(one.x, other.x)
    height = min(one.y + one.h, other.y + other.h) - max(one.y, other.y)
    return max(width, 0.0) * max(height, 0.0) / min(one.w * one.h, other.w * other.h)


def best_caption(captions: Sequence[str], things: Iterable[Thing]) -> str:
    """Return the caption that names the most categories of a picture's things, the first of equal ones."""
    categories = {thing.words for thing in things}
    return max(captions, key=lambda caption: sum(find_name(caption, words) is not None for words in categories))
