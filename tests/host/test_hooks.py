"""How the references hang on a MODEL: nothing where nothing is asked for, once a run what is constant, all blocks,
beside other packs.
"""

import gc
import logging
import weakref

import pytest
import torch
from troupe.model_patches.adapter import ImageAttentionSpec

pytestmark = pytest.mark.usefixtures("host")


def idle_cases():
    from support.host.small_casts import settings

    return {
        "weight 0": (dict(count=2), settings(weight=0.0)),
        "no subjects": (dict(count=0), settings()),
        "subject weights 0": (dict(count=2, weights=[0.0, 0.0]), settings()),
        "empty range": (dict(count=2), settings(start_percent=0.5, end_percent=0.5)),
        "reversed range": (dict(count=2), settings(start_percent=0.8, end_percent=0.2)),
        "empty at the start": (dict(count=2), settings(start_percent=0.0, end_percent=0.0)),
        "empty at the end": (dict(count=2), settings(start_percent=1.0, end_percent=1.0)),
        "no subject in range": (dict(count=2, ranges=[(0.5, 0.5), (1.0, 1.0)]), settings()),
    }


@pytest.mark.parametrize(
    "case",
    [
        "weight 0",
        "no subjects",
        "subject weights 0",
        "empty range",
        "reversed range",
        "empty at the start",
        "empty at the end",
        "no subject in range",
    ],
)
@pytest.mark.parametrize("wired", [True, False], ids=["wired", "drop-in"])
def test_nothing_asked_for_is_bit_identical_and_costs_no_attention(case, wired, monkeypatch):
    from support.host.small_casts import ksample, stage
    from troupe.model_patches.binding import run_tokens
    from troupe.model_patches.hosts.comfyui.sampling import image_attention

    worked = []
    monkeypatch.setattr(image_attention, "layer_delta", lambda *a, **k: worked.append(1))
    monkeypatch.setattr(run_tokens, "project_images", lambda *a, **k: worked.append(1))
    what, chosen = idle_cases()[case]
    st = stage("SD15", text_gain=True)
    plain = ksample(st.patcher, st.positive, st.negative, steps=3)
    assert torch.equal(ksample(*st.apply(st.references(**what), chosen, wired), steps=3), plain)
    assert not worked


@pytest.fixture
def deltas(monkeypatch):
    """Every delta of a run: (layer width, queries, limits, delta)."""
    from troupe.model_patches.hosts.comfyui.sampling import image_attention

    seen, original = [], image_attention.layer_delta

    def spy(query, tokens, strengths, heads, mixing, limits, gain, text, observe):
        delta = original(query, tokens, strengths, heads, mixing, limits, gain, text, observe)
        seen.append((query, tokens, strengths, limits, delta))
        return delta

    monkeypatch.setattr(image_attention, "layer_delta", spy)
    return seen


@pytest.mark.parametrize("kind", ["sd15_full_topology", "sdxl_vega_topology"])
def test_every_block_of_the_real_topologies_acts_the_middle_too(kind, deltas):
    import comfy.sd
    from support.host import tiny_models
    from support.host.small_casts import ksample, settings, stage
    from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks

    state = {
        k.removeprefix("model.diffusion_model."): v
        for k, v in tiny_models.build_unet_sd(kind, dtype=torch.float32).items()
    }
    patcher = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})
    blocks = attention_blocks(patcher.model.diffusion_model)
    assert any(b.key[0] == "middle" for b in blocks) and blocks[-1].key[:2] == ("middle", 0)
    st = stage(patcher=patcher)
    ksample(*st.apply(st.references(2), settings()), steps=1)
    assert len(deltas) == len(blocks) == {"sd15_full_topology": 16, "sdxl_vega_topology": 16}[kind]
    assert all(delta.abs().max() > 0 for *_, delta in deltas)


