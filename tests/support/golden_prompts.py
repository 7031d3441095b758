"""Stored prompts through `fuse.fuse_prompt`, which both engines run: an encoder whose words stand at known places and
whose results are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from troupe.model_patches.adapter import AdapterSpec, PromptSpec
from troupe.model_patches.prompt.fusion import Encoded, FusedText, Streams, fuse_prompt
from troupe.model_patches.prompt.tokens import EOS, LENGTH
from troupe.model_patches.subjects import References, ReferenceSubject

from support.prompt_fusions import FUSIONS

BOS, FIRST = 49406, 1000


def word(place: int) -> str:
    """The word at a place of the text; BOS is place 0."""
    return f"t{place}"


class StoredEncoder:
    """One text encoder 'l'. states: (tokens, ids or vectors, BOS first) -> (states [1, n, D], pooled or None); table:
    [places, d] word embeddings; fusion: the adapter's module."""

    def __init__(
        self,
        states: Callable[[list[Any]], tuple[torch.Tensor, torch.Tensor | None]],
        table: torch.Tensor | None = None,
        fusion: Any = None,
    ):
        self.states, self.table, self.fusion = states, table, fusion

    def tokenize(self, text: str) -> dict[str, list[list[tuple[Any, float]]]]:
        ids = [BOS, *(FIRST + int(name[1:]) for name in text.split()), EOS]
        return {"l": [[(token, 1.0) for token in ids + [EOS] * (LENGTH - len(ids))]]}

    def embed(self, stream: str, tokens: Sequence[Any]) -> torch.Tensor:
        return self.table[[token - FIRST for token in tokens]].clone()

    def encode(self, prompts: Sequence[Streams]) -> list[list[Encoded]]:
        return [[Encoded(*self.states([token for token, _ in streams["l"][0]]), {})] for streams in prompts]

    def fuse(self, stream: str, words: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        return self.fusion(words, vectors)


def fused(
    kind: str,
    encoder: StoredEncoder,
    length: int,
    places: Sequence[int],
    vectors: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    text: str | None = None,
    places_of: str = "",
    width: int = 24,
) -> FusedText:
    """A prompt of `length` words after BOS with subjects at these places; vectors: of each, [1, e]."""
    weights = weights or [1.0] * len(places)
    subjects = tuple(
        ReferenceSubject(word(p), None, None, w, words={"l": v})
        for p, v, w in zip(places, vectors, weights, strict=True)
    )
    spec = AdapterSpec("stored", "stored", 768, (PromptSpec(FUSIONS[kind], {"l": width}),))
    references = References(SimpleNamespace(spec=spec), subjects, None)
    (found,), _ = fuse_prompt(references, text or " ".join(map(word, range(1, length + 1))), encoder, places_of)
    return found
