"""Training pictures from a folder with `metadata.jsonl` (`data.records`)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ...model_patches.subjects import Box, Photo
from ..data.pictures import BLACK, WHITE, flattened
from ..data.records import DatasetError, PictureRecord, SubjectRecord, read_records
from .example import Example, ExampleSubject, box_in

MANY = 2000  # files: reading more of them before the first step is announced
LISTED = 5  # files with a fault in one sentence
HALF = 128  # of a mask's values up to 255: from here on a pixel is the subject's
REFERENCE = 512  # pixels: longer sides of references are made smaller when they are read


class FolderSet:
    """The pictures of a training set, cut to squares.

    Arguments:
        folder: of the training set; resolution: S, side of the square in pixels.
        most: subjects of a picture that are taken, from the first on that is in the square.
        needs_subjects: leave out pictures without any.
        warn: gets one sentence for what is allowed but probably not meant.
    Raises:
        DatasetError: see `read_records`; or no picture is left.
    """

    def __init__(
        self,
        folder: Path,
        resolution: int,
        most: int,
        needs_subjects: bool = False,
        warn: Callable[[str], None] = lambda sentence: None,
    ):
        every = read_records(folder)
        self.records = [record for record in every if record.subjects or not needs_subjects]
        self.resolution, self.most = resolution, most
        if not self.records:
            raise DatasetError(
                f"pictures with subjects in {folder}",
                f"{len(every)} pictures without any",
                "Add 'subjects' to the lines of its metadata; docs/training.md has the format.",
            )
        if len(self.records) < len(every):
            warn(f"{len(every) - len(self.records)} of {len(every)} pictures have no subjects and are left out.")
        own = sum(not subject.references for record in self.records for subject in record.subjects)
        if own:
            warn(f"{own} subjects have no reference picture: they are cut out of their training picture.")

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.records)

    def get(self, index: int, chance: random.Random) -> Example:
        """Return a picture, its subjects with one of their references each; without those that the cut leaves out.

        Raises DatasetError for a file that is no picture.
        """
        record, side = self.records[index], self.resolution
        whole = _open(record.picture)
        resized, (top, left) = _resized(whole, side)
        pixels = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float() / 127.5 - 1
        places = [_whole_mask(subject, whole.size) for subject in record.subjects]
        masks = [None if place is None else _to_tensor(_resized(place, side)[0]) for place in places]
        seen = [i for i, mask in enumerate(masks) if mask is None or box_in(mask) is not None][: self.most]
        subjects = (self._subject(record, record.subjects[i], whole, places[i], masks[i], chance) for i in seen)
        return Example(
            str(record.picture),
            pixels,
            record.caption,
            tuple(subjects),
            f"{record.picture}|{side}",
            (whole.height, whole.width),
            (top, left),
        )

    def check(
        self,
        what: str = "masks",
        process: int = 0,
        processes: int = 1,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Open the files of the set, as far as they are used, before a training comes to them.

        Arguments:
            what: "headers" of all files, also "masks" to their last pixel, or also "pictures".
            process, processes: which part of the set is checked.
        Raises:
            DatasetError: a file is no picture, or a mask black everywhere; it names several if there are.
        """
        records = self.records[process::processes]
        subjects = [subject for record in records for subject in record.subjects]
        masks = {subject.mask: subject for subject in subjects if subject.mask is not None}
        pictures = dict.fromkeys([record.picture for record in records])
        pictures |= dict.fromkeys(path for subject in subjects for path in subject.references)
        whole = {"headers": 0, "masks": len(masks), "pictures": len(masks) + len(pictures)}[what]
        if whole > MANY:
            say(f'Reads {whole} files before the first step. check = "headers" in [data] takes less time.')
        opened: list[tuple[Path, Callable[[], object]]] = []
        opened += [(path, partial(_open, path, what == "pictures")) for path in pictures]
        opened += [
            (path, partial(_open, path, False) if what == "headers" else partial(_mask, subject, path))
            for path, subject in masks.items()
        ]
        faults: dict[Path, DatasetError] = {}
        for path, attempt in opened:
            try:
                attempt()
            except DatasetError as error:
                faults[path] = error
        if faults:
            raise _all_of(faults)

    def _subject(
        self,
        record: PictureRecord,
        subject: SubjectRecord,
        whole: Image.Image,
        place: Image.Image | None,
        mask: torch.Tensor | None,
        chance: random.Random,
    ) -> ExampleSubject:
        """A subject with one of its references. whole, place: before the cut; mask: after it."""
        if subject.references:
            path = chance.choice(subject.references)
            return ExampleSubject(subject.name, Photo(_to_tensor(_small(_open(path)))), str(path), mask)
        cutout = None if place is None else _to_tensor(_small(place))
        return ExampleSubject(
            subject.name,
            Photo(_to_tensor(_small(whole)), cutout),
            f"{record.picture}|{subject.mask or subject.box}",
            mask,
        )


def _all_of(faults: Mapping[Path, DatasetError]) -> DatasetError:
    """The first fault, and the names of other files."""
    first, *others = faults
    error = faults[first]
    if not others:
        return error
    names = ", ".join(map(str, others[:LISTED])) + (", ..." if len(others) > LISTED else "")
    do = f"{error.remedy} {len(others)} more {'files have' if len(others) > 1 else 'file has'} such a fault: {names}."
    return DatasetError(error.expected, error.found, do)


def _open(path: Path, whole: bool = True, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """A picture, turned as its EXIF data say. whole: to its last pixel; False: only its header."""
    try:
        with Image.open(path) as picture:
            return flattened(ImageOps.exif_transpose(picture), background) if whole else picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(
            f"a picture in {path}", f"a file that cannot be read ({error})", "Replace it, or delete its line."
        ) from error


def _whole_mask(subject: SubjectRecord, size: tuple[int, int]) -> Image.Image | None:
    """Where the subject is in the whole picture, white: its mask, else its box; None without either."""
    if subject.mask is not None:
        mask = _mask(subject, subject.mask)
        return mask if mask.size == size else mask.resize(size)
    return None if subject.box is None else _box_mask(subject.box, size)


def _mask(subject: SubjectRecord, path: Path) -> Image.Image:
    mask = _open(path, background=BLACK).convert("L")
    if np.asarray(mask).max() < HALF:
        do = "Replace the mask, or remove it from its line."
        raise DatasetError(f"'{subject.name}' in white in {path}", "a mask that is black everywhere", do)
    return mask


def _box_mask(box: Box, size: tuple[int, int]) -> Image.Image:
    mask, (w, h) = Image.new("L", size), size
    left, top = max(round(box.x * w), 0), max(round(box.y * h), 0)
    right, bottom = max(round((box.x + box.w) * w), left + 1), max(round((box.y + box.h) * h), top + 1)
    mask.paste(255, (left, top, right, bottom))
    return mask


def _resized(picture: Image.Image, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """The square in the middle of the picture whose shorter side is `side`, and its top and left."""
    factor = side / min(picture.size)
    w, h = (max(round(length * factor), side) for length in picture.size)
    left, top = (w - side) // 2, (h - side) // 2
    resized = picture.resize((w, h), Image.Resampling.BICUBIC if picture.mode == "RGB" else Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + side, top + side)), (top, left)


def _small(picture: Image.Image) -> Image.Image:
    """The picture with no side over `REFERENCE`."""
    factor = REFERENCE / max(picture.size)
    return picture if factor >= 1 else picture.resize((round(picture.width * factor), round(picture.height * factor)))


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    """[h, w, 3] or [h, w] in 0..1."""
    return torch.from_numpy(np.asarray(picture).copy()).float() / 255
