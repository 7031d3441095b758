"""Pictures that a training set is made from: a folder of pictures, with or without captions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .pictures import pictures_below
from .records import METADATA, DatasetError
from .selection import Note, Thing


@dataclass(frozen=True)
class Source:
    """A picture to make a record from.

    key: its name in journals, unique in the set. captions: all that it has, () if none. things: what is annotated in
    it, None if that is to be detected. size: width and height that the annotations are for. upright: whether the
    annotations are for the picture as EXIF data turn it. notes: annotations that could not be used.
    """

    key: str
    picture: Path
    captions: tuple[str, ...] = ()
    things: tuple[Thing, ...] | None = None
    size: tuple[int, int] | None = None
    upright: bool = True
    notes: tuple[Note, ...] = ()


def folder_sources(folder: Path, captions: Path | None = None) -> list[Source]:
    """Return every picture below a folder, with its captions.

    captions: a file with lines `{"file_name": ..., "text": ...}`, as `metadata.jsonl` has; without it the folder's own
    `metadata.jsonl` if there is one. A text file beside a picture (`cat.txt` for `cat.jpg`) comes first.

    Raises:
        DatasetError: there is no folder, no picture in it, or the captions cannot be read.
    """
    check_folder(folder)
    if captions is None and (folder / METADATA).is_file():
        captions = folder / METADATA
    texts = {} if captions is None else read_captions(captions)
    sources = []
    for path in pictures_below(folder):
        key = path.relative_to(folder).as_posix()
        beside = path.with_suffix(".txt")
        if beside.is_file():
            found = (beside.read_text(encoding="utf-8-sig", errors="replace").strip(),)
        else:
            found = texts.get(key) or texts.get(path.name) or texts.get(path.stem) or ()
        sources.append(Source(key, path, tuple(text for text in found if text)))
    if not sources:
        raise DatasetError(
            f"pictures (jpg, png, webp, bmp) below {folder}", "none", "Give the folder that has the pictures."
        )
    return sources


def check_folder(folder: Path) -> None:
    """Raise DatasetError if a folder of pictures does not exist."""
    if not folder.is_dir():
        raise DatasetError("a folder of pictures", f"no folder {folder}", "Correct the path.")


def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the captions of a file with one JSON object per line, by picture; several lines may name one picture.

    The picture is `file_name`, or `image_id` as in Localized Narratives; the caption is `text`, or `caption`.

    Raises:
        DatasetError: there is no file, or a line is not such an object.
    """
    if not path.is_file():
        raise DatasetError("a file with captions", f"no file {path}", "Correct the path.")
    found: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        picture, text = _first(entry, "file_name", "image_id"), _first(entry, "text", "caption")
        if picture is None or text is None:
            raise DatasetError(
                f'line {number} of {path} to be like {{"file_name": "a.jpg", "text": "a cat"}}',
                repr(line[:60]),
                "Correct or delete the line.",
            )
        found.setdefault(picture, []).append(text.strip())
    return {name: tuple(text for text in texts if text) for name, texts in found.items()}


def _first(entry: object, *keys: str) -> str | None:
    if not isinstance(entry, Mapping):
        return None
    return next((str(entry[key]) for key in keys if isinstance(entry.get(key), str | int)), None)
