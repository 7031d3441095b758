"""How a gated adapter hangs on a MODEL: nothing where nothing is asked for, once a run what is constant, in areas,
beside other packs.
"""

import logging

import pytest
import torch
from troupe.model_patches.adapter import GatedSpec

pytestmark = pytest.mark.usefixtures("host")


def idle_cases():
    from troupe.model_patches.binding.settings import GatedSettings

    return {
        "strength 0": (dict(count=2), GatedSettings(0.0)),
        "no subjects": (dict(count=0), GatedSettings()),
        "subject weights 0": (dict(count=2, weights=[0.0, 0.0]), GatedSettings()),
        "ended before the start": (dict(count=2), GatedSettings(end_percent=0.0)),
        "no subject in range": (dict(count=2, ranges=[(0.5, 0.5), (1.0, 1.0)]), GatedSettings()),
    }


@pytest.mark.parametrize(
    "case", ["strength 0", "no subjects", "subject weights 0", "ended before the start", "no subject in range"]
)
@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_nothing_asked_for_is_bit_identical_and_costs_nothing(case, kind, monkeypatch):
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding import run_objects

    worked = []
    monkeypatch.setattr(run_objects, "layer_objects", lambda *a, **k: worked.append(1))
    what, chosen = idle_cases()[case]
    st = gated_stage(kind)
    plain = ksample(st.patcher, st.positive, st.negative, steps=3)
    assert torch.equal(ksample(*st.apply(st.references(**what), chosen), steps=3), plain)
    assert not worked


def test_zero_gates_are_bit_identical():
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage(zero_gates=True)
    assert torch.equal(
        ksample(*st.apply(st.references(2), GatedSettings())), ksample(st.patcher, st.positive, st.negative)
    )


@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_objects_are_projected_once_a_run_and_have_no_queries(kind):
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st, seen = gated_stage(kind), {"linear": 0, "net": 0, "queries": set(), "keys": set(), "mask": 0}
    module = st.adapter.gated_patcher.model
    module.net.register_forward_hook(lambda *_: seen.__setitem__("net", seen["net"] + 1))
    for fuser in module.fusers:
        fuser.linear.register_forward_hook(lambda *_: seen.__setitem__("linear", seen["linear"] + 1))
        fuser.attn.to_q.register_forward_hook(lambda _, args, out: seen["queries"].add(out.shape[1]))
        fuser.attn.to_k.register_forward_hook(lambda _, args, out: seen["keys"].add(out.shape[1]))
    if module.mask_conv is not None:
        module.mask_conv.register_forward_hook(lambda *_: seen.__setitem__("mask", seen["mask"] + 1))
    model, positive, negative = st.apply(st.references(2), GatedSettings())
    for runs in (1, 2):
        ksample(model, positive, negative, size=(8, 8), steps=4)
        assert seen["linear"] == runs * len(module.fusers)
        assert seen["net"] == runs * (2 if kind == "text_image" else 1)  # Subject-Diffusion's uncond objects are zeros
        assert seen["mask"] == (runs if kind == "patches" else 0)
    objects = 60 if kind == "text_image" else 12
    assert seen["queries"] == {64, 16} and seen["keys"] == {64, 16, objects}


@pytest.mark.parametrize("kind", ["text", "text_image", "patches"])
def test_objects_live_where_the_picture_is_wherever_the_weights_wait(kind, monkeypatch):
    """Where memory is short the host leaves weights on the CPU; what is made of them once a run must not stay there, to
    be copied in every step.
    """
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding import run_objects
    from troupe.model_patches.binding.settings import GatedSettings

    st, seen, original = gated_stage(kind), [], run_objects.layer_objects
    monkeypatch.setattr(run_objects, "layer_objects", lambda *args: (seen.append(args), original(*args))[1])
    ksample(*st.apply(st.references(2, weights=[1.0, 0.5]), GatedSettings()), steps=1)
    layers, references, groups, use_bbox, dtype, device = seen[0]
    assert device == torch.device("cpu") and all(p.device == device for p in layers.parameters())
    elsewhere = original(layers, references, groups, use_bbox, dtype, torch.device("meta"))
    assert {t.device.type for o in elsewhere for t in (o.keys, o.values)} == {"meta"}


