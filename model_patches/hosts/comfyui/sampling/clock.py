"""Which step a model call belongs to, without asking the GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ....binding.plan import ends_of

# their sigmas are not the schedule's
OWN_PACE = ("dpm_fast_function", "dpm_adaptive_function", "sample_dpm_fast", "sample_dpm_adaptive")
TIMESTEPS = 1000
SAME_STEP = 1e-5  # of a sigma: a call this near before a step's own belongs to it
KEEPING = {  # options of the host's samplers that move no call out of its step; others may
    "s_noise",
    "s_noise_end",
    "s_tmin",
    "s_tmax",
    "noise_sampler",
    "noise_device",
    "noise_scaler",
    "noise_clip_std",
    "solver_type",
    "order",
    "max_order",
    "max_stage",
    "deis_mode",
    "cfg_pp",
    "use_pece",
    "predictor_order",
    "corrector_order",
    "simple_order_2",
    "tau_func",
    "ge_gamma",
}
# up to 1 within a step: where a call in it lies, or how far an ancestral step goes back
BETWEEN = {"eta", "r", "r_1", "r_2"}


def keeps_to_the_schedule(option: str, value: Any) -> bool:
    """Return whether a sampler with this option calls the model with no sigma beyond those of the step before and the
    step after.
    """
    if option in BETWEEN:
        return isinstance(value, (int, float)) and 0.0 <= value <= 1.0
    return option in KEEPING or (option == "s_churn" and not value)


class Clock:
    """Sampling progress of one run.

    The sampler's callback counts finished steps; with the schedule that bounds the sigma of the next call. Only where a
    range begins or ends between the bounds (or where nothing counts) the sigma itself is read, which makes a GPU wait.

    sigmas: the schedule of the run, or None if it is unknown; sampler: the host's.
    """

    def __init__(self, sigmas: torch.Tensor | None, sampler: Any = None):
        self._sigmas = sigmas
        self._schedule: list[float] | None = None
        self._finished = 0
        function = getattr(sampler, "sampler_function", None)
        known = (
            getattr(function, "__module__", "") == "comfy.k_diffusion.sampling"
            and getattr(function, "__name__", "") not in OWN_PACE
        )
        self._counts = known and all(
            keeps_to_the_schedule(*option) for option in getattr(sampler, "extra_options", {}).items()
        )
        self._callback = False

    def wrap(self, callback: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """Return the sampler's callback (step, denoised, x, total), counting as it passes through."""
        if callback is None:
            return None
        self._callback = True

        def counted(step: int, *args: Any, **kwargs: Any) -> Any:
            self._finished = int(step) + 1
            return callback(step, *args, **kwargs)

        return counted

    @property
    def finished(self) -> int:
        """Steps that the sampler's callback has counted."""
        return self._finished

    @property
    def steps(self) -> int:
        """Steps of the schedule; 0 without one."""
        return 0 if self._sigmas is None else max(len(self._sigmas) - 1, 0)

    def bounds(self) -> tuple[float, float] | None:
        """Return (lowest, highest) sigma the next model call can have, or None if that is not known."""
        if not (self._callback and self._counts) or self._sigmas is None or len(self._sigmas) < 2:
            return None
        # a schedule may rise, or turn in between
        near = self._known_schedule()[max(self._finished - 1, 0) : self._finished + 2]
        return (min(near), max(near)) if near else None

    def first_sigma(self) -> float:
        """Return the sigma where the run begins; infinite if there is no schedule."""
        return FULL[0] if self._sigmas is None or not len(self._sigmas) else self._known_schedule()[0]

    def sigma_of(self, step: int) -> float:
        """Return the sigma at which a step of this run begins; below every sigma where the run has not so
        many steps.
        """
        schedule = [] if self._sigmas is None else self._known_schedule()
        return schedule[step] if step < len(schedule) - 1 else NEVER[0]

    @cached_property
    def direction(self) -> int:
        """-1 for a schedule that falls all the way, as sampling does; 1 for one that rises (unsampling); 0 for one that
        turns (restarts).
        """
        schedule = [] if self._sigmas is None else self._known_schedule()
        pairs = list(itertools.pairwise(schedule))
        return -1 if all(a >= b for a, b in pairs) else 1 if all(a <= b for a, b in pairs) else 0

    def step(self, sigma: torch.Tensor) -> int:
        """Return the step that a call belongs to, by the steps that are finished and the call's own sigma, which is
        read: a call before the next step's sigma is reached belongs to the one that has just been counted.
        """
        schedule, at = self._known_schedule(), min(self._finished, len(self._known_schedule()) - 2)
        if at <= 0:
            return 0
        value, before, here = float(sigma.flatten()[0]), schedule[at - 1], schedule[at]
        near = SAME_STEP * max(1.0, here)
        reached = value <= here + near if here < before else value >= here - near
        return at if reached else at - 1

    def _known_schedule(self) -> list[float]:
        """The run's sigmas, copied from the GPU once."""
        if self._schedule is None:
            self._schedule = [] if self._sigmas is None else [float(s) for s in self._sigmas.cpu()]
        return self._schedule

    def inside(self, ranges: list[tuple[float, float]], sigma: torch.Tensor) -> list[bool]:
        """Return whether this call lies in each (first sigma, last sigma), ends included; a first below the last is an
        empty range.

        sigma: [rows], the call's own, read only if the bounds leave a range open.
        """
        if all(r == FULL for r in ranges):
            return [True] * len(ranges)
        known = None if sigma.device.type == "cpu" else self.bounds()
        if known is not None:
            answers = [_decided(r, *known) for r in ranges]
            if None not in answers:
                return [bool(a) for a in answers]
        value = float(sigma.flatten()[0])
        return [last <= value <= first for first, last in ranges]

    def percent(self, percent_of: Callable[[float], float], sigma: torch.Tensor) -> float:
        """Return ComfyUI's percent of the step that this call belongs to; a sampler's further calls within a step count
        as the next one.

        percent_of: from `percent_reader`; sigma: [rows], the call's own, read only where nothing counts the steps.
        """
        if self._callback and self._counts and self._sigmas is not None and len(self._sigmas):
            schedule = self._known_schedule()
            return percent_of(schedule[min(self._finished, len(schedule) - 1)])
        return percent_of(float(sigma.flatten()[0]))


