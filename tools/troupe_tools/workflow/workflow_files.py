"""Workflow files: JSON as ComfyUI saves it, and the workflow inside a picture that it saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..pack import WORKFLOWS

PNG = b"\x89PNG\r\n\x1a\n"
PICTURES = (PNG, b"RIFF", b"\xff\xd8\xff")  # how PNG, WebP and JPEG files begin
KEYS = ("workflow", "prompt")  # under which ComfyUI saves them, the better one first


def read_workflow(path: Path) -> dict[str, Any]:
    """Read a workflow file, or the workflow in a picture. Raises RunError if there is none."""
    try:
        content = path.read_bytes()
    except OSError:
        names = ", ".join(p.name for p in sorted(WORKFLOWS.glob("*.json")))
        raise RunError(f"There is no workflow file at {path}. The shipped ones are {names}.") from None
    try:
        if content.startswith(PICTURES):
            return _in_picture(path, content)
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is no JSON file ({error}). Save the workflow again.") from None


def find_workflow(name: str) -> Path:
    """Return the file of a workflow, given its path, or the name of a shipped template with or without '.json' and its
    number.
    """
    given = Path(name)
    wanted = given.name if given.suffix else f"{given.name}.json"
    shipped = next(
        (
            path
            for path in sorted(WORKFLOWS.glob("*.json"))
            if wanted in (path.name, path.name.lstrip("0123456789").removeprefix("_"))
        ),
        None,
    )
    return given if given.is_file() or shipped is None else shipped


def _in_picture(path: Path, content: bytes) -> dict[str, Any]:
    """The workflow in a picture's metadata, or else the API prompt."""
    texts = list(_png_texts(content) if content.startswith(PNG) else _exif_texts(path))
    for key in KEYS:
        for text in (text for name, text in texts if name.lower() == key):
            try:
                found = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) and found:
                return found
    raise RunError(
        f"{path} is a picture without a workflow. Take the file that ComfyUI saved itself: messengers, "
        "editors and many sites take the workflow out."
    )


def _png_texts(content: bytes) -> Iterator[tuple[str, str]]:
    """(key, text) of a PNG's text chunks, and of those that ComfyUI puts into animated ones; pixels are not read."""
    at = len(PNG)
    while at + 8 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        key, _, text = content[at + 8 : at + 8 + length].partition(b"\0")
        if kind == b"iTXt":  # compressed or not, how, language, translated key
            text = b"" if text[:1] != b"\0" else text[2:].split(b"\0", 2)[-1]
        if kind in (b"tEXt", b"comf", b"iTXt"):
            yield key.decode("latin-1"), text.decode("utf-8", "replace")
        at += length + 12


def _exif_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(key, text) of the EXIF entries of a WebP or JPEG file that begin with a key and a colon."""
    try:
        from PIL import Image
    except ImportError:
        raise RunError(
            f"Reading the workflow in a picture ({path}) needs Pillow, which is not installed. Run: pip install pillow"
        ) from None
    try:
        with Image.open(path) as picture:
            entries = [text for text in picture.getexif().values() if isinstance(text, str)]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RunError(
            f"{path} is no picture that can be read ({error}). Take the original file, as ComfyUI saved it."
        ) from None
    for key, colon, text in (entry.partition(":") for entry in entries):
        if colon:
            yield key, text
