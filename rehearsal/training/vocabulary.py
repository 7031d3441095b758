"""The words of the world's captions, in CLIP's vocabulary of 49,408 entries: only their rows of the embedding table are
trained and stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from transformers import CLIPTokenizer

from ..world import CLASSES, PLACES, VARIANTS

BOS, EOS, LENGTH = 49406, 49407, 77
LONGEST = 6  # tokens of a name: 'robot with a hat' has four
PIECES = (*CLASSES, *VARIANTS, *PLACES, "a picture of", "and", ",")
START, END, UNKNOWN, WORD_END = "<|startoftext|>", "<|endoftext|>", "<|unknown|>", "</w>"


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


def small_tokenizer(length: int) -> CLIPTokenizer:
    """Build CLIP's tokenizer with the words of the world only: it splits what `tokens` splits.

    Ids are rows of `known_ids`; letters and pieces of which the words are merged follow, and last what is none of them.

    length: tokens of a text at most.
    """
    words = [_tokenizer().decoder[token] for token in known_ids() if token not in (BOS, EOS)]
    merges = sorted({pair for word in words for pair in _merges(word)}, key=_tokenizer().bpe_ranks.__getitem__)
    pieces = {letter for word in words for letter in _letters(word)} | {"".join(pair) for pair in merges}
    entries = [*words, START, END, *sorted(pieces - set(words)), UNKNOWN]
    return CLIPTokenizer(
        vocab={entry: row for row, entry in enumerate(entries)},
        merges=merges,
        unk_token=UNKNOWN,
        model_max_length=length,
    )


def _merges(word: str) -> list[tuple[str, str]]:
    """The pairs that byte pair encoding joins on the way from letters to a word."""
    parts, found = _letters(word), []
    while len(parts) > 1:
        pair = min(pairwise(parts), key=lambda two: _tokenizer().bpe_ranks.get(two, len(_tokenizer().bpe_ranks)))
        found.append(pair)
        joined: list[str] = []
        for part in parts:
            if joined and (joined[-1], part) == pair:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined
    return found


def _letters(word: str) -> list[str]:
    *letters, last = word.removesuffix(WORD_END)
    return [*letters, last + WORD_END]


@lru_cache(maxsize=1)
def _tokenizer():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