def test_subjects_in_disjoint_regions_equal_lone_ones_there(deltas):
    """At the same queries, in the rows of the prompt, two subjects in disjoint regions are each what a lone subject is
    there.
    """
    from support.host.small_casts import ksample, settings, stage
    from troupe.model_patches.attention.decoupled import LayerTokens, image_delta
    from troupe.model_patches.attention.merges import Mixing

    left, right = torch.zeros(64, 64), torch.zeros(64, 64)
    left[:, :32], right[:, 32:] = 1, 1
    st = stage("SD15")
    ksample(*st.apply(st.references(2, regions=[left, right]), settings()), size=(16, 16), steps=1)
    assert deltas
    for query, tokens, strengths, limits, delta in deltas:
        for i in range(2):
            each = slice(4 * i, 4 * i + 4)
            rows = tokens.segments[:, i : i + 1]
            lone = image_delta(
                query,
                LayerTokens(tokens.keys[:, each], tokens.values[:, each], tokens.name_keys, rows),
                strengths[i : i + 1],
                4,
                Mixing(),
                limits[:, :, i : i + 1],
            )
            inside = limits[0, 0, i] == 1
            assert inside.any() and delta[:, :, inside].abs().max() > 1e-3
            torch.testing.assert_close(
                delta[:, :, inside], lone[:, :, inside], rtol=0, atol=1e-5 * float(delta.abs().max())
            )


def test_two_apply_nodes_use_their_own_adapters_and_do_not_feed_each_other():
    from support.host import independent_evaluation as independent
    from support.host.small_casts import adapter_state, error, host_adapter, ksample, noise_of, settings, stage
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention

    st, other = stage("SD15", text_gain=True), stage("SD15")
    other.patcher, other.state = st.patcher, adapter_state(st.patcher, text_gain=True, seed=77)
    other.adapter = host_adapter(other.state)
    first, second = st.references(2), other.references(3)
    model, positive, negative = st.apply(first, settings())
    model, positive, negative, _ = apply_image_attention(model, second, settings("paper", 0.4), positive, negative)
    truths = [st.truth(first, settings()), other.truth(second, settings("paper", 0.4))]
    noise = noise_of()
    expected = independent.sample(st.patcher, truths, st.positive, st.negative, noise)
    without = independent.sample(st.patcher, None, st.positive, st.negative, noise)
    assert error(ksample(model, positive, negative), expected, without) < 1e-3


def test_another_owner_of_the_slot_keeps_acting_and_f_sees_plain_text():
    """A pack that replaced attn2 under a 2-tuple key stays underneath: result = its result + our delta, with f from
    plain text attention.
    """
    from support.host.small_casts import ksample, settings, stage

    st = stage("SD15", text_gain=True)
    references = st.references(2)
    calls = []

    def add_other(model):
        model = model.clone()
        for block in ("input", 1), ("middle", 0), ("output", 2):
            model.set_model_attn2_replace(lambda q, k, v, options: (calls.append(options["block"]), q * 0.5)[1], *block)
        return model

    both_ways = []
    for order in ("before", "after"):
        patcher, st.patcher = st.patcher, add_other(st.patcher) if order == "before" else st.patcher
        model, positive, negative = st.apply(references, settings())
        st.patcher = patcher
        both_ways.append(ksample(add_other(model) if order == "after" else model, positive, negative))
    assert {block for block in calls} == {("input", 1), ("middle", 0), ("output", 2)}
    assert torch.equal(*both_ways)
    alone = ksample(add_other(st.patcher), st.positive, st.negative)
    assert (both_ways[0] - alone).abs().max() > 1e-3


def test_projections_run_once_a_run_and_are_dropped_after_it(monkeypatch):
    from support.host.small_casts import ksample, settings, stage
    from troupe.model_patches.binding import run_tokens

    st = stage("SD15", text_gain=True)
    calls, kept = [], []
    for layer in st.adapter.layers_patcher.model.layers:
        layer.to_k_ip.register_forward_hook(lambda *a: calls.append("k"))
        layer.to_v_ip.register_forward_hook(lambda *a: calls.append("v"))
    original = run_tokens.project_images

    def remembered(*arguments):
        found = original(*arguments)
        kept.extend(weakref.ref(p) for p in found)
        return found

    monkeypatch.setattr(run_tokens, "project_images", remembered)
    names = []
    from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks

    for block in attention_blocks(st.patcher.model.diffusion_model):
        to_k = st.patcher.model.diffusion_model.get_submodule(f"{block.path}.to_k")
        to_k.register_forward_hook(lambda m, inputs, out: names.append(1) if inputs[0].shape[1] < 77 else None)
    model = st.apply(st.references(3), settings())
    layers = len(st.adapter.spec.part(ImageAttentionSpec).widths)
    for run in (1, 2):
        ksample(*model, steps=5)
        assert (calls.count("k"), calls.count("v"), len(names)) == (layers * run,) * 3
    gc.collect()
    assert kept and all(ref() is None for ref in kept)


