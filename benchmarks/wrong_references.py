"""Training pictures of the rehearsal world, a part of which has a wrong reference, as a detector's mistakes make them;
and MIP-Adapter's object quality score as a filter on them.

CLIP is replaced by the world's own encoders, between which a linear map is fitted on right references: what the image
encoder says of a reference becomes what the text encoder says of the subject's name.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from troupe.model_patches.encoding.photos import prepare_photo
from troupe.model_patches.subjects import Photo
from troupe.rehearsal.world import CLASSES, TRAINING_LOOKS, Figure, reference
from troupe.training.data.quality import object_quality
from troupe.training.examples.example import Example, ExampleSubject

WRONG = 0.5  # part of the pictures in which one subject has a wrong reference
KEPT = 0.25  # part of the pictures that the filter keeps, the best ones
FITTED, COMPARED = 1500, 2000  # pictures: of the linear map, of the thresholds
RIDGE = 1e-2  # of the linear map, times the mean square of what the image encoder says


@dataclass(frozen=True, eq=False)
class WrongReferences:
    """An endless set of pictures, in a part of which one subject has the reference of another one of the picture, or of
    an individual of a class that is not in it.
    """

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
        """Return a picture, and whether one of its references is wrong."""
        example = self.examples.get(index, chance)
        if chance.random() >= WRONG:
            return example, False
        subjects = list(example.subjects)
        at = chance.randrange(len(subjects))
        others = [other for i, other in enumerate(subjects) if i != at]
        if others and chance.random() < 0.5:
            photo = chance.choice(others).photo
        else:
            here = " ".join(subject.name for subject in subjects).split()
            kind = chance.choice([name for name in CLASSES if name not in here])
            photo = Photo(torch.from_numpy(reference(Figure(kind, chance.choice(TRAINING_LOOKS))).copy()).float() / 255)
        subjects[at] = replace(subjects[at], photo=photo)
        return replace(example, subjects=tuple(subjects)), True


@dataclass(frozen=True, eq=False)
class QualityFiltered(WrongReferences):
    """The best pictures of such a set by their object quality score. models: a `Rehearsal`."""

    models: Any

    def marked(self, index: int, chance: random.Random) -> tuple[Example, bool]:
        """Return a picture that the filter keeps, and whether one of its references is wrong."""
        while True:
            example, is_wrong = self.examples.marked(index, chance)
            if self.quality(example) > self.thresholds[len(example.subjects)]:
                return example, is_wrong

    def quality(self, example: Example) -> float:
        """Return the object quality score of a picture, with its references as the crops."""
        names = torch.stack([self.text(subject.name) for subject in example.subjects])
        map_, (mean_image, mean_text) = self.fitted
        images = (self.images(example.subjects) - mean_image) @ map_
        return float(object_quality(names - mean_text, images).mean())

    def images(self, subjects: Sequence[ExampleSubject]) -> torch.Tensor:
        """Return the image encoder's embeddings of the subjects' references, [n, E]."""
        encoder = self.models.images
        pictures = torch.stack([prepare_photo(subject.photo, encoder.size, "pad") for subject in subjects])
        return encoder.encode(pictures, "pooled", blank=False)

    def text(self, name: str) -> torch.Tensor:
        """Return the text encoder's embedding of a name, the mean of its tokens, [D]."""
        if name not in self._texts:
            self._texts[name] = self.models.texts.encode([name])[0].mean(0)
        return self._texts[name]

    @cached_property
    def _texts(self) -> dict[str, torch.Tensor]:
        return {}

    @cached_property
    def fitted(self) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """The linear map [E, D] from centred image embeddings to centred text embeddings, by least squares on pictures
        without mistakes, and the two means.
        """
        chance = random.Random("object quality")
        subjects = [one for i in range(FITTED) for one in self.examples.examples.get(i, chance).subjects]
        images = self.images(subjects)
        texts = torch.stack([self.text(one.name) for one in subjects])
        means = images.mean(0), texts.mean(0)
        x, y = (images - means[0]).double(), (texts - means[1]).double()
        square = x.T @ x
        ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
        return torch.linalg.solve(square + ridge, x.T @ y).float(), means

    @cached_property
    def thresholds(self) -> dict[int, float]:
        """The score above which a picture is kept, by the number of its subjects: scores of different numbers should
        not be compared.
        """
        chance, scores = random.Random("thresholds"), {}
        for i in range(COMPARED):
            example = self.examples.get(i, chance)
            scores.setdefault(len(example.subjects), []).append(self.quality(example))
        return {count: float(torch.tensor(found).quantile(1.0 - KEPT)) for count, found in scores.items()}


def share_of_wrong(examples: WrongReferences, count: int = 1000) -> float:
    """Return the part of the pictures that has a wrong reference."""
    chance = random.Random("share of wrong")
    return sum(examples.marked(i, chance)[1] for i in range(count)) / count
