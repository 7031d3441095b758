"""Guiders for SamplerCustomAdvanced that weigh the subjects apart from the text: one model call for all branches of a
step.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import comfy.samplers
import node_helpers
import torch
from comfy.patcher_extension import WrappersMP

from ....attention.guidance import equivalent_uncond, subject_guidance, umm_condition
from ....binding.layer_tokens import COND
from ....binding.two_strengths import (
    MIDDLE,
    NEGATIVE,
    POSITIVE,
    SUBJECT_DIFFUSION,
    UMM,
    Guidance,
    branch_factors,
    check_guidance,
)
from ..sampling.clock import Clock, percent_table, sigma_range
from ..sampling.conditioning import KEY, Conditioning, ConditioningRecord, attach, text_source
from ..sampling.hook import Hook
from ..sampling.prompt_switch import PROMPT_KEY, FusedPrompt, PromptSwitch

log = logging.getLogger("troupe")
PLACE = ("area", "mask", "mask_strength", "set_area_to_bounds", "strength")  # of a conditioning entry
# a cfg this near to 1 counts as 1 where a formula divides by cfg - 1: it would enlarge rounding errors to noise
NEAR_ONE = 1e-4
ANY = 0.5  # a second strength that leaves no branch out, for one that only the device knows


class GuidanceSchedule:
    """The second strength in each call of one run.

    guidance: the widgets; model_sampling: the host's, which maps percents to sigmas; clock: of the run.
    """

    def __init__(self, guidance: Guidance, model_sampling: Any, clock: Clock):
        self.guidance, self.clock, self._sampling = guidance, clock, model_sampling
        self._range = sigma_range(model_sampling, guidance.start_percent, guidance.end_percent)
        self._table: tuple[torch.Tensor, torch.Tensor] | None = None

    def second(self, sigma: torch.Tensor) -> float | torch.Tensor | None:
        """Return the second strength at the call's sigma [rows]: a float where it is constant, else a tensor [rows]
        that stays on the device; None outside the range.
        """
        s = self.guidance
        if not self.clock.inside([self._range], sigma)[0]:
            return None
        if s.second == s.second_end:
            return s.second
        return s.second_inside(self._percent(sigma))

    def _percent(self, sigma: torch.Tensor) -> torch.Tensor:
        """The run's percent at each sigma, read from a table on the same device."""
        table = self._table
        if table is None or table[0].device != sigma.device:
            logs, percents = percent_table(self._sampling)
            table = self._table = logs.to(sigma.device), percents.to(sigma.device)
        logs, percents = table
        at = sigma.float().clamp(min=1e-12).log()
        i = torch.searchsorted(logs, at).clamp(1, len(logs) - 1)
        part = ((at - logs[i - 1]) / (logs[i] - logs[i - 1])).clamp(0.0, 1.0)
        return torch.lerp(percents[i - 1], percents[i], part)


