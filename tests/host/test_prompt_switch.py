"""A prompt with subjects fused into it takes over at an exact step, whatever samples and whatever core nodes have made
of it.
"""

import json
import logging
from pathlib import Path

import pytest
import torch
from support.host.small_prompt_casts import FUSED, NEGATIVE, TEXT, prompt

pytestmark = pytest.mark.usefixtures("host")


def switched(base="SD15"):
    """A micro model with the switch on it (`.schedule`: the last run's sigmas), and a list of its calls: (sigma, first
    value of each row's context, of its y).
    """
    from comfy.patcher_extension import WrappersMP
    from support.host import tiny_models
    from troupe.model_patches.hosts.comfyui.sampling.prompt_switch import PromptSwitch

    model, seen, schedule = tiny_models.micro_model(base, context_dim=64).clone(), [], []
    PromptSwitch().attach(model)
    PromptSwitch().attach(model)  # a second Troupe node

    def note(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        y = kwargs.get("y")
        schedule[:] = transformer_options["sample_sigmas"].tolist()
        seen.append((float(t[0]), c_crossattn[:, 0, 0].tolist(), None if y is None else y[:, 0].tolist()))
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "note", note)
    assert len(model.get_wrappers(WrappersMP.OUTER_SAMPLE, "troupe_prompt")) == 1
    model.schedule = schedule
    return model, seen


def step_of(sigma, sigmas):
    """The largest i with sigmas[i] >= sigma - 1e-5 max(1, sigma)."""
    return max(i for i, s in enumerate(sigmas) if s >= sigma - 1e-5 * max(1, sigma))


def test_the_rule_is_the_stored_one():
    golden = json.loads((Path(__file__).parent.parent / "golden" / "umm" / "umm.json").read_text())["step_of_sigma"]
    from troupe.model_patches.hosts.comfyui.sampling.clock import Clock
    from troupe.model_patches.hosts.comfyui.sampling.prompt_switch import FusedPrompt, fused_range

    sigmas = torch.tensor(golden["sigmas"], dtype=torch.float64)
    clock, probes = Clock(sigmas), 0
    for probe in golden["probes"]:
        sigma, step = (probe["sigma"], probe["step"]) if isinstance(probe, dict) else probe
        for start in range(len(sigmas) - 1):
            first, last = fused_range(FusedPrompt(None, None, None, start_step=start), clock, None)
            assert (last <= sigma <= first) == (step >= start) or start == 0
            probes += 1
    assert probes > 20


def test_the_published_delays_are_start_steps():
    """MM-Diff: the step itself; FastComposer's script: one more; its pipeline: one more than (1 - alpha) of the steps,
    rounded down.
    """
    from troupe.model_patches.hosts.comfyui.sampling.clock import Clock
    from troupe.model_patches.hosts.comfyui.sampling.prompt_switch import FusedPrompt, fused_range

    rules = json.loads((Path(__file__).parent.parent / "golden" / "umm" / "umm.json").read_text())["schedule"]
    for rule in rules:
        kind, steps = rule["rule"].split(":")[0], rule["steps"]
        start = int((1 - rule["alpha"]) * steps) + 1 if "alpha" in rule else rule["m"] + (kind != "mm_diff")
        sigmas = torch.linspace(14.6, 0.0, steps + 1, dtype=torch.float64)
        prompt = FusedPrompt(None, None, None, start_step=start)
        first, last = fused_range(prompt, Clock(sigmas), None)
        delayed = [i for i in range(steps) if last <= float(sigmas[i]) <= first]
        assert (delayed if prompt.delayed else list(range(steps))) == rule["subject_steps"], rule
    assert {rule["rule"].split(":")[0] for rule in rules} == {"mm_diff", "fastcomposer script", "fastcomposer pipeline"}


@pytest.mark.parametrize("scheduler", ["normal", "karras", "simple", "exponential"])
@pytest.mark.parametrize(
    "sampler", ["euler", "dpmpp_2m", "heun", "dpm_2", "dpmpp_sde", "euler_ancestral", "uni_pc", "lcm"]
)
def test_a_step_is_exact(sampler, scheduler):
    from support.host.small_casts import ksample

    model, seen = switched()
    for start in (1, 3, 5):
        seen.clear()
        ksample(model, *prompt(start_step=start), size=(8, 8), steps=6, sampler=sampler, scheduler=scheduler)
        values = [(sigma, row) for sigma, rows, _ in seen for row in rows if row != NEGATIVE]
        assert {row for _, row in values} == {TEXT, FUSED}
        assert all(row == (FUSED if step_of(sigma, model.schedule) >= start else TEXT) for sigma, row in values)


