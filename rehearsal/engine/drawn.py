"""Drawn pictures of two subjects in which it is known who is there with whose looks: the truth for verdicts."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..world import PIXELS, TEST_LOOKS, Figure, Look, boxes, draw, enlarge, masks, place_figures, random_figures

RIGHT, SWAPPED, CLONED, MISSING, MIXED = CASES = ("right", "swapped", "cloned", "missing", "mixed")


@dataclass(frozen=True, eq=False)
class DrawnCase:
    """A picture [128, 128, 3] in 0..1 and what is expected in it.

    figures: the references; verdicts: the truth on each; masks: where each stands, [2, 128, 128] float 0 or 1, empty
    for a missing one; boxes: x, y, w, h in 0..1, None for a missing one.
    """

    figures: tuple[Figure, Figure]
    verdicts: tuple[str, str]
    picture: torch.Tensor
    masks: torch.Tensor
    boxes: tuple[tuple[float, float, float, float] | None, ...]


def drawn_case(case: str, one_class: bool, seed: int) -> DrawnCase:
    """Return the drawing of a number. case: of CASES; one_class: whether both subjects are of one class.

    Subjects are as large as their references show them, and have looks that nothing was trained on. Of one class they
    exchange looks, of two classes each stands in the other's place. mixed: body of the own reference, accent of the
    other one.
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
    }[case]
    truth = {CLONED: (CLONED, RIGHT), MISSING: (RIGHT, MISSING)}.get(case, (case, case))
    scene = place_figures(chance, drawn)
    first, second = scene.mentioned
    cells, edges = masks(scene)[[first, second]], [boxes(scene)[first], boxes(scene)[second]]
    if case == MISSING:
        scene = replace(scene, subjects=(scene.subjects[first],), mentioned=(0,))
        cells[1] = False
    covered = torch.from_numpy(np.stack([enlarge(mask, PIXELS // len(mask)) for mask in cells])).float()
    picture = torch.from_numpy(draw(scene).copy()).float() / 255
    return DrawnCase((a, b), truth, picture, covered, (edges[0], None if case == MISSING else edges[1]))


def _mixed(own: Look, other: Look) -> Look:
    return replace(own, accent=other.accent)
