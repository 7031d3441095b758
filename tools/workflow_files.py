"""Workflow files: JSON as ComfyUI saves it, and the workflow inside a picture that it saved."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graph import WORKFLOWS, RunError

PICTURES = (b"\x89PNG", b"RIFF", b"\xff\xd8\xff")  # how PNG, WebP and JPEG files begin
KEYS = ("workflow", "prompt")  # under which ComfyUI saves them, the better one first


def read_workflow(path: Path) -> dict[str, Any]:
    """A workflow file, or the workflow in a picture. Raises RunError where there is none."""
    try:
        content = path.read_bytes()
    except OSError:
        names = ", ".join(p.name for p in sorted(WORKFLOWS.glob("*.json")))
        raise RunError(f"There is no workflow file at {path}. The shipped ones are {names}.") from None
    text = _in_picture(path) if content.startswith(PICTURES) else content
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except ValueError as error:
        raise RunError(f"{path} is no JSON file ({error}). Save the workflow again.") from None


def find_workflow(name: str) -> Path:
    """A path, or the name of a shipped template with or without '.json'."""
    given = Path(name)
    shipped = WORKFLOWS / (given.name if given.suffix else f"{given.name}.json")
    return given if given.is_file() or not shipped.is_file() else shipped


def _in_picture(path: Path) -> str:
    """The text of the workflow in a picture's metadata: PNG has it as text chunks, WebP and JPEG in EXIF entries that begin with the key and a colon."""
    try:
        from PIL import Image
    except ImportError:
        raise RunError(f"Reading the workflow in a picture ({path}) needs Pillow, which is not installed. Run: pip install pillow") from None
    try:
        with Image.open(path) as picture:
            picture.load()  # text chunks may lie behind the pixels
            found = {key: text for key, text in picture.info.items() if isinstance(text, str)}
            entries = [text for text in picture.getexif().values() if isinstance(text, str)]
    except (OSError, ValueError, SyntaxError) as error:
        raise RunError(f"{path} is no picture that can be read ({error}). Take the original file, as ComfyUI saved it.") from None
    for key in KEYS:
        for text in (found.get(key), *(entry[len(key) + 1:] for entry in entries if entry.lower().startswith(f"{key}:"))):
            if text:
                return text
    raise RunError(f"{path} is a picture without a workflow. Take the file that ComfyUI saved itself: messengers, editors and many sites take the workflow out.")
