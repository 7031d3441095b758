"""Two-Strength Guider on the real host, against its formula with every branch predicted apart."""

import asyncio

import pytest
import torch
from support.host.guider_schedules import percent_of, prediction, schedule

pytestmark = pytest.mark.usefixtures("host")
BRANCHES = {"text": ("positive", "cond"), "image": ("middle", "cond"), "uncond": ("negative", "uncond")}


def expected(patcher, texts, truth, noise, steps, cfg, seconds):
    """Euler over the host's normal schedule. texts: name -> conditioning; seconds: the second strength of each step,
    None for ordinary guidance.
    """
    sampling = patcher.model.model_sampling
    sigmas = schedule(patcher, steps)
    x = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), True)
    for i, second in enumerate(seconds):
        sigma = sigmas[i].expand(len(x))
        e = {
            name: prediction(patcher, x, sigma, texts[text], truth, role, "positive" if name == "text" else "negative")
            for name, (text, role) in BRANCHES.items()
        }
        if second is None:
            second, e["image"] = cfg, e["uncond"]
        denoised = e["uncond"] + cfg * (e["text"] - e["image"]) + second * (e["image"] - e["uncond"])
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return patcher.model.process_latent_out(sampling.inverse_noise_scaling(sigmas[-1], x))


def make(model, positive, negative, middle=None, cfg=7.5, **settings):
    from troupe.model_patches.binding.two_strengths import Guidance
    from troupe.model_patches.hosts.comfyui.prompting.guider import subject_guider

    return subject_guider(model, positive, negative, middle, Guidance("subject_diffusion", **settings), cfg)


def sample(guider, noise, steps=2, sampler="euler"):
    """As SamplerCustomAdvanced does."""
    import comfy.samplers

    sampler, sigmas = comfy.samplers.sampler_object(sampler), schedule(guider.model_patcher, steps)
    return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1)


def close(found, wanted, tolerance=1e-5):
    assert float((found - wanted).abs().max() / wanted.abs().max()) < tolerance


