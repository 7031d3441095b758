"""Sampling runs held open side by side, so that one step of any of them can be asked for at any time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Step = Callable[..., torch.Tensor]  # with no argument step AT, with one that step of the schedule
Wired = tuple[Any, Any, Any]  # MODEL, positive, negative
AT = 1  # the step of the schedule that is timed: what is made once a run is there


def hold(
    runs: Mapping[str, Wired], latent: Sequence[int], measure: Callable[[dict[str, Step]], None], cfg: float = 7.0
) -> None:
    """Begin a run of the host's own CFG guider for each entry, hand `measure` one step of each by name, and end them.

    A step is one of a 20-step schedule, by default always the same, on the same latent: everything that the host and
    all wrappers do in a guided prediction, nothing that a run does only once. The runs lie one in another, so all
    models must share one UNet. latent: [B, 4, H, W].
    """
    import comfy.samplers

    steps, waiting = {}, list(runs.items())

    def begin(i: int) -> None:
        if i == len(waiting):
            measure(steps)
            return
        name, (model, positive, negative) = waiting[i]

        def sampler(
            predict: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, **kwargs: Any
        ) -> torch.Tensor:
            ones = x.new_ones(len(x))

            def step(at: int = AT) -> torch.Tensor:
                model.model.current_patcher = model  # the host's own, at the begin of each run
                return predict(x, sigmas[at] * ones, **extra_args)

            steps[name] = step
            begin(i + 1)
            return x

        sigmas = comfy.samplers.calculate_sigmas(model.model.model_sampling, "normal", 20)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        noise = torch.randn(latent, generator=torch.Generator().manual_seed(1))
        guider.sample(noise, torch.zeros(latent), comfy.samplers.KSAMPLER(sampler), sigmas, disable_pbar=True, seed=1)

    begin(0)


def first_step(wired: Wired, latent: Sequence[int], steps: int = 1, cfg: float = 7.0) -> torch.Tensor:
    """Sample a whole run of `steps` steps and return the latent. With one step, the run is its set-up and that step."""
    import comfy.samplers

    model, positive, negative = wired
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    noise = torch.randn(latent, generator=torch.Generator().manual_seed(1))
    return guider.sample(
        noise, torch.zeros(latent), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=1
    )
