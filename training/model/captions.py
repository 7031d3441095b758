"""Captions as the text encoders of the embedded engine read them, which is in ComfyUI's notation."""

from __future__ import annotations

from collections.abc import Sequence

from ...model_patches.hosts.diffusers.encoders import ClipTexts
from ...model_patches.prompt.markers import TRIGGER, escaped, parse_prompt
from ...model_patches.prompt.places import Place, find_places


def plain(caption: str) -> str:
    """Return the caption with brackets that are read as brackets, for `ClipTexts.encode_prompt`."""
    return escaped(caption)


def unmarked(caption: str) -> str:
    """Return the caption with brackets and braces that are read as such, for `fusion.fuse_prompt`."""
    return escaped(caption).replace("{", "\\{").replace("}", "\\}").replace(TRIGGER, " ")


def places(texts: ClipTexts, caption: str, names: Sequence[str]) -> tuple[Place, ...]:
    """Return each subject's place among the tokens of the first text encoder.

    Raises SubjectError for a name that is not a word of the caption.
    """
    stream = texts.towers[0].stream

    def tokenize(text: str) -> list[list[int]]:
        return [[token for token, *_ in chunk] for chunk in texts.tokenize(text)[stream]]

    return find_places(parse_prompt(unmarked(caption)), names, tokenize).places