@pytest.mark.parametrize("percent", [0.3, 0.5, 0.9])
def test_a_percent_is_the_hosts(percent):
    from support.host.small_casts import ksample

    model, seen = switched()
    ksample(model, *prompt(start_percent=percent), size=(8, 8), steps=8)
    border = model.model.model_sampling.percent_to_sigma(percent)
    assert all((FUSED if sigma <= border else TEXT) in rows and len(rows) == 2 for sigma, rows, _ in seen)
    assert {row for _, rows, _ in seen for row in rows} == {TEXT, FUSED, NEGATIVE}


def test_without_delay_nothing_is_doubled():
    from support.host.small_casts import ksample

    for given in ({}, {"start_step": 0}, {"start_step": 0, "start_percent": 0.7}):
        model, seen = switched()
        ksample(model, *prompt(**given), size=(8, 8), steps=3)
        assert len(seen) == 3 and all(sorted(rows) == [FUSED, NEGATIVE] for _, rows, _ in seen)


def test_a_step_beyond_the_run_leaves_the_text():
    from support.host.small_casts import ksample

    model, seen = switched()
    ksample(model, *prompt(start_step=50), size=(8, 8), steps=3)
    assert all(sorted(rows) == [TEXT, NEGATIVE] for _, rows, _ in seen)


def test_the_pooled_output_changes_with_it():
    from support.host.small_casts import ksample

    model, seen = switched("SDXL")
    ksample(model, *prompt("SDXL", start_step=2), size=(8, 8), steps=4)
    for i, (_, rows, pooled) in enumerate(seen):
        assert sorted(rows) == sorted(pooled) == [FUSED if i >= 2 else TEXT, NEGATIVE]


def made_by(node, **inputs):
    """What a core node gives: its one output, or a tuple of its outputs."""
    import nodes

    made = getattr(nodes.NODE_CLASS_MAPPINGS[node](), nodes.NODE_CLASS_MAPPINGS[node].FUNCTION)(**inputs)
    return made[0] if len(made) == 1 else made


def contexts(model, positive, negative, steps=4):
    """Every row's whole context of every call but the negative's, by step."""
    from comfy.patcher_extension import WrappersMP
    from support.host.small_casts import ksample

    model, found = model.clone(), []

    def note(executor, x, t, c_concat=None, c_crossattn=None, *args, **kwargs):
        found.append([row for row in c_crossattn if row[0, 0] != NEGATIVE])
        return executor(x, t, c_concat, c_crossattn, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "note2", note)
    ksample(model, positive, negative, size=(8, 8), steps=steps)
    return found


def test_concatenated_behind_it():
    model, _ = switched()
    positive, negative = prompt(start_step=2)
    more = [[torch.full((1, 77, 64), 9.0), {}]]
    found = contexts(model, made_by("ConditioningConcat", conditioning_to=positive, conditioning_from=more), negative)
    assert [(float(c[0][0, 0]), float(c[0][-1, 0]), len(c[0])) for c in found] == [(TEXT, 9.0, 154)] * 2 + [
        (FUSED, 9.0, 154)
    ] * 2


def test_from_it_only_the_fused_rows_remain():
    """ConditioningConcat and Average drop the keys of `conditioning_from`, of every pack: what stays is the fused
    tensor, from the first step on.
    """
    model, _ = switched()
    positive, negative = prompt(start_step=2)
    found = contexts(
        model,
        made_by("ConditioningConcat", conditioning_to=[[torch.full((1, 77, 64), 9.0), {}]], conditioning_from=positive),
        negative,
    )
    assert [(float(c[0][0, 0]), float(c[0][-1, 0])) for c in found] == [(9.0, FUSED)] * 4


