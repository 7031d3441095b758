"""Who is confused with whom: every expected subject of a picture gets one verdict, from two independent reads."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..world import COLOURS, Figure
from .recogniser import Sighting

RIGHT, SWAPPED, MIXED, CLONED, OTHER, MISSING = VERDICTS = ("right", "swapped", "mixed", "cloned", "other", "missing")
LETTERS = {RIGHT: "r", SWAPPED: "s", MIXED: "m", CLONED: "c", OTHER: "o", MISSING: "-"}
NEAR = 0.15  # distance of RGB in 0..1 within which a cell has a palette colour; no background is so near to one
MOSTLY = 0.5  # of the coloured cells of a subject that must have its reference's two colours, in the read by colours


def sighting_of(expected: Sequence[Figure], found: Sequence[Sighting]) -> list[Sighting | None]:
    """The sighting that stands for each expected figure: of its class, and where several figures are of one class, of its variant. The largest where there are several."""
    taken: list[Sighting | None] = []
    for figure in expected:
        alike = sum(other.kind == figure.kind for other in expected) > 1
        fitting = [s for s in found if s.kind == figure.kind and (not alike or s.variant == figure.variant) and not any(s is t for t in taken)]
        taken.append(max(fitting, key=lambda s: int(s.mask.sum()), default=None))
    return taken


def verdicts(expected: Sequence[Figure], found: Sequence[Sighting]) -> list[str]:
    """By the recogniser: body and accent of each sighting against every reference. The figures' colours must all differ.

    right: both are its own; mixed: body and accent of two references; cloned: the body of another reference, which its owner has too or is missing;
    swapped: the body of another one, whose own subject has it from elsewhere; other: a body of no reference, or its own body with an accent of none;
    missing: no such subject in the picture.
    """
    places = sighting_of(expected, found)
    bodies = [None if s is None else _owner(expected, s.look.body, "body") for s in places]
    accents = [None if s is None else _owner(expected, s.look.accent, "accent") for s in places]
    return [MISSING if s is None else _verdict(i, bodies, accents[i]) for i, s in enumerate(places)]


def verdicts_by_colour(expected: Sequence[Figure], found: Sequence[Sighting], picture: torch.Tensor) -> list[str]:
    """The same by colours alone: the nearest palette colour of every drawn cell where a subject stands, and whose reference has it.

    picture: [3, 128, 128] in 0..1. The sightings say where to look and nothing else; a subject is mixed where no reference has most of its coloured cells.
    """
    owners = [None if s is None else _owner_by_colour(expected, s.mask, picture) for s in sighting_of(expected, found)]
    bodies = [None if owner is None else owner[0] for owner in owners]
    return [MISSING if owner is None else MIXED if owner == (None, MIXED) else _verdict(i, bodies, owner[0]) for i, owner in enumerate(owners)]


def _verdict(i: int, bodies: Sequence[int | None], accent: int | None) -> str:
    """bodies: whose body colour each subject has; accent: whose accent this one has."""
    body = bodies[i]
    if body == i:
        return RIGHT if accent == i else OTHER if accent is None else MIXED
    if body is None:
        return OTHER
    if accent is not None and accent != body:
        return MIXED
    return SWAPPED if bodies[body] is not None and bodies[body] != body else CLONED


def _owner(expected: Sequence[Figure], colour: str, part: str) -> int | None:
    """Whose reference has this colour there."""
    return next((i for i, figure in enumerate(expected) if getattr(figure.look, part) == colour), None)


def _owner_by_colour(expected: Sequence[Figure], mask: np.ndarray, picture: torch.Tensor) -> tuple[int | None, str]:
    """Whose two colours most of the coloured cells in a mask have: (reference or None, MIXED where two share them, OTHER where they are nobody's)."""
    cells = torch.nn.functional.avg_pool2d(picture[None].float(), 4)[0].permute(1, 2, 0)  # 32, 32, 3
    palette = torch.tensor(list(COLOURS.values())).float() / 255
    where = torch.from_numpy(mask).repeat_interleave(2, 0).repeat_interleave(2, 1)
    distances = torch.cdist(cells[where], palette)
    names = [list(COLOURS)[int(n)] for n, d in zip(distances.argmin(1), distances.amin(1), strict=True) if d < NEAR]
    shares = [sum(name in (figure.look.body, figure.look.accent) for name in names) / max(1, len(names)) for figure in expected]
    best = max(range(len(expected)), key=lambda i: shares[i])
    if shares[best] > MOSTLY:
        return best, RIGHT
    return None, MIXED if sum(shares) > MOSTLY else OTHER
