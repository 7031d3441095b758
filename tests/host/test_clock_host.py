"""The clock's bounds against every sampler of the host: with any option, each model call's sigma lies within them."""

import inspect
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("host")
SCHEDULERS = ("normal", "karras", "beta")
STEPS = 12


def samplers():
    """(name, options) of every sampler whose calls the clock might count."""
    import comfy.k_diffusion.sampling as sampling
    import comfy.samplers

    for name in comfy.samplers.KSAMPLER_NAMES:
        function = getattr(sampling, f"sample_{name}", None)
        taken = inspect.signature(function).parameters if function else {}
        yield name, {}
        yield from (
            (name, {option: value})
            for option, values in {"eta": (0.0, 1.3, 2.0), "r": (0.9, 2.0, 5.0), "s_churn": (5.0,)}.items()
            if option in taken
            for value in values
        )


class Model:
    """What a sampler calls: notes calls outside of the clock's bounds."""

    def __init__(self, patcher, clock):
        inner = SimpleNamespace(model_sampling=patcher.model.model_sampling, latent_format=patcher.model.latent_format)
        self.inner_model = SimpleNamespace(
            model_sampling=patcher.model.model_sampling, inner_model=inner, model_patcher=patcher, conds={}
        )
        self.clock, self.outside, self.counted = clock, [], 0

    def __call__(self, x, sigma, model_options=None, **kwargs):
        bounds, value = self.clock.bounds(), float(sigma.flatten()[0])
        self.counted += bounds is not None
        if bounds is not None and not bounds[0] - 1e-5 <= value <= bounds[1] + 1e-5:
            self.outside.append((value, bounds))
        for after in (model_options or {}).get("sampler_post_cfg_function", ()):
            after(
                {
                    "denoised": x * 0.9,
                    "uncond_denoised": x * 0.8,
                    "cond_denoised": x * 0.9,
                    "model_options": model_options,
                    "sigma": sigma,
                    "input": x,
                }
            )
        return x * 0.9


def test_every_call_of_every_sampler_lies_within_the_bounds():
    import comfy.samplers
    from support.host import tiny_models
    from troupe.model_patches.hosts.comfyui.sampling.clock import Clock

    patcher, counted = tiny_models.micro_model("SD15", context_dim=64), set()
    for name, options in samplers():
        for scheduler in SCHEDULERS:
            sigmas = comfy.samplers.calculate_sigmas(patcher.model.model_sampling, scheduler, STEPS)
            sampler = comfy.samplers.ksampler(name, options)
            clock = Clock(sigmas, sampler)
            callback = clock.wrap(lambda *args: None)
            model = Model(patcher, clock)
            if clock._counts:
                sampler.sampler_function(
                    model,
                    torch.randn(1, 4, 8, 8) * sigmas[0],
                    sigmas,
                    extra_args={"model_options": {}, "seed": 1},
                    callback=lambda given, callback=callback: callback(given["i"], None, None, STEPS),
                    disable=True,
                    **sampler.extra_options,
                )
                counted.add(name) if model.counted else None
            assert not model.outside, (name, options, scheduler, model.outside[0])
    assert {"euler", "euler_ancestral", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde", "lcm"} <= counted, (
        "nothing was counted, so nothing is tested"
    )