def counting(model):
    """A clone, and a list that gets the guider's lists [indices] of every call of the UNet."""
    from comfy.patcher_extension import WrappersMP

    seen, model = [], model.clone()

    def count(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        seen.append(sorted(transformer_options["cond_or_uncond"]))
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", count)
    return model, seen


@pytest.fixture(scope="module")
def plain(host):
    """A model with three random prompts and no references."""
    from support.host import tiny_models
    from support.host.small_casts import noise_of, stage

    st = stage()
    return st, tiny_models.random_cond(77, 64, seed=7), noise_of()


# ---- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wired", [True, False], ids=["wired", "drop-in"])
@pytest.mark.parametrize("base", ["SD15", "SD20", "SDXL"])
def test_the_formula_with_references(base, wired):
    """The middle that is not wired has the negative's text and the positive's subjects; two pictures at once."""
    from support.host.small_casts import error, noise_of, settings, stage

    st, noise = stage(base), noise_of((16, 12), 2)
    references, chosen = st.references(2), settings()
    model, positive, negative = st.apply(references, chosen, wired)
    found = sample(make(model, positive, negative), noise)
    texts = {"positive": st.positive, "negative": st.negative, "middle": st.negative}
    wanted = expected(st.patcher, texts, st.truth(references, chosen), noise, 2, 7.5, [1.5, 1.5])
    assert error(found, wanted, expected(st.patcher, texts, None, noise, 2, 7.5, [1.5, 1.5])) < 1e-3
    assert (found[0] - found[1]).abs().max() > 1e-2


@pytest.mark.parametrize("negative", [True, False], ids=["negative wired", "negative unwired"])
@pytest.mark.parametrize(("kind", "base"), [("patches", "SD20"), ("text_image", "SD15")])
def test_the_formula_with_gated_layers(kind, base, negative):
    """Subject-Diffusion's own layers, for which the formula was published, with their mask channel; and GLIGEN's."""
    from support.host.small_casts import error, noise_of
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st, noise = gated_stage(kind, base), noise_of((8, 12), 2)
    references = st.references(2)
    found = sample(make(*st.apply(references, GatedSettings(), negative), second=2.5, second_end=1.5), noise)
    texts = {"positive": st.positive, "negative": st.negative, "middle": st.negative}
    seconds = [2.5 - percent_of(st.patcher, float(sigma)) for sigma in schedule(st.patcher, 2)[:-1]]
    wanted = expected(st.patcher, texts, st.truth(references, GatedSettings()), noise, 2, 7.5, seconds)
    assert error(found, wanted, expected(st.patcher, texts, None, noise, 2, 7.5, seconds)) < 1e-3


@pytest.mark.parametrize("wired", ["both", "positive", "nothing", "negative"])
def test_who_gets_the_subjects(wired, monkeypatch):
    """The middle that is not wired is a positive for every Apply node, whatever was wired there."""
    from support.host.small_casts import noise_of, settings, stage
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention
    from troupe.model_patches.hosts.comfyui.sampling.hook import Hook

    seen, original = [], Hook.apply_model

    def spy(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        table = transformer_options["troupe"][self.id].table
        seen.append(
            {
                i: getattr(table.get((i, u)), "role", None)
                for i, u in zip(transformer_options["cond_or_uncond"], transformer_options["uuids"], strict=True)
            }
        )
        return original(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    monkeypatch.setattr(Hook, "apply_model", spy)
    st = stage()
    given = {
        "both": (st.positive, st.negative),
        "positive": (st.positive, None),
        "nothing": (None, None),
        "negative": (None, st.negative),
    }[wired]
    model, positive, negative, _ = apply_image_attention(st.patcher, st.references(2), settings(), *given)
    positive, negative = positive or st.positive, negative or st.negative
    sample(make(model, positive, negative), noise_of(), 1)
    assert seen.pop() == {0: "cond", 1: "cond", 2: "uncond"}
    if wired in ("both", "negative"):
        assert [r.role for r in negative[0][1]["troupe"]] == ["uncond"], "the caller's own conditioning was changed"
    sample(make(model, positive, negative, st.negative), noise_of(), 1)
    assert seen.pop()[1] == ("cond" if wired in ("nothing", "negative") else None), (
        "a middle that is wired keeps what was wired into it"
    )


def test_two_apply_nodes_of_different_kinds_of_wiring():
    from support.host.small_casts import noise_of, settings, stage
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention
    from troupe.model_patches.hosts.comfyui.prompting.guider import drop_in_ids, image_branch

    st = stage()
    model, positive, negative, _ = apply_image_attention(
        st.patcher, st.references(1), settings(), st.positive, st.negative
    )
    model, *_ = apply_image_attention(model, st.references(2), settings())
    (own,) = positive[0][1]["troupe"]
    (other,) = drop_in_ids(model)
    guider = make(model, positive + positive, negative)
    assert [(r.apply_id, r.role) for r in guider.original_conds["middle"][0]["troupe"]] == [
        (own.apply_id, "cond"),
        (other, "cond"),
    ]
    assert image_branch(negative, st.positive)[0][1]["troupe"] == (), (
        "without subjects in the positive there are none in the middle"
    )
    assert torch.isfinite(sample(guider, noise_of())).all()


# ---- the branch that is not wired ------------------------------------------------------------------------------------


def middle_of(guider):
    """(text, options) of each entry."""
    return [(entry["cross_attn"], entry) for entry in guider.original_conds["middle"]]


@pytest.mark.parametrize("second", [7.5, 1.5])
def test_where_the_positive_has_no_subjects_the_middle_has_none(second):
    """Left area with subjects, right area without: on the right, no effect of the subjects at all."""
    import dataclasses

    from support.host.small_casts import noise_of, settings, stage

    import nodes

    st = stage()
    # negative rows stay plain, so only the subjects count
    references = dataclasses.replace(st.references(2), uncond_tokens=None)
    model, with_subjects, negative = st.apply(references, settings(weight=1.0))

    def area(conditioning, x):
        return nodes.ConditioningSetArea().append(conditioning, 64, 128, x, 0, 1.0)[0]

    found = sample(
        make(model, area(with_subjects, 0) + area(st.positive, 64), negative, second=second, second_end=second),
        noise_of((16, 16)),
        1,
    )
    plain = sample(
        make(st.patcher, area(st.positive, 0) + area(st.positive, 64), st.negative, second=second, second_end=second),
        noise_of((16, 16)),
        1,
    )
    effect = (found - plain).abs()
    assert effect[..., 8:].max() == 0 and effect[..., :8].max() > 1


def test_before_a_delay_or_a_range_begins_the_middle_has_no_subjects():
    """An adapter that waits for its word waits in the middle too; a core timestep range holds there too."""
    import dataclasses

    from support.host.small_casts import noise_of, random, settings, stage
    from support.prompt_fusions import FUSIONS
    from troupe.model_patches.adapter import PromptSpec
    from troupe.model_patches.hosts.comfyui.sampling.prompt_switch import PROMPT_KEY, FusedPrompt

    import nodes

    st = stage()
    parts = *st.adapter.spec.parts, PromptSpec(FUSIONS["word"], {"l": 64})
    st.adapter = dataclasses.replace(st.adapter, spec=dataclasses.replace(st.adapter.spec, parts=parts))
    references = dataclasses.replace(st.references(2), uncond_tokens=None)
    fused = st.positive[0][0]
    st.positive = [
        [fused, {**st.positive[0][1], PROMPT_KEY: FusedPrompt(fused, random(1, 77, 64, seed=77), None, 0.0, 2)}]
    ]
    waiting = sample(make(*st.apply(references, settings(weight=1.0))), noise_of((16, 16)), 4)
    late = dataclasses.replace(
        references, subjects=tuple(dataclasses.replace(s, start_percent=0.5) for s in references.subjects)
    )
    expected = sample(make(*st.apply(late, settings(weight=1.0))), noise_of((16, 16)), 4)
    assert torch.equal(waiting, expected) and not torch.equal(
        waiting, sample(make(st.patcher, st.positive, st.negative), noise_of((16, 16)), 4)
    )

    st = stage()
    model, with_subjects, negative = st.apply(st.references(2), settings())

    def during(conditioning, start, end):
        node = nodes.ConditioningSetTimestepRange()
        return getattr(node, node.FUNCTION)(conditioning, start, end)[0]

    middle = middle_of(make(model, during(st.positive, 0.0, 0.5) + during(with_subjects, 0.5, 1.0), negative))
    assert [(o["start_percent"], o["end_percent"], [r.role for r in o["troupe"]]) for _, o in middle] == [
        (0.0, 0.5, []),
        (0.5, 1.0, ["cond"]),
    ]
    assert all(text is negative[0][0] for text, _ in middle)


def test_the_middle_takes_the_text_that_the_host_gives_an_area():
    """Negative: a whole picture and its left half; positive: left and right halves, the left with subjects.

    Areas in cells and in percent.
    """
    from support.host.small_casts import settings, stage

    st = stage()
    model, with_subjects, negative = st.apply(st.references(1), settings())
    (whole, options), left_text = negative[0], negative[0][0] + 1
    for left, right in (
        ((16, 8, 0, 0), (16, 8, 0, 8)),
        (("percentage", 1.0, 0.5, 0.0, 0.0), ("percentage", 1.0, 0.5, 0.0, 0.5)),
    ):
        negatives = [[whole, options], [left_text, {**options, "area": left}]]
        positives = [[t, {**o, "area": left}] for t, o in with_subjects] + [
            [t, {**o, "area": right, "strength": 0.5}] for t, o in st.positive
        ]
        first, second = middle_of(make(model, positives, negatives))
        assert (
            first[0] is left_text
            and first[1]["area"] == left
            and len(first[1]["troupe"]) == 1
            and "strength" not in first[1]
        )
        assert (
            second[0] is whole
            and second[1]["area"] == right
            and second[1]["troupe"] == ()
            and second[1]["strength"] == 0.5
        )


def test_prompts_combined_without_a_place_keep_their_shares_in_the_middle():
    """A combined prompt without subjects halves them in the positive, so it does in the middle; equal prompts are not
    doubled; strengths multiply.
    """
    from support.host.small_casts import settings, stage

    st = stage()
    model, with_subjects, negative = st.apply(st.references(1), settings())
    plain = [[st.positive[0][0], {"strength": 3.0}]]
    middle = middle_of(make(model, with_subjects + plain, [[negative[0][0], {**negative[0][1], "strength": 0.5}]]))
    assert [(len(o["troupe"]), o["strength"]) for _, o in middle] == [(1, 0.5), (0, 1.5)]
    assert len(middle_of(make(model, with_subjects + with_subjects, negative))) == 1


@pytest.mark.parametrize(
    ("cfg", "second"), [(7.5, 1.5), (7.5, 1.0), (3.0, 3.0), (1.0, 2.0), (1.0, 1.0), (4.0, 0.0), (1.5, 6.0)]
)
def test_equals_the_hosts_dual_cfg(plain, cfg, second):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    st, middle, noise = plain
    core = Guider_DualCFG(st.patcher)
    core.set_conds(st.positive, middle, st.negative)
    core.set_cfg(cfg, second)
    close(
        sample(make(st.patcher, st.positive, st.negative, middle, cfg=cfg, second=second, second_end=second), noise),
        sample(core, noise),
    )


@pytest.mark.parametrize("cfg", [1, 1.0000001, 1.00005])
def test_a_cfg_of_about_one_is_one(plain, cfg):
    """A whole number from a wire too.

    The prediction changes with cfg as the formula does, and no rounding error is enlarged.
    """
    st, middle, noise = plain
    found, one = (
        sample(make(st.patcher, st.positive, st.negative, middle, cfg=value, second=1.5, second_end=1.5), noise)
        for value in (cfg, 1.0)
    )
    assert torch.isfinite(found).all() and (found - one).abs().max() < 1e-3 * one.abs().max()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ["cfg", "second", "second_end"])
def test_numbers_that_are_none_are_refused(plain, name, bad):
    from troupe.model_patches.errors import MismatchError

    st, middle, _ = plain
    with pytest.raises(MismatchError, match=f"'{name}' of Two-Strength Guider.*found {bad:g}"):
        make(st.patcher, st.positive, st.negative, middle, **{name: bad})


def test_without_references_the_two_strengths_are_one(plain):
    from support.host.small_casts import ksample

    st, _, noise = plain
    close(
        sample(make(st.patcher, st.positive, st.negative, cfg=5.0), noise),
        ksample(st.patcher, st.positive, st.negative, cfg=5.0),
    )


# ---- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "second", "keep", "lists"),
    [
        (7.5, 1.5, False, [0, 1, 2]),
        (7.5, 1.0, False, [0, 1]),
        (7.5, 1.0, True, [0, 1, 2]),
        (3.0, 3.0, False, [0, 1]),
        (1.0, 1.0, False, [0]),
        (1.0, 1.0, True, [0, 1]),
        (1.0, 2.0, False, [0, 1, 2]),
    ],
)
def test_one_model_call_a_step_and_no_branch_too_many(plain, cfg, second, keep, lists):
    """Lists of three branches: 0 text, 1 image, 2 uncond; of ordinary guidance: 0 positive, 1 negative."""
    st, middle, noise = plain
    model, seen = counting(st.patcher)
    if keep:
        model.model_options["disable_cfg1_optimization"] = True
    sample(make(model, st.positive, st.negative, middle, cfg=cfg, second=second, second_end=second), noise, 3)
    assert seen == [lists] * 3


# ---- over the run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "second", "second_end"),
    [
        ((0.0, 1.0), 3.0, 0.5),
        ((0.3, 0.8), 3.0, 0.5),
        ((0.0, 0.5), 2.0, 2.0),
        ((0.4, 1.0), 1.0, 4.0),
        ((0.6, 0.6), 3.0, 1.0),
    ],
)
@pytest.mark.parametrize("base", ["SD15", "SD20"])
def test_range_and_ramp(base, span, second, second_end):
    from support.host import tiny_models
    from support.host.small_casts import noise_of, stage

    st, noise, steps = stage(base), noise_of(), 5
    middle = tiny_models.random_cond(77, 64, seed=7)
    places = [percent_of(st.patcher, float(sigma)) for sigma in schedule(st.patcher, steps)[:-1]]
    seconds = [
        second + (second_end - second) * (p - span[0]) / (span[1] - span[0])
        if span[0] < span[1] and span[0] <= p <= span[1]
        else None
        for p in places
    ]
    model, seen = counting(st.patcher)
    settings = dict(second=second, second_end=second_end, start_percent=span[0], end_percent=span[1])
    found = sample(make(model, st.positive, st.negative, middle, **settings), noise, steps)
    texts = {"positive": st.positive, "negative": st.negative, "middle": middle}
    close(found, expected(st.patcher, texts, None, noise, steps, 7.5, seconds))
    assert [len(lists) for lists in seen] == [2 if value is None else 3 for value in seconds], (
        "the middle is not predicted outside the range"
    )


