r"""Marks that say where a subject is in a prompt: `man<|subj|>` after its word, `{man}` around its words; `\{` and
`\}` are braces to be read.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from ..errors import SubjectError
from .emphasis import weighted_parts

TRIGGER = "<|subj|>"
NOTATION = re.compile(
    r"\\(?P<brace>[{}])|(?P<trigger>\s+<\|subj\|>(?=\s|$)|<\|subj\|>)|\{(?P<words>(?:\\.|[^{}\\])*)\}", re.S
)
EMBEDDING = re.compile(r"embedding:\S+$")


@dataclass(frozen=True)
class Marker:
    """A marker in a prompt. end: where in the prompt without markers the marked word ends; words: the text in the
    braces, None for a trigger.
    """

    end: int
    words: str | None = None


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt in the host's notation without its markers, and the markers in order."""

    text: str
    markers: tuple[Marker, ...] = ()


def parse_prompt(text: str) -> ParsedPrompt:
    """Take the markers out of a prompt. Braces that do not close are text, and of nested ones only the innermost mark.

    Raises SubjectError for braces around nothing.
    """
    clean, markers = _read_markers(text)
    return ParsedPrompt(clean, tuple(markers))


def _read_markers(text: str) -> tuple[str, list[Marker]]:
    clean, markers, read = "", [], 0
    for found in NOTATION.finditer(text):
        clean += text[read : found.start()]
        read = found.end()
        if found["brace"]:
            clean += found["brace"]
        elif found["trigger"]:
            markers.append(Marker(len(clean)))
        else:
            inner, within = _read_markers(found["words"])
            markers += [Marker(len(clean) + marker.end) for marker in within]
            if not (end := _words_end(inner)):
                raise SubjectError(
                    "the subject's words between braces",
                    f"'{found[0]}' in the prompt",
                    r"Write them in, as in {man}, or \{ and \} for braces that are text.",
                )
            markers.append(Marker(len(clean) + end, inner))
            clean += inner
    return clean + text[read:], markers


def word_before(text: str) -> str:
    """Return the last word of a text in the host's notation, its emphasis dropped; '' if the text is empty or ends
    with punctuation.
    """
    plain = without_emphasis(text).rstrip()
    if not plain or not _in_a_word(plain[-1]):
        return ""
    if found := EMBEDDING.search(plain):
        return found[0]
    start = len(plain)
    while start and _in_a_word(plain[start - 1]):
        start -= 1
    return plain[start:]


def without_emphasis(text: str) -> str:
    """Return the text that the encoder reads: brackets of emphasis and their numbers gone, escaped brackets as
    brackets.
    """
    return "".join(part for part, _ in weighted_parts(text))


def escaped(text: str) -> str:
    """Return the text in the host's notation, its brackets to be read."""
    return text.replace("(", "\\(").replace(")", "\\)")


def bare(name: str) -> str:
    """Return a name without emphasis and without the punctuation around it; the name itself where there is nothing
    else.
    """
    plain = " ".join(without_emphasis(name).split())
    first, last = 0, len(plain)
    while last > first and not _in_a_word(plain[last - 1]):
        last -= 1
    while first < last and not _in_a_word(plain[first]):
        first += 1
    return plain[first:last] or plain


def _words_end(inner: str) -> int:
    """Where the last word between braces ends: before the punctuation that follows it, after a bracket that closes an
    emphasis.
    """
    end = len(inner)
    while end and not _in_a_word(inner[end - 1]) and (inner[end - 1] != ")" or inner[end - 2 : end] == "\\)"):
        end -= 1
    return end


def _in_a_word(letter: str) -> bool:
    """Letters, digits, accents, symbols (also emoji and what joins them); not punctuation, not space."""
    return unicodedata.category(letter)[0] in "LNMS" or unicodedata.category(letter) == "Cf"