LCM, ZERO_SNR, EDM = (
    ("ModelSamplingDiscrete", "lcm", False),
    ("ModelSamplingDiscrete", "v_prediction", True),
    ("ModelSamplingContinuousEDM", "eps", 120.0, 0.002),
)


@pytest.mark.parametrize("node", [None, LCM, ZERO_SNR, EDM])
def test_the_percent_of_a_sigma_is_the_hosts_backwards(node):
    from comfy_extras import nodes_model_advanced
    from support.host import tiny_models
    from troupe.model_patches.hosts.comfyui.sampling.clock import percent_reader

    model = tiny_models.micro_model("SD15")
    if node:
        (model,) = getattr(nodes_model_advanced, node[0])().patch(model, *node[1:])
    sampling = model.get_model_object("model_sampling")
    percent_of = percent_reader(sampling)
    for percent in (0.01, 0.25, 0.3, 0.5, 0.75, 0.9):
        assert percent_of(float(sampling.percent_to_sigma(percent))) == pytest.approx(percent, abs=1e-4)
    assert percent_of(float(sampling.sigma_max)) == pytest.approx(0.0, abs=1e-6)


def test_areas_have_their_objects_once_a_run(monkeypatch):
    """Four prompts for parts of different sizes: four sets of objects, and one for the rest of the negative prompt."""
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding import run_objects
    from troupe.model_patches.binding.settings import GatedSettings

    st, seen, original = gated_stage(), [], run_objects.layer_objects
    monkeypatch.setattr(run_objects, "layer_objects", lambda *args: (seen.append(args[2]), original(*args))[1])
    model, positive, negative = st.apply(st.references(2), GatedSettings())
    prompts = [
        [text, {**options, "area": (4 + 2 * i, 16, 0, 0), "strength": 1.0}]
        for i in range(4)
        for text, options in positive
    ]
    ksample(model, prompts, negative, steps=3, size=(16, 16))
    assert len(seen) == len(set(seen)) == 5


@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_nothing_is_kept_after_a_run(kind):
    import gc
    import weakref

    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding import run_objects
    from troupe.model_patches.binding.settings import GatedSettings

    st, kept, original = gated_stage(kind), [], run_objects.layer_objects

    def spy(*args):
        found = original(*args)
        kept.extend(weakref.ref(t) for o in found for t in (o.keys, o.values))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_objects, "layer_objects", spy)
        ksample(*st.apply(st.references(2), GatedSettings()))
    gc.collect()
    assert kept and all(ref() is None for ref in kept)


@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_no_scalar_is_read_and_no_tensor_is_built_inside_the_unet(kind):
    from comfy.patcher_extension import WrappersMP
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from torch.utils._python_dispatch import TorchDispatchMode
    from troupe.model_patches.binding.settings import GatedSettings

    st, seen = gated_stage(kind), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (
                torch.ops.aten._local_scalar_dense.default,
                torch.ops.aten.lift_fresh.default,
                torch.ops.aten.nonzero.default,
            ):
                seen.append(str(function))
            return function(*args, **(kwargs or {}))

    def watched(executor, *args, **kwargs):
        with Watch():
            return executor(*args, **kwargs)

    def count(model):
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", watched)
        return model

    ksample(count(st.patcher), st.positive, st.negative, steps=4)
    host_alone, seen[:] = list(seen), []
    model, positive, negative = st.apply(
        st.references(2, ranges=[(0.0, 0.6), (0.2, 1.0)]), GatedSettings(end_percent=0.5, decay_percent=0.4)
    )
    ksample(count(model), positive, negative, steps=4)
    assert seen == host_alone


def test_the_host_accounts_for_the_layers():
    import comfy.model_management as mm
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st, loaded = gated_stage(), []
    model, positive, negative = st.apply(st.references(2), GatedSettings())
    layers = st.adapter.gated_patcher.model
    layers.fusers[0].register_forward_pre_hook(
        lambda *_: loaded.append([m.model.model for m in mm.current_loaded_models if m.model is not None])
    )
    ksample(model, positive, negative)
    assert loaded and all(any(m is layers for m in models) for models in loaded)


