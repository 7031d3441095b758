"""Drawn scenes as training pictures, with what is known of them, and annotators that make no mistake."""

from __future__ import annotations

import random
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from troupe.model_patches.subjects import Box
from troupe.rehearsal import world
from troupe.training.data.making import Detection

# not imported here, since that takes seconds
needs_inflect = pytest.mark.skipif(find_spec("inflect") is None, reason="inflect is not installed")


@dataclass(frozen=True)
class Known:
    """A scene's picture, caption, and subjects in the caption's order: name, mask [128, 128] bool, box."""

    picture: np.ndarray
    caption: str
    subjects: tuple[tuple[str, np.ndarray, Box], ...]


def known_scene(seed: int, figures: tuple[world.Figure, ...] | None = None) -> Known:
    """A scene with two figures of different classes."""
    chance = random.Random(seed)
    scene = world.place_figures(chance, figures or world.random_figures(chance, 2))
    masks, subjects = world.enlarge(world.masks(scene).transpose(1, 2, 0), world.CELL), []
    for i in scene.mentioned:
        mask = masks[..., i]
        y, x = np.nonzero(mask)
        box = Box(x.min() / 128, y.min() / 128, (x.max() + 1 - x.min()) / 128, (y.max() + 1 - y.min()) / 128)
        subjects.append((scene.subjects[i].figure.kind, mask, box))
    return Known(world.draw(scene), scene.caption, tuple(subjects))


def write_scenes(folder: Path, count: int) -> dict[str, Known]:
    """Write scenes as PNG files with captions beside; returned by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {f"{i:02}.png": known_scene(i) for i in range(count)}
    for name, known in found.items():
        Image.fromarray(known.picture).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(known.caption)
    return found


class Perfect:
    """Detector and segmenter of scenes: knows each picture by its pixels. `asked`: the words of each picture."""

    def __init__(self, scenes: dict[str, Known]):
        self.scenes = {known.picture.tobytes(): known for known in scenes.values()}
        self.asked: list[list[str]] = []

    def _known(self, picture: Image.Image) -> Known:
        return self.scenes[picture.tobytes()]

    def detect(self, pictures, words):
        self.asked += [list(one) for one in words]
        return [
            [
                Detection(name, box, 0.9)
                for name, _, box in reversed(self._known(picture).subjects)
                if any(name == word.casefold() for word in asked)
            ]
            for picture, asked in zip(pictures, words, strict=True)
        ]

    def segment(self, picture, boxes):
        return [next(mask for _, mask, box in self._known(picture).subjects if box == wanted) for wanted in boxes]