def test_averaged():
    model, _ = switched()
    positive, negative = prompt(start_step=2)
    other = [[torch.full((1, 77, 64), 4.0), {"pooled_output": torch.zeros(1, 1280)}]]
    found = contexts(
        model,
        made_by(
            "ConditioningAverage", conditioning_to=positive, conditioning_from=other, conditioning_to_strength=0.75
        ),
        negative,
    )
    mixed = 0.75 * FUSED + 0.25 * 4.0
    assert [float(c[0][0, 0]) for c in found] == pytest.approx([mixed + TEXT - FUSED] * 2 + [mixed] * 2)


def test_averaged_with_its_pooled_output():
    from support.host.small_casts import ksample

    model, seen = switched("SDXL")
    positive, negative = prompt("SDXL", start_step=2)
    other = [[torch.full((1, 77, 64), 4.0), {"pooled_output": torch.full((1, 1280), 4.0)}]]
    ksample(
        model,
        made_by(
            "ConditioningAverage", conditioning_to=positive, conditioning_from=other, conditioning_to_strength=0.75
        ),
        negative,
        size=(8, 8),
        steps=4,
    )
    mixed = 0.75 * FUSED + 0.25 * 4.0
    assert [next(v for v in pooled if v != NEGATIVE) for *_, pooled in seen] == pytest.approx(
        [mixed + TEXT - FUSED] * 2 + [mixed] * 2
    )


def test_zeroed_out_it_stays_zero():
    model, _ = switched()
    positive, negative = prompt(start_step=2)
    found = contexts(model, made_by("ConditioningZeroOut", conditioning=positive), negative)
    assert all(not c[0].any() for c in found)


def test_combined_with_another_both_are_there():
    model, _ = switched()
    positive, negative = prompt(start_step=2)
    other = [[torch.full((1, 77, 64), 9.0), {}]]
    found = contexts(model, made_by("ConditioningCombine", conditioning_1=positive, conditioning_2=other), negative)
    assert [sorted(float(r[0, 0]) for r in c) for c in found] == [[TEXT, 9.0]] * 2 + [[FUSED, 9.0]] * 2


@pytest.mark.parametrize("node", ["ConditioningSetArea", "ConditioningSetMask", "ConditioningSetTimestepRange"])
def test_areas_masks_and_ranges(node):
    """The same picture as sampling each phase by hand with the same node on it."""
    from support.host.small_casts import ksample

    model, seen = switched()
    inputs = {
        "ConditioningSetArea": dict(width=32, height=64, x=16, y=0, strength=0.8),
        "ConditioningSetTimestepRange": dict(start=0.0, end=0.8),
        "ConditioningSetMask": dict(mask=torch.ones(1, 8, 8).triu(), set_cond_area="default", strength=1.0),
    }[node]
    positive, negative = prompt(start_step=2)
    other = [[torch.full((1, 77, 64), 9.0), {}]]
    positive = made_by(
        "ConditioningCombine", conditioning_1=made_by(node, conditioning=positive, **inputs), conditioning_2=other
    )
    ksample(model, positive, negative, size=(8, 8), steps=5)
    phases = [[row for row in rows if row in (TEXT, FUSED)] for _, rows, _ in seen]
    expected = [TEXT] * 2 + [FUSED] * 3
    sigma = model.model.model_sampling.percent_to_sigma(0.8) if node == "ConditioningSetTimestepRange" else 0
    calls = {}
    for (at, _rows, _), mine in zip(seen, phases, strict=True):
        calls.setdefault(at, []).extend(mine)
    assert [set(v) for v in calls.values()] == [
        {e} if at >= sigma else set() for at, e in zip(calls, expected, strict=True)
    ]