@pytest.mark.parametrize("order", ["gated first", "attention first"])
def test_together_with_image_attention_in_either_order(order):
    """Relevance attention and gated layers in one graph, both against the evaluation without hooks, boxes limiting the
    attention too.
    """
    from support.host import independent_gated_evaluation as independent_gated
    from support.host import tiny_models
    from support.host.small_casts import error, ksample, noise_of, settings, stage
    from support.host.small_gated_casts import BOXES, GatedStage, gated_adapter
    from troupe.model_patches.binding.settings import GatedSettings
    from troupe.model_patches.hosts.comfyui.apply import apply_gated, apply_image_attention

    st = stage(patcher=tiny_models.micro_model("SD15", model_channels=64, context_dim=64))
    gs = GatedStage(st.patcher, gated_adapter(st.patcher), st.positive, st.negative)
    attention, objects, chosen = st.references(2), gs.references(2, boxes=list(BOXES[:2])), settings()
    if order == "gated first":
        model, positive, negative, _ = apply_gated(st.patcher, objects, GatedSettings(), st.positive, st.negative)
        model, positive, negative, _ = apply_image_attention(model, attention, chosen, positive, negative)
    else:
        model, positive, negative, _ = apply_image_attention(st.patcher, attention, chosen, st.positive, st.negative)
        model, positive, negative, _ = apply_gated(model, objects, GatedSettings(), positive, negative)
    noise, truth, ours = noise_of(), st.truth(attention, chosen), gs.truth(objects, GatedSettings())
    expected = independent_gated.sample(st.patcher, [ours], st.positive, st.negative, noise, attention=[truth])
    without = independent_gated.sample(st.patcher, [], st.positive, st.negative, noise, attention=[truth])
    alone = independent_gated.sample(st.patcher, [ours], st.positive, st.negative, noise)
    found = ksample(model, positive, negative)
    assert error(found, expected, without) < 1e-3 and error(found, expected, alone) < 1e-3


def test_two_gated_adapters_act_one_after_the_other():
    from support.host import independent_gated_evaluation as independent_gated
    from support.host.small_casts import error, ksample, noise_of
    from support.host.small_gated_casts import GatedStage, gated_adapter, gated_stage
    from troupe.model_patches.binding.settings import GatedSettings
    from troupe.model_patches.hosts.comfyui.apply import apply_gated

    st = gated_stage("text_image")
    other = GatedStage(st.patcher, gated_adapter(st.patcher, "patches", seed=400), st.positive, st.negative)
    first, second = st.references(1), other.references(2)
    model, positive, negative, _ = apply_gated(st.patcher, first, GatedSettings(0.7), st.positive, st.negative)
    model, positive, negative, _ = apply_gated(model, second, GatedSettings(), positive, negative)
    truths = [st.truth(first, GatedSettings(0.7)), other.truth(second, GatedSettings())]
    noise = noise_of()
    expected = independent_gated.sample(st.patcher, truths, st.positive, st.negative, noise)
    for left_out in (0, 1):
        without = independent_gated.sample(st.patcher, [truths[left_out]], st.positive, st.negative, noise)
        assert error(ksample(model, positive, negative), expected, without) < 1e-3


@pytest.mark.parametrize("rows", ["together", "reversed", "apart"])
def test_rows_are_told_by_who_they_are_not_by_their_place(rows, monkeypatch):
    """cond and uncond in one model call in either order, or in a call each."""
    import comfy.samplers
    from support.host import independent_gated_evaluation as independent_gated
    from support.host.small_casts import error, ksample, noise_of
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st, seen = gated_stage("patches"), []
    references = st.references(2)
    model, positive, negative = st.apply(references, GatedSettings())
    if rows == "apart":
        monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda a, b: a is b)
    if rows == "reversed":
        original = comfy.samplers.calc_cond_batch
        monkeypatch.setattr(comfy.samplers, "calc_cond_batch", lambda m, conds, *a: original(m, conds[::-1], *a)[::-1])
    module = st.adapter.gated_patcher.model
    module.fusers[0].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    found = ksample(model, positive, negative, batch=2)
    noise = noise_of(batch=2)
    expected = independent_gated.sample(
        st.patcher, [st.truth(references, GatedSettings())], st.positive, st.negative, noise
    )
    without = independent_gated.sample(st.patcher, [], st.positive, st.negative, noise)
    assert error(found, expected, without) < 1e-3
    assert set(seen) == {2 if rows == "apart" else 4}


