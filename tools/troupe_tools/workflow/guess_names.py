"""A subject's likely name: a noun from its own prompt, or a word of its file's name that is in the prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

ARTICLE = re.compile(r"\b(?:a|an|the|one|my)\s+", re.IGNORECASE)
TAG = re.compile(r"\b1(?:girl|boy|man|woman|other)\b", re.IGNORECASE)
WEIGHT = re.compile(r":\s*-?\d*\.?\d+\s*(?=\))")  # of (word:1.2)
WORD = re.compile(r"[^\W\d_][\w'-]*")
ENDS = frozenset(
    (  # words that end a noun phrase
        "with",
        "in",
        "on",
        "at",
        "of",
        "and",
        "or",
        "to",
        "by",
        "from",
        "for",
        "as",
        "is",
        "are",
        "who",
        "that",
        "which",
        "wearing",
        "holding",
        "standing",
        "sitting",
        "walking",
        "looking",
        "riding",
        "lying",
        "running",
        "playing",
        "under",
        "over",
        "near",
        "next",
        "behind",
        "beside",
        "between",
        "against",
    )
)
MEDIA = frozenset(
    (  # what the picture is, not who is in it
        "photo",
        "photograph",
        "picture",
        "image",
        "illustration",
        "drawing",
        "painting",
        "portrait",
        "closeup",
        "close-up",
        "shot",
        "sketch",
        "render",
        "rendering",
        "style",
        "selfie",
        "scene",
        "view",
    )
)
LONGEST = 6  # words in a phrase


@dataclass(frozen=True)
class Guess:
    """A name for one subject. source: where it comes from, '' if it is only a placeholder."""

    name: str
    source: str = ""


def guess_names(own: Sequence[str], files: Sequence[str], prompts: Sequence[str]) -> list[Guess]:
    """Return one name for each subject; all are different, whatever their case.

    own: each subject's own prompt, or ''; files: the file name of its photo, or ''; prompts: the texts for the whole
    picture.
    """
    phrases = [_phrase(text) for text in own]
    heads = [phrase.split()[-1] if phrase else "" for phrase in phrases]
    guesses = [_first_unique((heads, phrases), at, "the prompt of its region") for at in range(len(own))]
    stems = [_word_of_file(file, prompts) for file in files]
    taken = [guess.name.lower() for guess in guesses]
    for at, guess in enumerate(guesses):
        if not guess.name and stems.count(stems[at]) == 1 and stems[at] not in taken:
            guesses[at] = Guess(stems[at], "its file name" if stems[at] else "")
    return [guess if guess.name else Guess(f"subject {number}") for number, guess in enumerate(guesses, 1)]


def _first_unique(lists: Sequence[Sequence[str]], at: int, source: str) -> Guess:
    """The first of a subject's candidates that no other subject has too."""
    for names in lists:
        if names[at] and [name.lower() for name in names].count(names[at].lower()) == 1:
            return Guess(names[at], source)
    return Guess("")


def _phrase(text: str) -> str:
    """The first noun phrase of a prompt, as it is written there, or ''."""
    text = WEIGHT.sub("", text)
    plain = re.sub(r"[()\[\]{}]", " ", text)
    for article in ARTICLE.finditer(plain):
        phrase = _until_end(plain[article.end() :])
        if phrase and phrase[-1].lower() not in MEDIA:
            return " ".join(phrase)
    tag = TAG.search(plain)
    words = _until_end(plain)
    short = len(plain.split()) == len(words) <= 2 and not MEDIA.intersection(map(str.lower, words))
    return tag[0] if tag else " ".join(words) if short else ""


def _until_end(text: str) -> list[str]:
    """Words up to the first that cannot be a part of the phrase; [] if there are too many to be one."""
    words = []
    for part in re.split(r"\s+", text.strip()):
        word = part.rstrip(",.;:!?")
        if not WORD.fullmatch(word) or word.lower() in ENDS:
            break
        words.append(word)
        if word != part:
            break
    return words if len(words) <= LONGEST else []


def _word_of_file(file: str, prompts: Sequence[str]) -> str:
    """The first word of three letters or more in a file's name that is a word of a prompt, or ''."""
    there = {word.lower() for text in prompts for word in WORD.findall(text)}
    words = re.findall(r"[^\W\d_]{3,}", PurePosixPath(file).stem)
    return next((word.lower() for word in words if word.lower() in there), "")
