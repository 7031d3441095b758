"""Where each subject is: drawn boxes first, then wired ones, then a layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..bases import PIXELS_PER_CELL
from ..errors import MismatchError, SubjectError
from ..subjects import Box, Cast, Image, called
from .boxes import FoundBox, Warn, checked, read_text, read_wired
from .layouts import fill
from .preview import draw_cast


def place_subjects(
    cast: Cast,
    width: int,
    height: int,
    boxes: str = "[]",
    layout: str = "none",
    bounding_boxes: Any = None,
    background: Image | None = None,
    latent: dict | None = None,
    warn: Warn = lambda sentence: None,
) -> tuple[Cast, torch.Tensor, int, int]:
    """Return the cast with its boxes, a picture of them [1, h, w, 3], and the width and height of the picture to be
    made.

    Arguments:
        boxes: see `boxes.read_text`; element i is for subject i.
        layout: see `layouts.places`; for the subjects that have no box after all.
        bounding_boxes: see `boxes.read_wired`; for the subjects that have none in `boxes`.
        background: [n, H, W, C], the first is what the boxes are drawn on.
        latent: a LATENT, whose size is taken instead of width and height.
        warn: receives one sentence for each thing that is allowed but probably not meant.
    Raises:
        SubjectError: a bad box, or one for no subject.
        MismatchError: `latent` is no latent, or `background` no picture.
    """
    if background is not None and not _is_picture(background):
        found = (
            f"the shape {list(background.shape)}"
            if isinstance(background, torch.Tensor)
            else f"a {type(background).__name__}"
        )
        raise MismatchError("an IMAGE in 'background'", found, "Wire an IMAGE output, or nothing.")
    width, height = (width, height) if latent is None else picture_size(latent)
    names = [subject.name for subject in cast.subjects]
    drawn = bind_drawn(read_text(boxes), names, warn)
    wired = bind_wired(read_wired(bounding_boxes, (width, height), warn), names, drawn, warn)
    given = {i: checked(found, called(i + 1, names[i]), warn) for i, found in (drawn | wired).items()}
    places: list[Box | None] = [given.get(i, subject.box) for i, subject in enumerate(cast.subjects)]
    placed = zip(cast.subjects, fill(places, layout, width / height), strict=True)
    cast = replace(cast, subjects=tuple(replace(subject, box=box) for subject, box in placed))
    return cast, draw_cast(cast, width, height, background), width, height


def boxes_of(cast: Cast) -> list[dict[str, float] | None]:
    """Return the cast's boxes as the `boxes` widget holds them: x, y, w, h of each subject, 0..1, or None."""
    return [None if s.box is None else {"x": s.box.x, "y": s.box.y, "w": s.box.w, "h": s.box.h} for s in cast.subjects]