class TwoScaleGuider(comfy.samplers.CFGGuider, ABC):
    """A guider with a second scale. Subclasses say which branches there are and how they become one.

    model: a MODEL, on which `PromptSwitch` is attached; guidance: the widgets; cfg: the first strength.
    """

    def __init__(self, model: Any, guidance: Guidance, cfg: float):
        super().__init__(model)
        self.guidance = guidance
        self.schedule: GuidanceSchedule | None = None  # of the run that is on
        self.set_cfg(cfg)

    @property
    def described(self) -> str:
        """What the second strength does, in words."""
        g = self.guidance
        second = f"{g.second:g}" if g.second == g.second_end else f"{g.second:g} to {g.second_end:g}"
        return f"{second} from {g.start_percent:g} to {g.end_percent:g} of the run"

    @abstractmethod
    def set_branches(self, positive: Conditioning, negative: Conditioning, middle: Conditioning | None) -> None:
        """Take the conditionings of the node."""

    def second(self, sigma: torch.Tensor) -> float | torch.Tensor | None:
        """See `GuidanceSchedule.second`. Raises RuntimeError outside a run."""
        if self.schedule is None:
            raise RuntimeError("guider: expected a sampling run, found none")
        return self.schedule.second(sigma)

    def is_bare(self, factors: Mapping[str, float], options: dict) -> bool:
        """Return whether the negative need not be computed: it has no factor, and no other node wants it all the
        same.
        """
        return NEGATIVE not in factors and not options.get("disable_cfg1_optimization", False)

    def branches(
        self, lists: Sequence[Conditioning | None], x: torch.Tensor, timestep: torch.Tensor, options: dict
    ) -> list[torch.Tensor]:
        """Return the denoised picture of each list, in one model call; None gives zeros.

        Another node's `sampler_calc_cond_batch_function` is asked as the host asks it.
        """
        calculate = options.get("sampler_calc_cond_batch_function")
        if calculate is None:
            return comfy.samplers.calc_cond_batch(self.inner_model, list(lists), x, timestep, options)
        return calculate(
            {"conds": list(lists), "input": x, "sigma": timestep, "model": self.inner_model, "model_options": options}
        )

    def guided(
        self,
        predictions: list[torch.Tensor],
        lists: list[Conditioning | None],
        x: torch.Tensor,
        timestep: torch.Tensor,
        options: dict,
    ) -> torch.Tensor:
        """Return `uncond + cfg (cond - uncond)` of two predictions [cond, uncond] of two lists, through the functions
        that other nodes put before, in place of and after it.
        """
        for change in options.get("sampler_pre_cfg_function", ()):
            predictions = change(
                {
                    "conds": lists,
                    "conds_out": predictions,
                    "cond_scale": self.cfg,
                    "timestep": timestep,
                    "input": x,
                    "sigma": timestep,
                    "model": self.inner_model,
                    "model_options": options,
                }
            )
        return comfy.samplers.cfg_function(
            self.inner_model,
            *predictions[:2],
            self.cfg,
            x,
            timestep,
            model_options=options,
            cond=lists[0],
            uncond=lists[1],
        )

    def outer_sample(
        self,
        noise: torch.Tensor,
        latent_image: Any,
        sampler: Any,
        sigmas: torch.Tensor,
        denoise_mask: Any = None,
        callback: Callable | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run the sampler as the host does, and count its steps."""
        self.schedule = GuidanceSchedule(
            self.guidance, self.model_patcher.get_model_object("model_sampling"), Clock(sigmas, sampler)
        )
        try:
            return super().outer_sample(
                noise, latent_image, sampler, sigmas, denoise_mask, self.schedule.clock.wrap(callback), *args, **kwargs
            )
        finally:
            self.schedule = None


class SubjectDiffusionGuider(TwoScaleGuider):
    """`e_u + cfg (e_t - e_i) + second (e_i - e_u)`: e_t of positive, e_i of middle, e_u of negative; outside the range
    ordinary guidance of positive against negative. A branch whose factor is zero is not computed."""

    def set_branches(self, positive: Conditioning, negative: Conditioning, middle: Conditioning | None) -> None:
        """Set the branches of the run; without middle, it is the negative's text with the positive's references."""
        middle = image_branch(negative, positive) if middle is None else middle
        for apply_id in drop_in_ids(self.model_patcher):
            middle = attach(middle, ConditioningRecord(apply_id, COND, None))
        negative, middle = (
            node_helpers.conditioning_set_values(branch, {"prompt_type": "negative"}) for branch in (negative, middle)
        )
        self.inner_set_conds({POSITIVE: positive, NEGATIVE: negative, MIDDLE: middle})

    def outer_sample(self, *args: Any, **kwargs: Any) -> Any:
        """Log what the run does, then run it."""
        log.info("Troupe: text guidance %g, image guidance %s.", self.cfg, self.described)
        return super().outer_sample(*args, **kwargs)

    def predict_noise(
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict | None = None, seed: int | None = None
    ) -> torch.Tensor:
        """Return the denoised picture [B, C, ...] of one call."""
        options = model_options or {}
        second = self.second(timestep)
        factors = branch_factors(SUBJECT_DIFFUSION, self.cfg, ANY if isinstance(second, torch.Tensor) else second)
        if second is None or (isinstance(second, float) and MIDDLE not in factors):
            return super().predict_noise(x, timestep, options, seed)
        positive, middle, negative = (self.conds[branch] for branch in (POSITIVE, MIDDLE, NEGATIVE))
        bare = isinstance(second, float) and self.is_bare(factors, options)
        text, image, uncond = self.branches([positive, middle, None if bare else negative], x, timestep, options)
        if bare:
            uncond, negative = image, middle
        if isinstance(second, torch.Tensor):
            second = second.view(-1, *[1] * (x.ndim - 1))
        if abs(self.cfg - 1.0) < NEAR_ONE:
            text = subject_guidance(text, image, uncond, self.cfg, second)
        else:
            uncond = equivalent_uncond(image, uncond, self.cfg, second)
        return self.guided([text, uncond], [positive, negative], x, timestep, options)


class UMMGuider(TwoScaleGuider):
    """`e_0 + cfg (second e_u + (1 - second) e_y - e_0)`: e_u of positive (fused prompt), e_y of middle (the text
    alone), e_0 of negative; second is the paper's alpha, 0 outside the range. A branch whose factor is zero is not
    computed."""

    def set_branches(self, positive: Conditioning, negative: Conditioning, middle: Conditioning | None) -> None:
        """Raise MismatchError if middle is None, or second is no alpha."""
        middle = self.guidance.umm_middle(middle)
        for apply_id in drop_in_ids(self.model_patcher):
            middle = attach(middle, ConditioningRecord(apply_id, COND, None))
        negative = node_helpers.conditioning_set_values(negative, {"prompt_type": "negative"})
        self.inner_set_conds({POSITIVE: positive, NEGATIVE: negative, MIDDLE: middle})

    def outer_sample(self, *args: Any, **kwargs: Any) -> Any:
        """Log what the run does, then run it."""
        log.info("Troupe: guidance %g, the subjects' share %s.", self.cfg, self.described)
        return super().outer_sample(*args, **kwargs)

    def predict_noise(
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict | None = None, seed: int | None = None
    ) -> torch.Tensor:
        """Return the denoised picture [B, C, ...] of one call."""
        options, alpha = model_options or {}, self.second(timestep)
        alpha = 0.0 if alpha is None else alpha
        # of the prompt's two branches, whatever cfg: other nodes read what they give
        shares = branch_factors(UMM, 1.0, ANY if isinstance(alpha, torch.Tensor) else alpha)
        lists = [self.conds[branch] if branch in shares else None for branch in (POSITIVE, MIDDLE)]
        lists.append(None if self.is_bare(branch_factors(None, self.cfg, None), options) else self.conds[NEGATIVE])
        fused, text, null = self.branches(lists, x, timestep, options)
        if isinstance(alpha, torch.Tensor):
            alpha = alpha.view(-1, *[1] * (x.ndim - 1))
        cond = umm_condition(text, fused, alpha) if isinstance(alpha, float) else text + alpha * (fused - text)
        return self.guided([cond, null], [lists[0] or lists[1], lists[2]], x, timestep, options)


# choices of `method`
METHODS: dict[str, type[TwoScaleGuider]] = {SUBJECT_DIFFUSION: SubjectDiffusionGuider, UMM: UMMGuider}


def subject_guider(
    model: Any,
    positive: Conditioning,
    negative: Conditioning,
    middle: Conditioning | None,
    guidance: Guidance,
    cfg: float = 7.5,
) -> TwoScaleGuider:
    """Return the GUIDER of the guidance's method (a key of METHODS) for a MODEL and its conditionings; middle as the
    method's `set_branches` says.

    Raises MismatchError: see `check_guidance`, or what `set_branches` refuses.
    """
    method, *numbers = astuple(guidance)
    guidance, cfg = Guidance(method, *map(float, numbers)), float(cfg)  # a wire may bring whole numbers
    check_guidance(cfg, guidance)
    model = model.clone()
    PromptSwitch().attach(model)
    guider = METHODS[method](model, guidance, cfg)
    guider.set_branches(positive, negative, middle)
    return guider


def image_branch(texts: Conditioning, source: Conditioning) -> Conditioning:
    """Return the negative's texts with the positive's subjects, where and when the positive has them.

    Every entry of `source` lends its records, its delay (an adapter that waits for its word waits here too) and its
    range of steps; where it has an area or a mask, its place too, with the text that the host itself would give that
    area.
    """
    if len({_place_and_time(options) for _, options in source}) == 1 and not _has_area(source[0][1]):
        source = source[:1]
    found = []
    for _, given in source:
        for tensor, options in _texts_there(texts, given):
            start = max(options.get("start_percent", 0.0), given.get("start_percent", 0.0))
            end = min(options.get("end_percent", 1.0), given.get("end_percent", 1.0))
            if start >= end:
                continue
            part = {**options, KEY: tuple({record.apply_id: record for record in given.get(KEY, ())}.values())}
            if (start, end) != (0.0, 1.0):
                part |= {"start_percent": start, "end_percent": end}
            if _has_area(given):
                part = {key: value for key, value in part.items() if key not in PLACE} | {
                    key: given[key] for key in PLACE if key in given
                }
            elif len(source) > 1 and ("strength" in given or "strength" in options):
                part["strength"] = options.get("strength", 1.0) * given.get("strength", 1.0)
            prompt = given.get(PROMPT_KEY)
            if prompt is not None and prompt.delayed:
                part.setdefault(PROMPT_KEY, FusedPrompt(tensor, tensor, None, prompt.start_percent, prompt.start_step))
            found.append([tensor, part])
    return found or [[tensor, {**options, KEY: ()}] for tensor, options in texts]


def _has_area(options: dict) -> bool:
    return "area" in options or "mask" in options


def _place_and_time(options: dict) -> tuple:
    """What distinguishes the subjects of one entry from those of another: records, range, delay, and whether it has a
    place.
    """
    prompt = options.get(PROMPT_KEY)
    return (
        tuple(record.apply_id for record in options.get(KEY, ())),
        options.get("start_percent", 0.0),
        options.get("end_percent", 1.0),
        None if prompt is None else (prompt.start_percent, prompt.start_step),
        _has_area(options),
    )


def _texts_there(texts: Conditioning, given: dict) -> Conditioning:
    """The entries of `texts` that hold where `given` has its place; all of them where it has none."""
    if not _has_area(given):
        return texts
    area = given.get("area")
    percent = area is not None and area[0] == "percentage"
    comparable = [
        one
        for one in texts
        if (a := one[1].get("area")) is None or (area is not None and (a[0] == "percentage") == percent)
    ] or texts[:1]
    numbers = [
        None if a is None else a[1:] if a[0] == "percentage" else a
        for a in (area, *(one[1].get("area") for one in comparable))
    ]
    chosen = comparable[text_source(numbers[0], numbers[1:])][1].get("area")
    return [one for one in comparable if one[1].get("area") == chosen]


def drop_in_ids(model: Any) -> list[str]:
    """Return the ids of the Apply nodes on the MODEL whose references act on the sampler's positive list, without a
    record there.
    """
    hooks = [getattr(wrapper, "__self__", None) for wrapper in model.get_all_wrappers(WrappersMP.OUTER_SAMPLE)]
    return [hook.id for hook in hooks if isinstance(hook, Hook) and not hook.positive_wired]
