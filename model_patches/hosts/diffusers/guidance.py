"""Which branches a step of a run has, and by which factors they become one prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...attention.guidance import umm_coefficients
from ...binding.layer_tokens import COND, UNCOND
from ...binding.two_strengths import SecondStrength
from .encoders import Prompt
from .image_attention import inside

NEGATIVE, MIDDLE, POSITIVE = "negative", "middle", "positive"
ROLES = {NEGATIVE: UNCOND, MIDDLE: COND, POSITIVE: COND}  # what the references give each branch
UMM = "umm"


@dataclass(frozen=True)
class Guidance(SecondStrength):
    """Widgets of Two-Strength Guider beside cfg. method: 'subject_diffusion' or 'umm'; second is interpolated linearly
    to second_end between the percents, which are ComfyUI's.
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
    """Return the factor of each branch's prediction in a model call, summing to 1; a branch that is not in it need not
    be computed.

    subject_diffusion, umm: see `attention.guidance`; None, and subject_diffusion outside its range: `e_n + cfg (e_p -
    e_n)`.
    """
    second = guidance.second_at(percent) if guidance else None
    if guidance and guidance.method == UMM:
        found = umm_coefficients(cfg, [second or 0.0])
    elif second is not None:
        found = 1.0 - second, second - cfg, cfg
    else:
        found = 1.0 - cfg, 0.0, cfg
    return {
        name: factor for name, factor in zip((NEGATIVE, MIDDLE, POSITIVE), found, strict=True) if abs(factor) > 1e-9
    }


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
