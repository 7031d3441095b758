"""Whose looks each subject has: one verdict for each, from the likeness of its crop to every subject's references.

L[i, j] is the likeness of subject i's crop to the references of j, R[j, k] that of the references of j and k. The lead
of j over k in crop i is

    lead_i(j, k) = (L[i, j] - L[i, k]) / ((R[j, j] + R[k, k]) / 2 - R[j, k])

which is 1 where the crop is a photo of j, -1 where it is one of k, and 0 half-way, whatever the encoder. The owner of a
crop is the reference with the largest L[i, j]; every reference over which it leads by less than LEAD_MARGIN is an owner
too. References that the encoder cannot tell apart (R >= ALIKE) count as one.

Where vectors are shares that add up, such as those of colours, a crop with one part of each of two looks is known
without a tie: it is more like the second than the looks of its owner j explain. k is an owner too where

    (L[i, k] - R[j, k] * L[i, j]) / ((R[j, j] + R[k, k]) / 2 - R[j, k]) > FOREIGN

missing: the subject has no region in the picture, or its largest L is below the threshold, or its region is that of
another subject, whose looks are there. right: it is the only owner of its crop. mixed: its crop has several owners.
swapped: its only owner is another subject, whose own crop is not its own. cloned: its only owner is another subject,
which is an owner of its own crop too or is missing; or it is the only owner of its crop and a further region has its
looks too. swapped and the first meaning of cloned are those of `rehearsal/engine/verdict.py`.

A further region is one that is left over when the subjects have theirs. A detector also gives background, which may be
like a reference by chance. So a further crop has the looks of j only if j is its only owner and also the owner of a
subject's crop i, and if its likeness both with the references of j and with crop i itself is at least NEAR * L[i, j].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

RIGHT, SWAPPED, MIXED, CLONED, MISSING = ("right", "swapped", "mixed", "cloned", "missing")
LEAD_MARGIN = 0.1  # of the way from one reference to another
FOREIGN = 0.22  # of the same way: the lowest at which 95 % of clear verdicts are true (`limits` of scores.json)
ALIKE = 0.97  # cosine of two references from which on they count as one
NEAR = 0.8  # of the likeness of a subject's crop: what a second figure with the same looks must reach


@dataclass(frozen=True)
class Verdict:
    """One subject's verdict. owners: whose references its crop is like, counted from 0, the likeliest first; empty
    where it is missing. lead: of the likeliest over the nearest other reference, None with a single subject.
    """

    word: str
    owners: tuple[int, ...] = ()
    lead: float | None = None


def verdicts(
    likeness: torch.Tensor,
    references: torch.Tensor,
    found: Sequence[bool],
    threshold: float,
    same_region: Sequence[tuple[int, int]] = (),
    shares: bool = False,
) -> list[Verdict]:
    """Return the verdict on each of m subjects.

    Arguments:
        likeness: [m, m], see the module; rows of subjects that are not found are ignored.
        references: [m, m], see `likeness.reference_likeness`.
        found: whether each subject has a region in the picture.
        threshold: likeness below which a crop shows none of the subjects.
        same_region: pairs of subjects whose regions are one.
        shares: whether the vectors are shares that add up, see the module.
    """
    rows, alike = likeness.tolist(), references.tolist()
    own = [
        _owned(i, row, alike, shares) if there and max(row) >= threshold else Verdict(MISSING)
        for i, (row, there) in enumerate(zip(rows, found, strict=True))
    ]
    for i, j in (*same_region, *((j, i) for i, j in same_region)):
        if own[i].owners == (j,) == own[j].owners:
            own[i] = Verdict(MISSING)
    return [_judged(i, verdict, own) for i, verdict in enumerate(own)]


def with_further(
    own: Sequence[Verdict],
    likeness: torch.Tensor,
    beside: torch.Tensor,
    references: torch.Tensor,
    threshold: float,
    shares: bool = False,
) -> tuple[list[Verdict], list[Verdict]]:
    """Return the subjects' verdicts, cloned for right where a further region has the same looks, and the verdict on
    each of e further regions: cloned where it has the looks of a subject's crop, missing where it shows none clearly.

    Arguments:
        own: of each of m subjects, from `verdicts`.
        likeness: [m + e, m], of the subjects' and the further crops with the references.
        beside: [e, m], cosine of the further crops with the subjects' crops, NaN where a subject has none.
        references, threshold, shares: see `verdicts`.
    """
    rows, alike = likeness.tolist(), references.tolist()
    further = []
    for row, near in zip(rows[len(own) :], beside.tolist(), strict=True):
        top = max(range(len(row)), key=row.__getitem__)
        found = _owned(top, row, alike, shares)
        same = [i for i, verdict in enumerate(own) if verdict.owners == found.owners == (top,)]
        second = row[top] >= threshold and any(min(row[top], near[i]) >= NEAR * rows[i][top] for i in same)
        further.append(replace(found, word=CLONED) if second else Verdict(MISSING))
    again = {owner for verdict in further for owner in verdict.owners}
    return [replace(v, word=CLONED) if v.word == RIGHT and i in again else v for i, v in enumerate(own)], further


def lead(row: Sequence[float], references: Sequence[Sequence[float]], j: int, k: int) -> float:
    """Return the lead of reference j over k in a crop, see the module."""
    return (row[j] - row[k]) / _way(references, j, k)


def alike(references: Sequence[Sequence[float]], j: int, k: int) -> bool:
    """Return whether two subjects' references count as one."""
    return j != k and references[j][k] >= ALIKE


def _way(references: Sequence[Sequence[float]], j: int, k: int) -> float:
    return max((references[j][j] + references[k][k]) / 2 - references[j][k], 1 - ALIKE)


def _unexplained(row: Sequence[float], references: Sequence[Sequence[float]], j: int, k: int) -> float:
    """How much more a crop is like k than the looks of j explain, see the module."""
    return (row[k] - references[j][k] * row[j]) / _way(references, j, k)


def _owned(i: int, row: Sequence[float], references: Sequence[Sequence[float]], shares: bool) -> Verdict:
    """The owners of a crop, the verdict still open."""
    top = max(range(len(row)), key=row.__getitem__)
    top = i if alike(references, i, top) else top
    leads = {k: lead(row, references, top, k) for k in range(len(row)) if k != top and not alike(references, top, k)}
    rivals = [
        k for k in leads if leads[k] < LEAD_MARGIN or (shares and _unexplained(row, references, top, k) > FOREIGN)
    ]
    rivals.sort(key=leads.__getitem__)
    return Verdict("", (top, *rivals), min(leads.values(), default=None))


def _judged(i: int, verdict: Verdict, every: Sequence[Verdict]) -> Verdict:
    if len(verdict.owners) > 1:
        return Verdict(MIXED, verdict.owners, verdict.lead)
    owner = next(iter(verdict.owners), None)
    if owner is None:
        return verdict
    theirs = every[owner].owners
    word = RIGHT if owner == i else SWAPPED if theirs and owner not in theirs else CLONED
    return Verdict(word, verdict.owners, verdict.lead)
