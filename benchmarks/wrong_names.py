"""Training pictures of the rehearsal world, in a part of which the names of two subjects are exchanged, as when a
detector takes one thing for another; and MIP-Adapter's object quality score as the filter of
`tools/make_dataset.py quality`, with the world's own CLIP.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from troupe.model_patches.encoding.framing import bounding_box
from troupe.rehearsal.files import CLIP, FOLDER
from troupe.training.data.quality import ClipScorer
from troupe.training.examples.example import Example, ExampleSubject

WRONG = 0.5  # part of the pictures with several subjects in which two names are exchanged
KEPT = 0.5  # part of the pictures that the filter keeps, the best ones of each number of subjects
COMPARED = 2000  # pictures of the thresholds


@dataclass(frozen=True, eq=False)
class WrongNames:
    """An endless set of pictures, in a part of which two subjects have each other's name."""

    examples: Any

    @property
    def resolution(self) -> int:
        """Pixels of a side."""
        return self.examples.resolution

    def __len__(self) -> int:
        return 0

    def get(self, index: int, chance: random.Random) -> Example:
        """See `ExampleSet`."""
        return self.marked(index, chance)[0]

    def marked(self, index: int, chance: random.Random) -> tuple[Example, bool]:
        """Return a picture, and whether two of its names are exchanged."""
        example = self.examples.get(index, chance)
        if len(example.subjects) < 2 or chance.random() >= WRONG:
            return example, False
        subjects = list(example.subjects)
        i, j = chance.sample(range(len(subjects)), 2)
        first, second = subjects[i].name, subjects[j].name
        subjects[i], subjects[j] = replace(subjects[i], name=second), replace(subjects[j], name=first)
        return replace(example, subjects=tuple(subjects)), True


class QualityFiltered(WrongNames):
    """The best pictures of such a set by their object quality score."""

    def marked(self, index: int, chance: random.Random) -> tuple[Example, bool]:
        """Return a picture that the filter keeps, and whether two of its names are exchanged."""
        while True:
            example, is_wrong = self.examples.marked(index, chance)
            if quality(self.scorer, example) > self.thresholds[len(example.subjects)]:
                return example, is_wrong

    @cached_property
    def scorer(self) -> ClipScorer:
        """The world's CLIP."""
        return ClipScorer.load(str(FOLDER / CLIP), "cpu")

    @cached_property
    def thresholds(self) -> dict[int, float]:
        """The score above which a picture is kept, by the number of its subjects, as `filter_set` has it."""
        chance, scores = random.Random("thresholds"), {}
        for i in range(COMPARED):
            example = self.examples.get(i, chance)
            scores.setdefault(len(example.subjects), []).append(quality(self.scorer, example))
        return {count: float(np.quantile(found, 1 - KEPT)) for count, found in scores.items()}


def quality(scorer: ClipScorer, example: Example) -> float:
    """Return the object quality score of a picture, S."""
    names = [subject.name for subject in example.subjects]
    [parts] = scorer([crops(example, example.subjects)], [names])
    return sum(parts) / len(parts)


def crops(example: Example, subjects: Sequence[ExampleSubject]) -> list[Image.Image]:
    """Return the boxes of subjects, with their background. Raises ValueError for one without a place."""
    pixels = ((example.pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    found = []
    for subject in subjects:
        edges = None if subject.mask is None else bounding_box(subject.mask)
        if edges is None:
            raise ValueError(f"'{subject.name}': expected a place in {example.label}, found none")
        top, left, bottom, right = edges
        found.append(Image.fromarray(pixels[top:bottom, left:right]))
    return found


def share_of_wrong(examples: WrongNames, count: int = 1000) -> float:
    """Return the part of the pictures in which two names are exchanged."""
    chance = random.Random("share of wrong")
    return sum(examples.marked(i, chance)[1] for i in range(count)) / count
