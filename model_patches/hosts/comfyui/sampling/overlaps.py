"""The look at where the subjects are relevant after a third of the steps, in a run of the host."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from ....binding.layer_tokens import COND
from ....binding.settings import ImageAttentionSettings
from ....relevance.overlap_check import OverlapCheck, checked_grid, checked_step, overlap_warnings
from ....subjects import References, ReferenceSubject
from .blocks import Grid
from .calls import Call
from .conditioning import ConditioningChunk
from .record import Observe
from .run import PendingCheck, Run


def check_of_call(
    call: Call,
    references: References,
    settings: ImageAttentionSettings,
    chunks: Sequence[ConditioningChunk | None],
    x: torch.Tensor,
) -> OverlapCheck | None:
    """Return where the relevance of this call is added up, or None if it is not recorded: only the step after a third
    of a run from noise is, of several subjects whose relevance is computed anyway.
    """
    run, subjects = call.run, references.subjects
    if not run.from_noise or len(subjects) < 2 or not settings.mixing.needs_relevance(len(subjects)):
        return None
    if run.clock.finished != checked_step(run.clock.steps) or _first(chunks) is None:
        return None
    if run.overlap_check is None:
        grid, acting = checked_grid((x.shape[-2], x.shape[-1])), tuple(weight != 0 for weight in call.now.weights)
        check = OverlapCheck(len(subjects), call.pictures, grid, x.device)
        run.overlap_check = PendingCheck(check, run.clock.finished, acting)
    return run.overlap_check.check


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


def tell_overlaps(run: Run, subjects: Sequence[ReferenceSubject]) -> None:
    """Warn of subjects that are relevant in the same part of the picture, once, when the step that was looked at is
    over.
    """
    pending = run.overlap_check
    if pending is not None and run.clock.finished > pending.step:
        run.overlap_check = None
        for sentence in overlap_warnings(pending.check.overlaps(), subjects, pending.acting):
            run.say(sentence, logging.WARNING)


def _first(chunks: Sequence[ConditioningChunk | None]) -> int | None:
    """Which of the chunks is the first of the positive prompt that shows the whole picture."""
    found = (i for i, chunk in enumerate(chunks) if chunk and chunk.role == COND and chunk.area is None)
    return next(found, None)