def test_a_ramp_reads_nothing_from_the_device(plain, monkeypatch):
    """The value is a tensor beside the sigma; only the end of a range may ask for the sigma itself, and not where the
    steps are counted.
    """
    from troupe.model_patches.binding.two_strengths import Guidance
    from troupe.model_patches.hosts.comfyui.prompting.guider import GuidanceSchedule
    from troupe.model_patches.hosts.comfyui.sampling.clock import Clock

    st, *_ = plain
    course = GuidanceSchedule(
        Guidance("subject_diffusion", 3.0, 1.0), st.patcher.model.model_sampling, Clock(schedule(st.patcher, 4))
    )
    sigmas = schedule(st.patcher, 4)[:3]
    course.second(sigmas)  # makes the table, on the CPU
    read = []
    with monkeypatch.context() as patch:
        for name in ("__float__", "item", "tolist", "cpu"):
            patch.setattr(torch.Tensor, name, lambda *_, name=name: read.append(name))
        found = course.second(sigmas)
    assert not read and found.shape == (3,)
    assert [round(float(v), 4) for v in found] == [
        round(3 - 2 * percent_of(st.patcher, float(s)), 4) for s in schedule(st.patcher, 4)[:3]
    ]


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "uni_pc", "euler_ancestral"])
def test_samplers_with_other_calls(plain, name):
    """Samplers that call the model between the steps' sigmas: a ramp to the same value is the constant."""
    st, middle, noise = plain
    constant = sample(make(st.patcher, st.positive, st.negative, middle, second=2.0, second_end=2.0), noise, 3, name)
    close(
        sample(make(st.patcher, st.positive, st.negative, middle, second=2.0, second_end=2.0 + 1e-9), noise, 3, name),
        constant,
    )


