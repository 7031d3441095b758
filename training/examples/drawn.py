"""Training pictures of the rehearsal world, drawn as they are needed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch

from ...model_patches.subjects import Photo
from ...rehearsal.world import (
    ALONE,
    MOST,
    PIXELS,
    TRAINING_LOOKS,
    VARIANTS,
    Figure,
    Look,
    draw,
    enlarge,
    masks,
    random_scene,
    reference_cells,
)
from .example import Example, ExampleSubject

SHIFT = 3  # cells that a reference is moved from the middle at most


class DrawnSet:
    """An endless set of drawn scenes.

    most: subjects of a picture that are taken; looks: of the subjects; alone: part of the pictures with one subject.
    """

    resolution = PIXELS

    def __init__(self, most: int = MOST, looks: Sequence[Look] = TRAINING_LOOKS, alone: float = ALONE):
        self.most, self.looks, self.alone = most, looks, alone

    def __len__(self) -> int:
        """Return 0: the set is endless."""
        return 0

    def get(self, index: int, chance: random.Random) -> Example:
        """Return a scene of chance; each reference is another picture of the individual."""
        scene = random_scene(chance, self.looks, self.alone)
        pixels = torch.from_numpy(draw(scene)).permute(2, 0, 1).float() / 127.5 - 1
        where = enlarge(np.moveaxis(masks(scene), 0, -1))
        subjects = tuple(
            ExampleSubject(
                scene.subjects[i].figure.words,
                Photo(_reference(chance, scene.subjects[i].figure)),
                mask=torch.from_numpy(where[..., i]).float(),
            )
            for i in scene.mentioned[: self.most]
        )
        return Example(f"drawn picture {index}", pixels, scene.caption, subjects, original=(PIXELS, PIXELS))


def _reference(chance: random.Random, figure: Figure) -> torch.Tensor:
    """[128, 128, 3] in 0..1."""
    other = Figure(figure.kind, figure.look, chance.choice(("", "", "", *VARIANTS[1:])))
    shift = chance.randint(-SHIFT, SHIFT), chance.randint(-SHIFT, SHIFT)
    cells = reference_cells(other, shift, chance.random() < 0.5)
    return torch.from_numpy(enlarge(cells)).float() / 255
