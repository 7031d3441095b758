"""The folder of results: pictures, their scores line by line, and one table of both.

`pictures/` has a PNG for each task, `scores.jsonl` a line for each scored picture, so that a stopped run goes on where
it stopped; `origin.json` says what must not change; `scores.csv` is made of these at the end, one row a picture.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from .journal import ResultsError
from .scores.scores import Values
from .suites.suite import Case
from .tasks import Task

LINES, TABLE, ORIGIN = "scores.jsonl", "scores.csv", "origin.json"
CHANGES = 3  # differences that an error names
HEAD = ("key", "suite", "group", "case", "method", "seed", "prompt", "subjects", "file")  # columns before the scores
TableRow = dict[str, str]


def check_origin(folder: Path, origin: Mapping[str, str]) -> None:
    """Store where results come from, or compare it with what earlier runs stored. More photos and scores may be added.

    origin: name of a thing, such as a model or photo -> what changes with it.
    Raises:
        ResultsError: the folder has results of other photos or models, which would be mixed; nothing is changed.
    """
    path, found = folder / ORIGIN, {}
    if path.is_file():
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ResultsError(f"JSON in '{path}'", str(error), "Choose another folder in [output].") from error
    changed = sorted(name for name in origin if found.get(name, origin[name]) != origin[name])
    if changed:
        pairs = ", ".join(f"{name}: {found[name]} instead of {origin[name]}" for name in changed[:CHANGES])
        more = f" and {len(changed) - CHANGES} more" if len(changed) > CHANGES else ""
        raise ResultsError(
            f"results of the same suite, photos and models in '{folder}'",
            f"{pairs}{more}",
            "Choose another folder in [output].",
        )
    write_text(path, json.dumps({**found, **origin}, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    partial.replace(path)


def stored_scores(folder: Path) -> dict[str, dict[str, float | str | None]]:
    """Return the scores of each picture by its task's key; a line that was cut off by a kill is left out."""
    path, found = folder / LINES, {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            found.setdefault(entry["key"], {}).update(entry["scores"])
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            continue
    return found


def append_scores(folder: Path, key: str, scores: Values) -> None:
    """Add a picture's scores."""
    path = folder / LINES
    cut = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(("\n" if cut else "") + json.dumps({"key": key, "scores": scores}) + "\n")


def result_rows(
    tasks: Sequence[Task], cases: Mapping[str, Case], scores: Mapping[str, Values], columns: Sequence[str]
) -> list[TableRow]:
    """Return a row for each task that is scored, in the order of the tasks; numbers with six digits."""
    return [
        {
            "key": task.key,
            "suite": task.suite,
            "group": cases[task.case].group,
            "case": task.case,
            "method": task.method.name,
            "seed": str(task.seed),
            "prompt": task.prompt,
            "subjects": "; ".join(subject.name for subject in task.subjects),
            "file": task.file,
            **{column: _text(scores[task.key].get(column)) for column in columns},
        }
        for task in tasks
        if task.key in scores
    ]


def _text(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.6g}"


def write_table(path: Path, rows: Sequence[TableRow], columns: Sequence[str]) -> None:
    """Write rows as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*HEAD, *columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, out.getvalue())


def read_table(path: Path) -> list[TableRow]:
    """Read rows of a CSV. Raises ResultsError where there is none."""
    try:
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise ResultsError(f"the table '{path}'", type(error).__name__, "Run tools/evaluate.py first.") from error
