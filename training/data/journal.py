"""What has been done for a training set: one line per picture, so that a stopped run goes on where it stopped.

`journal/` in the set's folder has one file per shard and process; machines that share the folder write files of their
own. Each line is `{"key": ..., "record": {...} or null, "notes": [[reason, detail], ...]}`. `finish` makes
`metadata.jsonl` from all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .records import METADATA, DatasetError, PictureRecord, as_json
from .selection import Note

FOLDER = "journal"
SETTINGS = "settings.json"
UNFILTERED = "unfiltered.jsonl"  # what the quality filter was given; see quality.py


@dataclass(frozen=True)
class RecordOutcome:
    """Result of one picture: its key, its record if it was kept, and notes on what was dropped."""

    key: str
    record: PictureRecord | None = None
    notes: tuple[Note, ...] = ()


@dataclass
class Entry:
    """One line of a journal: `record` is the line for `metadata.jsonl`."""

    key: str
    record: dict[str, Any] | None
    notes: list[Note] = field(default_factory=list)


def check_settings(folder: Path, settings: Mapping[str, Any], journal: str = FOLDER) -> None:
    """Store what a set is made from, or compare it with what an earlier run stored.

    Raises:
        DatasetError: the earlier run had other settings; its pictures would be mixed with the new ones.
    """
    path = folder / journal / SETTINGS
    wanted = json.loads(json.dumps(settings, default=str))
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        if changed:
            pairs = ", ".join(f"{name} {found.get(name)!r} instead of {wanted.get(name)!r}" for name in changed)
            raise DatasetError(
                f"a set in {folder} that was begun with the same settings",
                pairs,
                f"Use the earlier settings, another folder, or delete {folder / journal} to begin again.",
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
    temporary.replace(path)


class DataJournal:
    """One process's file of a set's journal, open for appending.

    folder: of the set; name: of the process; journal: name of the folder in it.
    """

    def __init__(self, folder: Path, name: str, journal: str = FOLDER):
        self.folder, self.path = folder, folder / journal / f"{name}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_cut_line(self.path)
        self.file = self.path.open("a", encoding="utf-8")

    def append(self, outcomes: Iterable[RecordOutcome]) -> None:
        """Add a line for each outcome and pass them to the system, so that a killed process loses none."""
        for outcome in outcomes:
            record = None if outcome.record is None else as_json(self.folder, outcome.record)
            line = {"key": outcome.key, "record": record, "notes": outcome.notes}
            self.file.write(f"{json.dumps(line)}\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _drop_cut_line(path: Path) -> None:
    """Remove a last line that a killed process has not finished."""
    if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)


def read_journal(folder: Path, journal: str = FOLDER) -> dict[str, Entry]:
    """Return the entries of all shards and processes by their keys, sorted. A line that was cut off is left out."""
    entries: dict[str, Entry] = {}
    for path in sorted((folder / journal).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found = json.loads(line)
                entry = Entry(found["key"], found["record"], [(reason, detail) for reason, detail in found["notes"]])
            except (ValueError, KeyError, TypeError):
                continue
            entries[entry.key] = entry
    return dict(sorted(entries.items()))


def finish(folder: Path, journal: str = FOLDER) -> dict[str, Entry]:
    """Write `metadata.jsonl` from the journal, whole or not at all, and return the journal's entries.

    It then has all pictures again: a quality filter is undone. References and scores of unchanged subjects stay.
    If no picture was kept, nothing is written.
    """
    entries = read_journal(folder, journal)
    records = [entry.record for entry in entries.values() if entry.record is not None]
    if records:
        earlier = {**_lines(folder / METADATA), **_lines(folder / UNFILTERED)}
        write_lines(folder / METADATA, [_with_earlier(record, earlier) for record in records])
        (folder / UNFILTERED).unlink(missing_ok=True)
    return entries


def _lines(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of an earlier list by their pictures; without those that cannot be read."""
    found = {}
    for line in path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
            found[record["file_name"]] = record
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _with_earlier(record: dict[str, Any], earlier: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    def made(one: dict[str, Any]) -> Any:
        subjects = one.get("subjects", ())
        return one.get("text"), [(it.get("name"), it.get("box"), it.get("mask")) for it in subjects]

    found = earlier.get(record["file_name"])
    return found if found is not None and made(found) == made(record) else record


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write objects as lines of JSON, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    temporary.replace(path)


def merge(folder: Path, parts: Iterable[Path]) -> dict[str, Entry]:
    """Put sets that several machines made on disks of their own into one folder, and return its journal's entries.

    Raises:
        DatasetError: a part has no journal, or two parts kept different records under one key.
    """
    import shutil

    entries = read_journal(folder)
    for part in parts:
        added = read_journal(part)
        if not added:
            raise DatasetError(
                f"a set with a journal in {part}", "none", "Give the folder that a shard was written to."
            )
        for key, entry in added.items():
            if key in entries and entries[key].record != entry.record:
                raise DatasetError(
                    "each picture in one part only, or equal in all of them",
                    f"two different records for '{key}'",
                    "Make all parts with the same settings and from the same pictures.",
                )
        entries |= added
        for source in sorted(path for path in part.rglob("*") if path.is_file()):
            inside = source.relative_to(part)
            if len(inside.parts) > 1 and inside.parts[0] != FOLDER and not inside.name.startswith("."):
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / inside)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    write_lines(folder / FOLDER / "merged.jsonl", (vars(entry) for entry in entries.values()))
    return finish(folder)
