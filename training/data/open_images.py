"""OpenImages: boxes, class descriptions and segmentations as CSV files; masks as PNG files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ...model_patches.subjects import Box
from .pictures import pictures_below, read_mask
from .records import DatasetError
from .selection import Note, Thing
from .sources import Source, check_folder, read_captions
from .synonyms import words_for

AGREE = 0.9  # intersection over union from which a segmentation's box is that of an annotated box
Segmentation = tuple[str, Box, Path]  # class, box, mask file


def open_images_sources(
    pictures: Path,
    boxes: Path,
    classes: Path,
    masks: Path | None = None,
    mask_folder: Path | None = None,
    captions: Path | None = None,
) -> list[Source]:
    """Return the pictures of a folder with their annotations; rows for other pictures are left out.

    boxes: such as `oidv6-train-annotations-bbox.csv`; classes: such as `class-descriptions-boxable.csv`; masks: such as
    `train-annotations-object-segmentation.csv`, with its PNG files below `mask_folder`; captions: see
    `sources.read_captions`. Groups, depictions and views from inside are left out.

    Raises:
        DatasetError: a file or column is missing, or there is no picture.
    """
    check_folder(pictures)
    files = {path.stem: path for path in pictures_below(pictures)}
    if not files:
        raise DatasetError(f"pictures below {pictures}", "none", "Give the folder that has OpenImages' pictures.")
    names = _class_names(classes)
    segmentations = _segmentations(masks, mask_folder, set(files)) if masks else {}
    texts = read_captions(captions) if captions else {}
    things: dict[str, list[Thing]] = {}
    notes: dict[str, list[Note]] = {}
    for row in _rows(boxes, ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")):
        picture, label = row["ImageID"], row["LabelName"]
        if picture not in files:
            continue
        name = names.get(label, "")
        flagged = [flag for flag in ("IsGroupOf", "IsDepiction", "IsInside") if row.get(flag) == "1"]
        box = _box(row, "")
        if not name or box is None or flagged:
            reason = "group of several" if "IsGroupOf" in flagged else "annotation not usable"
            notes.setdefault(picture, []).append((reason, name or label))
            continue
        mask = _mask_of(label, box, segmentations.get(picture, ()))
        if masks and mask is None:
            notes.setdefault(picture, []).append(("no mask", name))
            continue
        things.setdefault(picture, []).append(Thing(words_for(name), box, partial(read_mask, mask) if mask else None))
    return [
        Source(
            path.relative_to(pictures).as_posix(),
            path,
            texts.get(stem) or texts.get(path.name) or (),
            tuple(things.get(stem, ())),
            notes=tuple(notes.get(stem, ())),
            upright=False,
        )
        for stem, path in files.items()
    ]


def _class_names(path: Path) -> dict[str, str]:
    """The file has no header in older versions, and the header LabelName,DisplayName in newer ones."""
    rows = [row for row in _lines(path) if len(row) >= 2]
    found = {label: name.strip().casefold() for label, name, *_ in rows if label.startswith("/")}
    if not found:
        raise DatasetError(
            f"lines such as '/m/01yrx,Cat' in {path}", "none", "Give OpenImages' class-descriptions file."
        )
    return found


def _segmentations(path: Path, folder: Path | None, pictures: set[str]) -> dict[str, list[Segmentation]]:
    folder = folder or path.parent
    check_folder(folder)
    files = {file.name: file for file in folder.rglob("*.png")}
    found: dict[str, list[Segmentation]] = {}
    for row in _rows(path, ("MaskPath", "ImageID", "LabelName", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax")):
        box, file = _box(row, "Box"), files.get(row["MaskPath"])
        if row["ImageID"] in pictures and box is not None and file is not None:
            found.setdefault(row["ImageID"], []).append((row["LabelName"], box, file))
    return found


def _mask_of(label: str, box: Box, segmentations: Sequence[Segmentation]) -> Path | None:
    pairs = [(intersection_over_union(box, other), file) for name, other, file in segmentations if name == label]
    best = max(pairs, default=(0.0, None), key=lambda pair: pair[0])
    return best[1] if best[0] >= AGREE else None


def intersection_over_union(one: Box, other: Box) -> float:
    """Return the common area of two boxes divided by the area of both together."""
    width = max(min(one.x + one.w, other.x + other.w) - max(one.x, other.x), 0.0)
    height = max(min(one.y + one.h, other.y + other.h) - max(one.y, other.y), 0.0)
    common = width * height
    return common / max(one.w * one.h + other.w * other.h - common, np.finfo(float).tiny)


def _box(row: dict[str, str], prefix: str) -> Box | None:
    try:
        left, right, top, bottom = (float(row[f"{prefix}{side}"]) for side in ("XMin", "XMax", "YMin", "YMax"))
    except ValueError:
        return None
    return Box(left, top, right - left, bottom - top) if right > left and bottom > top else None


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    lines = _lines(path)
    header = next(lines, [])
    missing = [column for column in columns if column not in header]
    if missing:
        raise DatasetError(
            f"the columns {', '.join(columns)} in {path}", f"no {', '.join(missing)}", "Give OpenImages' own CSV file."
        )
    for line in lines:
        if len(line) == len(header):
            yield dict(zip(header, line, strict=True))


def _lines(path: Path) -> Iterator[list[str]]:
    if not path.is_file():
        raise DatasetError("OpenImages' annotation file", f"no file {path}", "Correct the path.")
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.reader(file)