def test_an_interrupted_run_leaves_nothing_behind():
    import comfy.model_management as mm
    from support.host.small_casts import ksample, settings, stage

    st = stage("SD15")
    model = st.apply(st.references(2), settings())
    before = ksample(*model)

    def stop(args):
        raise mm.InterruptProcessingException()

    broken = model[0].clone()
    broken.set_model_sampler_post_cfg_function(stop)
    with pytest.raises(mm.InterruptProcessingException):
        ksample(broken, *model[1:])
    assert torch.equal(ksample(*model), before)


def test_a_run_that_stops_before_its_first_step_is_not_blamed_on_the_graph(caplog):
    import comfy.model_management as mm
    from comfy.patcher_extension import WrappersMP
    from support.host.small_casts import ksample, settings, stage

    def stop(executor, *args, **kwargs):
        raise mm.InterruptProcessingException()

    st = stage("SD15")
    model, positive, negative = st.apply(st.references(2), settings())
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "stop", stop)
    with caplog.at_level(logging.WARNING, "troupe"), pytest.raises(mm.InterruptProcessingException):
        ksample(model, positive, negative)
    assert not any("had no effect" in r.message for r in caplog.records)


def test_no_scalar_is_read_and_no_tensor_is_built_inside_the_model(monkeypatch):
    """Rule 4, on the CPU: within the UNet's forward nothing reads a value out of a tensor or makes one from a Python
    list.
    """
    from support.host.small_casts import ksample, settings, stage
    from torch.utils._python_dispatch import TorchDispatchMode

    st = stage("SDXL", text_gain=True)
    region = torch.zeros(32, 32)
    region[:16] = 1
    seen = []

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
        from comfy.patcher_extension import WrappersMP

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", watched)
        return model

    ksample(count(st.patcher), st.positive, st.negative)
    host_alone, seen[:] = list(seen), []
    model, positive, negative = st.apply(
        st.references(3, regions=[region, None, None], ranges=[(0.0, 0.5), (0.0, 1.0), (0.2, 0.8)]),
        settings(background=0.5, sharpness=2.0),
    )
    ksample(count(model), positive, negative)
    assert seen == host_alone


def test_the_host_accounts_for_the_adapter_and_moves_it():
    import comfy.model_management as mm
    from support.host.small_casts import ksample, settings, stage

    st = stage("SD15")
    mm.unload_all_models()
    model = st.apply(st.references(2), settings())
    ksample(*model)
    loaded = [m.model.model for m in mm.current_loaded_models if m.model is not None]
    assert any(m is st.adapter.layers_patcher.model for m in loaded)
    assert model[0].clone().get_additional_models_with_key(st.adapter.key)[0].model is st.adapter.layers_patcher.model
    twice = st.apply(st.references(1), settings())[0]
    assert len(twice.get_additional_models_with_key(st.adapter.key)) == 1


def test_weights_are_there_once_for_several_nodes_subjects_and_clones():
    import gc
    from dataclasses import replace

    import comfy.model_management as mm
    from support.host.small_casts import ksample, settings, stage

    st, counted = stage("SD15"), []
    mm.unload_all_models()
    weights = dict(st.adapter.layers_patcher.model.named_parameters())

    def places():
        """Where tensors with the weights' numbers lie, of this test and of those before it."""
        # a compiler's have no numbers
        tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
        return {
            t.data_ptr()
            for weight in weights.values()
            for t in tensors
            if t.shape == weight.shape and torch.equal(t, weight)
        }

    def count(*_):
        holders = [
            loaded
            for loaded in mm.current_loaded_models
            if loaded.model is not None and loaded.model.model is st.adapter.layers_patcher.model
        ]
        counted.append((places() <= before, len(holders)))

    gc.collect()
    before = places()
    one = st.apply(st.references(3), settings())
    model, positive, negative = replace(st, patcher=one[0], positive=one[1], negative=one[2]).apply(
        st.references(1), settings("add")
    )
    hook = st.adapter.layers_patcher.model.layers[-1].to_v_ip.register_forward_pre_hook(count)
    for patcher in (one[0], model, model.clone(), model.clone().clone()):
        ksample(patcher, positive, negative)
    hook.remove()
    assert len(before) >= len(weights) and len(counted) >= 4 and set(counted) == {(True, 1)}


