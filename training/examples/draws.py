"""Which picture is drawn when, and with which random numbers.

Everything random about the n-th drawn picture depends on the seed and n alone. A training that goes on, or that runs in
several processes, therefore sees the same pictures with the same noise as one that does neither.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.data import Dataset

from ..data.records import DatasetError
from .example import Example, ExampleSet


@dataclass(frozen=True, eq=False)
class Draw:
    """The n-th drawn picture. seed: of everything that is random about it."""

    number: int
    seed: int
    example: Example

    def chance(self, use: str) -> random.Random:
        """Return random numbers for one use; another use gets others."""
        return random.Random(f"{self.seed} {self.number} {use}")

    def noise(self, shape: tuple[int, ...], use: str = "noise") -> torch.Tensor:
        """Return standard normal numbers on the CPU."""
        generator = torch.Generator().manual_seed(self.chance(use).getrandbits(63))
        return torch.randn(shape, generator=generator)


class Draws(Dataset):
    """Every drawn picture of a training by its number, from 0. Each pass over a finite set has an order of its own.

    examples: the training set; seed: of everything random.
    """

    def __init__(self, examples: ExampleSet, seed: int):
        self.examples, self.seed = examples, seed

    def __getitem__(self, number: int) -> Draw:
        """Return the draw of a number."""
        count = len(self.examples)
        index = number if not count else _order(count, self.seed, number // count)[number % count]
        example = self.examples.get(index, random.Random(f"{self.seed} {number} example"))
        return Draw(number, self.seed, example)


class DrawsOrFaults(Dataset):
    """Every drawn picture by its number; for one that cannot be read, the DatasetError. torch's worker processes can
    return it, but when one is raised in them the training waits for ever.

    draws: the pictures.
    """

    def __init__(self, draws: Draws):
        self.draws = draws

    def __getitem__(self, number: int) -> Draw | DatasetError:
        """Return the draw of a number, or why there is none."""
        try:
            return self.draws[number]
        except DatasetError as error:
            return error


@dataclass(frozen=True)
class Share:
    """The batches of one process: passes `accumulation` a step of `batch` pictures, for `steps` steps from `first` on.

    In pass k of step s, process r takes the r-th batch of the k-th total batch of that step.
    """

    first: int
    steps: int
    accumulation: int
    batch: int
    process: int = 0
    processes: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the numbers of each batch."""
        for turn in range(self.first * self.accumulation, self.steps * self.accumulation):
            begin = (turn * self.processes + self.process) * self.batch
            yield list(range(begin, begin + self.batch))

    def __len__(self) -> int:
        """Return the number of batches."""
        return max(self.steps - self.first, 0) * self.accumulation


@lru_cache(maxsize=2)
def _order(count: int, seed: int, turn: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed} {turn} order").shuffle(order)
    return order
