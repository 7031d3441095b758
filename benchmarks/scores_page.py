"""What scores.json says, as a list on Score Subjects' help page, which is too narrow for a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "web" / "docs" / "TroupeScoreSubjects.md"
HEAD = "The first number is for the rehearsal image encoder, the second for `colours`.\n\n"
WORDS = {"masks": "masks", "segs": "segments", "bounding_boxes": "boxes", "record": "rectangles of `record`"}
CLEAR = ("right", "swapped", "cloned", "missing")
DRAWN = {  # words of the page: kinds of `drawn_cases.py`
    "Drawn, each subject right, swapped, cloned or missing": CLEAR,
    "Drawn, one subject is there twice": ("twice",),
    "Drawn, all right, and two places of background": ("background",),
    "Drawn, each subject has one of its two colours from the other": ("mixed",),
}
PAINTED = {
    "Painted, clear": "clear",
    "Painted, clear, without missing subjects": "there",
    "Painted, all in which the two reads agree": "all",
}
Found = Mapping[str, Any]  # scores.json


def with_verdicts(page: str, found: Found) -> str:
    """Return the help page with the list of these results in place of its own."""
    before, _, rest = page.partition(HEAD)
    return f"{before}{verdict_list(found)}\n{rest.partition(chr(10) * 2)[2]}"


def verdict_list(found: Found) -> str:
    """Return the list: how many verdicts are true, of how many. Places of the same figures share a part."""
    drawn, painted = found["drawn"], found["painted"]
    lines: dict[str, dict[str, list[str]]] = {}
    for kind, cases in DRAWN.items():
        for by in drawn["colours"]:
            each = [summed(casts[case] for casts in one[by].values() for case in cases) for one in drawn.values()]
            lines.setdefault(kind, {}).setdefault(in_words(each), []).append(WORDS[by])
    for kind, key in PAINTED.items():
        for by in painted["colours"]:
            each = [one[by][key] for one in painted.values()]
            lines.setdefault(kind, {}).setdefault(in_words(each), []).append(WORDS[by])
    parts = {
        kind: "; ".join(f"{' and '.join(by)} {counts}" for counts, by in each.items()) for kind, each in lines.items()
    }
    return HEAD + "".join(f"- {kind}: {part}.\n" for kind, part in parts.items())


def summed(counts: Iterable[list[int]]) -> list[int]:
    """Return the sums of [true, all]."""
    return [sum(column) for column in zip(*counts, strict=True)]


def in_words(counts: Iterable[list[int]]) -> str:
    """Return '476 and 480 of 480 (99.2 % and 100.0 %)' of [true, all] by each encoder, all being the same."""
    true, asked = zip(*counts, strict=True)
    parts = " and ".join(f"{100 * one / max(asked[0], 1):.1f} %" for one in true)
    return f"{' and '.join(map(str, true))} of {asked[0]} ({parts})"