def test_a_run_that_failed_keeps_no_keys_though_its_error_is_kept(monkeypatch):
    """Whoever keeps an error keeps what its frames held, a run among it."""
    import gc
    import weakref

    from support.host.small_casts import ksample, settings, stage
    from troupe.model_patches.binding import run_tokens

    def fails(apply, arguments):
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    def watched(*args):
        made = original(*args)
        kept.extend(weakref.ref(part.keys) for part in made)
        return made

    st, calls, kept, original = stage("SD15"), [], [], run_tokens.project_images
    monkeypatch.setattr(run_tokens, "project_images", watched)
    model, positive, negative = st.apply(st.references(2), settings())
    model.set_model_unet_function_wrapper(fails)
    with pytest.raises(ZeroDivisionError) as error:
        ksample(model, positive, negative)
    gc.collect()
    assert error.value.__traceback__ is not None and kept and not any(ref() is not None for ref in kept)


def test_partial_loading_gives_the_same_picture():
    from support.host.small_casts import ksample, settings, stage

    st = stage("SD15", text_gain=True)
    model = st.apply(st.references(2), settings())
    whole = ksample(*model)
    patcher = model[0].get_additional_models_with_key(st.adapter.key)[0]
    patcher.detach()
    original = patcher.load
    patcher.load = lambda device_to=None, **kwargs: original(
        device_to, **{**kwargs, "lowvram_model_memory": 60000, "full_load": False}
    )
    torch.testing.assert_close(ksample(*model), whole)
    assert 0 < patcher.loaded_size() < patcher.model_size()
    assert any(getattr(layer.to_k_ip, "comfy_cast_weights", False) for layer in patcher.model.layers)


