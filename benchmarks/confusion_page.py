"""The page of who is confused with whom, written from confusion.json and from nothing else."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

Z = 1.959964  # of the normal distribution, for 95 %
ADAPTERS = {"mip": "MIP-Adapter (trained with relevance and text gain)", "ip": "IP-Adapter (trained on one reference at a time)"}
CASTS = ("two classes", "one class", "three subjects")
NAMES = {"r": "right", "s": "swapped", "m": "mixed", "c": "cloned", "-": "missing"}
WITHOUT = "without references"
RIVALS = ("add", "uniform", "joint", "add with boxes")
CHECKED = range(24)  # seeds of two classes that every test run paints anew
MARKS = ("<!-- confusion: from benchmarks/confusion.json, made by benchmarks/confusion.py -->", "<!-- end of confusion -->")
LEAST = 50  # pictures of every cell that are kept; 300 are meant
AGREE = 5.0  # points by which the two reads may differ
Verdicts = Mapping[str, Sequence[str]]  # seed -> letters by the recogniser, letters by colours, x for every exact subject

HEAD = """# Who is confused with whom

Written by `benchmarks/confusion.py`, by a machine: change the scripts, not this page.

    python benchmarks/confusion.py

The rehearsal world (rehearsal/world.py) is a small world of drawn pictures in which it is known exactly who looks like what, with a text-to-image model and two
adapters trained on it (rehearsal/files/MODEL_CARD.md). Each picture of this page has a cast of two or three individuals. The prompt names their classes; how they look
comes from one reference picture each. No adapter, and not the image encoder, was trained on any of these individuals: pairs of colours are split, one in five is for
tests only. (The base model has seen drawings of all pairs, without references and without a word about looks.) Every method paints the same casts from the same
noise at weight 1, 20 steps of euler, cfg 5.

The reader finds the two colours of every subject, body and accent, among the world's ten. A subject is *right* where its reference has one of them and no other
reference has the other one, *mixed* where two references have one each, *cloned* where they are another reference's, whose own subject has them too or is missing,
*swapped* where that one's subject has other colours, and *missing* where no such subject is in the picture; a missing subject counts against the method. Colours that
are nobody's go to the reference whose colours are the likeliest, so chance gets some right: the row *without references* says how many. *Exact* subjects have both
colours of their reference: this is how well an adapter carries a look, where *right* is how well looks are kept apart.

Of the merges, *add* is what stacked IP-Adapters do; *relevance* is MIP-Adapter's released code, which divides relevance by its sum over the subjects; *paper* is its
formula as printed, which divides by the mean over positions: weights far above 1 where a subject is relevant, on which no adapter here was trained, and most subjects are
lost. *One layer's map* is done in the manner of Conceptrol (arXiv 2503.06568).

A small network trained on drawings reads the pictures. The figures are parts of all subjects, in brackets the 95 % Wilson interval. Boxes are where the same seed
paints the subjects without references, as an artist draws boxes onto a first picture; a subject that is missing there gets a box where a drawing would have it.
"""


@dataclass(frozen=True)
class Share:
    """A part of `count` cases, with the Wilson interval at 95 %; all in 0..1."""

    part: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.part * 100:.0f} % [{self.low * 100:.0f}, {self.high * 100:.0f}]"


def wilson(hits: int, count: int) -> Share:
    """The Wilson score interval (Wilson 1927). Raises ValueError without cases."""
    if count <= 0:
        raise ValueError("a share: expected at least one case, found none")
    part, z2 = hits / count, Z * Z
    middle, spread = (part + z2 / (2 * count)) / (1 + z2 / count), Z * sqrt(part * (1 - part) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return Share(part, max(0.0, middle - spread), min(1.0, middle + spread), count)


def right(verdicts: Verdicts, read: int = 0) -> Share:
    """Part of subjects that are right. read: 0 by the recogniser, 1 by colours."""
    letters = "".join(reads[read] for reads in verdicts.values())
    return wilson(letters.count("r"), len(letters))


def exact(verdicts: Verdicts) -> Share:
    """Part of subjects whose colours are exactly their reference's."""
    letters = "".join(reads[2] for reads in verdicts.values())
    return wilson(letters.count("x"), len(letters))


def write_page(results: Path, page: Path) -> None:
    """Write the page for a results file."""
    page.write_text(render(json.loads(results.read_text(encoding="utf-8"))["verdicts"]), encoding="utf-8")


def sentence(cells: Mapping[str, Verdicts]) -> str:
    """The README's: two subjects of two classes and of one, by relevance, by its rivals and by chance."""
    parts = []
    for cast in CASTS[:2]:
        found = {method: cells.get(f"mip | {method} | {cast} | 1") for method in ("relevance", "add", "uniform", WITHOUT)}
        figures = [_named(method, verdicts) for method, verdicts in found.items() if verdicts]
        if figures:
            parts.append(f"of {cast} {', '.join(figures)}")
    count = min((len(found) for key, found in cells.items() if key.endswith(" | 1")), default=0)
    return (f"How often a subject keeps its own look beside another one, in the rehearsal world with its MIP-Adapter: {'; '.join(parts)}. A subject counts if it has one of its "
            f"reference's two colours and none of the other reference's; exactly: both. At least {count} pictures each, 95 % intervals; [all figures](benchmarks/CONFUSION.md).")


