"""The runs of a whole measurement: their names, their order, and which belong together.

What a name says is in contenders.py.
"""

from __future__ import annotations

from itertools import pairwise

SUBJECTS = (1, 2, 4, 8)
OURS = [f"relevance {n}x{t}" for t in (4, 16) for n in SUBJECTS] + ["relevance 2x4+regions", "add 2x4"]
GATED = [f"{kind} {n}" for kind in ("gated", "core-gligen") for n in (1, 2, 4)]
# beside the other pack, of which they may add half, it takes more pairs to tell
DECIDING = ("relevance 2x4", "relevance 8x16")
THEIRS = [f"ipadapter-plus {n}x{t}" for t in (4, 16) for n in SUBJECTS] + ["ipadapter-plus 2x4+masks"]


def paired_with_rival(ours: list[str], theirs: list[str]) -> list[str]:
    """Return our runs, each followed by the other pack's run with the same subjects and tokens, then the rest of
    theirs.
    """
    order: list[str] = []
    for run in ours:
        order += [run, rival_of(run)] if rival_of(run) in theirs else [run]
    return order + [their for their in theirs if their not in order]


def couples(runs: list[str]) -> list[tuple[str, ...]]:
    """Return the groups of runs that share a step of text alone: ours and theirs with the same subjects and tokens,
    then the others two by two.
    """
    rivals = [(run, rival_of(run)) for run in runs if rival_of(run) != run and rival_of(run) in runs]
    others = [run for run in runs if not any(run in pair for pair in rivals)]
    return rivals + [tuple(others[i : i + 2]) for i in range(0, len(others), 2)]


def rival_of(run: str) -> str:
    """Return the name of the other pack's equivalent of one of our runs, or the same name if it has none."""
    return run.replace("relevance", "ipadapter-plus").replace("regions", "masks")


def pairs_of_growth(runs: list[str]) -> list[tuple[str, str]]:
    """Return pairs (run, run with more subjects) of the same kind and number of tokens: each number of subjects with
    the next larger one, and the smallest with the largest.
    """
    groups: dict[str, list[str]] = {}
    for run in runs:
        if "+" not in run:
            kind, sizes = run.split(" ")
            groups.setdefault(" ".join((kind, *sizes.split("x")[1:])), []).append(run)
    found = []
    for group in groups.values():
        ordered = sorted(group, key=subjects_of)
        found += pairwise(ordered)
        found += [(ordered[0], ordered[-1])] * (len(ordered) > 2)
    return found


def subjects_of(run: str) -> int:
    """Return the number of subjects in a run's name."""
    return int(run.split(" ")[1].split("+")[0].split("x")[0])
