"""The runs of a whole measurement: their names, their order, and which belong together. What a name says is in contenders.py."""
from __future__ import annotations

SUBJECTS = (1, 2, 4, 8)
OURS = [f"relevance {n}x{t}" for t in (4, 16) for n in SUBJECTS] + ["relevance 2x4+regions", "add 2x4"]
GATED = [f"{kind} {n}" for kind in ("gated", "core-gligen") for n in (1, 2, 4)]
THEIRS = [f"ipadapter-plus {n}x{t}" for t in (4, 16) for n in SUBJECTS] + ["ipadapter-plus 2x4+masks"]


def beside(ours: list[str], theirs: list[str]) -> list[str]:
    """Ours, each followed by theirs of the same subjects and tokens: neighbours share a step of text alone."""
    order: list[str] = []
    for run in ours:
        order += [run, rival_of(run)] if rival_of(run) in theirs else [run]
    return order + [their for their in theirs if their not in order]


def rival_of(run: str) -> str:
    """The other pack's run that does the same as one of ours, itself where nothing does."""
    return run.replace("relevance", "ipadapter-plus").replace("regions", "masks")


def pairs_of_growth(runs: list[str]) -> list[tuple[str, str]]:
    """(the run with the fewest subjects, the one with the most) of each kind and number of tokens, where they differ."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        if "+" not in run:
            kind, sizes = run.split(" ")
            groups.setdefault(" ".join((kind, *sizes.split("x")[1:])), []).append(run)
    ends = [(min(group, key=subjects_of), max(group, key=subjects_of)) for group in groups.values()]
    return [(few, many) for few, many in ends if few != many]


def subjects_of(run: str) -> int:
    """How many subjects a run's name tells."""
    return int(run.split(" ")[1].split("+")[0].split("x")[0])