def test_the_host_encodes_both_other_branches_as_negatives(plain):
    """SDXL's size conditioning differs between positive and negative."""
    st, middle, _ = plain
    for given in (middle, None):
        conds = make(st.patcher, st.positive, st.negative, given).original_conds
        assert list(conds) == ["positive", "negative", "middle"]
        assert [conds[name][0].get("prompt_type") for name in conds] == [None, "negative", "negative"]


def test_a_guider_runs_again(plain):
    """The host keeps the node's output for the next prompt."""
    st, middle, noise = plain
    guider = make(st.patcher, st.positive, st.negative, middle, second_end=3.0)
    first = sample(guider, noise)
    assert guider.schedule is None and torch.equal(sample(guider, noise), first)


# ---- other patches of the MODEL --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cfg", "second"), [(7.5, 1.5), (7.5, 1.0), (1.0, 2.0)])
def test_post_cfg_functions_see_a_guidance_that_is_true(plain, cfg, second):
    """`uncond + scale * (cond - uncond)` of what they are given is the prediction, and what they return is taken."""
    st, middle, noise = plain
    model, seen = st.patcher.clone(), []

    def post(args):
        seen.append(args)
        assert (
            args["cond"] is guider.conds["positive"]
            and args["uncond"] is guider.conds["middle" if second == 1.0 else "negative"]
        )
        return args["denoised"] * 0.5

    model.set_model_sampler_post_cfg_function(post)
    settings = dict(cfg=cfg, second=second, second_end=second)
    guider = make(model, st.positive, st.negative, middle, **settings)
    found = sample(guider, noise, 1)
    assert len(seen) == 1
    close(
        seen[0]["uncond_denoised"] + cfg * (seen[0]["cond_denoised"] - seen[0]["uncond_denoised"]), seen[0]["denoised"]
    )
    whole = sample(make(st.patcher, st.positive, st.negative, middle, **settings), noise, 1)
    close(found, whole * 0.5)


