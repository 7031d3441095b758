"""Who is confused with whom: every expected subject of a picture gets one verdict, from two independent reads.

Each read finds the two colours of a subject, body and accent, among all colours of the world. The references that have
one of them are the look's owners.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch

from ..world import ACCESSORIES, CELL, CELLS, COLOURS, PATTERNS, Figure, Look, figure_cells
from .recogniser import Sighting

RIGHT, SWAPPED, MIXED, CLONED, MISSING = ("right", "swapped", "mixed", "cloned", "missing")
LETTERS = {RIGHT: "r", SWAPPED: "s", MIXED: "m", CLONED: "c", MISSING: "-"}
# squared distance of RGB in 0..1 that counts for a cell at most: one stray cell must not outvote the others
FARTHEST = 0.35
SHIFTS = (-2, 0, 2)  # drawn cells by which a figure may stand beside the middle of its mask
Owners = Sequence[frozenset[int] | None]  # of each expected figure: whose colours it has, None where it is missing


def sighting_of(expected: Sequence[Figure], found: Sequence[Sighting]) -> list[Sighting | None]:
    """Return the sighting that is taken for each expected figure: of its class, and where several figures are of one
    class, of its variant. The largest where there are several.
    """
    taken: list[Sighting | None] = []
    for figure in expected:
        alike = sum(other.kind == figure.kind for other in expected) > 1
        fitting = [
            s
            for s in found
            if s.kind == figure.kind and (not alike or s.variant == figure.variant) and not any(s is t for t in taken)
        ]
        taken.append(max(fitting, key=lambda s: int(s.mask.sum()), default=None))
    return taken


def verdicts(expected: Sequence[Figure], found: Sequence[Sighting]) -> list[str]:
    """Return the verdicts by the recogniser. The figures' colours must all differ."""
    return of_owners(
        [
            None if s is None else _owners(expected, s.colours["body"], s.colours["accent"])
            for s in sighting_of(expected, found)
        ]
    )


def verdicts_by_colour(expected: Sequence[Figure], found: Sequence[Sighting], picture: torch.Tensor) -> list[str]:
    """Return the verdicts by colours alone: of all drawings of the figure, the one that is nearest to the cells where
    it is.

    picture: [3, 128, 128] in 0..1. The sightings say where to look and nothing else.
    """
    cells = torch.nn.functional.avg_pool2d(picture[None].float(), CELL)[0].permute(1, 2, 0)  # 32, 32, 3
    places = sighting_of(expected, found)
    return of_owners(
        [
            None if s is None else _owners(expected, *nearness(figure, s.mask, cells))
            for figure, s in zip(expected, places, strict=True)
        ]
    )


def exact(expected: Sequence[Figure], found: Sequence[Sighting]) -> list[bool]:
    """Return whether each figure is there and the recogniser reads its own body and its own accent among all colours of
    the world, not among the references' only.
    """
    return [
        s is not None and (s.look.body, s.look.accent) == (figure.look.body, figure.look.accent)
        for figure, s in zip(expected, sighting_of(expected, found), strict=True)
    ]


def followed(expected: Sequence[Figure], found: Sequence[Sighting]) -> list[bool]:
    """Return whether each figure that the prompt asks for is there, of its class and variant and whatever its look; no
    sighting counts for two figures.
    """
    there = Counter((s.kind, s.variant) for s in found)
    asked: Counter[tuple[str, str]] = Counter()
    answers = []
    for figure in expected:
        asked[figure.kind, figure.variant] += 1
        answers.append(asked[figure.kind, figure.variant] <= there[figure.kind, figure.variant])
    return answers


def of_owners(owners: Owners) -> list[str]:
    """Return the verdict on each figure.

    right: its colours are its own reference's; mixed: two references have one of them each; cloned: they are another
    one's, whose own figure has them too or is missing; swapped: they are another one's, whose figure has other colours;
    missing: no such figure in the picture.
    """
    return [MISSING if found is None else _verdict(i, found, owners) for i, found in enumerate(owners)]


def _verdict(i: int, found: frozenset[int], owners: Owners) -> str:
    if len(found) > 1:
        return MIXED
    [owner] = found
    if owner == i:
        return RIGHT
    theirs = owners[owner]
    return SWAPPED if theirs is not None and owner not in theirs else CLONED


def _owners(expected: Sequence[Figure], body: Mapping[str, float], accent: Mapping[str, float]) -> frozenset[int]:
    """Whose reference has one of the two likeliest colours; where no figure's has, the one whose pair is the likeliest.
    body, accent: the higher the likelier.
    """
    seen = {max(body, key=body.__getitem__), max(accent, key=accent.__getitem__)}
    found = frozenset(i for i, figure in enumerate(expected) if seen & {figure.look.body, figure.look.accent})
    return found or frozenset(
        {max(range(len(expected)), key=lambda i: body[expected[i].look.body] + accent[expected[i].look.accent])}
    )


def nearness(figure: Figure, mask: np.ndarray, cells: torch.Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Return, of every colour, how near the best drawing with this body, and the best with this accent, comes to cells
    [32, 32,
    3]: minus the mean squared distance.

    Pattern, accessory and a small shift are free.
    """
    best = torch.full((len(COLOURS), len(COLOURS)), torch.inf)
    palette = torch.tensor(list(COLOURS.values())).float() / 255
    body, accent, fixed = _parts(figure.kind, figure.variant)
    for window in _windows(figure, mask, cells):  # n, 3
        from_palette = (window[:, None] - palette).square().sum(-1).clamp(max=FARTHEST)  # n, colours
        from_fixed = (fixed - window).square().sum(-1).clamp(max=FARTHEST)  # drawings, n
        rest = (from_fixed * ~(body | accent)).sum(1)
        errors = (
            (body.float() @ from_palette)[:, :, None] + (accent.float() @ from_palette)[:, None] + rest[:, None, None]
        )
        best = torch.minimum(best, errors.amin(0) / len(window))
    best.fill_diagonal_(torch.inf)  # no look has one colour twice
    return tuple(dict(zip(COLOURS, (-best.amin(dim)).tolist(), strict=True)) for dim in (1, 0))


def _windows(figure: Figure, mask: np.ndarray, cells: torch.Tensor) -> Iterator[torch.Tensor]:
    """The picture's cells that the figure would cover [n, 3], with its middle on the mask's middle and shifted from
    there; clamped to the picture.
    """
    drawn = figure_cells(figure)[1]
    (h, w), middle = drawn.shape, np.argwhere(drawn).mean(0) + 0.5
    # figures stand on whole latent cells, two drawn ones
    top, left = (2 * np.round((2 * np.argwhere(mask).mean(0) + 1 - middle) / 2)).astype(int)
    for down in SHIFTS:
        for right in SHIFTS:
            y, x = min(max(top + down, 0), CELLS - h), min(max(left + right, 0), CELLS - w)
            yield cells[y : y + h, x : x + w][torch.from_numpy(drawn)]


@lru_cache(maxsize=64)
def _parts(kind: str, variant: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each pattern with each accessory: which of the figure's cells are body and which accent, [drawings, n] bool,
    and the colour of the others [drawings, n, 3] in 0..1.
    """
    looks = [Look("red", "blue", pattern, accessory) for pattern in PATTERNS for accessory in ACCESSORIES]
    drawings = np.stack(
        [cells[drawn] for cells, drawn in (figure_cells(Figure(kind, look, variant)) for look in looks)]
    )
    body, accent = (torch.from_numpy((drawings == COLOURS[name]).all(-1)) for name in ("red", "blue"))
    return body, accent, torch.from_numpy(drawings).float() / 255
