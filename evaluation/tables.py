"""Markdown tables of results: each score by method, and each score's agreement with the known truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from .results import HEAD, TableRow
from .statistics import Estimate, auc, mean_of_groups, preference, rank_correlation

LOOKS, PROMPT = "truth_right", "truth_prompt"
AGAINST = {  # scores -> the truths they are compared with; the others: LOOKS
    "clip_t": (PROMPT,),
    "clip_t_times_2_5": (),  # in the order of clip_t
    "object_quality": (LOOKS, PROMPT),
}
MEANING = {  # of each column, for the report
    "clip_i": "CLIP-I: cosine of picture and references",
    "clip_t": "CLIP-T: cosine of picture and prompt",
    "clip_t_times_2_5": "CLIP-T as MIP-Adapter counts it: 2.5 * max(cosine, 0)",
    "dino": "DINO: cosine of picture and references",
    "dinov2": "DINOv2: cosine of picture and references",
    "scr_0.4": "subject collapse rate: share of subjects with DINOv2 below 0.4 (lower is better)",
    "scr_0.5": "subject collapse rate: share of subjects with DINOv2 below 0.5 (lower is better)",
    "scr_0.6": "subject collapse rate: share of subjects with DINOv2 below 0.6 (lower is better)",
    "colours": "colours: overlap of the histograms of picture and references",
    "ip_sim": "IP-Sim of XVerseBench: cosine of found subjects and references, 0 where none is found",
    "subjects_right": "share of subjects that Score Subjects calls right",
    "ip_sim_clip": "IP-Sim by the model of CLIP-I",
    "subjects_right_clip": "share of subjects that Score Subjects calls right by the model of CLIP-I",
    "ip_sim_dino": "IP-Sim by DINO",
    "subjects_right_dino": "share of subjects that Score Subjects calls right by DINO",
    "ip_sim_dinov2": "IP-Sim by DINOv2",
    "subjects_right_dinov2": "share of subjects that Score Subjects calls right by DINOv2",
    "ip_sim_colours": "IP-Sim by colours instead of a model",
    "subjects_right_colours": "share of subjects that Score Subjects calls right by their colours",
    "object_quality": "object quality score of MIP-Adapter",
    "object_relevance": "object relevance score of MIP-Adapter (noise inside over outside a subject's box)",
    "truth_right": "truth: share of subjects with the looks of their own reference",
    "truth_exact": "truth: share of subjects with exactly the colours of their reference",
    "truth_prompt": "truth: share of the prompt's subjects that are there, by class and variant, with anyone's looks",
}
LOWER = ("scr_0.4", "scr_0.5", "scr_0.6")  # the better, the lower


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def numeric_columns(rows: Sequence[TableRow]) -> list[str]:
    """Return the columns with a meaning in which there is a number."""
    columns = [column for column in rows[0] if column not in HEAD] if rows else []
    return [column for column in columns if column in MEANING and any(row[column] for row in rows)]


def methods_of(rows: Sequence[TableRow]) -> list[str]:
    """Return the methods in the order of the rows."""
    return list(dict.fromkeys(row["method"] for row in rows))


def by_method(rows: Sequence[TableRow], column: str) -> dict[str, Estimate]:
    """Return the mean of a column for each method, with its interval over groups."""
    found: dict[str, dict[str, list[float]]] = {method: defaultdict(list) for method in methods_of(rows)}
    for row in rows:
        if row[column]:
            found[row["method"]][row["group"]].append(float(row[column]))
    return {method: mean_of_groups(groups) for method, groups in found.items()}


def score_table(rows: Sequence[TableRow], columns: Sequence[str] | None = None) -> str:
    """Return a table with a row for each method and a column for each score: mean, 95 % interval, and the count of
    pictures where it is not that of the first score.
    """
    columns = numeric_columns(rows) if columns is None else columns
    estimates = {column: by_method(rows, column) for column in columns}
    lines = []
    for method in methods_of(rows):
        count = sum(row["method"] == method for row in rows)
        cells = []
        for column in columns:
            one = estimates[column][method]
            cells.append(f"{one}" if one.pictures == count else f"{one} ({one.pictures})")
        lines.append((method, str(count), *cells))
    return markdown(("method", "pictures", *columns), lines)


def agreement_table(rows: Sequence[TableRow], columns: Sequence[str] | None = None, truth: str = LOOKS) -> str:
    """Return a table of how far each score that is compared with a truth agrees with it; "" where it is not known or
    there is no such score.
    """
    if not rows or truth not in rows[0]:
        return ""
    every = numeric_columns(rows) if columns is None else columns
    lines = []
    for column in every:
        if column.startswith("truth") or truth not in AGAINST.get(column, (LOOKS,)):
            continue
        lines.append((column, *(str(one) for one in agreement(rows, column, truth))))
    head = ("score", "all right or not (AUC)", "rank correlation", "prefers the better of two", "pairs")
    return markdown(head, lines) if lines else ""


def agreement(rows: Sequence[TableRow], column: str, truth: str = LOOKS) -> tuple[Estimate, Estimate, Estimate, int]:
    """Return AUC, rank correlation and preference of a score against a truth, and the number of pairs."""
    sign = -1.0 if column in LOWER else 1.0
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row[column] and row[truth]:
            groups[row["case"]].append((sign * float(row[column]), float(row[truth])))
    better = preference(groups)
    return auc(groups), rank_correlation(groups), better, better.pictures


def meanings(columns: Sequence[str]) -> str:
    """Return what the columns mean, as a Markdown list."""
    return "".join(f"- `{column}`: {MEANING[column]}\n" for column in columns)


def by_kind(rows: Sequence[TableRow], kind: Callable[[TableRow], str]) -> dict[str, list[TableRow]]:
    """Return the rows by kind, in their order."""
    found: dict[str, list[TableRow]] = {}
    for row in rows:
        found.setdefault(kind(row), []).append(row)
    return found
