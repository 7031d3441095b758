"""Delayed fusing: a prompt with subjects fused into it, and the same prompt without them until a step.

The conditioning holds the fused prompt; a `FusedPrompt` beside it says what the plain one is and when to change. When a
run begins an entry becomes two, so that the host itself prepares both, and at each prediction one of the two is there.
Any Troupe node that acts on the MODEL brings the wrappers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ....binding.plan import is_delayed
from .clock import FULL, NEVER, SAME_STEP, Clock, sigma_range
from .conditioning import Lists

log = logging.getLogger("troupe")
PROMPT_KEY = "troupe_prompt"  # key on a conditioning entry
PHASE = "troupe_phase"  # on an entry of a run: (FusedPrompt, whether this one is the fused)
RUN = "troupe_prompt_run"
BEFORE, AFTER = False, True


@dataclass(frozen=True, eq=False)
class FusedPrompt:
    """The texts of a fused conditioning entry, and when the fused one takes over.

    fused, text: [1, T, D], with and without the subjects; pooled: of the text, [1, E], or None; start_percent:
    ComfyUI's; start_step: counted
    from the run's first step, or -1: then the percent holds; fused_pooled: as pooled, with the subjects.
    """

    fused: torch.Tensor
    text: torch.Tensor
    pooled: torch.Tensor | None
    start_percent: float = 0.0
    start_step: int = -1
    fused_pooled: torch.Tensor | None = None

    def __deepcopy__(self, memo: dict) -> FusedPrompt:
        return self  # nothing in it changes

    @property
    def delayed(self) -> bool:
        """Whether there is a part of the run without the subjects."""
        return is_delayed(self.start_percent, self.start_step)

    def text_for(self, now: torch.Tensor) -> torch.Tensor:
        """Return the plain counterpart of what other nodes have made of the fused tensor, [1, T', D].

        Unchanged, and with rows added behind it (ConditioningConcat): exact. Zeroed out: zeros. Mixed with something
        else (ConditioningAverage): moved by the whole difference of text and fused, since the share is not known.
        """
        rows = self.fused.shape[1]
        if now.shape[1] < rows or now.shape[2] != self.fused.shape[2] or not now.any():
            return now
        first = now[:, :rows]
        text = self.text.to(now) if torch.equal(first, self.fused.to(now)) else first + (self.text - self.fused).to(now)
        return torch.cat((text, now[:, rows:]), 1)

    def pooled_for(self, now: torch.Tensor | None) -> torch.Tensor | None:
        """Return the plain counterpart of what other nodes have made of the fused pooled output, [1, E]."""
        if self.pooled is None or now is None or not now.any():
            return now
        if self.fused_pooled is None or torch.equal(now, self.fused_pooled.to(now)):
            return self.pooled
        return now + (self.pooled - self.fused_pooled).to(now)


class PromptSwitch:
    """The wrappers, on a MODEL once however many Troupe nodes it has passed."""

    def attach(self, model: Any) -> None:
        """Put the wrappers on a clone of the MODEL, unless they are there."""
        if model.get_wrappers(WrappersMP.OUTER_SAMPLE, PROMPT_KEY):
            return
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, PROMPT_KEY, self.outer_sample)
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, PROMPT_KEY, self.calc_cond_batch)

    def outer_sample(
        self,
        executor: Any,
        noise: torch.Tensor,
        latent_image: Any,
        sampler: Any,
        sigmas: torch.Tensor,
        denoise_mask: Any = None,
        callback: Callable | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Make two entries of each delayed one, before the host prepares them."""
        guider = executor.class_obj
        lists = Lists.of(guider)
        if any(changes_in_run(entry) for entries in guider.conds.values() for entry in entries):
            guider.conds = mirrored(guider.conds)
        guider.conds = {
            name: [part for entry in entries for part in phases(entry)] for name, entries in guider.conds.items()
        }
        if any(PHASE in entry for entries in guider.conds.values() for entry in entries):
            clock = Clock(sigmas, sampler)
            guider.model_options["transformer_options"][RUN] = clock, lists
            if callback is None and clock.direction == 0:
                callback = uncalled  # there the steps must be counted
            callback = clock.wrap(callback)
            announce(guider.conds, clock, len(sigmas) - 1, guider.model_patcher.get_model_object("model_sampling"))
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)

    def calc_cond_batch(
        self,
        executor: Any,
        model: Any,
        conds: Sequence[Sequence[dict] | None],
        x_in: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict,
    ) -> Any:
        """Keep only the entries of the present phase."""
        if any(PHASE in entry for entries in conds for entry in entries or ()):
            clock, lists = model_options["transformer_options"].get(RUN) or (Clock(None), Lists())
            split = zip(conds, lists.split(conds), strict=True)
            conds = [
                entries if entries is None else present(own, lent, clock, model.model_sampling, timestep)
                for entries, (own, lent, _) in split
            ]
        return executor(model, conds, x_in, timestep, model_options)


def uncalled(*_: Any) -> None:
    """Do nothing: the callback of runs that were given none."""