FULL = (float("inf"), 0.0)
NEVER = (-1.0, 0.0)


def sigma_range(model_sampling: Any, start_percent: float, end_percent: float) -> tuple[float, float]:
    """Convert ComfyUI's percents (0 = first step, 1 = last) to (first, last) sigma; NEVER if the start is not before
    the end.
    """
    if (ends := ends_of((start_percent, end_percent))) is None:
        return NEVER
    each = zip(ends, FULL, strict=True)
    first, last = (open_end if end is None else float(model_sampling.percent_to_sigma(end)) for end, open_end in each)
    return first, last


def percent_table(model_sampling: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (log sigma, rising; ComfyUI's percent there), both [1000] (LCM: [50]) float32 on the CPU: the host's
    `percent_to_sigma` at its own timesteps.
    """
    if isinstance(logs := getattr(model_sampling, "log_sigmas", None), torch.Tensor):
        # a distilled model knows the last of every 20 timesteps
        logarithms, each = logs.double().cpu(), max(TIMESTEPS // len(logs), 1)
        percents = 1.0 - (each * torch.arange(1, len(logs) + 1, dtype=torch.float64) - 1) / (TIMESTEPS - 1)
    else:
        inner = [float(model_sampling.percent_to_sigma(i / (TIMESTEPS - 1))) for i in range(1, TIMESTEPS - 1)]
        # the host calls the ends infinite and zero
        sigmas = [float(model_sampling.sigma_max), *inner, float(model_sampling.sigma_min)]
        logarithms = torch.tensor(sigmas[::-1], dtype=torch.float64).clamp(min=1e-12).log()
        percents = torch.linspace(1.0, 0.0, TIMESTEPS, dtype=torch.float64)
    return logarithms.float(), percents.float()


def percent_reader(model_sampling: Any) -> Callable[[float], float]:
    """Return the inverse of the host's `percent_to_sigma`: sigma -> percent, 0 for the largest and 1 for none; exact
    between the host's own timesteps.
    """
    logarithms, percents = (t.double().numpy() for t in percent_table(model_sampling))

    def percent_of(sigma: float) -> float:
        return 1.0 if sigma <= 0 else float(np.interp(np.log(sigma), logarithms, percents))

    return percent_of


def _decided(range_: tuple[float, float], low: float, high: float) -> bool | None:
    """Whether every sigma of [low, high] is inside the range (True), none (False), or some (None)."""
    first, last = range_
    if first < last or high < last or low > first:
        return False
    return True if last <= low and high <= first else None
