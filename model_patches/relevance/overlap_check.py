"""A look at the relevance after a third of the steps: two subjects whose names are relevant in one and the same part of
the picture.

Measured in the rehearsal world (benchmarks/overlap_check.py): the layers with half the latent's sides show best which
subject will be missing. Later looks show little more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from ..attention.merges import Mixing
from ..subjects import ReferenceSubject, called

SHARE_OF_STEPS = 3  # the look is taken when one step in three is done
OVERLAP_FROM = 0.75  # overlap of two subjects' relevance
SPREAD = 0.5  # overlap with an even map, above which a map shows no part; all that were measured lie below 0.4


def checked_step(steps: int) -> int | None:
    """Return the number of finished steps after which the look is taken; None for runs of fewer than three steps."""
    return steps // SHARE_OF_STEPS or None


def checked_grid(latent: tuple[int, int]) -> tuple[int, int]:
    """Return the grid (h, w) of the layers that are recorded: half the latent's sides, rounded up."""
    return -(-latent[0] // 2), -(-latent[1] // 2)


class OverlapCheck:
    """The relevance of a model call, added up over its layers.

    subjects: M; pictures: B; grid: (h, w), see `checked_grid`; device: of the sums.
    """

    def __init__(self, subjects: int, pictures: int, grid: tuple[int, int], device: torch.device):
        self.grid = grid
        with torch.inference_mode(False):  # may be added to in any mode
            self.total = torch.zeros(pictures, subjects, grid[0] * grid[1], device=device)

    def add(self, relevance: torch.Tensor) -> None:
        """Add a layer's relevance, [B, M, h * w] float32; other shapes, as of tiles, and devices are passed over."""
        if relevance.shape == self.total.shape and relevance.device == self.total.device:
            self.total.add_(relevance)

    def overlaps(self) -> torch.Tensor:
        """Return `sum_p min(A_i, A_j)` of every picture, [B, M, M] on the CPU, each A normalised to a sum of 1: 1 for
        subjects with one and the same map, 0 where one of the two maps is spread over the picture. This is where the
        GPU is waited for.
        """
        a = self.total.cpu()
        a = a / a.sum(-1, keepdim=True).clamp(min=1e-12)
        located = (a.clamp(max=1 / a.shape[-1]).sum(-1) <= SPREAD).float()
        return torch.minimum(a.unsqueeze(2), a.unsqueeze(1)).sum(-1) * located.unsqueeze(2) * located.unsqueeze(1)


@dataclass(frozen=True, eq=False)
class OverlapLook:
    """A look at the places of the subjects. check: where the relevance of its step is added up; step: the number of
    steps finished before it; acting: which of the subjects act in it.
    """

    check: OverlapCheck
    step: int
    subjects: Sequence[ReferenceSubject]
    acting: tuple[bool, ...]

    def warnings(self) -> list[str]:
        """Return a warning for each picture in which two subjects lie in one place, once the step is over."""
        return overlap_warnings(self.check.overlaps(), self.subjects, self.acting)


def look_in_step(
    finished: int,
    steps: int,
    subjects: Sequence[ReferenceSubject],
    weights: Sequence[float],
    mixing: Mixing,
    pictures: int,
    latent: tuple[int, int],
    device: torch.device,
) -> OverlapLook | None:
    """Return the look that is taken in a step, or None: only the step after a third of the run is checked, of several
    subjects whose relevance is computed anyway.

    finished: number of finished steps, of so many; weights: of the subjects in this step, 0 for those that do not act;
    pictures: of the batch; latent: its size (h, w).
    """
    count = len(subjects)
    if finished != checked_step(steps) or count < 2 or not mixing.needs_relevance(count) or not any(weights):
        return None
    check = OverlapCheck(count, pictures, checked_grid(latent), device)
    return OverlapLook(check, finished, subjects, tuple(weight != 0 for weight in weights))


def overlap_warnings(overlaps: torch.Tensor, subjects: Sequence[ReferenceSubject], acting: Sequence[bool]) -> list[str]:
    """Return a sentence for each picture in which two subjects lie in the same place.

    overlaps: see `OverlapCheck.overlaps`; acting: which subjects act now. Pairs of which both have a box or a region
    are left out: these keep them apart.
    """
    found = []
    for number, overlap in enumerate(overlaps, 1):
        pairs = [pair for pair in _pairs(subjects, acting) if float(overlap[pair]) >= OVERLAP_FROM]
        if pairs:
            names = "; ".join(" and ".join(called(i + 1, subjects[i].name) for i in pair) for pair in pairs)
            where = "" if len(overlaps) == 1 else f" in picture {number} of the batch"
            found.append(
                f"stop and give each subject a box: after a third of the steps{where} the model sees {names} in the "
                f"same place. Most such pictures mix their looks or lack one of them."
            )
    return found


def _pairs(subjects: Sequence[ReferenceSubject], acting: Sequence[bool]) -> Iterator[tuple[int, int]]:
    located = [subject.box is not None or subject.region is not None for subject in subjects]
    for i, j in combinations(range(len(subjects)), 2):
        if acting[i] and acting[j] and not (located[i] and located[j]):
            yield i, j
