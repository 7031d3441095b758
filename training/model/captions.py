"""Captions as the text encoders of the embedded engine read them, which is in ComfyUI's notation."""

from __future__ import annotations

from collections.abc import Sequence

from ...model_patches.hosts.diffusers.encoders import ClipTexts
from ...model_patches.prompt.markers import TRIGGER, escaped, parse_prompt
from ...model_patches.prompt.template import template_positions
from ...model_patches.prompt.token_positions import TokenPosition, find_token_positions
from ...model_patches.prompt.tokens import Tokenize


def plain(caption: str) -> str:
    """Return the caption with brackets that are read as brackets, for `ClipTexts.encode_prompt`."""
    return escaped(caption)


def unmarked(caption: str) -> str:
    """Return the caption with brackets and braces that are read as such, for `fusion.fuse_prompt`."""
    return escaped(caption).replace("{", "\\{").replace("}", "\\}").replace(TRIGGER, " ")


def token_positions(texts: ClipTexts, caption: str, names: Sequence[str]) -> tuple[TokenPosition, ...]:
    """Return each subject's position among the tokens of the first text encoder.

    Raises SubjectError for a name that is not a word of the caption.
    """
    return find_token_positions(parse_prompt(unmarked(caption)), names, _tokenizer_of(texts)).positions


def placeholders(texts: ClipTexts, caption: str, names: Sequence[str]) -> tuple[TokenPosition, ...]:
    """Return the position of each subject's placeholder behind the caption, see `prompt.template`.

    Raises SubjectError for a caption that has the placeholder's word itself, or is too long.
    """
    return template_positions(parse_prompt(unmarked(caption)), names, _tokenizer_of(texts))[1]


def _tokenizer_of(texts: ClipTexts) -> Tokenize:
    """Tokens as the first text encoder reads them."""
    stream = texts.towers[0].stream
    return lambda text: [[token for token, *_ in chunk] for chunk in texts.tokenize(text)[stream]]