def test_a_cfg_function_of_another_node(plain):
    st, middle, noise = plain
    model, scales = st.patcher.clone(), []

    def ordinary(args):
        scales.append(args["cond_scale"])
        return args["uncond"] + (args["cond"] - args["uncond"]) * args["cond_scale"]

    model.set_model_sampler_cfg_function(ordinary)
    close(
        sample(make(model, st.positive, st.negative, middle, second_end=3.0), noise),
        sample(make(st.patcher, st.positive, st.negative, middle, second_end=3.0), noise),
    )
    assert scales == [7.5, 7.5]


@pytest.mark.parametrize(
    ("method", "second", "span"),
    [
        ("subject_diffusion", 7.5, (0.0, 1.0)),
        ("subject_diffusion", 1.5, (0.0, 1.0)),
        ("subject_diffusion", 1.5, (0.0, 0.5)),
        ("umm", 0.5, (0.0, 1.0)),
        ("umm", 0.5, (0.0, 0.5)),
    ],
)
def test_pre_cfg_functions_are_called_in_every_step(plain, method, second, span):
    """They get what ordinary guidance is made of, and what they return is guided with."""
    from troupe.model_patches.binding.two_strengths import Guidance
    from troupe.model_patches.hosts.comfyui.prompting.guider import subject_guider

    st, middle, noise = plain
    model, seen = st.patcher.clone(), []

    def before(args):
        seen.append(args)
        return args["conds_out"]

    def nothing(args):
        return [torch.zeros_like(out) for out in args["conds_out"]]

    guidance = Guidance(method, second, second, *span)
    model.set_model_sampler_pre_cfg_function(before)
    found = sample(subject_guider(model, st.positive, st.negative, middle, guidance), noise, 4)
    assert len(seen) == 4 and all(
        len(args["conds_out"]) == 2 and args["cond_scale"] == 7.5 and args["model_options"] for args in seen
    )
    close(found, sample(subject_guider(st.patcher, st.positive, st.negative, middle, guidance), noise, 4))
    model.set_model_sampler_pre_cfg_function(nothing)
    emptied = sample(subject_guider(model, st.positive, st.negative, middle, guidance), noise, 4)
    assert emptied.abs().max() < 1e-4 < found.abs().max(), "a denoised picture of zeros in every step"


