"""COCO: instances and captions as JSON; masks as polygons or run lengths, read by pycocotools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...model_patches.subjects import Box
from .pictures import PictureFault
from .records import DatasetError
from .selection import Note, Thing
from .sources import Source, check_folder
from .synonyms import words_for


def coco_sources(pictures: Path, instances: Path, captions: Path | None = None) -> list[Source]:
    """Return the pictures of a COCO split with their captions and annotations. Pictures are not opened.

    Annotations of crowds (`iscrowd`) are left out: they have no single subject.

    Raises:
        DatasetError: a file or pycocotools is missing, or a file is not what it should be.
    """
    check_folder(pictures)
    _mask_functions()
    table = _read(instances, ("images", "annotations", "categories"))
    try:
        names = {category["id"]: str(category["name"]) for category in table["categories"]}
        sizes = {image["id"]: (image["width"], image["height"]) for image in table["images"]}
        files = {image["id"]: str(image["file_name"]) for image in table["images"]}
    except (KeyError, TypeError) as error:
        raise DatasetError(
            f"categories and images with all fields in {instances}", f"one without {error}", "Download it again."
        ) from error
    texts: dict[Any, list[str]] = {}
    for entry in _read(captions, ("annotations",))["annotations"] if captions else ():
        if text := " ".join(str(entry.get("caption", "")).split()):
            texts.setdefault(entry.get("image_id"), []).append(text)
    things: dict[Any, list[Thing]] = {}
    notes: dict[Any, list[Note]] = {}
    for entry in table["annotations"]:
        picture = entry.get("image_id")
        try:
            things.setdefault(picture, []).append(_thing(entry, sizes[picture], names))
        except (KeyError, ValueError, TypeError, ZeroDivisionError):
            notes.setdefault(picture, []).append(("annotation not usable", f"annotation {entry.get('id')}"))
        except PictureFault as fault:
            notes.setdefault(picture, []).append((fault.reason, fault.detail))
    return [
        Source(
            file,
            pictures / file,
            tuple(texts.get(number, ())),
            tuple(things.get(number, ())),
            sizes[number],
            upright=False,
            notes=tuple(notes.get(number, ())),
        )
        for number, file in files.items()
    ]


def _thing(entry: Mapping[str, Any], size: tuple[int, int], names: Mapping[Any, str]) -> Thing:
    name = names[entry["category_id"]]
    if entry.get("iscrowd"):
        raise PictureFault("group of several", name)
    x, y, w, h = (float(side) for side in entry["bbox"])
    box = Box(x / size[0], y / size[1], w / size[0], h / size[1])
    segmentation = entry.get("segmentation")
    return Thing(words_for(name), box, None if segmentation is None else partial(decode, segmentation, size, name))


def decode(segmentation: Any, annotated: tuple[int, int], name: str, size: tuple[int, int]) -> np.ndarray:
    """Return a segmentation as [h, w] bool: polygons [[x, y, ...], ...] in pixels, or run lengths {size, counts}.

    annotated, size: (width, height) that it is for, and of the picture; they must agree.

    Raises:
        PictureFault: it is none of these, or for a picture of another size.
    """
    functions = _mask_functions()
    w, h = annotated
    try:
        if isinstance(segmentation, Mapping):
            runs = dict(segmentation)
            if isinstance(runs["counts"], list):
                runs = functions.frPyObjects(runs, h, w)
            elif isinstance(runs["counts"], str):
                runs["counts"] = runs["counts"].encode()
        else:
            polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
            if not polygons:
                raise PictureFault("empty mask", name)
            runs = functions.merge(functions.frPyObjects(polygons, h, w))
        mask = functions.decode(runs).astype(bool)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PictureFault("mask does not open", name) from error
    if mask.shape != (size[1], size[0]):
        raise PictureFault("mask for another size", f"{name} {mask.shape[1]}x{mask.shape[0]}")
    return mask


def _mask_functions() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise DatasetError(
            "the package pycocotools, which reads COCO's masks", "none installed", "Run: pip install pycocotools"
        ) from error
    return mask


def _read(path: Path, keys: tuple[str, ...]) -> Mapping[str, Any]:
    if not path.is_file():
        raise DatasetError("COCO's annotation file", f"no file {path}", "Correct the path.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"JSON in {path}", str(error), "Download the annotations again.") from error
    missing = [key for key in keys if not isinstance(found, Mapping) or not isinstance(found.get(key), list)]
    if missing:
        raise DatasetError(
            f"the lists {', '.join(keys)} in {path}",
            f"no {', '.join(missing)}",
            "Give instances_*.json as instances and captions_*.json as captions.",
        )
    return found
