"""Guidance with a second strength: its branches and their factors, its values over a run, and what is checked of them,
the same in every host.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TypeVar, overload

import torch

from ..attention.guidance import subject_coefficients, umm_coefficients
from ..errors import MismatchError
from .layer_tokens import COND, UNCOND
from .settings import check_number

T = TypeVar("T")
NEGATIVE, MIDDLE, POSITIVE = "negative", "middle", "positive"
ROLES = {NEGATIVE: UNCOND, MIDDLE: COND, POSITIVE: COND}  # what the references give each branch
SUBJECT_DIFFUSION, UMM = "subject_diffusion", "umm"
NODE = "Two-Strength Guider"
NO_FACTOR = 1e-9  # a smaller factor counts as 0: it is rounding error


def branch_factors(method: str | None, cfg: float, second: float | None) -> dict[str, float]:
    """Return the factor of each branch's prediction, summing to 1; a branch that is not in it need not be computed.

    method: SUBJECT_DIFFUSION or UMM, see `attention.guidance`, or None: `e_n + cfg (e_p - e_n)`, as Subject-Diffusion
    has it outside its range. second: the second strength, None outside the range, where UMM's is 0.
    Raises ValueError: another method.
    """
    if method == UMM:
        found = umm_coefficients(cfg, second or 0.0)
    elif method == SUBJECT_DIFFUSION and second is not None:
        found = subject_coefficients(cfg, second)
    elif method in (SUBJECT_DIFFUSION, None):
        found = 1.0 - cfg, 0.0, cfg
    else:
        raise ValueError(f"method: expected {SUBJECT_DIFFUSION}, {UMM} or None, found {method!r}")
    each = zip((NEGATIVE, MIDDLE, POSITIVE), found, strict=True)
    return {branch: factor for branch, factor in each if abs(factor) > NO_FACTOR}


@dataclass(frozen=True)
class Guidance:
    """Widgets of Two-Strength Guider beside cfg. method: SUBJECT_DIFFUSION or UMM; `second` at `start_percent`,
    `second_end` at `end_percent`, interpolated linearly between them.

    Strengths are 0..100, percents ComfyUI's, 0..1.
    """

    method: str
    second: float = 1.5
    second_end: float = 1.5
    start_percent: float = 0.0
    end_percent: float = 1.0

    @overload
    def second_inside(self, percent: float) -> float: ...

    @overload
    def second_inside(self, percent: torch.Tensor) -> torch.Tensor: ...

    def second_inside(self, percent: float | torch.Tensor) -> float | torch.Tensor:
        """Return the second strength at a percent of the run, interpolated linearly and constant beyond the range.

        A tensor of percents gives a tensor of its shape.
        """
        done = (percent - self.start_percent) / (self.end_percent - self.start_percent)
        done = done.clamp(0.0, 1.0) if isinstance(done, torch.Tensor) else min(max(done, 0.0), 1.0)
        return self.second + (self.second_end - self.second) * done

    def umm_middle(self, middle: T | None) -> T:
        """Return the middle prompt of method umm. Raise MismatchError if there is none, or if the second strength is
        not in 0..1 over the whole range.
        """
        if middle is None:
            raise MismatchError(
                "the prompt without its subjects in 'middle' for method umm",
                "nothing wired",
                "Wire 'text_only' of Encode Prompt with Subjects into it.",
            )
        ends = self.second, self.second_end
        if not 0.0 <= min(ends) <= max(ends) <= 1.0:
            remedy = "For umm they are alpha, the subjects' share of the guidance. Start with 0.5."
            found = f"{ends[0]:g} and {ends[1]:g}"
            raise MismatchError("'second' and 'second_end' from 0 to 1 for method umm", found, remedy)
        return middle


def check_guidance(cfg: float, guidance: Guidance) -> None:
    """Raise MismatchError for a number that is not finite, or a strength below 0, as only a wire can bring them."""
    numbers = {"cfg": cfg, **{name: value for name, value in asdict(guidance).items() if name != "method"}}
    for name, value in numbers.items():
        check_number(name, value, NODE)
    for name in ("cfg", "second", "second_end"):
        if numbers[name] < 0:
            remedy = "Look at the node that makes this number, or type one in."
            raise MismatchError(f"0 or more as '{name}' of {NODE}", f"{numbers[name]:g}", remedy)
