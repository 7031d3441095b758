"""A prompt's tokens as the host chunks them, and the search for a name among them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import SubjectError
from .markers import bare, escaped, without_emphasis

LENGTH = 77  # tokens of a chunk, BOS and EOS included
EOS = 49407  # in CLIP's vocabulary
PADDING = 0  # where a chunk is not padded with EOS
LETTERS, DIGITS = re.compile(r"[^\W\d_]+"), re.compile(r"\d+")

Lookup = Callable[[list[int]], torch.Tensor]  # ids -> their word embeddings [n, d]
# a prompt in the host's notation -> its chunks: BOS, tokens (ints, or vectors of embeddings), EOS, padding
Tokenize = Callable[[str], Sequence[Sequence[Any]]]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a prompt. ids: the tokens without BOS, EOS and padding, None for a vector; where: for each its
    (chunk, position in the chunk), BOS being position 0.
    """

    ids: list[int | None]
    where: list[tuple[int, int]]


def read_tokens(text: str, tokenize: Tokenize) -> Tokens:
    """Return the prompt's tokens in one row, over all chunks."""
    ids, where = [], []
    for number, chunk in enumerate(tokenize(text)):
        kept = [token if isinstance(token, int) else None for token in chunk]
        for filler in (PADDING, EOS):
            while kept and kept[-1] == filler:
                kept.pop()
        ids += kept[1:]
        where += [(number, position) for position in range(1, len(kept))]
    return Tokens(ids, where)


def find_all(ids: Sequence[int | None], wanted: Sequence[int | None]) -> list[int]:
    """Return where the wanted tokens begin, in order; nowhere if there are none or a vector is among them."""
    if not wanted or None in wanted:
        return []
    return [i for i in range(len(ids) - len(wanted) + 1) if list(ids[i : i + len(wanted)]) == list(wanted)]


def find_name(name: str, text: str, tokens: Tokens, tokenize: Tokenize, taken: Collection[int]) -> list[range]:
    """Return where the name is among a prompt's tokens, in order: indices into `tokens.ids`, apart from each other
    and from those taken.

    Whole words, whatever their case, punctuation at the ends of the name left out; `_` and space are the same, and a
    plural counts where the name itself is nowhere.
    """
    core = bare(name)
    spellings = list(dict.fromkeys((core, core.replace("_", " "), core.replace(" ", "_"))))
    plain = without_emphasis(text)
    for ending in ("", "s", "es"):
        found = {
            span for spelling in spellings for span in _whole_words(spelling + ending, plain, tokens.ids, tokenize)
        }
        if found:
            return _apart(sorted(found, key=lambda span: span.start), set(taken))
    return []


def _apart(kept_spans: list[range], taken: set[int]) -> list[range]:
    kept = []
    for span in kept_spans:
        if taken.isdisjoint(span):
            kept.append(span)
            taken.update(span)
    return kept


def _whole_words(words: str, plain: str, ids: Sequence[int | None], tokenize: Tokenize) -> list[range]:
    """Matches of the words that are not the end of a longer word (CLIP marks only where words end) or part of a longer
    number.
    """

    def spans(text: str) -> list[range]:
        wanted = read_tokens(escaped(text), tokenize).ids
        return [range(i, i + len(wanted)) for i in find_all(ids, wanted)]

    kept_spans = spans(words)
    for kind in (LETTERS, DIGITS) if kept_spans else ():
        runs = {run.lower() for run in kind.findall(plain)}
        first, last = kind.match(words.lower()), re.search(DIGITS.pattern + "$", words)
        for run in sorted(runs):
            if first and run != first[0] and run.endswith(first[0]):
                ends = {span.stop for span in spans(run.removesuffix(first[0]) + words)}
                kept_spans = [span for span in kept_spans if span.stop not in ends]
            if last and run != last[0] and run.startswith(last[0]):
                starts = {span.start for span in spans(words + run.removeprefix(last[0]))}
                kept_spans = [span for span in kept_spans if span.start not in starts]
    return kept_spans


def word_embeddings(tokens: Sequence[Any], lookup: Lookup) -> torch.Tensor:
    """Return word embeddings [n, d] of tokens, before positions are added: of ids as the encoder's table has them, of
    vectors [d] themselves.
    """
    found = lookup([token if isinstance(token, int) else 0 for token in tokens])
    for i, token in enumerate(tokens):
        if not isinstance(token, int):
            found[i] = token.to(found)
    return found


def name_too_long(name: str) -> SubjectError:
    """Return the error for a subject's name that does not fit into one chunk of the text encoder."""
    return SubjectError(
        f"a name of at most {LENGTH - 2} tokens",
        f"'{name[:40]}...', which is longer",
        "Use the few words that name the subject in the prompt.",
    )