@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_an_area_sees_its_part_of_the_boxes(kind):
    """A prompt for the right half: its rows show that half, and objects, boxes and mask are those of the half."""
    from support.host import independent_gated_evaluation as independent_gated
    from support.host.small_casts import ksample, noise_of
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding import run_objects
    from troupe.model_patches.binding.settings import GatedSettings

    st, seen = gated_stage(kind), []
    # the first lies across the border, the second outside of the half
    boxes = [(0.25, 0.25, 0.5, 0.5), (0.0, 0.0, 0.25, 0.25)]
    references = st.references(2, boxes=boxes)
    model, positive, negative = st.apply(references, GatedSettings())
    positive = [[positive[0][0], {**positive[0][1], "area": (16, 8, 0, 8), "strength": 1.0}]]
    original = run_objects.layer_objects
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_objects, "layer_objects", lambda *a: (seen.append(a[2]), original(*a))[1])
        found = ksample(model, positive, negative, size=(16, 16), steps=1, cfg=1.0)
    assert {g.window for groups in seen for g in groups if g.role == "cond"} == {(0.0, 0.5, 1.0, 1.0)}
    noise = noise_of((16, 16))
    base = st.patcher.model
    sigma = base.model_sampling.sigma_max
    x = base.model_sampling.noise_scaling(sigma, noise, torch.zeros_like(noise), True)
    half = st.references(2, boxes=[(0.0, 0.25, 0.5, 0.5), None], weights=[1.0, 0.0])
    truth = st.truth(half, GatedSettings(use_bbox="on" if kind == "patches" else "auto"))
    expected = independent_gated.predict(base, [truth], "cond", x[..., 8:], sigma.expand(1), st.positive[0][0])
    plain = independent_gated.predict(base, [], "cond", x[..., 8:], sigma.expand(1), st.positive[0][0])
    denoised = base.process_latent_in(found)
    assert (expected - plain).abs().max() > 1e-3
    torch.testing.assert_close(denoised[..., 8:], expected, rtol=0, atol=1e-3 * float((expected - plain).abs().max()))


@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_a_second_resolution_in_one_graph(kind):
    """Upscaled and sampled again with the same MODEL and conditioning: the boxes stay where the picture has them."""
    import comfy.samplers
    from support.host import independent_gated_evaluation as independent_gated
    from support.host.small_casts import error, ksample, noise_of
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    import nodes

    st = gated_stage(kind)
    references = st.references(2)
    # there is no graph here, see test_crops.py
    model, positive, negative = st.apply(references, GatedSettings(in_crops="apply"))
    small = ksample(model, positive, negative, size=(8, 8))
    large = torch.nn.functional.interpolate(small, size=(16, 20), mode="bilinear")
    found = nodes.common_ksampler(
        model, 1, 2, 5.0, "euler", "normal", positive, negative, {"samples": large}, denoise=0.5
    )[0]["samples"]
    sigmas = comfy.samplers.calculate_sigmas(st.patcher.model.model_sampling, "normal", 4)[-3:]
    noise = noise_of((16, 20))
    expected = independent_gated.sample(
        st.patcher,
        [st.truth(references, GatedSettings())],
        st.positive,
        st.negative,
        noise,
        sigmas=sigmas,
        latent=large,
    )
    without = independent_gated.sample(st.patcher, [], st.positive, st.negative, noise, sigmas=sigmas, latent=large)
    assert error(found, expected, without) < 1e-3