def empty_latent(width: int, height: int) -> dict[str, torch.Tensor]:
    """Return a LATENT of one empty picture of that size in pixels, as ComfyUI's Empty Latent Image makes it."""
    return {"samples": torch.zeros(1, 4, height // PIXELS_PER_CELL, width // PIXELS_PER_CELL)}


def _is_picture(image: Any) -> bool:
    """Whether an input is an IMAGE, grey, RGB or RGBA, with a pixel."""
    return isinstance(image, torch.Tensor) and image.ndim == 4 and bool(image.numel()) and image.shape[-1] in (1, 3, 4)


def picture_size(latent: Any) -> tuple[int, int]:
    """Return (width, height) in pixels of the picture of a LATENT. Raises MismatchError if it is none."""
    samples: Any = latent.get("samples") if isinstance(latent, dict) else None  # whatever the host puts there
    if getattr(samples, "ndim", 0) < 4 or not all(samples.shape[-2:]):
        found = (
            f"the shape {list(samples.shape)}" if isinstance(samples, torch.Tensor) else f"a {type(latent).__name__}"
        )
        raise MismatchError(
            "a LATENT with 'samples' in 'latent'", found, "Wire Empty Latent Image or another LATENT, or nothing."
        )
    return samples.shape[-1] * PIXELS_PER_CELL, samples.shape[-2] * PIXELS_PER_CELL


def bind_drawn(
    found: Sequence[FoundBox | None], names: Sequence[str], warn: Warn = lambda sentence: None
) -> dict[int, FoundBox]:
    """Return {subject: box}, subjects counted from 0: element i is for subject i; one beyond the last subject for the
    only subject of its label, if that has no box.

    Where subjects were taken out of the cast, as by bypassing them, the list is longer than the cast: then each subject
    gets the box with its label if there is one for each. A box whose label is no subject's name is kept for a later
    subject.
    Raises:
        SubjectError: a box for no subject that has no label, or the name of a subject with a box.
    """
    there = [(i, box) for i, box in enumerate(found) if box is not None]
    beyond = [(i, box) for i, box in there if i >= len(names)]
    bound = _each_by_its_label([box for _, box in there], names) if beyond else None
    if bound is None:
        bound = {i: box for i, box in there if i < len(names)}
        for i, box in bound.items():
            if same_word(box.label) in map(same_word, names):
                _warn_if_stale(box, i, names, warn)
        for i, box in beyond:
            subject = _only_of_its_label(box, [b for _, b in beyond], names)
            if subject is not None and subject not in bound:
                bound[subject] = box
            elif not same_word(box.label) or same_word(box.label) in map(same_word, names):
                raise _for_nobody("boxes", i, box, names, taken=subject)
    for i, box in there:
        if not any(box is other for other in bound.values()):
            warn(f"Box {i + 1} is not used: no subject of the cast is called '{box.label}'.")
    return bound


def _each_by_its_label(boxes: Sequence[FoundBox], names: Sequence[str]) -> dict[int, FoundBox] | None:
    """{subject: box} by labels, None unless every box has one and every subject has a box of its own by it."""
    bound = {}
    for box in boxes:
        subject = _only_of_its_label(box, boxes, names)
        if subject is not None:
            bound[subject] = box
    return bound if len(bound) == len(names) > 0 and all(same_word(box.label) for box in boxes) else None


def bind_wired(
    found: Sequence[FoundBox | None],
    names: Sequence[str],
    drawn: dict[int, FoundBox],
    warn: Warn = lambda sentence: None,
) -> dict[int, FoundBox]:
    """Return {subject: box} for subjects that are not in `drawn`.

    A box whose label only one subject has, and no other box of the list, is that subject's. The others go by place
    where the list has one element for each subject and none was bound by its label; else, in order, to the subjects
    that still have no box. Raises:
        SubjectError: more boxes than subjects.
    """
    boxes = [box for box in found if box is not None]
    bound: dict[int, FoundBox] = {}
    rest = []
    for i, box in enumerate(found):
        if box is None:
            continue
        subject = _only_of_its_label(box, boxes, names)
        if subject is not None:
            bound[subject] = box
        else:
            rest.append((i, box))
    free = [i for i in range(len(names)) if i not in bound and i not in drawn]
    by_place = not bound and len(found) == len(names)
    for i, box in rest:
        if by_place and i in drawn:
            continue
        if not free:
            raise _for_nobody("bounding_boxes", i, box, names)
        subject = i if by_place else free.pop(0)
        _warn_if_stale(box, subject, names, warn)
        bound[subject] = box
    return {subject: box for subject, box in bound.items() if subject not in drawn}


def same_word(text: Any) -> str:
    """Return a label or name for comparing, without case, extra spaces and the backslashes of a prompt."""
    return " ".join(text.replace("\\", "").casefold().split()) if isinstance(text, str) else ""


def _only_of_its_label(box: FoundBox, others: Sequence[FoundBox], names: Sequence[str]) -> int | None:
    """The one subject that has this box's label, if no other box of the list has it."""
    label = same_word(box.label)
    subjects = [i for i, name in enumerate(names) if label and same_word(name) == label]
    return subjects[0] if len(subjects) == 1 and Counter(same_word(b.label) for b in others)[label] == 1 else None


def _warn_if_stale(box: FoundBox, subject: int, names: Sequence[str], warn: Warn) -> None:
    if same_word(box.label) not in ("", same_word(names[subject])):
        warn(
            f"Check the order of the boxes: the box labelled '{box.label}' is used for "
            f"{called(subject + 1, names[subject])}, by its position in the list."
        )


def _for_nobody(where: str, index: int, box: FoundBox, names: Sequence[str], taken: int | None = None) -> SubjectError:
    """The error about a box that no subject is left for."""
    cast = ", ".join(called(i + 1, name) for i, name in enumerate(names)) or "no subjects"
    label = f" labelled '{box.label}'" if box.label else ""
    has = f", and {called(taken + 1, names[taken])} has a box already" if taken is not None else ""
    return SubjectError(
        f"at most one box in '{where}' for each subject of the cast ({cast})",
        f"box {index + 1}{label} without a subject{has}",
        "Delete that box, or add the subject with Add Subject.",
    )
