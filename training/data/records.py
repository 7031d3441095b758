"""A training set on disk: one folder with pictures and a `metadata.jsonl`, the layout of Hugging Face's ImageFolder.

Each line is one picture; paths are relative to the folder, with forward slashes:

    {"file_name": "pictures/0001.jpg", "text": "a cat and a robot on the beach", "subjects": [
        {"name": "cat", "box": [0.1, 0.2, 0.3, 0.5], "mask": "masks/0001_0.png",
         "references": ["references/0001_0.png"], "quality": 0.61}]}

box: x, y, width, height in 0..1 of the picture, origin top left; mask: white where the subject is, of the picture's
size; references: other pictures of the same individual. All of a subject's fields but `name` are optional.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...model_patches.errors import TroupeError, quoted
from ...model_patches.subjects import Box

METADATA = "metadata.jsonl"
SLACK = 1e-3  # how far a box may reach out of its picture


class DatasetError(TroupeError):
    """A training set's folder, line, picture, box, mask or caption is not usable."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process raise it: pickle would call the class with the message only."""
        return _raised_elsewhere, (self.expected, self.found, self.remedy)


def _raised_elsewhere(expected: str, found: str, remedy: str) -> DatasetError:
    return DatasetError(expected, found, remedy)


@dataclass(frozen=True)
class SubjectRecord:
    """One subject of a training picture; see the module for the fields."""

    name: str
    box: Box | None = None
    mask: Path | None = None
    references: tuple[Path, ...] = ()
    quality: float | None = None


@dataclass(frozen=True)
class PictureRecord:
    """One training picture: its file, its caption and its subjects in the caption's order."""

    picture: Path
    caption: str
    subjects: tuple[SubjectRecord, ...] = ()


def read_records(folder: Path, name: str = METADATA) -> list[PictureRecord]:
    """Read and check every line of a training set, or of another list in its folder. Pictures are not opened.

    Raises:
        DatasetError: the folder has no metadata, a line is no JSON object or lacks a field, a file is missing, a box
            reaches out of the picture, or a caption does not contain a subject's name. The message names the line.
    """
    path = folder / name
    if not path.is_file():
        raise DatasetError(
            f"a file {METADATA} in the training set's folder",
            f"none in {folder}",
            f"Write one line of JSON per picture into {path}; docs/training.md has the format.",
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} to be a text file in UTF-8", str(error), "Save it as UTF-8.") from error
    records = [_record(folder, line, f"line {i} of {path}") for i, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise DatasetError("at least one picture in the training set", f"an empty {path}", "Add pictures to it.")
    return records


def write_records(folder: Path, records: Iterable[PictureRecord], name: str = METADATA) -> None:
    """Write `metadata.jsonl` or another list, whole or not at all: a line for each record. Its files must lie below the
    folder.
    """
    path = folder / name
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{json.dumps(as_json(folder, record))}\n" for record in records), encoding="utf-8")
    temporary.replace(path)


def _record(folder: Path, line: str, where: str) -> PictureRecord:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise DatasetError(f"a JSON object in {where}", quoted(line), "Correct or delete the line.") from error
    if not isinstance(entry, Mapping):
        raise DatasetError(f"a JSON object in {where}", quoted(line), "Correct or delete the line.")
    caption = _text(entry, "text", where)
    found = entry.get("subjects", [])
    if not isinstance(found, list) or not all(isinstance(subject, Mapping) for subject in found):
        raise DatasetError(f"'subjects' in {where} to be a list of objects", quoted(found), "Correct the line.")
    subjects = tuple(_subject(folder, subject, caption, where) for subject in found)
    return PictureRecord(_file(folder, _text(entry, "file_name", where), where), caption, subjects)


def _subject(folder: Path, entry: Mapping[str, Any], caption: str, where: str) -> SubjectRecord:
    name = _text(entry, "name", where)
    if name.casefold() not in caption.casefold():
        raise DatasetError(
            f"the caption in {where} to contain the subject's name {quoted(name)}",
            f"the caption {quoted(caption)}",
            "Add the name to the caption, or take the word that the caption uses as the name.",
        )
    box, mask, quality = entry.get("box"), entry.get("mask"), entry.get("quality")
    references = entry.get("references") or []
    if not isinstance(references, list):
        raise DatasetError(f"'references' in {where} to be a list of files", quoted(references), "Correct the line.")
    if quality is not None and not _is_number(quality):
        raise DatasetError(f"'quality' in {where} to be a number", quoted(quality), "Correct the line.")
    return SubjectRecord(
        name,
        None if box is None else _box(box, name, where),
        None if mask is None else _file(folder, mask, where),
        tuple(_file(folder, reference, where) for reference in references),
        quality,
    )


def _box(value: Any, name: str, where: str) -> Box:
    expected = f"{quoted(name)} in {where} to have a box [x, y, width, height] inside the picture, in 0..1"
    remedy = "Correct the box, or remove it."
    if not isinstance(value, list) or len(value) != 4 or not all(_is_number(side) for side in value):
        raise DatasetError(expected, quoted(value), remedy)
    x, y, w, h = (float(side) for side in value)
    if w <= 0 or h <= 0 or min(x, y) < -SLACK or x + w > 1 + SLACK or y + h > 1 + SLACK:
        raise DatasetError(expected, quoted(value), remedy)
    return Box(x, y, w, h)


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"a text '{key}' in {where}", quoted(value), "Add it, or delete the line.")
    return value


def _file(folder: Path, name: Any, where: str) -> Path:
    path = folder / name if isinstance(name, str) and name else None
    if path is None or not path.is_file():
        raise DatasetError(
            f"the files that {where} names to exist", f"no file {quoted(name)}", "Add the file, or delete the line."
        )
    return path


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def as_json(folder: Path, record: PictureRecord) -> dict[str, Any]:
    """Return the line of `metadata.jsonl` for a record, as an object. Its files must lie below the folder."""

    def name(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    subjects = []
    for subject in record.subjects:
        entry: dict[str, Any] = {"name": subject.name}
        if subject.box is not None:
            entry["box"] = [subject.box.x, subject.box.y, subject.box.w, subject.box.h]
        if subject.mask is not None:
            entry["mask"] = name(subject.mask)
        if subject.references:
            entry["references"] = [name(path) for path in subject.references]
        if subject.quality is not None:
            entry["quality"] = subject.quality
        subjects.append(entry)
    return {"file_name": name(record.picture), "text": record.caption, "subjects": subjects}
