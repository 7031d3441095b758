"""The look at where the subjects are relevant after a third of the steps, in a run of the host."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from ....binding.layer_tokens import COND
from ....binding.settings import ImageAttentionSettings
from ....relevance.overlap_check import OverlapCheck, look_in_step
from ....subjects import References
from .blocks import Grid
from .calls import Call
from .conditioning import ConditioningChunk
from .record import Observe
from .run import Run


def check_of_call(
    call: Call,
    references: References,
    settings: ImageAttentionSettings,
    chunks: Sequence[ConditioningChunk | None],
    x: torch.Tensor,
) -> OverlapCheck | None:
    """Return where the relevance of this call is added up, or None if it is not checked: only runs from noise are, in
    one step, see `look_in_step`.
    """
    run = call.run
    if not run.from_noise or _first(chunks) is None:
        return None
    if run.look is None:
        latent, clock = (x.shape[-2], x.shape[-1]), run.clock
        run.look = look_in_step(
            clock.finished,
            clock.steps,
            references.subjects,
            call.now.weights,
            settings.mixing,
            call.pictures,
            latent,
            x.device,
        )
    return None if run.look is None else run.look.check


def with_check(
    recorder: Observe | None, check: OverlapCheck | None, chunks: Sequence[ConditioningChunk], grid: Grid
) -> Observe | None:
    """Return what observes a layer: the recorder, and the check if the layer has its grid and rows of the prompt."""
    group = _first(chunks)
    if check is None or grid != check.grid or group is None:
        return recorder

    def observe(limited_shares: torch.Tensor, relevance: torch.Tensor) -> None:
        check.add(relevance[group])
        if recorder is not None:
            recorder(limited_shares, relevance)

    return observe


def tell_overlaps(run: Run) -> None:
    """Warn of subjects in the same place, once, when the checked step is over."""
    look = run.look
    if look is not None and run.clock.finished > look.step:
        run.look = None
        for sentence in look.warnings():
            run.say(sentence, logging.WARNING)


def _first(chunks: Sequence[ConditioningChunk | None]) -> int | None:
    """Which of the chunks is the first of the positive prompt that shows the whole picture."""
    found = (i for i, chunk in enumerate(chunks) if chunk and chunk.role == COND and chunk.area is None)
    return next(found, None)
