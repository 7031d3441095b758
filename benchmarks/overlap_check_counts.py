"""Count what overlap_check.json says: which subjects a rule names after a third of the steps, what is true of the
finished picture, and what a remedy changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from confusion_page import Share, Z, wilson

CASTS = ("two classes", "three subjects")
CHOOSING = range(1000, 1100)  # seeds that thresholds are chosen on
FIRST = 20_000  # of the seeds that are counted
SAMPLE = 4  # one trial in so many is painted whatever the rules say
NAMED = 0.03  # share of the subjects of CHOOSING that a rule names, if it is no warning yet
SURE = 10  # latent cells of the smallest drawn figure: a part of a class that is as large is one
MOST_SEEDS = 5  # other seeds that are begun until one is not warned of; the last is painted without a look
FEWEST = 10  # pictures of a mean with an interval
LEAST = 3  # latent cells of a part that is written down
AS_IT_IS = "as it is"
RIGHT = "r"  # letter of a subject that looks like its reference, see confusion.py
Seen = Mapping[str, Any]  # of a trial, after a third of its steps, and its pictures
Picture = Mapping[str, Any]  # what is read in it
Trials = Mapping[str, Mapping[str, Seen]]  # cast -> seed


# ---- what names subjects ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """Rule that names subjects after a third of the steps. scores: of each subject, the higher the worse; limit: score
    from which a subject is named, None for one from CHOOSING.
    """

    scores: Callable[[Seen], list[float]]
    limit: float | None


def largest_overlaps(seen: Seen) -> list[float]:
    """Return each subject's largest overlap with another one."""
    count = len(seen["own"])
    pairs = list(zip(combinations(range(count), 2), seen["overlaps"], strict=True))
    return [max(overlap for pair, overlap in pairs if i in pair) for i in range(count)]


ONE_PLACE, NO_PLACE, FAR_APART = "in the same place", "no place of its own", "relevant far apart"
RULES = {
    ONE_PLACE: Rule(largest_overlaps, 0.75),
    NO_PLACE: Rule(lambda seen: [-own for own in seen["own"]], None),
    FAR_APART: Rule(lambda seen: seen["apart"], None),
}


def named_by_rule(seen: Seen, rule: str, limit: float) -> set[int]:
    """Return the numbers of the subjects that a rule names."""
    return {i for i, score in enumerate(RULES[rule].scores(seen)) if score >= limit}


def chosen(trials: Trials) -> bool:
    """Return whether there are all trials of CHOOSING."""
    return all(str(seed) in trials.get(cast, {}) for cast in CASTS for seed in CHOOSING)


def thresholds(trials: Trials) -> dict[str, float]:
    """Return the threshold of each rule. One from CHOOSING is the score from which the rule names `NAMED` of all
    subjects there.
    """
    seen_there = [trials[cast][str(seed)] for cast in CASTS for seed in CHOOSING]
    found = {}
    for name, rule in RULES.items():
        scores = sorted((score for seen in seen_there for score in rule.scores(seen)), reverse=True)
        found[name] = scores[round(NAMED * len(scores)) - 1] if rule.limit is None else rule.limit
    return found


# ---- what is true ----------------------------------------------------------------------------------------------------


def class_absent(picture: Picture, i: int) -> bool | None:
    """Return whether no part of a subject's class is in the picture; None where only parts smaller than the smallest
    figure are.
    """
    largest = max(picture["cells"][i], default=0)
    return None if 0 < largest < SURE else largest == 0


def twice(picture: Picture, i: int) -> bool | None:
    """Return whether a subject's class is in the picture more than once; None where a further part is smaller than the
    smallest figure.
    """
    _, further, *_ = (*picture["cells"][i], 0, 0)
    return None if 0 < further < SURE else further > 0


def unlike(picture: Picture, i: int) -> bool | None:
    """Return whether a subject is missing or does not look like its reference; None where the two reads differ."""
    if (gone := class_absent(picture, i)) is not False:
        return gone
    first, second = (letters[i] == RIGHT for letters in picture["looks"])
    return None if first != second else not first


Truth = Callable[[Picture, int], bool | None]
TRUTHS: dict[str, Truth] = {
    "is missing": class_absent,
    "is there twice": twice,
    "is missing or has another's looks": unlike,
}
CLAIMS = (
    (ONE_PLACE, "is missing"),
    (ONE_PLACE, "is there twice"),
    (ONE_PLACE, "is missing or has another's looks"),
    (NO_PLACE, "is missing"),
    (FAR_APART, "is there twice"),
)


def any_of(truth: Truth, picture: Picture, subjects: Sequence[int] | set[int] | range) -> bool | None:
    """Return whether it is true of any of the subjects; None where that is not known."""
    found = [truth(picture, i) for i in subjects]
    return True if True in found else None if None in found else False


def of_any(truth: Truth, picture: Picture) -> bool | None:
    """Return whether it is true of any subject of the picture; None where that is not known."""
    return any_of(truth, picture, range(len(picture["cells"])))


def known(found: Sequence[bool | None]) -> Share | None:
    """Return the share of the known ones that are true, None if none is known."""
    sure = [one for one in found if one is not None]
    return wilson(sum(sure), len(sure)) if sure else None


# ---- counted ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Worth:
    """Figures of a warning for one truth, each None without pictures. given: of all trials; right: of warned pictures,
    those in which it is true of a subject that was named; unsaid: of the sample's others, those in which it is true of
    the subjects with the highest score; warned, calm: pictures in which it is true of any subject, of those that are
    warned of and of the sample's others; found: of the sample's pictures in which it is true of any subject, those in
    which such a one was named.
    """

    given: Share | None
    right: Share | None
    unsaid: Share | None
    warned: Share | None
    calm: Share | None
    found: Share | None


