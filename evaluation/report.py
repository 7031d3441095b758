"""The report: what was painted and scored, the tables, and everything that is needed to repeat it."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .origin import fingerprint, versions
from .results import TABLE, TableRow, write_table, write_text
from .scores.scores import Scorer, columns_of
from .settings import EvaluationSettings, as_plain
from .sheet import contact_sheet
from .suites.rehearsal import NAME as REHEARSAL
from .suites.suite import Suite
from .tables import PROMPT, agreement_table, by_kind, markdown, meanings, methods_of, numeric_columns, score_table
from .tasks import Task

REPORT, SHEET, SETTINGS, ARCHIVE = "report.md", "sheet.png", "settings.json", "results.zip"
EXAMPLES = 3  # tasks that are named for each reason


@dataclass(frozen=True, eq=False)
class Outcome:
    """An evaluation as far as it came. faults: why a task has no row, by the task's key."""

    settings: EvaluationSettings
    suite: Suite
    tasks: Sequence[Task]
    rows: Sequence[TableRow]
    scorers: Sequence[Scorer]
    faults: Mapping[str, str]


def write_report(outcome: Outcome, folder: Path) -> Path:
    """Write table, contact sheet, settings and report into a folder, and return the report's path."""
    rows, output = outcome.rows, outcome.settings.output
    write_table(folder / TABLE, rows, columns_of(outcome.scorers))
    write_text(folder / SETTINGS, json.dumps(as_plain(outcome.settings), indent=2) + "\n")
    if rows:
        shown = set(list(dict.fromkeys((row["case"], row["seed"]) for row in rows))[: output.sheet_rows])
        chosen = [row for row in rows if (row["case"], row["seed"]) in shown]
        contact_sheet(outcome.suite, chosen, methods_of(rows), folder, folder / SHEET)
    write_text(folder / REPORT, report_text(outcome))
    if output.zip:
        files = [folder / name for name in (REPORT, TABLE, SHEET, SETTINGS)]
        _archive([path for path in files if path.is_file()], folder / ARCHIVE)
    return folder / REPORT


def report_text(outcome: Outcome) -> str:
    """Return the report as Markdown."""
    suite = outcome.suite
    parts = [f"# Evaluation: {suite.name}\n", _counts(outcome)]
    parts += [f"{note}\n" for note in suite.notes]
    parts += [tables_text(outcome.rows, suite.name)]
    parts += ["## Repeat it\n", "Settings:\n", f"```json\n{json.dumps(as_plain(outcome.settings), indent=2)}\n```\n"]
    models = {column: fingerprint(one.model) for one in outcome.scorers for column in one.columns}
    parts += ["Models:\n", markdown(("score", "model"), models.items())]
    parts += ["Versions:\n", markdown(("package", "version"), versions().items())]
    return "\n".join(parts)


def tables_text(rows: Sequence[TableRow], suite: str, heading: str = "##") -> str:
    """Return the tables as Markdown: scores by method, for the rehearsal suite by kind of cast, and agreement with the
    truth where that is known. heading: of the parts.
    """
    if not rows:
        return "No picture is scored.\n"
    columns = numeric_columns(rows)
    parts = [f"{heading} Scores\n"]
    parts.append(
        "Means over the cases of each group, then over the groups, with 95 % bootstrap intervals over the groups "
        "(none with fewer than five). A count in parentheses is that of the pictures with a value, if some have none.\n"
    )
    kinds = by_kind(rows, lambda row: row["case"].rpartition(" ")[0]) if suite == REHEARSAL else {suite: list(rows)}
    for kind, chosen in kinds.items():
        parts += [f"{kind}:\n", score_table(chosen, columns)]
    parts.append(meanings(columns))
    agreement = agreement_table(rows, columns)
    if agreement:
        parts += [
            f"{heading} How far each score can be trusted\n",
            "Against the known truth: how well a score separates pictures whose subjects are all right from the others "
            "(0.5 is chance), its rank correlation with the share of right subjects (0 is chance), and how often it "
            "prefers the better of two pictures of one case (0.5 is chance).\n",
            agreement,
        ]
    followed = agreement_table(rows, columns, PROMPT)
    if followed:
        parts += [
            "The same against `truth_prompt`: a subject is right if the picture has one of its class and variant, with "
            "anyone's looks. CLIP-T compares picture and prompt and knows no reference. `object_quality` is in both "
            "tables: it compares the found subjects with their names, and with each other, so that mixed ones are "
            "worse. Pictures in which a subject is not found have no `object_quality`.\n",
            followed,
        ]
    return "\n".join(parts)


def _counts(outcome: Outcome) -> str:
    """How many pictures there are, and what is missing and why."""
    lines = [f"{len(outcome.rows)} of {len(outcome.tasks)} pictures are painted and scored."]
    if outcome.faults:
        reasons = Counter(outcome.faults.values())
        for reason, count in reasons.most_common():
            keys = [key for key, found in outcome.faults.items() if found == reason][:EXAMPLES]
            lines.append(f"- {count} missing ({', '.join(keys)}{', ...' if count > len(keys) else ''}): {reason}")
    unexplained = len(outcome.tasks) - len(outcome.rows) - len(outcome.faults)
    if unexplained:
        lines.append(f"- {unexplained} are not painted yet: run the command without --report.")
    return "\n".join(lines) + "\n"


def _archive(files: Sequence[Path], path: Path) -> None:
    """Files as a .zip that depends on their contents only."""
    partial = path.with_name(f".{path.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes(), zipfile.ZIP_DEFLATED)
    partial.replace(path)