@pytest.mark.parametrize("areas", ["positive", "negative"])
@pytest.mark.parametrize("delayed", ["positive", "negative", "both"])
def test_the_host_gives_areas_of_one_list_to_the_other(areas, delayed):
    """The other list's text is computed in such an area too, in both phases, with the text of the phase."""
    from support.host.small_casts import ksample

    model, seen = switched()
    lists = dict(
        zip(
            ("positive", "negative"), ([[torch.full((1, 77, 64), value), {}]] for value in (9.0, NEGATIVE)), strict=True
        )
    )
    lists |= {name: prompt(start_step=2)[0] for name in lists if delayed in (name, "both")}
    lists[areas] = made_by(
        "ConditioningSetArea", conditioning=lists[areas], width=32, height=64, x=16, y=0, strength=0.8
    )
    ksample(model, **lists, size=(8, 8), steps=4)
    calls = {}
    for sigma, rows, _ in seen:
        calls.setdefault(sigma, []).extend(rows)
    plain, full = {"positive": 9.0, "negative": NEGATIVE}, next(name for name in lists if name != areas)
    for i, rows in enumerate(calls.values()):
        now = {name: ((FUSED if i >= 2 else TEXT) if delayed in (name, "both") else plain[name]) for name in lists}
        assert sorted(rows) == sorted([now[areas], now[full], now[full]])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(start_step=2), "INFO Troupe: the subjects enter the prompt at step 2 of 4, counted from 0."),
        (dict(start_percent=0.5), "INFO Troupe: the subjects enter the prompt at step 2 of 4, counted from 0."),
        (
            dict(start_step=4),
            "WARNING Troupe: lower 'fuse_start_step': it is 4, and this run has 4 steps, counted from 0, so "
            "the subjects never enter the prompt.",
        ),
        (
            dict(start_percent=1.0),
            "INFO Troupe: the subjects do not enter the prompt in this run: it ends before 1 of the schedule.",
        ),
    ],
)
def test_a_run_says_when(given, words, caplog):
    from support.host.small_casts import ksample

    model, _ = switched()
    first, negative = prompt(**given)
    with caplog.at_level(logging.INFO, "troupe"):
        ksample(model, first + prompt(**given)[0], negative, size=(8, 8), steps=4)
    assert [f"{r.levelname} {r.message}" for r in caplog.records if "enter the prompt" in r.message] == [words]


@pytest.mark.parametrize(
    ("sigmas", "expected"),
    [
        ([0.03, 0.5, 1.0, 5.0, 14.6], [TEXT, TEXT, FUSED, FUSED]),
        ([14.6, 5.0, 1.0, 0.5, 5.0, 3.0, 1.0, 0.3, 0.0], [TEXT, TEXT, FUSED, FUSED, FUSED, FUSED, FUSED, FUSED]),
        ([14.6, 5.0, 1.0, 0.0], [TEXT, TEXT, FUSED]),
    ],
    ids=["unsampling", "restarts", "falling"],
)
@pytest.mark.parametrize("beyond", [False, True])
def test_a_step_is_exact_on_every_schedule(sigmas, expected, beyond, caplog):
    """Also where the sigmas rise or turn; a step that the run does not have never comes."""
    import comfy.samplers

    model, seen = switched()
    positive, negative = prompt(start_step=20 if beyond else 2)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(3.0)
    with caplog.at_level("INFO", "troupe"):
        guider.sample(
            torch.randn(1, 4, 8, 8),
            torch.zeros(1, 4, 8, 8),
            comfy.samplers.sampler_object("euler"),
            torch.tensor(sigmas),
            disable_pbar=True,
        )
    found = [next(row for row in rows if row != NEGATIVE) for _, rows, _ in seen]
    assert found == ([TEXT] * len(expected) if beyond else expected)
    assert ("never enter the prompt" if beyond else f"enter the prompt at step 2 of {len(sigmas) - 1}") in caplog.text


def test_a_second_run_begins_anew():
    from support.host.small_casts import ksample

    model, seen = switched()
    positive, negative = prompt(start_step=1)
    first = ksample(model, positive, negative, size=(8, 8), steps=3)
    assert torch.equal(ksample(model, positive, negative, size=(8, 8), steps=3), first)
    assert [max(r for r in rows if r != NEGATIVE) for _, rows, _ in seen] == [TEXT, FUSED, FUSED] * 2


def control_net():
    """A net of the host that adds each row's own text to the middle block, and a list of its calls: (sigma, first
    values of the rows' contexts).
    """
    from comfy.controlnet import ControlBase

    calls = []

    class Net(ControlBase):
        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            before = (
                self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
                if self.previous_controlnet
                else None
            )
            if self.timestep_range is not None and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]:
                return before
            context = cond["c_crossattn"]
            calls.append((float(t[0]), context[:, 0, 0].tolist()))
            return self.control_merge(
                {"middle": [0.3 * context.mean((1, 2)).view(-1, 1, 1, 1).expand(len(x_noisy), 1, 1, 1).clone()]},
                before,
                None,
            )

        def copy(self):
            other = Net()
            self.copy_to(other)
            return other

    return Net(), calls