def announce(conds: Mapping[str, Sequence[dict]], clock: Clock, steps: int, model_sampling: Any) -> None:
    """Log once for a run when the subjects enter the prompt, or that they never do because their step is beyond it."""
    said = set()
    for prompt in {entry[PHASE][0]: None for entries in conds.values() for entry in entries if PHASE in entry}:
        if prompt.start_step >= 0 and clock.direction >= 0:
            step = prompt.start_step if prompt.start_step < steps else None
        else:
            first, last = fused_range(prompt, clock, model_sampling)
            step = next((i for i in range(steps) if last <= clock.sigma_of(i) <= first), None)
        if step is not None:
            line = logging.INFO, f"the subjects enter the prompt at step {step} of {steps}, counted from 0."
        elif prompt.start_step >= 0:
            line = (
                logging.WARNING,
                f"lower 'fuse_start_step': it is {prompt.start_step}, and this run has {steps} steps, "
                "counted from 0, so the subjects never enter the prompt.",
            )
        else:
            line = (
                logging.INFO,
                f"the subjects do not enter the prompt in this run: it ends before {prompt.start_percent:g} "
                "of the schedule.",
            )
        if line not in said:
            said.add(line)
            log.log(line[0], "Troupe: %s", line[1])


def changes_in_run(entry: dict) -> bool:
    """Return whether a conditioning entry is a prompt whose subjects come later."""
    prompt: FusedPrompt | None = entry.get(PROMPT_KEY)
    return prompt is not None and prompt.delayed and "cross_attn" in entry


def mirrored(conds: Mapping[str, Sequence[dict]]) -> dict[str, list[dict]]:
    """Return the lists with the positive's ControlNets and GLIGEN boxes given to the others, as the host does when the
    run begins: entry by entry, so it has to be before one of them becomes two. The host leaves lists alone that have
    theirs.
    """
    made = {name: list(entries) for name, entries in conds.items()}
    positive = [entry for entry in made.get("positive", ()) if not _becomes_area(entry)]
    controlled = [entry for entry in positive if entry.get("control_apply_to_uncond", False)]
    for name in made.keys() - {"positive"}:
        free = [entry for entry in made[name] if not _becomes_area(entry)]
        areas = [entry for entry in made[name] if _becomes_area(entry)]
        for source, key in ((controlled, "control"), (positive, "gligen")):
            comfy.samplers.apply_empty_x_to_equal_area(source, free, key, lambda found, i: found[i])
        made[name] = free + areas
    return made


def _becomes_area(entry: dict) -> bool:
    """Whether the host will give an entry an area from the bounds of its mask; what has an area is passed over when
    things are mirrored.
    """
    return "mask" in entry and bool(entry.get("set_area_to_bounds"))


def phases(entry: dict) -> list[dict]:
    """Return the entries of a run that one conditioning entry becomes: itself, or its text and its fused version, which
    share its uuid.
    """
    if not changes_in_run(entry):
        return [entry]
    prompt: FusedPrompt = entry[PROMPT_KEY]
    rest = {key: value for key, value in entry.items() if key != PROMPT_KEY}
    pooled = {"pooled_output": prompt.pooled_for(entry["pooled_output"])} if "pooled_output" in entry else {}
    text = {
        **rest,
        **pooled,
        "cross_attn": prompt.text_for(entry["cross_attn"]),
        "model_conds": dict(entry.get("model_conds", {})),
        PHASE: (prompt, BEFORE),
    }
    return [text, {**rest, PHASE: (prompt, AFTER)}]


def present(
    own: Sequence[dict], lent: Sequence[tuple[dict, dict]], clock: Clock, model_sampling: Any, sigma: torch.Tensor
) -> list[dict]:
    """Return the entries of the phase that this call is in, from a list with both versions of delayed entries.

    lent: areas of another list with the own entry whose text each has. The host gave them the text of one version; it
    is moved to the right one.
    """
    prompts = list(dict.fromkeys(entry[PHASE][0] for entry in own if PHASE in entry))
    fused = are_fused(prompts, clock, model_sampling, sigma)
    here = [entry for entry in own if PHASE not in entry or fused[entry[PHASE][0]] == entry[PHASE][1]]
    return here + [_in_phase(entry, source, here) for entry, source in lent]


def are_fused(
    prompts: Sequence[FusedPrompt], clock: Clock, model_sampling: Any, sigma: torch.Tensor
) -> dict[FusedPrompt, bool]:
    """Return whether each prompt has its subjects in this call.

    Where the schedule turns, its steps are recognised by their number, not by their sigma.
    """
    counted = [prompt for prompt in prompts if prompt.start_step >= 0 and clock.direction == 0]
    ranged = [prompt for prompt in prompts if prompt not in counted]
    found = dict(
        zip(ranged, clock.inside([fused_range(prompt, clock, model_sampling) for prompt in ranged], sigma), strict=True)
    )
    return found | {prompt: clock.step(sigma) >= prompt.start_step for prompt in counted}


def _in_phase(entry: dict, source: dict, here: Sequence[dict]) -> dict:
    """A borrowed entry with the text that its source has now, where that is delayed."""
    now = next((e for e in here if e["uuid"] == source["uuid"]), None) if PHASE in source else None
    return entry if now is None else {**entry, "model_conds": now["model_conds"]}


def fused_range(prompt: FusedPrompt, clock: Clock, model_sampling: Any) -> tuple[float, float]:
    """Return (first, last) sigma of the fused phase.

    A step begins at its own sigma; calls that a sampler makes between two belong to the earlier one.
    """
    if prompt.start_step < 0:
        first, last = sigma_range(model_sampling, prompt.start_percent, 1.0)
    elif clock.direction > 0:
        begin = clock.sigma_of(prompt.start_step)
        return (FULL[0], begin - SAME_STEP * max(1.0, begin)) if begin >= 0 else NEVER
    else:
        first, last = clock.sigma_of(prompt.start_step), 0.0
    return (first, last) if first == FULL[0] else (first + SAME_STEP * max(1.0, first), last)