def test_a_batch_function_of_another_node_makes_the_predictions(plain):
    import comfy.samplers

    st, middle, noise = plain
    model, lists = st.patcher.clone(), []

    def calculate(args):
        lists.append(len(args["conds"]))
        return comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )

    model.set_model_sampler_calc_cond_batch_function(calculate)
    close(
        sample(make(model, st.positive, st.negative, middle), noise),
        sample(make(st.patcher, st.positive, st.negative, middle), noise),
    )
    assert lists == [3, 3]


def test_the_core_s_tcfg_acts_under_the_guider(plain):
    from comfy_extras.nodes_tcfg import TCFG

    st, middle, noise = plain
    (model,) = TCFG.execute(st.patcher).args
    found, without = (
        sample(make(patcher, st.positive, st.negative, middle, cfg=7.5, second=7.0, second_end=7.0), noise)
        for patcher in (model, st.patcher)
    )
    assert torch.isfinite(found).all() and (found - without).abs().max() > 1e-3


# ---- in a graph ------------------------------------------------------------------------------------------------------


def test_through_the_nodes(plain, caplog):
    """The node's own output in the host's SamplerCustomAdvanced."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
    from troupe.nodes.subject_guider import SubjectGuider

    st, middle, _ = plain
    out = SubjectGuider.execute(
        st.patcher, st.positive, st.negative, "subject_diffusion", 6.0, 2.0, 1.0, 0.0, 0.9, middle
    )
    (guider,) = (asyncio.run(out) if asyncio.iscoroutine(out) else out).result
    noise, latent, sigmas = Noise_RandomNoise(5), {"samples": torch.zeros(2, 4, 16, 16)}, schedule(st.patcher, 3)
    with caplog.at_level("INFO", "troupe"):
        node = SamplerCustomAdvanced()
        found = getattr(node, node.FUNCTION)(noise, guider, comfy.samplers.sampler_object("euler"), sigmas, latent)[0][
            "samples"
        ]
    assert [r.message for r in caplog.records] == [
        "Troupe: text guidance 6, image guidance 2 to 1 from 0 to 0.9 of the run."
    ]
    places = [percent_of(st.patcher, float(sigma)) for sigma in sigmas[:-1]]
    texts = {"positive": st.positive, "negative": st.negative, "middle": middle}
    close(
        found,
        expected(
            st.patcher,
            texts,
            None,
            noise.generate_noise(latent),
            3,
            6.0,
            [2 - p / 0.9 if p <= 0.9 else None for p in places],
        ),
    )
