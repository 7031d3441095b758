"""Medians with an interval that assumes nothing about how times are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb
from statistics import median

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """The median of `count` values, and the bounds between which the true median lies with 95 % or more."""

    median: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, float]:
        """Return the fields as a dict for JSON."""
        return asdict(self)


def interval(values: Sequence[float]) -> Interval:
    """Return the median with its exact interval by order statistics: the k-th smallest and k-th largest value, with the
    largest k that still gives 95 % confidence.

    Raises ValueError with fewer than 6 values, because even their whole range has less than 95 %.
    """
    ordered, n = sorted(values), len(values)
    k = coverage_rank(n)
    if k == 0:
        raise ValueError(f"an interval of {CONFIDENCE:.0%}: expected 6 values or more, found {n}")
    return Interval(median(ordered), ordered[k - 1], ordered[n - k], n)


def coverage_rank(n: int) -> int:
    """Return the largest k for which the k-th smallest and k-th largest of n values enclose the true median with a
    probability of at least 95 %, or 0 if there is none.

    The probability that the median lies outside is 2 * P(Binomial(n, 1/2) < k).
    """
    outside, k = 0.0, 0
    while 2 * (outside := outside + comb(n, k) / 2**n) <= 1 - CONFIDENCE:
        k += 1
    return k
