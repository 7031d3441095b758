"""Sentences about what is allowed in a cast but probably not meant."""

from __future__ import annotations

from collections.abc import Sequence

from ..prompt.names import duplicate_warnings, missing_warnings
from ..subjects import Cast, called


def name_warnings(cast: Cast, prompts: Sequence[str]) -> list[str]:
    """Return warnings about equal names, and names that are in none of the known prompts."""
    names = [s.name for s in cast.subjects]
    placed = [s.box is not None or s.region is not None for s in cast.subjects]
    return duplicate_warnings(names, placed) + missing_warnings(names, prompts)


def region_warnings(cast: Cast) -> list[str]:
    """Return warnings about regions in which nobody can appear."""
    numbered = enumerate(cast.subjects, 1)
    nowhere = [
        f"{i} ('{s.name}')" if s.name else str(i)
        for i, s in numbered
        if s.region is not None and not bool(s.region.any())
    ]
    remedy = "white where its photos may apply, or disconnect 'region'"
    return [
        f"Paint the region of subject {who} {remedy}: it is black everywhere, so the subject has no effect."
        for who in nowhere
    ]


def box_warnings(cast: Cast, placeless: Sequence[bool]) -> list[str]:
    """Return warnings about regions, which gated layers do not use, and missing boxes. placeless: of each subject,
    whether it needs no box.
    """
    numbered, sentences = list(enumerate(cast.subjects, 1)), []
    regions = [called(i, s.name) for i, s in numbered if s.region is not None]
    if regions:
        remedy = f"Use a box (Place Subjects) instead of the region of {_joined(regions)}"
        sentences.append(f"{remedy}: regions only limit Apply Image Attention, gated layers use boxes.")
    unplaced = [called(i, s.name) for i, s in numbered if s.box is None and not placeless[i - 1]]
    if unplaced:
        sentences.append(
            f"Add a box for {_joined(unplaced)} with Place Subjects: without one, the box is the whole picture."
        )
    return sentences


def _joined(parts: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
