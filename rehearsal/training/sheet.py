"""A sample sheet of the rehearsal models as far as they are trained: text alone, then every adapter with every merge,
at fixed seeds.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..engine.paint import STEPS, Rehearsal, encode, load_rehearsal, paint
from ..world import TEST_LOOKS, Figure, caption, enlarge, random_figures, reference

CAPTIONS = (
    "a robot on grass",
    "a cat at night",
    "a tall house in the snow",
    "a robot and a cat on grass",
    "a bird and a house by the sea",
    "a small mug and a tree with a hat in a room",
    "a car, a ghost and a rocket at night",
    "a small cat and a tall cat on sand",
)
COMPARED = ("relevance", "uniform", "joint", "add")


def sheet(folder: Path, path: Path, seed: int = 0, steps: int = STEPS) -> Path:
    """Paint the sheet of the models in `folder` into `path`; one row a caption list or merge, eight pictures each,
    every pixel twice its size.
    """
    models, chance = load_rehearsal(folder, unfinished=True), random.Random(seed)
    casts = [
        random_figures(chance, 1 if i < 2 else 3 if i == 7 else 2, same_class=i in (5, 6), choice=TEST_LOOKS)
        for i in range(8)
    ]
    rows = [
        [_pixels(paint(models, text, i, steps=steps)) for i, text in enumerate(CAPTIONS)],
        [_references(cast) for cast in casts],
    ]
    for adapter in models.adapters:
        rows += [
            [_together(models, adapter, cast, merge, i, steps) for i, cast in enumerate(casts)] for merge in COMPARED
        ]
    picture = enlarge(np.concatenate([np.concatenate(row, 1) for row in rows]), 2)
    Image.fromarray(picture).save(path)
    return path


def picture_of(figure: Figure) -> torch.Tensor:
    """Return A reference as IMAGE, [1, 128, 128, 3] in 0..1."""
    return torch.from_numpy(reference(figure).copy())[None].float() / 255


def _together(
    models: Rehearsal, adapter: str, cast: tuple[Figure, ...], merge: str, seed: int, steps: int
) -> np.ndarray:
    references = encode(models, adapter, [picture_of(figure) for figure in cast], [figure.words for figure in cast])
    return _pixels(
        paint(models, caption([figure.words for figure in cast], "on grass"), seed, references, merge, steps=steps)
    )


def _references(cast: tuple[Figure, ...]) -> np.ndarray:
    """The cast's references side by side, [128, 128, 3]."""
    small = np.concatenate([reference(figure)[::2, ::2] for figure in cast[:2]], 1)
    picture = np.full((128, 128, 3), 255, np.uint8)
    picture[:64, : small.shape[1]] = small
    if len(cast) > 2:
        picture[64:, :64] = reference(cast[2])[::2, ::2]
    return picture


def _pixels(picture: torch.Tensor) -> np.ndarray:
    """[1, 3, h, w] in 0..1 -> [h, w, 3] uint8."""
    return (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
