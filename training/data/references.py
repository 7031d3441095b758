"""References that are other pictures of the same individual.

A crop of the training picture itself as reference teaches a model to copy pixels, pose and light included. So a subject
gets cut-outs from other pictures of its individual; its own only where that is asked for.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from .journal import read_journal
from .pictures import PictureFault, cut_out, open_picture, read_mask, same_picture, write_whole
from .records import DatasetError, PictureRecord, SubjectRecord

SubjectIndex = tuple[int, int]  # index of a record, index of a subject in it
THUMB = 16  # pixels of a side, for comparing cut-outs


@dataclass
class ReferencesReport:
    """Numbers of subjects: with references from other pictures; with a cut-out of their own picture; with none.

    unknown: those of all of these whose individual is not known. skipped: pairs that were not used, by reason. faults:
    pictures that do not open.
    """

    distinct: int = 0
    own: int = 0
    none: int = 0
    unknown: int = 0
    individuals: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def keys_of(folder: Path, records: Sequence[PictureRecord]) -> dict[int, str]:
    """Return for each record (by its index) the path of the picture that it was made from, as the journal has it."""
    sources = {str(entry.record["file_name"]): key for key, entry in read_journal(folder).items() if entry.record}
    files = {i: record.picture.relative_to(folder).as_posix() for i, record in enumerate(records)}
    return {i: sources.get(file, file) for i, file in files.items()}


def from_folders(records: Sequence[PictureRecord], keys: Mapping[int, str]) -> dict[SubjectIndex, str]:
    """Return the individuals of a set made from a folder of folders: all pictures of one folder show one individual.

    In a picture with several subjects it is the one whose name the folder's name contains ('dog6'), else the largest.

    Raises:
        DatasetError: no picture lies in a folder.
    """
    found = {}
    for i, record in enumerate(records):
        individual = Path(keys[i]).parent.as_posix()
        if individual == "." or not record.subjects:
            continue
        folder = Path(individual).name.casefold()
        numbers = range(len(record.subjects))
        named = [n for n in numbers if record.subjects[n].name.casefold() in folder]
        found[i, max(named or numbers, key=lambda n: _area(record.subjects[n]))] = individual
    if not found:
        raise DatasetError(
            "a set made from a folder with one folder per individual",
            "no picture in such a folder",
            "Build the set from the folder above them, or give a table with --table.",
        )
    return found


def _area(subject: SubjectRecord) -> float:
    return 1.0 if subject.box is None else subject.box.w * subject.box.h


def from_table(records: Sequence[PictureRecord], keys: Mapping[int, str], path: Path) -> dict[SubjectIndex, str]:
    """Return the individuals of a table, such as track ids in frames of a film or pairs of pictures.

    path: CSV with the columns picture (path in the source folder), individual, and subject (a name; may be empty if the
    picture has one subject).

    Raises:
        DatasetError: there is no file, a column is missing, or a line names a subject that its picture does not have.
    """
    pictures = {key: i for i, key in keys.items()}
    found: dict[SubjectIndex, str] = {}
    for line, row in _rows(path):
        i = pictures.get(row["picture"])
        individual, name = row["individual"].strip(), (row.get("subject") or "").strip()
        if i is None or not individual:
            continue  # the picture was dropped when the set was made
        subjects = records[i].subjects
        named = [n for n, subject in enumerate(subjects) if not name or subject.name.casefold() == name.casefold()]
        if len(named) != 1:
            raise DatasetError(
                f"line {line} of {path} to name one subject of '{row['picture']}'",
                f"'{name}', and the subjects {', '.join(subject.name for subject in subjects) or 'none'}",
                "Write one of these names into the column subject.",
            )
        found[i, named[0]] = individual
    if not found:
        raise DatasetError(
            f"pictures of the set in {path}", "none", "Write their paths in the source folder into the column picture."
        )
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    if not path.is_file():
        raise DatasetError("a table of individuals", f"no file {path}", "Correct the path.")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        missing = {"picture", "individual"} - set(rows.fieldnames or ())
        if missing:
            raise DatasetError(
                f"the columns picture, subject, individual in {path}",
                f"no {', '.join(sorted(missing))}",
                "Add a first line with the names of the columns.",
            )
        for line, row in enumerate(rows, 2):
            yield line, {name: value or "" for name, value in row.items() if name}


def add_references(
    folder: Path,
    records: Sequence[PictureRecord],
    individuals: Mapping[SubjectIndex, str],
    each: int = 4,
    least_difference: float = 0.02,
    own: bool = False,
) -> tuple[list[PictureRecord], ReferencesReport]:
    """Return the records with references, and a report. Reference pictures are written below the folder.

    each: most references of a subject, spread over the individual's pictures. least_difference: mean difference of two
    cut-outs, 0..1, below which they count as the same picture (frames of a film, resized copies). own: write a cut-out
    of the training picture itself for subjects that have no other.
    """
    report = ReferencesReport(individuals=len(set(individuals.values())))
    groups: dict[str, list[SubjectIndex]] = {}
    for at, individual in sorted(individuals.items()):
        groups.setdefault(individual, []).append(at)
    pixels = same_picture({records[i].picture for i, _ in individuals})
    cutter = _Cutter(folder, records, report)
    changed: dict[SubjectIndex, tuple[Path, ...]] = {}
    for i, record in enumerate(records):
        for n, subject in enumerate(record.subjects):
            at = (i, n)
            individual = individuals.get(at)
            report.unknown += individual is None
            others = [] if individual is None else _others(at, groups[individual], records, pixels, report)
            chosen = _choose(at, others, cutter, each, least_difference, report)
            if chosen:
                report.distinct += 1
                changed[at] = tuple(chosen)
            elif individual is None and subject.references:
                changed[at] = subject.references  # from an earlier run with another table
            elif own and (path := cutter.file(at)) is not None:
                report.own += 1
                changed[at] = (path,)
            else:
                report.none += 1
                changed[at] = ()
    return [
        replace(record, subjects=tuple(replace(one, references=changed[i, n]) for n, one in enumerate(record.subjects)))
        for i, record in enumerate(records)
    ], report


def _others(
    at: SubjectIndex,
    group: Sequence[SubjectIndex],
    records: Sequence[PictureRecord],
    pixels: Mapping[Path, str],
    report: ReferencesReport,
) -> list[SubjectIndex]:
    """The individual's places in other pictures; the same picture under another name is none."""
    mine = records[at[0]].picture
    found = []
    for other in group:
        theirs = records[other[0]].picture
        if other[0] == at[0] or mine == theirs:
            continue
        if mine not in pixels or theirs not in pixels or pixels[mine] == pixels[theirs]:
            report.skipped["same picture under another name" if theirs in pixels else "picture does not open"] += 1
            continue
        found.append(other)
    return found


