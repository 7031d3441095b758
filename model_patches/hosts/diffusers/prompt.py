"""transformers' text encoders behind `model_patches.prompt.fusion`: prompts with subjects in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from ...adapter import Adapter, PromptSpec
from ...binding.checks import check_kind
from ...binding.plan import is_delayed
from ...prompt.fusion import Encoded, Streams, fuse_prompt
from ...subjects import References
from .encoders import ClipTexts, Prompt


class TextsPromptEncoder:
    """A `fusion.PromptEncoder` on the text encoders of a base model, with an adapter's fusion modules beside them.

    texts: the encoders; fusion: the modules by encoder, or None.
    """

    def __init__(self, texts: ClipTexts, fusion: nn.ModuleDict | None):
        self._towers, self._texts, self._fusion = {tower.stream: tower for tower in texts.towers}, texts, fusion

    def tokenize(self, text: str) -> Streams:
        """See `fusion.PromptEncoder`."""
        return self._texts.tokenize(text)

    def embed(self, stream: str, tokens: Sequence[Any]) -> torch.Tensor:
        """See `fusion.PromptEncoder`; on the CPU."""
        return self._towers[stream].embed(tokens)

    def encode(self, prompts: Sequence[Streams]) -> list[list[Encoded]]:
        """See `fusion.PromptEncoder`; one each, all from one pass of each text encoder."""
        return [[Encoded(prompt.embeds, prompt.pooled, {})] for prompt in self._texts.encode_each(prompts)]

    def fuse(self, stream: str, words: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """See `fusion.PromptEncoder`; in the module's dtype, on the CPU."""
        if self._fusion is None:
            raise ValueError("adapter: expected modules that fuse photos with words, found none")
        module = self._fusion[stream]
        weight = next(module.parameters())
        return module(words.to(weight), vectors.to(weight)).float().cpu()


@torch.no_grad()
def encode_prompt(
    texts: ClipTexts,
    references: References,
    text: str,
    start_percent: float = 0.0,
    start_step: int = -1,
    warn: Callable[[str], None] = lambda sentence: None,
) -> tuple[Prompt, Prompt]:
    """Return the prompt with the subjects in it, which carries the plain one where it begins later, and the plain one.

    Arguments:
        start_percent, start_step: see `Prompt`.
    Raises:
        MismatchError: the adapter puts nothing into prompts, or the text encoders are of another base model.
        SubjectError: see `fusion.fuse_prompt`.
    """
    adapter = cast(Adapter, references.adapter)
    check_kind(adapter.spec, PromptSpec, "Encode the prompt with ClipTexts.encode_prompt.")
    (found,), _ = fuse_prompt(references, text, TextsPromptEncoder(texts, adapter.fusion), warn=warn)
    plain = Prompt(found.plain.states, found.plain.pooled)
    if found.fused is found.plain or not is_delayed(start_percent, start_step):
        return Prompt(found.fused.states, found.fused.pooled), plain
    return Prompt(found.fused.states, found.fused.pooled, plain, start_percent, start_step), plain