def test_beside_the_hosts_own_text_boxes():
    """GLIGENTextBoxApply on the same conditioning: both act."""
    import comfy.model_patcher
    from comfy import gligen
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage, published
    from troupe.model_patches.binding.settings import GatedSettings

    import nodes

    st = gated_stage("text_image", context=768)
    core_state, layers = (
        {},
        gated_stage("text", context=768, seed=900, hidden=512, features=768).adapter.gated_patcher.model,
    )
    places = list(st.adapter.spec.part(GatedSpec).block_widths)
    for i, path in enumerate(places):
        core_state |= {
            f"{path}.fuser.{k.split('.', 1)[1]}": v
            for k, v in published(layers.fusers.state_dict()).items()
            if k.split(".", 1)[0] == str(i)
        }
    core_state |= {f"position_net.{k}": v for k, v in published(layers.net.state_dict()).items()}
    core_model = gligen.load_gligen(core_state)
    core = comfy.model_patcher.ModelPatcher(
        core_model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    )

    class Clip:
        def tokenize(self, text):
            return text

        def encode_from_tokens(self, text, return_pooled=None):
            return None, torch.randn(1, layers.net.feature_dim, generator=torch.Generator().manual_seed(3))

    (with_core,) = nodes.NODE_CLASS_MAPPINGS["GLIGENTextBoxApply"]().append(
        st.positive, Clip(), core, "a fox", 64, 64, 16, 16
    )
    ours, positive, negative = st.apply(st.references(2), GatedSettings())
    (both,) = nodes.NODE_CLASS_MAPPINGS["GLIGENTextBoxApply"]().append(positive, Clip(), core, "a fox", 64, 64, 16, 16)
    results = [
        ksample(ours, both, negative),
        ksample(ours, positive, negative),
        ksample(st.patcher, with_core, st.negative),
        ksample(st.patcher, st.positive, st.negative),
    ]
    for i in range(4):
        for j in range(i):
            assert (results[i] - results[j]).abs().max() > 1e-2


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_a_pack_that_runs_the_rows_apart(kind, told, caplog):
    """One row at a time in a wrapper around the model: where nobody can tell whose row it is, the adapter rests and
    says so.
    """
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage(kind)
    model, positive, negative = st.apply(st.references(2), GatedSettings())

    def apart(apply_model, call):
        rows, given = len(call["cond_or_uncond"]), call["c"]
        found = []
        for i, (x, t, text) in enumerate(
            zip(call["input"].chunk(rows), call["timestep"].chunk(rows), given["c_crossattn"].chunk(rows), strict=True)
        ):
            options = given["transformer_options"] | ({"cond_or_uncond": [call["cond_or_uncond"][i]]} if told else {})
            found.append(apply_model(x, t, **{**given, "c_crossattn": text, "transformer_options": options}))
        return torch.cat(found)

    model.set_model_unet_function_wrapper(apart)
    with caplog.at_level(logging.WARNING, "troupe"):
        found = ksample(model, positive, negative, steps=2)
    torch.testing.assert_close(
        found, ksample(st.patcher, st.positive, st.negative, steps=2), rtol=0, atol=1e-4 * float(found.abs().max())
    )
    sentence = "splits the batch of a model call, so rows cannot be matched to prompts"
    assert sum(sentence in r.message for r in caplog.records) == 1


def test_other_middle_patches_keep_their_place():
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st, calls = gated_stage(), []
    other = st.patcher.clone()
    other.set_model_patch(lambda x, options: (calls.append(options["block"]), x * 1.01)[1], "middle_patch")
    st.patcher = other
    model, positive, negative = st.apply(st.references(2), GatedSettings())
    before = ksample(other, st.positive, st.negative)
    calls.clear()
    found = ksample(model, positive, negative)
    assert len(calls) == 2 * 7 and (found - before).abs().max() > 1e-2


def test_refusals():
    from support.host.small_casts import settings, stage
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings, ImageAttentionSettings, mixing_for
    from troupe.model_patches.errors import MismatchError
    from troupe.model_patches.hosts.comfyui.apply import apply_gated, apply_image_attention

    st, plain = gated_stage(), stage("SD15")
    as_the_node = ImageAttentionSettings(mixing=mixing_for(st.references(1), "auto"))
    for given in (settings(), as_the_node):
        with pytest.raises(
            MismatchError,
            match="with image attention, found.*Wire these references into Apply Gated Adapter",
        ):
            apply_image_attention(st.patcher, st.references(1), given, st.positive)
    with pytest.raises(
        MismatchError,
        match="with gated layers, found.*Wire these references into Apply Image Attention",
    ):
        apply_gated(plain.patcher, plain.references(1), GatedSettings(), plain.positive)
    wide = gated_stage(context=768)
    words = (
        r"a MODEL for boxes.safetensors: GLIGEN text-image boxes for SD1.5 .*size 768, found a MODEL for a base "
        r"model with text embeddings of size 64.*SD1.5 family"
    )
    with pytest.raises(MismatchError, match=words):
        apply_gated(st.patcher, wide.references(1), GatedSettings(), st.positive)
    other = gated_stage(base="SDXL")
    other.adapter.spec.part(GatedSpec).block_widths["output_blocks.7.1.transformer_blocks.0"] = 64
    with pytest.raises(MismatchError, match="with a matching block for 7 of the 8 layers"):
        apply_gated(other.patcher, other.references(1), GatedSettings(), other.positive)
    with pytest.raises(MismatchError, match="a finite number as 'decay_percent' of Apply Gated Adapter, found inf"):
        apply_gated(st.patcher, st.references(1), GatedSettings(0.0, 0.5, float("inf")), st.positive)
    with pytest.raises(MismatchError, match="a finite number as 'weight' of Apply Image Attention, found nan"):
        apply_image_attention(plain.patcher, plain.references(1), settings(weight=float("nan")), plain.positive)


