"""Pictures and masks on disk: open, write into a training set, cut a subject out."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ...model_patches.subjects import Box

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
ORIENTATION = 0x0112  # EXIF
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


class PictureFault(Exception):
    """One picture or annotation is not usable; `reason` is counted in the report, `detail` names the thing."""

    def __init__(self, reason: str, detail: str):
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


def pictures_below(folder: Path) -> list[Path]:
    """Return every picture file below a folder, sorted; hidden files and folders are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.casefold() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def open_picture(path: Path, upright: bool = True) -> Image.Image:
    """Return a picture as RGB; transparent parts become white. upright: turn it as its EXIF data says.

    Raises:
        PictureFault: the file is missing, or no picture, or cut off.
    """
    try:
        with Image.open(path) as found:
            found.load()
            picture = ImageOps.exif_transpose(found) if upright else found.copy()
    except FileNotFoundError as error:
        raise PictureFault("picture missing", path.name) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureFault("picture does not open", f"{path.name} ({error})") from error
    return flattened(picture)


def flattened(picture: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Return a picture as RGB; transparent parts become the background."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        flat = Image.new("RGBA", picture.size, (*background, 255))
        flat.alpha_composite(picture.convert("RGBA"))
        picture = flat
    return picture.convert("RGB")


def is_turned(path: Path) -> bool:
    """Return whether a picture's EXIF data turns or mirrors it."""
    with Image.open(path) as picture:
        return picture.getexif().get(ORIENTATION, 1) not in (0, 1)


def file_stem(key: str) -> str:
    """Return a file name without suffix for a picture's key (a relative path): readable, safe, and unique."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", Path(key).stem).strip("-")[:40] or "picture"
    return f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"


def place_picture(source: Path, picture: Image.Image, target: Path) -> Path:
    """Put a picture below a set and return its path: a hard link or copy of the file, or, if the file's EXIF data turn
    it, `picture` itself, so that every reader sees what boxes and masks were made for. `target` has no suffix.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_turned(source):
        path = target.parent / f"{target.name}.png"
        write_whole(picture, path)
        return path
    path = target.parent / f"{target.name}{source.suffix.casefold()}"
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), temporary)
    except OSError:  # another disk
        shutil.copyfile(source, temporary)
    temporary.replace(path)
    temporary.unlink(missing_ok=True)  # replacing a link by a link to the same file leaves both
    return path


def write_whole(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    picture.save(temporary, "PNG")
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}"


def write_mask(mask: np.ndarray, path: Path) -> None:
    """Write a mask, [h, w] bool, as a PNG that is white where the subject is."""
    write_whole(Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))), path)


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return a mask file as [h, w] bool of a picture's size (width, height); another size is resized to it.

    Raises PictureFault where it does not open.
    """
    try:
        with Image.open(path) as found:
            mask = flattened(ImageOps.exif_transpose(found), BLACK).convert("L")
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureFault("mask does not open", f"{path.name} ({error})") from error
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.NEAREST)
    return np.asarray(mask) > 127


def box_of(mask: np.ndarray) -> Box:
    """Return the smallest box around a mask, [h, w] bool with at least one True."""
    h, w = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return Box(float(left / w), float(top / h), float((right - left) / w), float((bottom - top) / h))


def pixels_of(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a box in a picture of size (width, height); at least one pixel."""
    w, h = size
    left, top = min(max(round(box.x * w), 0), w - 1), min(max(round(box.y * h), 0), h - 1)
    right, bottom = min(round((box.x + box.w) * w), w), min(round((box.y + box.h) * h), h)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def crop(picture: Image.Image, box: Box | None) -> Image.Image:
    """Return the part of a picture in a box; without a box, the picture."""
    return picture if box is None else picture.crop(pixels_of(box, picture.size))


def cut_out(picture: Image.Image, box: Box | None, mask: np.ndarray | None) -> Image.Image:
    """Return a subject on white, cropped to its box and padded with white to a square, as MIP-Adapter's references."""
    if mask is not None and mask.any():
        pixels = np.where(mask[..., None], np.asarray(picture), np.uint8(255))
        picture, box = Image.fromarray(pixels), box or box_of(mask)
    return on_white_square(crop(picture, box))


def on_white_square(picture: Image.Image) -> Image.Image:
    """Return a picture in the middle of a white square."""
    side = max(picture.size)
    padded = Image.new("RGB", (side, side), WHITE)
    padded.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return padded


def same_picture(paths: Iterable[Path]) -> dict[Path, str]:
    """Return a hash of the pixels of each picture; equal pictures under two names have the same."""
    found = {}
    for path in paths:
        try:
            picture = open_picture(path)
        except PictureFault:
            continue
        found[path] = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
    return found
