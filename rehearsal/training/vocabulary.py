"""The words of the world's captions, in CLIP's vocabulary of 49,408 entries: only their rows of the embedding table are
trained and stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ..world import CLASSES, PLACES, VARIANTS

BOS, EOS, LENGTH = 49406, 49407, 77
LONGEST = 6  # tokens of a name: 'robot with a hat' has four
PIECES = (*CLASSES, *VARIANTS, *PLACES, "a picture of", "and", ",")


@lru_cache(maxsize=1)
def known_ids() -> tuple[int, ...]:
    """Return the ids of every token that a caption can contain, ascending, with BOS and EOS."""
    return tuple(sorted({BOS, EOS, *(token for piece in PIECES for token in _tokenizer().encode(piece))}))


def tokens(text: str) -> list[int]:
    """Return BOS, the text's tokens, and EOS up to 77, as ComfyUI and diffusers give them to SD1.5's text encoder."""
    ids = [BOS, *_tokenizer().encode(text)[: LENGTH - 2]]
    return ids + [EOS] * (LENGTH - len(ids))


def rows(texts: Sequence[str]) -> list[list[int]]:
    """Return tokens as rows of the trained table: the position in `known_ids`, or the row after the last one for a word
    that the world does not know.
    """
    place = {token: row for row, token in enumerate(known_ids())}
    return [[place.get(token, len(place)) for token in tokens(text)] for text in texts]


@lru_cache(maxsize=1)
def _tokenizer():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