def _choose(
    at: SubjectIndex,
    others: Sequence[SubjectIndex],
    cutter: _Cutter,
    each: int,
    least_difference: float,
    report: ReferencesReport,
) -> list[Path]:
    usable = []
    mine = cutter.thumb(at) if others else None
    for other in others:
        theirs = cutter.thumb(other)
        if mine is None or theirs is None:
            continue
        if np.abs(mine - theirs).mean() < least_difference:
            report.skipped["too similar"] += 1
            continue
        usable.append(other)
    spread = [
        usable[k] for k in dict.fromkeys(np.linspace(0, len(usable) - 1, min(each, len(usable))).round().astype(int))
    ]
    return [path for other in spread if (path := cutter.file(other)) is not None]


class _Cutter:
    """Cut subjects out, each once."""

    def __init__(self, folder: Path, records: Sequence[PictureRecord], report: ReferencesReport):
        self.folder, self.records, self.report = folder, records, report
        self.thumbs: dict[SubjectIndex, np.ndarray | None] = {}
        self.files: dict[SubjectIndex, Path] = {}

    def thumb(self, at: SubjectIndex) -> np.ndarray | None:
        """[THUMB, THUMB] in 0..1, or None if the picture does not open."""
        if at not in self.thumbs:
            picture = self._picture(at)
            small = None if picture is None else picture.convert("L").resize((THUMB, THUMB), Image.Resampling.BOX)
            self.thumbs[at] = None if small is None else np.asarray(small, np.float32) / 255
        return self.thumbs[at]

    def file(self, at: SubjectIndex) -> Path | None:
        """Write the cut-out if that has not been done."""
        if at not in self.files:
            picture = self._picture(at)
            if picture is None:
                return None
            stem = self.records[at[0]].picture.stem
            path = self.folder / "references" / f"{stem}_{at[1]}.png"
            write_whole(picture, path)
            self.files[at] = path
        return self.files[at]

    def _picture(self, at: SubjectIndex) -> Image.Image | None:
        record = self.records[at[0]]
        subject = record.subjects[at[1]]
        try:
            picture = open_picture(record.picture)
            mask = None if subject.mask is None else read_mask(subject.mask, picture.size)
        except PictureFault as fault:
            self.report.faults.append(f"{fault}")
            return None
        return cut_out(picture, subject.box, mask)