@pytest.mark.parametrize(
    ("node", "span"),
    [("ControlNetApplyAdvanced", (0.0, 1.0)), ("ControlNetApplyAdvanced", (0.0, 0.7)), ("ControlNetApply", (0.0, 1.0))],
)
def test_a_control_net_follows_the_text_of_the_step(node, span):
    """The net sees the text that the UNet sees, and the picture is the one of both texts split by hand with the host's
    own time ranges, each under the net.
    """
    from support.host.small_casts import ksample

    def under(net, positive, negative):
        given = dict(control_net=net, image=torch.zeros(1, 64, 64, 3), strength=0.8)
        if node == "ControlNetApply":
            return made_by(node, conditioning=positive, **given), negative
        return made_by(node, positive=positive, negative=negative, start_percent=span[0], end_percent=span[1], **given)

    model, seen = switched()
    positive, negative = prompt(start_percent=0.45)
    net, calls = control_net()
    latent = ksample(model, *under(net, positive, negative), size=(8, 8), steps=6)
    border, end = (model.model.model_sampling.percent_to_sigma(percent) for percent in (0.45, span[1]))
    for at in {sigma for sigma, *_ in seen}:
        rows = [row for sigma, contexts in calls for row in contexts if sigma == at]
        assert sorted(rows) == ([FUSED if at <= border else TEXT, NEGATIVE] if at >= end else [])
    assert {row for _, rows in calls for row in rows} == {TEXT, FUSED, NEGATIVE}

    halves = [
        made_by(
            "ConditioningSetTimestepRange", conditioning=[[torch.full((1, 77, 64), value), {}]], start=start, end=end
        )[0]
        for value, start, end in ((TEXT, 0.0, 0.45), (FUSED, 0.45, 1.0))
    ]
    by_hand = ksample(model, *under(control_net()[0], halves, negative), size=(8, 8), steps=6)
    torch.testing.assert_close(latent, by_hand, rtol=0, atol=1e-5 * float(by_hand.abs().max()))
    without = ksample(model, positive, negative, size=(8, 8), steps=6)
    assert (without - latent).abs().max() > 0.05 * without.abs().max()


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "with a mask's bounds"])
@pytest.mark.parametrize("delayed", ["positive", "negative", "both"])
@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (1, 2), (2, 1), (3, 2), (2, 3)])
def test_a_control_net_reaches_the_same_prompts_with_and_without_a_delay(positives, negatives, delayed, masked):
    """ControlNetApply acts on the positive, and the host shares it out among the negatives, entry by entry."""
    from support.host.small_casts import ksample

    def texts(*values):
        return [[torch.full((1, 77, 64), value), {}] for value in values]

    def reached(start_step):
        model, _ = switched()
        net, calls = control_net()
        lists = {
            "positive": texts(*(9.0 + i for i in range(positives - 1))),
            "negative": texts(*(-5.0 - i for i in range(negatives))),
        }
        for name in lists:
            if delayed in (name, "both"):
                lists[name] = prompt(start_step=start_step)[0] + lists[name][name == "negative" :]
            elif name == "positive":
                lists[name] = texts(30.0) + lists[name]
        if masked:
            bounded = made_by(
                "ConditioningSetMask",
                conditioning=texts(50.0),
                mask=torch.ones(1, 8, 8).triu(4),
                set_cond_area="mask bounds",
                strength=1.0,
            )
            lists = {name: bounded + entries for name, entries in lists.items()}
        lists["positive"] = made_by(
            "ControlNetApply",
            conditioning=lists["positive"],
            control_net=net,
            image=torch.zeros(1, 64, 64, 3),
            strength=0.8,
        )
        ksample(model, **lists, size=(8, 8), steps=4)
        return sorted((sigma, FUSED if row == TEXT else row) for sigma, rows in calls for row in rows)

    alone, late = reached(-1), reached(2)
    assert alone == late and len(alone) >= 8, "the positive and a negative in each of four steps"
