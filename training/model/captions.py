"""Captions as the text encoders of the embedded engine read them, which is in ComfyUI's notation."""

from __future__ import annotations

from collections.abc import Sequence

from ...model_patches.hosts.diffusers.encoders import ClipTexts
from ...model_patches.prompt.markers import TRIGGER, escaped, parse_prompt
from ...model_patches.prompt.places import Place, find_places
from ...model_patches.prompt.template import template_places
from ...model_patches.prompt.tokens import Tokenize


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
    return find_places(parse_prompt(unmarked(caption)), names, _tokenizer_of(texts)).places


def placeholders(texts: ClipTexts, caption: str, names: Sequence[str]) -> tuple[Place, ...]:
    """Return the place of each subject's placeholder behind the caption, see `prompt.template`.

    Raises SubjectError for a caption that has the placeholder's word itself, or is too long.
    """
    return template_places(parse_prompt(unmarked(caption)), names, _tokenizer_of(texts))[1]


def _tokenizer_of(texts: ClipTexts) -> Tokenize:
    """Tokens as the first text encoder reads them."""
    stream = texts.towers[0].stream
    return lambda text: [[token for token, *_ in chunk] for chunk in texts.tokenize(text)[stream]]