def held_out_trials(trials: Trials, cast: str) -> dict[int, Seen]:
    """Return the trials of a cast that no threshold was chosen on."""
    return {int(seed): seen for seed, seen in trials.get(cast, {}).items() if int(seed) >= FIRST}


def worth(trials: Trials, cast: str, rule: str, truth: Truth) -> Worth:
    """Count a warning for one truth."""
    limit = thresholds(trials)[rule]
    each = {seed: (seen, named_by_rule(seen, rule, limit)) for seed, seen in held_out_trials(trials, cast).items()}
    warned = [(seen["pictures"][AS_IT_IS], told) for seen, told in each.values() if told]
    sample = [(seen["pictures"][AS_IT_IS], told, seen) for seed, (seen, told) in each.items() if seed % SAMPLE == 0]
    calm = [
        (picture, named_by_rule(seen, rule, max(RULES[rule].scores(seen))))
        for picture, told, seen in sample
        if not told
    ]
    hit = [any_of(truth, picture, told) for picture, told, _ in sample if of_any(truth, picture)]
    return Worth(
        wilson(len(warned), len(each)) if each else None,
        known([any_of(truth, picture, told) for picture, told in warned]),
        known([any_of(truth, picture, highest) for picture, highest in calm]),
        known([of_any(truth, picture) for picture, _ in warned]),
        known([of_any(truth, picture) for picture, _ in calm]),
        known(hit),
    )


def warned_again(trials: Trials, cast: str) -> Share | None:
    """Return the share of the trials that are warned of whose next seeds are all warned of too, None without any."""
    limit = thresholds(trials)[ONE_PLACE]
    warned = [seen for seen in held_out_trials(trials, cast).values() if named_by_rule(seen, ONE_PLACE, limit)]
    return known([seen["begun"] == MOST_SEEDS for seen in warned])


@dataclass(frozen=True)
class Change:
    """Change by a remedy: of `count` pictures, those in which it is true without and with it, and the difference of
    the shares with its 95 % interval, in -1..1.
    """

    count: int
    before: int
    after: int
    low: float
    high: float

    def __str__(self) -> str:
        middle = (self.after - self.before) / self.count
        points = f"{100 * middle:+.0f} [{100 * self.low:+.0f}, {100 * self.high:+.0f}]"
        return f"{self.before} to {self.after} of {self.count}: {points}"


def share_difference(pairs: Sequence[tuple[bool, bool]]) -> Change:
    """Return the difference of two shares of the same pictures, (without, with) each, with the interval of Newcombe
    1998 (Statistics in Medicine 17, 2635-2650), method 10. Raises ValueError without pairs.
    """
    n = len(pairs)
    both, only_before, only_after, neither = (
        pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))
    )
    before, after = wilson(both + only_before, n), wilson(both + only_after, n)
    margins = (both + only_before) * (only_after + neither) * (both + only_after) * (only_before + neither)
    cross = both * neither - only_before * only_after
    cross = max(cross - n / 2, 0.0) if cross > 0 else float(cross)
    phi = cross / sqrt(margins) if margins else 0.0

    def apart(one: float, other: float) -> float:
        return sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    middle = after.part - before.part
    low = middle - apart(after.part - after.low, before.high - before.part)
    high = middle + apart(after.high - after.part, before.part - before.low)
    return Change(n, both + only_before, both + only_after, low, high)


def own_looks(before: Picture, after: Picture) -> tuple[float, float] | None:
    """Return the share of a picture's subjects that are there with the looks of their own reference, 0..1, without and
    with a remedy, of those that are known in both; None if none is.
    """
    each = [(unlike(before, i), unlike(after, i)) for i in range(len(before["cells"]))]
    sure = [(not one, not other) for one, other in each if one is not None and other is not None]
    return (fmean(one for one, _ in sure), fmean(other for _, other in sure)) if sure else None


def gain(pairs: Sequence[tuple[float, float]]) -> str:
    """Return 'A % to B % of N: points [low, high]' of the shares of N pictures, with the 95 % interval of the mean
    difference over pictures, or 'too few' for fewer than `FEWEST`.
    """
    if len(pairs) < FEWEST:
        return "too few"
    before, after = (100 * fmean(column) for column in zip(*pairs, strict=True))
    half = Z * stdev(100 * (other - one) for one, other in pairs) / sqrt(len(pairs))
    points = f"{after - before:+.0f} [{after - before - half:+.0f}, {after - before + half:+.0f}]"
    return f"{before:.0f} % to {after:.0f} % of {len(pairs)}: {points}"


def remedies(trials: Trials, cast: str, rule: str) -> dict[str, list[tuple[Picture, Picture]]]:
    """Return each remedy that all pictures of a warning were painted with: each picture without and with it."""
    limit = thresholds(trials)[rule]
    warned = [seen["pictures"] for seen in held_out_trials(trials, cast).values() if named_by_rule(seen, rule, limit)]
    names = [name for name in (warned or [{}])[0] if all(name in pictures for pictures in warned)]
    return {name: [(one[AS_IT_IS], one[name]) for one in warned] for name in names if name != AS_IT_IS}


def changed(pairs: Sequence[tuple[Picture, Picture]], truth: Truth) -> str:
    """Return `share_difference` of whether it is true of any subject, of the pictures in which that is known without
    and with the remedy, or 'none' without such pictures.
    """
    found = [(of_any(truth, before), of_any(truth, after)) for before, after in pairs]
    sure = [(one, other) for one, other in found if one is not None and other is not None]
    return str(share_difference(sure)) if sure else "none"
