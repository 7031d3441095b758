"""Two-Strength Guider's method umm on the real host, against its formula with every branch predicted apart."""

import pytest
import torch
from support.host.guider_schedules import percent_of, prediction, schedule

pytestmark = pytest.mark.usefixtures("host")


def prompts(dim=64):
    from support.host import tiny_models

    return {
        name: tiny_models.random_cond(77, dim, seed=i) for i, name in enumerate(("positive", "middle", "negative"), 1)
    }


def guider(model, texts, middle=True, cfg=7.5, **settings):
    from troupe.model_patches.binding.two_strengths import Guidance
    from troupe.model_patches.hosts.comfyui.prompting.guider import subject_guider

    return subject_guider(
        model,
        texts["positive"],
        texts["negative"],
        texts["middle"] if middle else None,
        Guidance("umm", **settings),
        cfg,
    )


def sampled(made, noise, steps):
    import comfy.samplers

    return made.sample(
        noise,
        torch.zeros_like(noise),
        comfy.samplers.sampler_object("euler"),
        schedule(made.model_patcher, steps),
        disable_pbar=True,
    )


def expected(patcher, texts, noise, cfg, alphas):
    sampling, sigmas = patcher.model.model_sampling, schedule(patcher, len(alphas))
    x = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), True)
    for i, alpha in enumerate(alphas):
        sigma = sigmas[i].expand(len(x))
        u, y, null = (
            prediction(patcher, x, sigma, texts[name], None, "", "negative" if name == "negative" else "positive")
            for name in ("positive", "middle", "negative")
        )
        denoised = null + cfg * (alpha * u + (1 - alpha) * y - null)
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return patcher.model.process_latent_out(sampling.inverse_noise_scaling(sigmas[-1], x))


def calls_of(model):
    """A clone that notes the rows of each model call."""
    from comfy.patcher_extension import WrappersMP

    model, calls = model.clone(), []
    model.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL,
        "count",
        lambda executor, x, *args, **kwargs: (calls.append(len(x)), executor(x, *args, **kwargs))[1],
    )
    return model, calls


@pytest.mark.parametrize("base", ["SD15", "SDXL"])
@pytest.mark.parametrize(
    ("cfg", "alpha", "branches"),
    [
        (7.5, 0.5, 3),
        (7.5, 0.0, 2),
        (7.5, 1.0, 2),
        (1.0, 0.3, 2),
        (1.0, 1.0, 1),
        (1.0, 0.0, 1),
        (5.0, 0.8, 3),
        (0.0, 0.4, 3),
    ],
)
def test_the_formula_in_one_call_with_no_branch_too_many(base, cfg, alpha, branches):
    from support.host import tiny_models

    patcher, texts = tiny_models.micro_model(base, context_dim=64), prompts()
    model, calls = calls_of(patcher)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    found = sampled(guider(model, texts, cfg=cfg, second=alpha, second_end=alpha), noise, 3)
    wanted = expected(patcher, texts, noise, cfg, [alpha] * 3)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert calls == [2 * branches] * 3


@pytest.mark.parametrize(("cfg", "branches"), [(6.0, 3), (1.0, 2)])
def test_alpha_changes_within_its_range_and_is_0_outside(cfg, branches):
    from support.host import tiny_models

    patcher, texts = tiny_models.micro_model("SD15", context_dim=64), prompts()
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    model, calls = calls_of(patcher)
    found = sampled(
        guider(model, texts, cfg=cfg, second=0.9, second_end=0.2, start_percent=0.2, end_percent=0.7), noise, 8
    )
    percents = [percent_of(patcher, float(s)) for s in schedule(patcher, 8)[:-1]]
    alphas = [0.9 + (0.2 - 0.9) * (p - 0.2) / 0.5 if 0.2 <= p <= 0.7 else 0.0 for p in percents]
    wanted = expected(patcher, texts, noise, cfg, alphas)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))
    assert calls == [branches if a else branches - 1 for a in alphas] and 0 < sum(map(bool, alphas)) < 8


def test_a_run_is_announced(caplog):
    import logging

    from support.host import tiny_models

    with caplog.at_level(logging.INFO, "troupe"):
        sampled(
            guider(
                tiny_models.micro_model("SD15", context_dim=64),
                prompts(),
                cfg=4.0,
                second=0.5,
                second_end=0.2,
                end_percent=0.6,
            ),
            torch.randn(1, 4, 8, 8),
            2,
        )
    assert "Troupe: guidance 4, the subjects' share 0.5 to 0.2 from 0 to 0.6 of the run." in caplog.text


@pytest.mark.parametrize("negative_wired", [False, True])
def test_a_drop_in_on_the_model_acts_in_both_prompts(negative_wired):
    """References of another adapter on the MODEL wire are not what alpha weighs: at 0 they are as with CFGGuider."""
    import comfy.samplers
    from support.host.small_casts import settings, stage
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention

    st, texts = stage(), prompts()
    negative = texts["negative"] if negative_wired else None
    model, _, wired, _ = apply_image_attention(st.patcher, st.references(2), settings(), None, negative)
    texts["negative"] = wired or texts["negative"]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    found = sampled(guider(model, texts, cfg=5.0, second=0.0, second_end=0.0), noise, 2)
    usual = comfy.samplers.CFGGuider(model)
    usual.set_conds(texts["middle"], texts["negative"])
    usual.set_cfg(5.0)
    wanted, without = (
        sampled(usual, noise, 2),
        sampled(guider(st.patcher, texts, cfg=5.0, second=0.0, second_end=0.0), noise, 2),
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert (found - without).abs().max() > 1e-4 * wanted.abs().max()


def test_post_cfg_functions_run():
    from support.host import tiny_models

    patcher, texts, seen = tiny_models.micro_model("SD15", context_dim=64), prompts(), []
    patcher.set_model_sampler_post_cfg_function(lambda args: (seen.append(args["cond_scale"]), args["denoised"])[1])
    sampled(guider(patcher, texts, cfg=4.0, second=0.5, second_end=0.5), torch.randn(1, 4, 8, 8), 2)
    assert seen == [4.0, 4.0]


def test_a_delayed_prompt_changes_here_too():
    from support.host import tiny_models
    from troupe.model_patches.hosts.comfyui.sampling.prompt_switch import PROMPT_KEY, FusedPrompt

    patcher, texts = tiny_models.micro_model("SD15", context_dim=64), prompts()
    ((tensor, options),) = texts["positive"]
    plain = texts["middle"][0][0]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    delayed = {**texts, "positive": [[tensor, {**options, PROMPT_KEY: FusedPrompt(tensor, plain, None, start_step=2)}]]}
    found = sampled(guider(patcher, delayed, cfg=6.0, second=0.5, second_end=0.5), noise, 4)
    wanted = expected(patcher, texts, noise, 6.0, [0.0, 0.0, 0.5, 0.5])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            dict(middle=False, second=0.5, second_end=0.5),
            "'middle' for method umm, found nothing wired. Wire 'text_only' of Encode Prompt with Subjects",
        ),
        (dict(second=1.5, second_end=0.5), "from 0 to 1 for method umm, found 1.5 and 0.5"),
    ],
)
def test_what_it_refuses(settings, words):
    from support.host import tiny_models
    from troupe.model_patches.errors import MismatchError

    with pytest.raises(MismatchError, match=words):
        guider(tiny_models.micro_model("SD15", context_dim=64), prompts(), **settings)
