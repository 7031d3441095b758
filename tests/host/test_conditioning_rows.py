"""Who gets the subjects where the host or another pack arranges prompts in unusual ways."""

import pytest
import torch
from support.host.ranges import in_range

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture
def calls(monkeypatch):
    """For every model call with references: [(index in the host's list, role or None, area)] of its chunks."""
    from troupe.model_patches.hosts.comfyui.sampling.image_attention import ImageAttention

    seen, original = [], ImageAttention.apply_model

    def spy(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        call = transformer_options["troupe"].get(self.id)
        rows = list(zip(transformer_options["cond_or_uncond"], transformer_options["uuids"], strict=True))
        seen.append(
            [(i, *((c.role, c.area) if (c := call and call.table.get((i, u))) else (None, None))) for i, u in rows]
        )
        return original(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    monkeypatch.setattr(ImageAttention, "apply_model", spy)
    return seen


def in_area(conditioning, width, height, x, y):
    import nodes

    return nodes.ConditioningSetArea().append(conditioning, width, height, x, y, 1.0)[0]


def guided(guider, size=(16, 16), steps=1):
    """Sample with a guider as SamplerCustomAdvanced does."""
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.model.model_sampling, "normal", steps)
    latent = torch.zeros(1, 4, *size)
    return guider.sample(
        torch.randn(latent.shape, generator=torch.Generator().manual_seed(1)),
        latent,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        disable_pbar=True,
    )


def test_usual_call(calls):
    from support.host.small_casts import ksample, settings, stage

    st = stage()
    ksample(*st.apply(st.references(2), settings()), steps=1)
    assert calls == [[(1, "uncond", None), (0, "cond", None)]]


@pytest.mark.parametrize("wired", [True, False], ids=["negative wired", "negative unwired"])
def test_a_negative_made_by_zeroing_out_our_positive_gets_the_empty_tokens(calls, wired):
    """ConditioningZeroOut keeps every key of the positive, our record too."""
    from support.host.small_casts import ksample, settings, stage
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention

    import nodes

    st = stage()
    model, positive, *_ = apply_image_attention(
        st.patcher, st.references(2), settings(), st.positive, st.negative if wired else None
    )
    ksample(model, positive, nodes.ConditioningZeroOut().zero_out(positive)[0], steps=1)
    assert calls == [[(1, "uncond", None), (0, "cond", None)]]


@pytest.mark.parametrize("wired", [True, False], ids=["wired", "drop-in"])
def test_dual_cfg_where_the_positive_is_the_third_list(calls, wired):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG
    from support.host.small_casts import settings, stage

    st = stage()
    model, positive, negative = st.apply(st.references(2), settings(), wired)
    guider = Guider_DualCFG(model)
    guider.set_conds(positive, st.negative, negative)
    guider.set_cfg(5.0, 2.0)
    guided(guider)
    roles = {index: role for index, role, _ in calls[0]}
    assert roles == ({2: "cond", 1: None, 0: "uncond"} if wired else {2: "cond", 1: "uncond", 0: "uncond"})


def test_middle_carries_the_subjects_when_wired(calls):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG
    from support.host.small_casts import settings, stage
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention

    st = stage()
    model, positive, negative, middle = apply_image_attention(
        st.patcher, st.references(2), settings(), st.positive, st.negative, st.positive
    )
    guider = Guider_DualCFG(model)
    guider.set_conds(positive, middle, negative)
    guider.set_cfg(5.0, 2.0)
    guided(guider)
    assert {index: role for index, role, _ in calls[0]} == {2: "cond", 1: "cond", 0: "uncond"}


def test_perp_neg(calls):
    from comfy_extras.nodes_perpneg import Guider_PerpNeg
    from support.host.small_casts import settings, stage

    st = stage()
    model, positive, negative = st.apply(st.references(2), settings())
    guider = Guider_PerpNeg(model)
    guider.set_conds(positive, negative, st.negative)
    guider.set_cfg(5.0, 1.0)
    guided(guider)
    assert {index: role for index, role, _ in calls[0]} == {0: "cond", 1: "uncond", 2: None}


def test_an_extra_call_with_the_negative_alone_is_not_taken_for_the_positive(calls):
    """Self-attention guidance calls the model once more with [negative] as list 0."""
    import comfy.samplers
    from support.host.small_casts import ksample, settings, stage

    st = stage()
    for wired in (True, False):
        calls.clear()
        model, positive, negative = st.apply(st.references(2), settings(), wired)
        model = model.clone()

        def again(args):
            comfy.samplers.calc_cond_batch(
                args["model"], [args["uncond"]], args["input"], args["sigma"], args["model_options"]
            )
            return args["denoised"]

        model.set_model_sampler_post_cfg_function(again)
        ksample(model, positive, negative, steps=1)
        assert calls[-1] == [(0, "uncond", None)]


def test_area_conditioning_and_the_entries_that_the_host_borrows(calls):
    """Subjects only in an area prompt: its rows get them, the copy that the host puts into the negative list gets the
    empty tokens.
    """
    from support.host.small_casts import ksample, settings, stage

    st = stage()
    model, positive, negative = st.apply(st.references(2), settings())
    area = in_area(positive, 64, 128, 64, 0)
    ksample(model, st.positive + area, negative, steps=1, size=(16, 16))
    flat = sorted({chunk for call in calls for chunk in call}, key=str)
    assert flat == sorted(
        [(0, None, None), (0, "cond", (16, 8, 0, 8)), (1, "uncond", None), (1, "uncond", (16, 8, 0, 8))], key=str
    )


def test_a_region_is_cut_to_the_area_it_is_seen_in(monkeypatch):
    """A subject allowed in the right half of the picture is allowed everywhere in an area prompt over the right half,
    and nowhere in one over the left.
    """
    from support.host.small_casts import ksample, settings, stage
    from troupe.model_patches.hosts.comfyui.sampling import image_attention

    limits, original = [], image_attention.layer_delta
    monkeypatch.setattr(image_attention, "layer_delta", lambda *a, **k: (limits.append(a[5]), original(*a, **k))[1])
    right = torch.zeros(40, 40)
    right[:, 20:] = 1
    st = stage()
    model, positive, negative = st.apply(st.references(1, regions=[right]), settings())
    for x, value in ((64, 1.0), (0, 0.0)):
        limits.clear()
        area = in_area(positive, 64, 128, x, 0)
        ksample(model, area, st.negative, steps=1, size=(16, 16))
        assert limits and all((m == value).all() for m in limits)


def test_timestep_ranges_of_the_conditioning_are_the_hosts_business(calls):
    from support.host.small_casts import ksample, settings, stage

    st = stage()
    model, positive, negative = st.apply(st.references(2), settings())
    early, late = in_range(st.positive, 0.0, 0.5), in_range(positive, 0.5, 1.0)
    ksample(model, early + late, negative, steps=4)
    roles = [{index: role for index, role, _ in call} for call in calls]
    assert roles[0] == {0: None, 1: "uncond"} and roles[-1] == {0: "cond", 1: "uncond"}


def test_attention_couple_rows_follow_their_chunk():
    """A pack that repeats the positive's rows for two prompts and mixes them half and half: our delta goes to both
    copies, so the mix holds it once.
    """
    from support.host.small_casts import error, ksample, settings, stage

    st = stage()
    model, positive, negative = st.apply(st.references(2), settings())

    def couple(model, publish):
        model = model.clone()

        def before(q, k, v, options):
            n = len(options["cond_or_uncond"])
            rows, rq, rk, rv = [], [], [], []
            for i, a, b, c in zip(options["cond_or_uncond"], q.chunk(n), k.chunk(n), v.chunk(n), strict=True):
                copies = 1 if i == 1 else 2
                rows += [i] * copies
                rq += [a] * copies
                rk += [b] * copies
                rv += [c] * copies
            options["rows"] = rows
            if publish:
                options["cond_or_uncond_hook_couple"] = rows
            return torch.cat(rq), torch.cat(rk), torch.cat(rv)

        def after(out, options):
            parts, rows, mixed = out.chunk(len(options["rows"])), options["rows"], []
            j = 0
            while j < len(rows):
                mixed.append(parts[j] if rows[j] == 1 else 0.5 * parts[j] + 0.5 * parts[j + 1])
                j += 1 if rows[j] == 1 else 2
            return torch.cat(mixed)

        model.set_model_attn2_patch(before)
        model.set_model_attn2_output_patch(after)
        return model

    plain = ksample(model, positive, negative)
    for publish in (True, False):
        assert (
            error(
                ksample(couple(model, publish), positive, negative),
                plain,
                ksample(st.patcher, st.positive, st.negative),
            )
            < 1e-4
        )


def in_tiles(model, together):
    """A replica of tiled sampling: the upper and the lower half of the latent, in one model call (tile by tile, each
    with all chunks) or in two.
    """

    def halves(apply, args):
        x, t, c = args["input"], args["timestep"], args["c"]
        upper, lower = x.chunk(2, -2)
        if together:
            twice = {k: torch.cat((v, v)) if torch.is_tensor(v) else v for k, v in c.items()}
            return torch.cat(apply(torch.cat((upper, lower)), torch.cat((t, t)), **twice).chunk(2), -2)
        return torch.cat((apply(upper, t, **c), apply(lower, t, **c)), -2)

    model = model.clone()
    model.set_model_unet_function_wrapper(halves)
    return model


@pytest.mark.parametrize("batch", [1, 2])
def test_several_tiles_in_one_call_are_as_one_after_the_other(batch):
    from support.host.small_casts import error, ksample, settings, stage

    st = stage(text_gain=True)
    model, positive, negative = st.apply(st.references(2), settings())
    together, apart = (ksample(in_tiles(model, t), positive, negative, batch=batch) for t in (True, False))
    assert error(together, apart, ksample(in_tiles(st.patcher, False), st.positive, st.negative, batch=batch)) < 1e-4


def test_regions_rest_in_tiles_with_one_warning(caplog):
    """Nothing says where a tile lies, and a region stretched over each tile would be wrong everywhere."""
    from support.host.small_casts import ksample, settings, stage

    st = stage()
    region = torch.zeros(32, 32)
    region[:, :16] = 1
    with caplog.at_level("WARNING", "troupe"):
        found, free = (
            ksample(in_tiles(model, False), *conds)
            for model, *conds in (st.apply(st.references(2, regions=r), settings()) for r in ([region, None], None))
        )
    assert torch.equal(found, free)
    assert sum("in tiles" in r.message for r in caplog.records) == 1


def test_rows_that_cannot_be_followed_rest_with_one_warning(caplog):
    from support.host.small_casts import ksample, settings, stage

    st = stage()
    model, positive, negative = st.apply(st.references(2), settings())
    model = model.clone()
    model.set_model_attn2_patch(lambda q, k, v, options: tuple(torch.cat((t, t[:1])) for t in (q, k, v)))
    model.set_model_attn2_output_patch(lambda out, options: out[:-1])
    with caplog.at_level("WARNING", "troupe"):
        found = ksample(model, positive, negative, batch=2)
    plain = st.patcher.clone()
    plain.set_model_attn2_patch(lambda q, k, v, options: tuple(torch.cat((t, t[:1])) for t in (q, k, v)))
    plain.set_model_attn2_output_patch(lambda out, options: out[:-1])
    torch.testing.assert_close(found, ksample(plain, st.positive, st.negative, batch=2))
    assert sum("cannot be matched" in r.message for r in caplog.records) == 1


def test_a_scheduled_lora_hook_refreshes_the_name_keys(monkeypatch):
    """Keyframes of a hook change the UNet's keys within a run: names are projected again when they do, images never."""
    import comfy.hooks
    from support.host.small_casts import ksample, random, settings, stage
    from troupe.model_patches.binding import run_tokens

    st = stage()
    counted, original = {"names": 0, "images": 0}, {}
    for kind in counted:
        original[kind] = getattr(run_tokens, f"project_{kind}")
        monkeypatch.setattr(
            run_tokens,
            f"project_{kind}",
            lambda *a, kind=kind: (counted.__setitem__(kind, counted[kind] + 1), original[kind](*a))[1],
        )
    keys = [k for k in st.patcher.model.state_dict() if k.endswith("attn2.to_k.weight")]
    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.weights = {
        k: ("diff", (random(*st.patcher.model.state_dict()[k].shape, seed=i, gain=0.3),)) for i, k in enumerate(keys)
    }
    hook.need_weight_init = False
    for percent, strength in ((0.0, 1.0), (0.5, 0.2)):
        hook.hook_keyframe.add(comfy.hooks.HookKeyframe(strength, percent))
    group = comfy.hooks.HookGroup()
    group.add(hook)
    model, positive, negative = st.apply(st.references(2), settings())
    positive, negative = (comfy.hooks.set_hooks_for_conditioning(c, group) for c in (positive, negative))
    ksample(model, positive, negative, steps=4)
    assert counted == {"names": 2, "images": 1}
