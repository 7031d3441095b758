"""Which prompt each branch of a step has, and by which factors they become one prediction."""

from __future__ import annotations

from collections.abc import Mapping

from ...binding.two_strengths import MIDDLE, NEGATIVE, POSITIVE, UMM, Guidance, branch_factors
from .encoders import Prompt
from .image_attention import inside


def second_at(guidance: Guidance, percent: float) -> float | None:
    """Return the second strength in a model call, or None outside the range."""
    if not inside(percent, guidance.start_percent, guidance.end_percent):
        return None
    return guidance.second_inside(percent)


def factors(guidance: Guidance | None, cfg: float, percent: float) -> dict[str, float]:
    """Return the factor of each branch's prediction in a model call, see `branch_factors`. guidance: None is
    classifier-free guidance.
    """
    if guidance is None:
        return branch_factors(None, cfg, None)
    return branch_factors(guidance.method, cfg, second_at(guidance, percent))


def branches(
    guidance: Guidance | None, positive: Prompt, negative: Prompt, middle: Prompt | None
) -> Mapping[str, Prompt]:
    """Return the prompt of each branch. Raises MismatchError if method umm has no middle, or a second that is no
    alpha.
    """
    if guidance and guidance.method == UMM:
        middle = guidance.umm_middle(middle)
    return {NEGATIVE: negative, MIDDLE: negative if middle is None else middle, POSITIVE: positive}


def of_step(prompt: Prompt, step: int, percent: float) -> Prompt:
    """Return the prompt of a step (0 is the run's first), which is the one before it until its start."""
    if prompt.before is None:
        return prompt
    begun = step >= prompt.start_step if prompt.start_step >= 0 else inside(percent, prompt.start_percent, 1.0)
    return prompt if begun else prompt.before
