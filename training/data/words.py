"""Names in captions: the word that a caption uses for a category, and captions for pictures that have none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

from .records import DatasetError

WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*['’]?")
# words that name no thing that can be seen: they are never asked of a detector
_FUNCTION_WORDS = """
a about above across after against all along also am among an and another any are around as at away back be because
been before behind being below beneath beside between beyond both but by can close could dark do does doing down
during each either enough even ever every few five for four from full further get gets getting go goes going got had
has have having he her here hers herself high him himself his how i if in inside into is it its itself just large
left like little long look looking looks lot lots low made make makes many may me more most much my near new next
nice no not of off old on one only onto open or other others our out outside over own past photo photograph picture
image per pretty right round same several shall she should shown shows side sitting small so some something such
taken takes taking ten than that the their theirs them themselves then there these they this those three through to
together too top toward towards two under until up upon us various very view was we were what when where which while
who whose why will with within without would you your holding riding walking running wearing lying laying playing
eating hanging flying big short tall young red yellow green blue purple pink brown black white grey gray colorful
colourful beautiful
"""
FUNCTION_WORDS = frozenset({*_FUNCTION_WORDS.split(), "standing"})


@cache
def english() -> Any:
    """Return inflect's engine. Its import takes seconds, so it is called before processes are forked.

    Raises:
        DatasetError: inflect is not installed.
    """
    try:
        import inflect
    except ImportError as error:
        raise DatasetError(
            "the package inflect, which knows English plurals", "none installed", "Run: pip install inflect"
        ) from error
    return inflect.engine()


@lru_cache(65536)
def forms(name: str) -> tuple[str, ...]:
    """Return a name in lower case and its plural: 'wine glass' -> ('wine glass', 'wine glasses')."""
    name = " ".join(name.casefold().split())
    return tuple(dict.fromkeys((name, english().plural_noun(name) or name)))


def find_name(caption: str, words: Iterable[str]) -> str | None:
    """Return the text that a caption uses for one of `words` (a category and its synonyms), as it is written there.

    A word is found on word borders, in the singular or plural, without regard to case. The longest match is taken, and
    of equal ones the first in the caption. Return None if there is none.
    """
    pattern = _pattern(tuple(words))
    if pattern is None:
        return None
    found = [match.group() for match in pattern.finditer(caption)]
    return max(found, key=len) if found else None


@lru_cache(4096)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str] | None:
    longest_first = sorted({form for word in words for form in forms(word)}, key=lambda form: (-len(form), form))
    texts = (re.escape(form).replace(r"\ ", r"\s+") for form in longest_first)
    return re.compile(rf"(?<!\w)(?:{'|'.join(texts)})(?!\w)", re.IGNORECASE) if longest_first else None


def place_of(caption: str, name: str) -> int:
    """Return where a name begins in a caption, on word borders if possible; the caption's length if it is absent."""
    found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", caption, re.IGNORECASE)
    if found:
        return found.start()
    start = caption.casefold().find(name.casefold())
    return start if start >= 0 else len(caption)


def candidate_words(caption: str, vocabulary: Sequence[str] | None = None) -> list[str]:
    """Return the parts of a caption that may name a thing, in the caption's order and in its spelling.

    vocabulary: nouns to look for, in singular or plural; without it, all words but FUNCTION_WORDS. A detector decides
    later which of them can be seen.
    """
    if vocabulary is not None:
        found = {name for word in vocabulary if (name := find_name(caption, [word]))}
        inner = {name for name in found for other in found if name != other and find_name(other, [name])}
        return sorted(found - inner, key=lambda name: place_of(caption, name))
    words = [re.sub(r"['’]s?$", "", match.group()) for match in WORD.finditer(caption)]
    named = {word.casefold(): word for word in reversed(words) if word.casefold() not in FUNCTION_WORDS}
    return sorted((word for word in named.values() if len(word) > 1), key=lambda word: place_of(caption, word))


def template_caption(names: Sequence[str]) -> str:
    """Return a caption for a picture that has none: 'a cat', 'a cat and an owl', 'a cat, a dog and an owl'."""
    nouns = [english().a(name) for name in names]
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
