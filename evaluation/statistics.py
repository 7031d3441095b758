"""Means with confidence intervals, and how far a score agrees with the known truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite, nan

import numpy as np

CONFIDENCE, RESAMPLES, SEED = 0.95, 1000, 20240917
LEAST = 5  # groups: with fewer there is no interval
Groups = Mapping[str, Sequence[tuple[float, float]]]  # of each case its pictures' (score, truth)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval by the percentile bootstrap over groups; low and high are NaN with fewer than
    LEAST groups. pictures: how many it is counted from.
    """

    value: float
    low: float
    high: float
    pictures: int

    def __str__(self) -> str:
        if not isfinite(self.value):
            return "none"
        interval = f" [{self.low:.3f}, {self.high:.3f}]" if isfinite(self.low) else ""
        return f"{self.value:.3f}{interval}"


def mean_of_groups(groups: Mapping[str, Sequence[float]]) -> Estimate:
    """Return the mean over groups of each group's mean, as papers average pairs of concepts."""
    means = np.array([np.mean(values) for values in groups.values()])
    count = sum(map(len, groups.values()))
    return _estimate(len(means), lambda chosen: float(means[chosen].mean()) if len(means) else nan, count)


def auc(groups: Groups) -> Estimate:
    """Return the area under the ROC curve: the chance that a picture whose subjects are all right has a higher score
    than one with a wrong subject; 0.5 is chance.
    """

    def statistic(pairs: np.ndarray) -> float:
        good, bad = pairs[pairs[:, 1] >= 1, 0], pairs[pairs[:, 1] < 1, 0]
        if not len(good) or not len(bad):
            return nan
        better = ranks(np.concatenate([good, bad]))[: len(good)]
        return float(better.sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad))

    return _of_pictures(groups, statistic)


def rank_correlation(groups: Groups) -> Estimate:
    """Return Spearman's rank correlation of score and truth, -1..1."""

    def statistic(pairs: np.ndarray) -> float:
        if np.ptp(pairs[:, 0]) == 0 or np.ptp(pairs[:, 1]) == 0:
            return nan
        return float(np.corrcoef(ranks(pairs[:, 0]), ranks(pairs[:, 1]))[0, 1])

    return _of_pictures(groups, statistic)


def preference(groups: Groups) -> Estimate:
    """Return how often, of two pictures of one case with different truths, the better one has the higher score; equal
    scores count half, 0.5 is chance. The count is that of the pairs.
    """
    wins, counts = [], []
    for pictures in groups.values():
        found = [
            0.5 + 0.5 * float(np.sign(first[0] - second[0]) * np.sign(first[1] - second[1]))
            for first, second in combinations(pictures, 2)
            if first[1] != second[1]
        ]
        if found:
            wins.append(sum(found))
            counts.append(len(found))
    total, pairs = np.array(wins), np.array(counts)
    return _estimate(
        len(pairs), lambda chosen: float(total[chosen].sum() / pairs[chosen].sum()) if len(pairs) else nan, sum(counts)
    )


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, from 1; equal values get the mean of their ranks. scipy's rankdata does the same,
    but its checks take longer than the ranks of a few hundred pictures.
    """
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _of_pictures(groups: Groups, statistic: Callable[[np.ndarray], float]) -> Estimate:
    each = [np.array(pictures, float) for pictures in groups.values() if len(pictures)]
    count = sum(map(len, each))
    if not each:
        return Estimate(nan, nan, nan, 0)
    return _estimate(len(each), lambda chosen: statistic(np.concatenate([each[i] for i in chosen])), count)


def _estimate(groups: int, statistic: Callable[[np.ndarray], float], pictures: int) -> Estimate:
    """The statistic of all groups, and its interval over groups drawn with replacement."""
    if not groups:
        return Estimate(nan, nan, nan, pictures)
    value = statistic(np.arange(groups))
    if groups < LEAST:
        return Estimate(value, nan, nan, pictures)
    chance = np.random.default_rng(SEED)
    drawn = [statistic(chance.integers(0, groups, groups)) for _ in range(RESAMPLES)]
    finite = [one for one in drawn if isfinite(one)]
    if not finite or not isfinite(value):
        return Estimate(value, nan, nan, pictures)
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high), pictures)