def test_half_precision_files_on_a_float_model():
    from support.host.small_casts import error, host_adapter, ksample, settings, stage

    st = stage("SD15", text_gain=True)
    references = st.references(2)
    exact = ksample(*st.apply(references, settings()))
    plain = ksample(st.patcher, st.positive, st.negative)
    for dtype, tolerance in ((torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
        st.adapter = host_adapter({k: v.to(dtype) for k, v in st.state.items()})
        assert next(st.adapter.layers_patcher.model.parameters()).dtype == dtype
        assert error(ksample(*st.apply(st.references(2), settings())), exact, plain) < tolerance


def test_a_lora_on_the_model_reaches_the_name_keys():
    """Relevance uses the UNet's own keys as they are while sampling: patched weights, whether the LoRA came before or
    after.
    """
    from support.host import independent_evaluation as independent
    from support.host.small_casts import error, ksample, noise_of, random, settings, stage

    st = stage("SD15")
    references = st.references(2)

    def lora(model):
        model = model.clone()
        keys = [k for k in model.model.state_dict() if k.endswith("attn2.to_k.weight")]
        model.add_patches(
            {k: ("diff", (random(*model.model.state_dict()[k].shape, seed=i, gain=0.3),)) for i, k in enumerate(keys)},
            1.0,
        )
        return model

    model, positive, negative = st.apply(references, settings())
    after = ksample(lora(model), positive, negative)
    st_before = stage("SD15")
    st_before.patcher, st_before.adapter, st_before.state = lora(st.patcher), st.adapter, st.state
    before = ksample(*st_before.apply(references, settings()))
    torch.testing.assert_close(before, after)
    noise = noise_of()
    patched = lora(st.patcher)
    patched.patch_model()
    try:
        expected = independent.sample(st.patcher, st.truth(references, settings()), st.positive, st.negative, noise)
        without = independent.sample(st.patcher, None, st.positive, st.negative, noise)
    finally:
        patched.unpatch_model()
    assert error(after, expected, without) < 1e-3


@pytest.mark.parametrize(
    "sampler",
    ["heun", "dpm_2", "dpmpp_2m", "euler_ancestral", "dpmpp_sde", "uni_pc", "dpm_fast", "dpm_adaptive", "lcm", "ddim"],
)
def test_ranges_work_with_every_kind_of_sampler(sampler):
    """A range that ends half way gives neither the plain picture nor the fully referenced one."""
    from support.host.small_casts import ksample, settings, stage

    st = stage("SD15")
    plain, full, half = (
        ksample(model, *conds, steps=4, sampler=sampler)
        for model, *conds in (
            (st.patcher, st.positive, st.negative),
            st.apply(st.references(2), settings()),
            st.apply(st.references(2), settings(end_percent=0.4)),
        )
    )
    assert not torch.allclose(half, plain) and not torch.allclose(half, full)


def test_one_info_line_a_run_says_what_happened(caplog):
    from support.host.small_casts import ksample, settings, stage

    st = stage("SD15")
    model = st.apply(st.references(2), settings())
    with caplog.at_level(logging.INFO, "troupe"):
        ksample(*model, steps=3)
    lines = [r.message for r in caplog.records if "2 subjects:" in r.message]
    assert (
        len(lines) == 1
        and "'subject 0' (4 image tokens, 1 name token), 'subject 1' (4 image tokens, 2 name tokens)" in lines[0]
        and "7 layers" in lines[0]
        and "MB" in lines[0]
    )


def test_conditioning_that_never_reaches_the_sampler_warns(caplog):
    from support.host.small_casts import ksample, settings, stage

    st = stage("SD15")
    model, positive, _ = st.apply(st.references(2), settings())
    with caplog.at_level(logging.WARNING, "troupe"):
        ksample(model, st.positive, st.negative)
    assert sum("had no effect" in r.message for r in caplog.records) == 1
    caplog.clear()
    other = st.apply(st.references(1), settings())[0]
    with caplog.at_level(logging.WARNING, "troupe"):
        ksample(other, positive, st.negative)
    assert sum("whose 'model' output is not sampled" in r.message for r in caplog.records) == 1


def test_unwired_negative_gets_the_empty_tokens_and_says_so(caplog):
    from support.host import independent_evaluation as independent
    from support.host.small_casts import error, ksample, noise_of, settings, stage
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention

    st = stage("SD15")
    references = st.references(2)
    model, positive, negative, _ = apply_image_attention(st.patcher, references, settings(), st.positive)
    assert negative is None
    with caplog.at_level(logging.INFO, "troupe"):
        found = ksample(model, positive, st.negative)
    noise = noise_of()
    expected = independent.sample(st.patcher, st.truth(references, settings()), st.positive, st.negative, noise)
    assert error(found, expected, independent.sample(st.patcher, None, st.positive, st.negative, noise)) < 1e-3
    assert sum("'negative' of Apply Image Attention is not connected" in r.message for r in caplog.records) == 1


SIZES = [
    ("SD15", 768, (64, 64), False),
    ("SD15", 768, (16, 16), True),
    ("SD15", 768, (48, 96), False),
    ("SDXL", 2048, (128, 128), False),
    ("SDXL", 2048, (64, 64), True),
    ("SD15", 128, (16, 16), False),
    ("SD15", 128, (64, 64), True),
]  # the rehearsal models


@pytest.mark.parametrize("base, context, size, warned", SIZES)
def test_a_picture_far_from_the_native_size_is_warned_of(base, context, size, warned, caplog):
    from support.host import tiny_models
    from support.host.small_casts import settings, stage
    from troupe.model_patches.hosts.comfyui.sampling.image_attention import ImageAttention

    st = stage(patcher=tiny_models.micro_model(base, context_dim=context))
    hook = ImageAttention(st.references(1), settings(), (), True, True)
    with caplog.at_level(logging.WARNING, "troupe"):
        hook._warn_about_size(hook._new_run({}, None, None), torch.zeros(1, 4, *size))
    assert [f"at {size[1] * 8}x{size[0] * 8} subjects are often missing" in r.message for r in caplog.records] == [
        True
    ] * warned


@pytest.mark.parametrize("denoise, warned", [(1.0, True), (0.5, False)])
def test_a_refining_pass_is_not_warned_of(denoise, warned, caplog):
    """A pass that begins late refines a picture whose layout is there: its size is no mistake."""
    from support.host import tiny_models
    from support.host.small_casts import settings, stage

    import nodes

    st = stage(patcher=tiny_models.micro_model("SD15", context_dim=768))
    model, positive, negative = st.apply(st.references(1), settings("uniform"))
    with caplog.at_level(logging.WARNING, "troupe"):
        nodes.common_ksampler(
            model,
            1,
            1,
            1.0,
            "euler",
            "normal",
            positive,
            negative,
            {"samples": torch.ones(1, 4, 16, 16)},
            denoise=denoise,
        )
    assert any("subjects are often missing" in r.message for r in caplog.records) == warned


def test_no_tokens_are_rearranged_in_a_step(monkeypatch):
    """Also where the chunks come in an order that is not the stored one (uncond, middle, cond of a guider with three
    lists).
    """
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG
    from support.host.small_casts import settings, stage
    from troupe.model_patches.binding import layer_tokens

    st, made = stage("SD15"), []
    original = layer_tokens.layer_tokens
    monkeypatch.setattr(layer_tokens, "layer_tokens", lambda *a: (made.append(1), original(*a))[1])
    model, positive, negative = st.apply(st.references(2), settings(), wired=False)
    guider = Guider_DualCFG(model)
    guider.set_conds(positive, st.negative, negative)
    guider.set_cfg(5.0, 2.0)
    sigmas = comfy.samplers.calculate_sigmas(model.model.model_sampling, "normal", 5)
    guider.sample(
        torch.randn(1, 4, 16, 16),
        torch.zeros(1, 4, 16, 16),
        comfy.samplers.sampler_object("euler"),
        sigmas,
        disable_pbar=True,
    )
    assert len(made) == len(st.adapter.spec.part(ImageAttentionSpec).widths)


@pytest.mark.parametrize("precision", [None, torch.float32])
def test_models_that_attend_in_float32_get_float32_from_us_too(precision, deltas):
    """The host sets attn_precision for models whose logits overflow in float16; ours are multiplied in the same
    precision.
    """
    from support.host.small_casts import ksample, settings, stage

    st = stage("SD15", text_gain=True)
    unet = st.patcher.model.diffusion_model
    unet.half()
    unet.dtype = torch.float16
    for block in unet.modules():
        if hasattr(block, "attn2"):
            block.attn_precision = precision
    assert torch.isfinite(ksample(*st.apply(st.references(2), settings()), steps=1)).all()
    expected = precision or torch.float16
    assert deltas and {
        t.dtype for query, tokens, *_ in deltas for t in (query, tokens.keys, tokens.values, tokens.name_keys)
    } == {expected}


# ---- what a run keeps ------------------------------------------------------------------------------------------------


def a_run():
    from troupe.model_patches.hosts.comfyui.sampling.clock import Clock
    from troupe.model_patches.hosts.comfyui.sampling.conditioning import Lists, Roles
    from troupe.model_patches.hosts.comfyui.sampling.run import Run

    return Run(Clock(None), Roles("id", False, False, Lists()))


def test_a_run_keeps_the_newest_of_a_kind_and_all_of_the_others():
    run, made = a_run(), []

    def get(kind, number, most):
        return run.once((kind, number), lambda: made.append((kind, number)) or number, most)

    assert [get("bounded", i, 3) for i in range(5)] == list(range(5)) and [
        get("free", i, None) for i in range(5)
    ] == list(range(5))
    made.clear()
    assert (
        [get("bounded", i, 3) for i in (2, 3, 4)] == [2, 3, 4]
        and [get("free", i, None) for i in range(5)] == list(range(5))
        and made == []
    )
    assert get("bounded", 0, 3) == 0 and made == [("bounded", 0)], "the oldest had gone"
    made.clear()
    assert [get("bounded", i, 3) for i in (3, 4, 0)] == [3, 4, 0] and made == [], "the newest stays"


def test_what_a_run_keeps_is_bounded():
    """A hundred areas, and weights that change from call to call."""
    from support.host.small_casts import settings, stage
    from troupe.model_patches.binding.limits import Pictured
    from troupe.model_patches.binding.plan import ImageStrengths
    from troupe.model_patches.binding.run_limits import LIMITS
    from troupe.model_patches.binding.run_tokens import KEPT_WEIGHTS
    from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks, grids_of
    from troupe.model_patches.hosts.comfyui.sampling.calls import Call, window_of
    from troupe.model_patches.hosts.comfyui.sampling.image_attention import ImageAttention

    region = torch.zeros(32, 32)
    region[:, :16] = 1
    st = stage()
    hook = ImageAttention(
        st.references(2, regions=[region, None]),
        settings(),
        attention_blocks(st.patcher.model.diffusion_model),
        True,
        True,
    )
    run, device, pictured = a_run(), torch.device("cpu"), Pictured(hook.references.subjects)
    for i in range(100):
        call, window = (
            Call(run, {}, ImageStrengths((1.0, i / 100), True), 1, (32, 128)),
            window_of((32, 32, 0, i), (32, 128)),
        )
        for grid in grids_of(hook.blocks, (32, 32)):
            assert hook.limits(call, (window,), grid, device, pictured) is not None
        run.once(("strengths", call.now.weights), lambda call=call: call.now.weights, KEPT_WEIGHTS)
    kinds = [key[0] for key in run._cache]
    assert kinds.count("limits") == LIMITS and kinds.count("strengths") == KEPT_WEIGHTS


def test_limits_of_several_areas_are_each_areas_own():
    """Calls with other areas, and with boxes and without, never share limits."""
    from dataclasses import replace

    from support.host.small_casts import settings, stage
    from troupe.model_patches.binding.limits import Pictured
    from troupe.model_patches.binding.plan import ImageStrengths
    from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks
    from troupe.model_patches.hosts.comfyui.sampling.calls import Call, window_of
    from troupe.model_patches.hosts.comfyui.sampling.image_attention import ImageAttention
    from troupe.model_patches.subjects import Box

    region = torch.zeros(32, 32)
    region[:, :16] = 1
    st = stage()
    references = st.references(2, regions=[region, None])
    boxed = replace(
        references, subjects=(references.subjects[0], replace(references.subjects[1], box=Box(0.5, 0.0, 0.5, 1.0)))
    )
    hook, run, device = (
        ImageAttention(boxed, settings(), attention_blocks(st.patcher.model.diffusion_model), True, True),
        a_run(),
        torch.device("cpu"),
    )

    def limits(areas, with_boxes):
        call = Call(run, {}, ImageStrengths((1.0, 1.0), with_boxes), 1, (16, 16))
        windows = [window_of(area, call.size) for area in areas]
        return hook.limits(call, windows, (16, 8), device, Pictured(boxed.subjects))

    left, right = (16, 8, 0, 0), (16, 8, 0, 8)
    for _ in range(2):  # the second time from what the run keeps
        assert limits((left,), True)[0, 0].mean(1).tolist() == [1.0, pytest.approx(0.0, abs=0.05)]
        assert limits((right,), True)[0, 0].mean(1).tolist() == [0.0, pytest.approx(1.0, abs=0.1)]
        assert limits((left,), False)[0, 0, 1].min() == 1.0 and limits((right,), False)[0, 0, 1].min() == 1.0
        both = limits((left, right), True)
        assert torch.equal(both[0], limits((left,), True)[0]) and torch.equal(both[1], limits((right,), True)[0])


@pytest.mark.parametrize("applied", [1, 2])
def test_plain_text_attention_is_the_one_that_the_checkpoint_asks_for(applied, monkeypatch):
    """Newer hosts load an attention function with a layer, and give its module as `preferred_attention`; layers without
    one are called as before.
    """
    from types import SimpleNamespace

    from comfy.ldm.modules import attention
    from support.host.small_casts import ksample, settings, stage

    st = stage()
    asked = [module for name, module in st.patcher.model.diffusion_model.named_modules() if name.endswith("attn2")]
    own = SimpleNamespace(function=attention.attention_basic)
    for module, preferred in zip(asked, (own, SimpleNamespace(function=None)), strict=False):
        monkeypatch.setattr(module, "comfy_attention", preferred, raising=False)
    calls, original = [], attention.optimized_attention

    def spy(*args, **kwargs):
        # called from a replaced layer
        if "activations_shape" in kwargs["transformer_options"] and "n_heads" in kwargs["transformer_options"]:
            calls.append(kwargs.pop("preferred_attention", "none"))
        return original(*args, **kwargs)

    monkeypatch.setattr(attention, "optimized_attention", spy)
    model, positive, negative = st.apply(st.references(2), settings())
    if applied == 2:
        st.patcher, st.positive, st.negative = model, positive, negative
        model, positive, negative = st.apply(st.references(1), settings(weight=0.3))
    ksample(model, positive, negative, steps=1)
    assert calls.count(own) == 1 and calls.count("none") == len(asked) - 1 == len(calls) - 1, (
        "one call a layer, whoever is stacked"
    )
