"""Who is confused with whom: every expected subject of a picture gets one verdict, from two independent reads.

Each read assigns the subject's two colours, body and accent, to the references whose colours they resemble most; the two assignments give the verdict.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch

from ..world import ACCESSORIES, CELL, CELLS, PATTERNS, Figure, Look, figure_cells
from .recogniser import Sighting

RIGHT, SWAPPED, MIXED, CLONED, MISSING = VERDICTS = ("right", "swapped", "mixed", "cloned", "missing")
LETTERS = {RIGHT: "r", SWAPPED: "s", MIXED: "m", CLONED: "c", MISSING: "-"}
FARTHEST = 0.35  # squared distance of RGB in 0..1 that counts for a cell at most: one stray cell must not outvote the others
SHIFTS = (-2, 0, 2)  # drawn cells by which a figure may stand beside the middle of its mask
Owners = Sequence[tuple[int, int] | None]  # of each expected figure: whose body and whose accent it has, None where it is missing


def sighting_of(expected: Sequence[Figure], found: Sequence[Sighting]) -> list[Sighting | None]:
    """The sighting that stands for each expected figure: of its class, and where several figures are of one class, of its variant. The largest where there are several."""
    taken: list[Sighting | None] = []
    for figure in expected:
        alike = sum(other.kind == figure.kind for other in expected) > 1
        fitting = [s for s in found if s.kind == figure.kind and (not alike or s.variant == figure.variant) and not any(s is t for t in taken)]
        taken.append(max(fitting, key=lambda s: int(s.mask.sum()), default=None))
    return taken


def verdicts(expected: Sequence[Figure], found: Sequence[Sighting]) -> list[str]:
    """By the recogniser: the references whose body and whose accent it holds for the likeliest. The figures' colours must all differ."""
    return of_owners([None if s is None else (_likeliest(expected, s, "body"), _likeliest(expected, s, "accent")) for s in sighting_of(expected, found)])


def verdicts_by_colour(expected: Sequence[Figure], found: Sequence[Sighting], picture: torch.Tensor) -> list[str]:
    """By colours alone: the drawing of the figure, in one reference's body and one's accent colour, that is nearest to the cells where it stands.

    picture: [3, 128, 128] in 0..1. The sightings say where to look and nothing else.
    """
    cells = torch.nn.functional.avg_pool2d(picture[None].float(), CELL)[0].permute(1, 2, 0)  # 32, 32, 3
    places = sighting_of(expected, found)
    return of_owners([None if s is None else _nearest(expected, figure, s.mask, cells) for figure, s in zip(expected, places, strict=True)])


def exact(expected: Sequence[Figure], found: Sequence[Sighting]) -> list[bool]:
    """Whether each figure is there and the recogniser reads its own body and its own accent among all colours of the world, not among the references' only."""
    return [s is not None and (s.look.body, s.look.accent) == (figure.look.body, figure.look.accent)
            for figure, s in zip(expected, sighting_of(expected, found), strict=True)]


def of_owners(owners: Owners) -> list[str]:
    """The verdict on each figure.

    right: body and accent are its own reference's; mixed: they are two references'; cloned: both are another one's, whose own figure has that body too or is
    missing; swapped: both are another one's, whose figure has its body from elsewhere; missing: no such figure in the picture.
    """
    return [MISSING if found is None else _verdict(i, found, owners) for i, found in enumerate(owners)]


def _verdict(i: int, found: tuple[int, int], owners: Owners) -> str:
    body, accent = found
    if body != accent:
        return MIXED
    if body == i:
        return RIGHT
    other = owners[body]
    return SWAPPED if other is not None and other[0] != body else CLONED


def _likeliest(expected: Sequence[Figure], sighting: Sighting, part: str) -> int:
    return max(range(len(expected)), key=lambda i: sighting.colours[part][getattr(expected[i].look, part)])


def _nearest(expected: Sequence[Figure], figure: Figure, mask: np.ndarray, cells: torch.Tensor) -> tuple[int, int]:
    """Owners of body and accent in the drawing nearest to cells [32, 32, 3]; pattern, accessory and a small shift are free."""
    windows = list(_windows(figure, mask, cells))

    def distance(owners: tuple[int, int]) -> float:
        drawn = _drawings(figure.kind, figure.variant, expected[owners[0]].look.body, expected[owners[1]].look.accent)
        return min((drawn - window).square().sum(-1).clamp(max=FARTHEST).mean(1).min().item() for window in windows)

    return min(((body, accent) for body in range(len(expected)) for accent in range(len(expected))), key=distance)


def _windows(figure: Figure, mask: np.ndarray, cells: torch.Tensor) -> Iterator[torch.Tensor]:
    """The picture's cells that the figure would cover [n, 3], with its middle on the mask's middle and shifted from there; clamped to the picture."""
    drawn = figure_cells(figure)[1]
    (h, w), middle = drawn.shape, np.argwhere(drawn).mean(0) + 0.5
    top, left = (2 * np.round((2 * np.argwhere(mask).mean(0) + 1 - middle) / 2)).astype(int)  # figures stand on whole latent cells, two drawn ones
    for down in SHIFTS:
        for right in SHIFTS:
            y, x = min(max(top + down, 0), CELLS - h), min(max(left + right, 0), CELLS - w)
            yield cells[y:y + h, x:x + w][torch.from_numpy(drawn)]


@lru_cache(maxsize=4096)
def _drawings(kind: str, variant: str, body: str, accent: str) -> torch.Tensor:
    """[patterns * accessories, n, 3] in 0..1: the cells of a figure in these colours."""
    figures = (figure_cells(Figure(kind, Look(body, accent, pattern, accessory), variant)) for pattern in PATTERNS for accessory in ACCESSORIES)
    return torch.from_numpy(np.stack([cells[drawn] for cells, drawn in figures])).float() / 255