def _named(method: str, verdicts: Verdicts) -> str:
    """'75 % [69, 80] with relevance (38 % exactly)', the first in bold."""
    share, ours = str(right(verdicts)), method == "relevance"
    how = "by chance, without references" if method == WITHOUT else f"with {method}"
    return f"{f'**{share}**' if ours else share} {how} ({exact(verdicts).part * 100:.0f} % exactly)"


def in_readme(readme: str, cells: Mapping[str, Verdicts]) -> str:
    """The README with today's sentence between its marks; as it is where it has none."""
    if MARKS[0] not in readme:
        return readme
    before, _, rest = readme.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{sentence(cells)}\n{MARKS[1]}{after}"


def render(cells: Mapping[str, Verdicts]) -> str:
    """The whole page."""
    parts = [HEAD]
    methods = list(dict.fromkeys(key.split(" | ")[1] for key in cells))
    for adapter, title in ADAPTERS.items():
        parts.append(f"## {title}\n")
        for what, share in (("Right", right), ("Exact", exact)):
            rows = [(method, *(_cell(cells, share, adapter, method, cast) for cast in CASTS)) for method in methods]
            parts += [f"{what}:\n", lines(("merge", *CASTS), rows)]
    parts += ["## What happens to the others (MIP-Adapter)\n", *_kinds(cells, methods), "## By weight (MIP-Adapter, two classes)\n", _curve(cells)]
    parts += ["## Where relevance does not win\n", _losses(cells), "## Two independent reads\n", _reads(cells)]
    checked = cells.get("mip | relevance | two classes | 1", {})
    if all(str(seed) in checked for seed in CHECKED):
        share = right({str(seed): checked[str(seed)] for seed in CHECKED})
        parts.append(f"## Checked by every test run\n\nSeeds {CHECKED[0]} to {CHECKED[-1]} of two classes, relevance, MIP-Adapter: {share} of {share.count} subjects.\n")
    return "\n".join(parts)


def lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def _cell(cells: Mapping[str, Verdicts], share: Callable[[Verdicts], Share], adapter: str, method: str, cast: str, weight: float = 1.0) -> str:
    found = cells.get(f"{adapter if method != WITHOUT else 'mip'} | {method} | {cast} | {weight:g}")
    return f"{share(found)}, {len(found)} pictures" if found else "not measured"


def _kinds(cells: Mapping[str, Verdicts], methods: Sequence[str]) -> list[str]:
    parts = []
    for cast in CASTS:
        rows = []
        for method in methods:
            found = cells.get(f"mip | {method} | {cast} | 1")
            if found:
                counts = Counter("".join(reads[0] for reads in found.values()))
                rows.append((method, *(f"{counts[letter] / sum(counts.values()) * 100:.0f} %" for letter in NAMES)))
        parts += [f"{cast}:\n", lines(("merge", *NAMES.values()), rows)]
    return parts


def _curve(cells: Mapping[str, Verdicts]) -> str:
    keys = [key.split(" | ") for key in cells]
    curve = [(method, float(weight)) for adapter, method, cast, weight in keys if (adapter, cast) == ("mip", "two classes")]
    methods = [method for method in dict.fromkeys(method for method, _ in curve) if sum(m == method for m, _ in curve) > 1]
    if not methods:
        return "not measured\n"
    weights = sorted({weight for _, weight in curve})
    return lines(("weight", *methods), [(f"{weight:g}", *(_cell(cells, right, "mip", method, "two classes", weight) for method in methods)) for weight in weights])


def _losses(cells: Mapping[str, Verdicts]) -> str:
    """Every cell in which a rival is right more often than relevance, and one with boxes more often than relevance with boxes; or that there is none."""
    found = []
    for adapter in ADAPTERS:
        for cast in CASTS:
            ours = {method: cells.get(f"{adapter} | {method} | {cast} | 1") for method in ("relevance", "relevance, sharpness 3", "relevance with boxes")}
            for rival in RIVALS:
                theirs, mine = cells.get(f"{adapter} | {rival} | {cast} | 1"), ours["relevance with boxes" if "boxes" in rival else "relevance"]
                if theirs and mine and right(theirs).part > right(mine).part:
                    sure = "beyond chance" if right(theirs).low > right(mine).high else "the intervals overlap"
                    found.append(f"- {adapter}, {cast}: {rival} {right(theirs)} against {right(mine)} ({sure})")
    nowhere = "By *right* and the recogniser nowhere: in every counted cell relevance is right at least as often as uniform, joint and add, and with boxes as add with boxes."
    return "\n".join(found or [nowhere]) + "\n"


def _reads(cells: Mapping[str, Verdicts]) -> str:
    rows, worst = [], 0.0
    for key, found in cells.items():
        if not key.endswith(" | 1"):
            continue
        difference = round((right(found, 1).part - right(found, 0).part) * 100, 1)
        worst = max(worst, abs(difference), key=abs)
        if abs(difference) > AGREE:
            rows.append((key[:-4].replace(" | ", ", "), str(right(found, 0)), str(right(found, 1)), f"{difference:+.1f}"))
    told = "Besides the recogniser, the cells where it sees a subject are compared with drawings of the subject in every pair of colours, without any network; "
    told += "who is missing is the recogniser's word in both. "
    told += f"At weight 1, the largest difference in a cell is {worst:.1f} points."
    return told + "\n" + ("\n" + lines(("cell", "recogniser", "colours", "points"), rows) if rows else "")