def test_what_it_says(caplog):
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import BOXES, gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage("patches")
    model, positive, negative = st.apply(st.references(2, boxes=[BOXES[0], None]), GatedSettings())
    with caplog.at_level(logging.INFO, "troupe"):
        ksample(model, positive, negative, size=(64, 64), steps=1)
    (line,) = [r.message for r in caplog.records if "gated layers of" in r.message]
    assert (
        "2 subjects: 'subject 0', 'subject 1' (no box); 7 gated layers of boxes.safetensors, 12 object tokens" in line
        and "once for the run" in line
    )
    caplog.clear()
    with caplog.at_level(logging.INFO, "troupe"):
        ksample(model, st.positive, st.negative, size=(64, 64), steps=1)
    assert any(
        "connect 'positive' of Apply Gated Adapter to the sampler: without it" in r.message for r in caplog.records
    )


@pytest.mark.parametrize("adapter", ["gated", "attention"])
def test_a_positive_that_never_arrives_is_told_though_the_negative_does(adapter, caplog):
    from support.host.small_casts import ksample, settings, stage
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st, chosen = (gated_stage(), GatedSettings()) if adapter == "gated" else (stage("SD15"), settings())
    model, _, negative = st.apply(st.references(2), chosen)
    with caplog.at_level(logging.INFO, "troupe"):
        ksample(model, st.positive, negative, steps=1)
    assert (
        sum("connect 'positive' of" in r.message and "had no effect in this run" in r.message for r in caplog.records)
        == 1
    )
    assert not any("2 subjects" in r.message for r in caplog.records)


def test_a_second_sampler_after_the_end_is_no_mistake(caplog):
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    import nodes

    st = gated_stage()
    model, positive, negative = st.apply(st.references(2), GatedSettings(end_percent=0.3))
    small = ksample(model, positive, negative, size=(8, 8))
    with caplog.at_level(logging.INFO, "troupe"):
        caplog.clear()
        nodes.common_ksampler(model, 1, 2, 5.0, "euler", "normal", positive, negative, {"samples": small}, denoise=0.4)
    assert not any(r.levelno >= logging.WARNING for r in caplog.records if r.name == "troupe")
    assert sum("Apply Gated Adapter had no effect in this run" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize("adapter", ["gated", "attention"])
def test_subjects_that_all_rest_are_no_mistake(adapter, caplog):
    from support.host.small_casts import ksample, settings, stage
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st, chosen = (gated_stage(), GatedSettings()) if adapter == "gated" else (stage("SD15"), settings())
    with caplog.at_level(logging.WARNING, "troupe"):
        ksample(*st.apply(st.references(2, weights=[0.0, 0.0]), chosen), steps=1)
    assert not any("had no effect" in r.message for r in caplog.records)


def test_four_steps_on_a_tiny_model_take_seconds():
    import time

    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage()
    model, positive, negative = st.apply(st.references(2), GatedSettings())
    began = time.perf_counter()
    ksample(model, positive, negative, steps=4, size=(16, 16))
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize("kind", ["text", "text_image", "patches"])
def test_zeros_of_subject_diffusions_negative_are_told_to_be_equal(kind, monkeypatch):
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding import run_objects
    from troupe.model_patches.binding.settings import GatedSettings

    st, made, original = gated_stage(kind), [], run_objects.layer_objects
    monkeypatch.setattr(run_objects, "layer_objects", lambda *args: (made.append(original(*args)), made[-1])[1])
    ksample(*st.apply(st.references(2), GatedSettings()), steps=1)
    for objects in made[0]:
        assert objects.equal == (kind == "patches", False)  # negative, positive
        assert all(
            not equal or bool((keys == keys[:1]).all()) for equal, keys in zip(objects.equal, objects.keys, strict=True)
        )
