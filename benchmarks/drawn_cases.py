"""Drawn pictures of two subjects in which it is known who is there with whose looks, and how often: the truth for
verdicts. Import it after the pack.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from troupe.rehearsal.world import (
    CELLS,
    PIXELS,
    TEST_LOOKS,
    Figure,
    Look,
    draw,
    enlarge,
    masks,
    place_figures,
    random_figures,
)

RIGHT, SWAPPED, CLONED, MISSING, MIXED = CASES = ("right", "swapped", "cloned", "missing", "mixed")
# with places beside those of the subjects: a second figure with the first one's looks, or background
TWICE, BACKGROUND = MORE_CASES = ("twice", "background")
BACKGROUND_PLACES = 2


@dataclass(frozen=True, eq=False)
class DrawnCase:
    """A picture [128, 128, 3] in 0..1 and what is expected in it.

    figures: the references; verdicts: the truth on each; masks: where each is, then further places of the picture,
    [2 + n, 128, 128] float 0 or 1, empty for a missing one.
    """

    figures: tuple[Figure, Figure]
    verdicts: tuple[str, str]
    picture: torch.Tensor
    masks: torch.Tensor


def drawn_case(case: str, one_class: bool, seed: int) -> DrawnCase:
    """Return the drawing of a number. case: of CASES or MORE_CASES; one_class: whether both subjects are of one class.

    Subjects are as large as their references show them, and have looks that nothing was trained on. Of one class they
    exchange looks, of two classes each is in the other's place. mixed: body of the own reference, accent of the
    other one. twice: the first one is there again. background: both are right, and a detector has found
    BACKGROUND_PLACES rectangles in which no figure is.
    """
    chance = random.Random(f"{case} {one_class} {seed}")
    while True:
        a, b = (replace(figure, variant="") for figure in random_figures(chance, 2, one_class, TEST_LOOKS))
        if len({a.look.body, a.look.accent, b.look.body, b.look.accent}) == 4:
            break
    drawn = {
        RIGHT: (a, b),
        MISSING: (a, b),
        SWAPPED: (b, a),
        CLONED: (b, b),
        MIXED: (replace(a, look=_mixed(a.look, b.look)), replace(b, look=_mixed(b.look, a.look))),
        TWICE: (a, b, a),
        BACKGROUND: (a, b),
    }[case]
    clone = (CLONED, RIGHT)
    truth = {CLONED: clone, TWICE: clone, MISSING: (RIGHT, MISSING), BACKGROUND: (RIGHT, RIGHT)}.get(case, (case, case))
    scene = place_figures(chance, drawn)
    order = list(scene.mentioned)
    cells = masks(scene)[order]
    if case == MISSING:
        scene = replace(scene, subjects=(scene.subjects[order[0]],), mentioned=(0,))
        cells[1] = False
    if case == BACKGROUND:
        cells = np.concatenate([cells, _empty_places(chance, cells)])
    covered = torch.from_numpy(np.stack([enlarge(mask, PIXELS // len(mask)) for mask in cells])).float()
    picture = torch.from_numpy(draw(scene).copy()).float() / 255
    return DrawnCase((a, b), truth, picture, covered)


def _empty_places(chance: random.Random, taken: np.ndarray) -> np.ndarray:
    """Rectangles as large as figures, [n, 32, 32] bool, that meet no figure of taken [m, 32, 32]."""
    found: list[np.ndarray] = []
    free = ~taken.any(0)
    while len(found) < BACKGROUND_PLACES:
        h, w = chance.choice((8, 10, 14)), chance.choice((8, 10))
        top, left = chance.randint(0, CELLS - h), chance.randint(0, CELLS - w)
        if free[top : top + h, left : left + w].all():
            found.append(np.zeros_like(free))
            found[-1][top : top + h, left : left + w] = True
            free &= ~found[-1]
    return np.stack(found)


def _mixed(own: Look, other: Look) -> Look:
    return replace(own, accent=other.accent)
