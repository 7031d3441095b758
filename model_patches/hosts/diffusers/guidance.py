"""Which prompt each branch of a step has, and by which factors they become one prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...binding.two_strengths import MIDDLE, NEGATIVE, POSITIVE, UMM, SecondStrength, branch_factors
from .encoders import Prompt
from .image_attention import inside


@dataclass(frozen=True)
class Guidance(SecondStrength):
    """Widgets of Two-Strength Guider beside cfg. method: SUBJECT_DIFFUSION or UMM of `two_strengths`; second is
    interpolated linearly to second_end between the percents, which are ComfyUI's.
    """

    method: str
    second: float = 1.5
    second_end: float = 1.5
    start_percent: float = 0.0
    end_percent: float = 1.0

    def second_at(self, percent: float) -> float | None:
        """Return the second strength in a model call, or None outside the range."""
        if not inside(percent, self.start_percent, self.end_percent):
            return None
        return self.second_inside(percent)


def factors(guidance: Guidance | None, cfg: float, percent: float) -> dict[str, float]:
    """Return the factor of each branch's prediction in a model call, see `branch_factors`. guidance: None is
    classifier-free guidance.
    """
    if guidance is None:
        return branch_factors(None, cfg, None)
    return branch_factors(guidance.method, cfg, guidance.second_at(percent))


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
