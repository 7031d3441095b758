"""The frozen features of a whole training set, kept before the training begins, so that the encoders leave the GPU."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage] - a public name
from torch import nn
from tqdm import tqdm

from .examples.draws import Draw
from .examples.example import Example
from .examples.folder import FolderSet
from .recipes.recipe import Trainee

NOTHING_DROPPED, EVERYTHING_DROPPED = 1 - 2**-53, 0.0  # the largest and the smallest random number


class Fixed(random.Random):
    """Random numbers that are all `number`; the n-th of a sequence is chosen."""

    def __init__(self, number: float = 0.0, n: int = 0):
        super().__init__(0)
        self.number, self.n = number, n

    def random(self) -> float:
        """Return the number."""
        return self.number

    def choice(self, seq: Any) -> Any:
        """Return the n-th item, counted in circles."""
        return seq[self.n % len(seq)]


@dataclass(frozen=True, eq=False)
class FixedDraw(Draw):
    """A drawn picture of which nothing is left to chance. chosen: see `Fixed`."""

    chosen: float = NOTHING_DROPPED

    def chance(self, use: str) -> random.Random:
        """Return random numbers that are all alike."""
        return Fixed(self.chosen)


def unneeded_encoders(trainee: Trainee, sheets: bool) -> list[nn.Module]:
    """Return the frozen models that no step needs once their results are kept. sheets: whether sheets are painted, for
    which the VAE stays.
    """
    base = trainee.base
    needed: set[nn.Module] = {base.unet, *trainee.modules_of_base()}
    if trainee.in_prompt:  # subjects pass through the text encoders
        needed |= {tower.model for tower in base.texts.towers}
    return [m for m in base.modules if m not in needed and not (sheets and isinstance(m, AutoencoderKL))]


def keep_features(trainee: Trainee, examples: FolderSet, shown: bool = False) -> None:
    """Encode everything that any step may ask for: each picture, caption and name, each reference, and what replaces
    those that are dropped. shown: with a bar. Raises DatasetError for a file that is no picture.
    """
    beside = FixedDraw(0, 0, _with_several(examples))  # names are asked for in batches with several subjects
    for i in tqdm(range(len(examples)), desc="encoding", unit="picture", disable=not shown):
        for example in _variants(examples, i):
            for chosen in (NOTHING_DROPPED, EVERYTHING_DROPPED):
                trainee.prepare([FixedDraw(0, 0, example, chosen), beside])


def _with_several(examples: FolderSet) -> Example:
    """A picture with several subjects in its square, if there is one."""
    fullest_first = sorted(range(len(examples)), key=lambda i: -len(examples.records[i].subjects))
    found = (examples.get(i, Fixed()) for i in fullest_first if len(examples.records[i].subjects) > 1)
    several = (example for example in found if len(example.subjects) > 1)
    return next(several, None) or examples.get(fullest_first[0], Fixed())


def _variants(examples: FolderSet, index: int) -> Iterator[Example]:
    """A picture with each of its references, all subjects together and each alone."""
    subjects = examples.records[index].subjects
    for n in range(max([1, *(len(subject.references) for subject in subjects)])):
        example = examples.get(index, Fixed(n=n))
        yield example
        yield from (replace(example, subjects=(subject,)) for subject in example.subjects)
