"""Apply Adapter Weights on the real host: tensors in place of the base's, under the patches of other nodes, and LoRAs
among them.
"""

import asyncio
import json

import pytest
import torch

pytestmark = pytest.mark.usefixtures("host")
MODEL_PARTS = ("input_blocks.0.0.", "attn2.to_k.", "attn2.to_v.")


@pytest.fixture(scope="module")
def clips(host):
    from support.host import tiny_models

    made = {}
    return lambda kind: made.setdefault(kind, tiny_models.tiny_clip(kind))


def unet_tensors(patcher, seed=40):
    """New tensors for some of the UNet's, by LDM names, in another dtype than the model's."""
    from support.host.small_casts import random

    state = patcher.model.diffusion_model.state_dict()
    names = [name for name in state if any(part in name for part in MODEL_PARTS)]
    assert len(names) > 10
    return {
        name: (state[name] + random(*state[name].shape, seed=seed + i, gain=0.05)).half()
        for i, name in enumerate(names)
    }


def text_tensors(clip, encoder="clip_l", seed=90):
    """New tensors for a text encoder, by transformers' names: all but the last layer, as published text encoders of SD2
    have it.
    """
    from support.host.small_casts import random

    state = getattr(clip.cond_stage_model, encoder).transformer.state_dict()
    names = [name for name in state if name.startswith("text_model.") and ".layers.2." not in name]
    assert len(names) > 30
    return {
        name: state[name].float() + random(*state[name].shape, seed=seed + i, gain=0.05) for i, name in enumerate(names)
    }


def adapter_of(unet=None, text=None, context=64, id="an adapter", unet_lora=None, text_lora=None):
    from troupe.model_patches.adapter import AdapterSpec, Weights
    from troupe.model_patches.hosts.comfyui.loading.adapters import HostAdapter

    spec = AdapterSpec("subject_diffusion", "subjects.safetensors", context, ())
    return HostAdapter(
        spec,
        id,
        None,
        None,
        weights=Weights(unet or {}, text or {}, unet_lora=unet_lora or {}, text_lora=text_lora or {}),
    )


def pairs_for(state, names, seed=300, alpha=None, rank=3):
    """Pairs in 16 bits for some tensors, nearly as large as these."""
    from support.host.small_casts import random
    from troupe.model_patches.adapter import LoraPair

    pairs = {}
    for i, name in enumerate(names):
        out, width = state[name].shape
        pairs[name] = LoraPair(
            random(rank, width, seed=seed + i, gain=width**-0.5).half(),
            random(out, rank, seed=seed + 500 + i, gain=0.2).half(),
            alpha,
        )
    assert len(pairs) > 10
    return pairs


def unet_pairs(patcher, **more):
    """Pairs for every attention of the UNet, by LDM names."""
    state = patcher.model.diffusion_model.state_dict()
    return pairs_for(
        state,
        [
            name
            for name in state
            if name.endswith(
                tuple(f"{a}.{x}.weight" for a in ("attn1", "attn2") for x in ("to_q", "to_k", "to_v", "to_out.0"))
            )
        ],
        **more,
    )


def text_pairs(clip, stream, **more):
    """Pairs for every projection of a text encoder's attention, by transformers' names."""
    state = getattr(clip.cond_stage_model, f"clip_{stream}").transformer.state_dict()
    return pairs_for(state, [name for name in state if "_proj.weight" in name and "self_attn" in name], **more)


def merged(state, pairs, strength=1.0):
    """The tensors with the pairs added by hand, in float32."""
    scale = {
        name: strength * (1.0 if pair.alpha is None else pair.alpha / pair.down.shape[0])
        for name, pair in pairs.items()
    }
    return {
        name: state[name].float() + scale[name] * pair.up.float() @ pair.down.float() for name, pair in pairs.items()
    }


def with_state(base, tensors):
    """A MODEL of its own, as `stage(base)` has it, whose state dict holds the tensors."""
    from support.host import tiny_models

    made = tiny_models.micro_model(base, context_dim=64)
    made.model.diffusion_model.load_state_dict({**made.model.diffusion_model.state_dict(), **tensors})
    return made


def lora(model, seed=60, strength=0.8):
    """The MODEL after a LoRA of the host's own loader, on layers that the adapter replaces."""
    import comfy.lora
    from support.host.small_casts import random

    state = model.model.diffusion_model.state_dict()
    names = [
        name.removesuffix(".weight") for name in state if name.endswith(("attn2.to_k.weight", "attn2.to_q.weight"))
    ]
    weights = {}
    for i, name in enumerate(names):
        out, width = state[f"{name}.weight"].shape
        key = f"lora_unet_{name.replace('.', '_')}"
        weights |= {
            f"{key}.lora_up.weight": random(out, 4, seed=seed + i, gain=0.3),
            f"{key}.lora_down.weight": random(4, width, seed=seed + 100 + i, gain=0.3),
        }
    patches = comfy.lora.load_lora(weights, comfy.lora.model_lora_keys_unet(model.model, {}))
    patched = model.clone()
    assert len(patched.add_patches(patches, strength)) == len(names)
    return patched


def host_weight(model, key, tensor):
    """A tensor with all that is patched on it, as the host computes it."""
    import comfy.lora

    return comfy.lora.calculate_weight(model.patches[key], tensor.float().clone(), key)


def encode(clip, text="a red fox and a grey cat"):
    return clip.encode_from_tokens(clip.tokenize(text))


def apply(*args, **kwargs):
    from troupe.model_patches.hosts.comfyui.sampling.weights import apply_weights

    return apply_weights(*args, **kwargs)


def refused(*args, **kwargs):
    from troupe.model_patches.errors import MismatchError

    with pytest.raises(MismatchError) as caught:
        apply(*args, **kwargs)
    return str(caught.value)


# ---- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["SD15", "SD20"])
def test_the_latent_is_that_of_a_model_with_these_weights(base, caplog):
    from support.host.small_casts import ksample, stage

    st = stage(base)
    tensors = unet_tensors(st.patcher)
    plain = ksample(st.patcher, st.positive, st.negative)
    with caplog.at_level("INFO", "troupe"):
        model, clip = apply(st.patcher, adapter_of(tensors))
    assert clip is None and [r.message for r in caplog.records] == [
        f"Troupe: {len(tensors)} tensors of the UNet of subjects.safetensors set on the model."
    ]
    wanted = ksample(with_state(base, tensors), st.positive, st.negative)
    assert (wanted - plain).abs().max() > 0.05
    assert (ksample(model, st.positive, st.negative) - wanted).abs().max() < 1e-5
    assert torch.equal(ksample(st.patcher, st.positive, st.negative), plain), "the checkpoint is as it was"


def test_loras_before_and_after_are_on_top_of_the_new_weights():
    from support.host.small_casts import ksample, stage

    st = stage("SD20")
    tensors = unet_tensors(st.patcher)
    adapter = adapter_of(tensors)
    wanted = ksample(lora(with_state("SD20", tensors)), st.positive, st.negative)
    without = ksample(with_state("SD20", tensors), st.positive, st.negative)
    before, after = apply(lora(st.patcher), adapter)[0], lora(apply(st.patcher, adapter)[0])
    assert (wanted - without).abs().max() > 0.05
    for model in (before, after):
        assert (ksample(model, st.positive, st.negative) - wanted).abs().max() < 1e-5
    twice = ksample(lora(lora(with_state("SD20", tensors)), 77), st.positive, st.negative)
    between = lora(apply(lora(st.patcher), adapter)[0], 77)
    assert (ksample(between, st.positive, st.negative) - twice).abs().max() < 1e-5


def test_of_two_nodes_the_later_one_wins_and_loras_stay():
    from support.host.small_casts import ksample, stage

    st = stage()
    first, second = unet_tensors(st.patcher, 40), unet_tensors(st.patcher, 400)
    model = apply(st.patcher, adapter_of(first, id="first"))[0]
    model = apply(lora(model), adapter_of(second, id="second"))[0]
    wanted = ksample(lora(with_state("SD15", second)), st.positive, st.negative)
    assert (ksample(model, st.positive, st.negative) - wanted).abs().max() < 1e-5


def test_a_part_of_a_tensor_that_another_node_sets_stays():
    """A patch with an offset sets only a slice: it comes after the whole tensor."""
    import comfy.lora
    from support.host.small_casts import stage

    st = stage()
    tensors = unet_tensors(st.patcher)
    key = "diffusion_model.input_blocks.0.0.weight"
    sliced = st.patcher.clone()
    sliced.add_patches({(key, (0, 0, 4)): ("set", (torch.zeros(4, 4, 3, 3),))})
    model = apply(sliced, adapter_of(tensors))[0]
    found = comfy.lora.calculate_weight(model.patches[key], st.patcher.model.state_dict()[key].float().clone(), key)
    assert torch.equal(found[:4], torch.zeros(4, 4, 3, 3)) and torch.equal(
        found[4:], tensors["input_blocks.0.0.weight"].float()[4:]
    )


def test_where_the_host_keeps_weights_off_the_device():
    """Low VRAM: the host casts each layer as it runs, patches and all."""
    from support.host.small_casts import ksample, stage

    st = stage()
    tensors = unet_tensors(st.patcher)
    wanted = ksample(with_state("SD15", tensors), st.positive, st.negative)
    model = apply(st.patcher, adapter_of(tensors))[0]
    plain = {name: value.clone() for name, value in st.patcher.model.state_dict().items()}
    original = model.load
    model.load = lambda device_to=None, **kwargs: original(device_to, lowvram_model_memory=64)
    found = ksample(model, st.positive, st.negative)
    assert model.model.model_lowvram and (found - wanted).abs().max() < 1e-5
    model.unpatch_model(model.offload_device)
    assert all(torch.equal(value, plain[name]) for name, value in st.patcher.model.state_dict().items())


def test_the_model_is_marked():
    from support.host.small_casts import stage
    from troupe.model_patches.hosts.comfyui.sampling.weights import weights_of

    st = stage()
    tensors = unet_tensors(st.patcher)
    one = apply(st.patcher, adapter_of(tensors, id="one"))[0]
    two = apply(one.clone(), adapter_of(tensors, id="two"))[0]
    assert (weights_of(st.patcher), weights_of(one), weights_of(two.clone())) == (
        {},
        {"one": 1.0},
        {"one": 1.0, "two": 1.0},
    )


def test_a_mark_says_how_strong_the_loras_are():
    from support.host.small_casts import stage
    from troupe.model_patches.hosts.comfyui.sampling.weights import weights_of

    st = stage()
    adapter, other = adapter_of(unet_lora=unet_pairs(st.patcher)), adapter_of(unet_tensors(st.patcher), id="whole")
    half = apply(st.patcher, adapter, 0.5)[0]
    assert weights_of(half) == {"an adapter": 0.5} and weights_of(st.patcher) == {}
    again = apply(apply(half, adapter, 0.25)[0], other)[0]
    assert (
        weights_of(again) == {"an adapter": 0.75, "whole": 1.0} and weights_of(apply(again, other)[0])["whole"] == 1.0
    )
    assert apply(again, adapter, 0.0)[0] is again and weights_of(half) == {"an adapter": 0.5}


# ---- LoRAs of the model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strength", "alpha"), [(1.0, None), (0.4, None), (1.7, 6.0), (1.0, 1.5)])
def test_the_latent_is_that_of_a_model_merged_by_hand(strength, alpha, caplog):
    from support.host.small_casts import error, ksample, stage

    st = stage()
    pairs, state = unet_pairs(st.patcher, alpha=alpha), st.patcher.model.diffusion_model.state_dict()
    plain = ksample(st.patcher, st.positive, st.negative)
    with caplog.at_level("INFO", "troupe"):
        model, _ = apply(st.patcher, adapter_of(unet_lora=pairs), strength)
    assert [r.message for r in caplog.records] == [
        f"Troupe: {len(pairs)} LoRAs of the UNet of subjects.safetensors set on the model."
    ]
    wanted = ksample(with_state("SD15", merged(state, pairs, strength)), st.positive, st.negative)
    # another rounding of the weights alone makes 3e-5
    assert error(ksample(model, st.positive, st.negative), wanted, plain) < 1e-4
    for name, tensor in merged(state, pairs, strength).items():
        assert (host_weight(model, f"diffusion_model.{name}", state[name]) - tensor).abs().max() < 1e-6
    assert torch.equal(ksample(st.patcher, st.positive, st.negative), plain), "the checkpoint is as it was"


def test_loras_of_others_before_and_after_are_as_if_merged():
    from support.host.small_casts import error, ksample, stage

    st = stage()
    pairs, state = unet_pairs(st.patcher), st.patcher.model.diffusion_model.state_dict()
    adapter, without = adapter_of(unet_lora=pairs), ksample(lora(st.patcher), st.positive, st.negative)
    wanted = ksample(lora(with_state("SD15", merged(state, pairs, 0.7))), st.positive, st.negative)
    for model in (lora(apply(st.patcher, adapter, 0.7)[0]), apply(lora(st.patcher), adapter, 0.7)[0]):
        assert error(ksample(model, st.positive, st.negative), wanted, without) < 1e-4
    plain, twice = (
        ksample(st.patcher, st.positive, st.negative),
        ksample(with_state("SD15", merged(state, pairs, 1.4)), st.positive, st.negative),
    )
    assert (
        error(
            ksample(apply(apply(st.patcher, adapter, 0.7)[0], adapter, 0.7)[0], st.positive, st.negative), twice, plain
        )
        < 1e-4
    )


def test_whole_tensors_and_loras_of_one_file(caplog):
    from support.host.small_casts import error, ksample, stage

    st = stage()
    tensors, pairs = unet_tensors(st.patcher), unet_pairs(st.patcher)
    new = {**st.patcher.model.diffusion_model.state_dict(), **tensors}
    with caplog.at_level("INFO", "troupe"):
        model, _ = apply(lora(st.patcher), adapter_of(tensors, unet_lora=pairs))
    assert f"{len(tensors)} tensors of the UNet and {len(pairs)} LoRAs of the UNet of" in caplog.text
    wanted = ksample(lora(with_state("SD15", {**tensors, **merged(new, pairs)})), st.positive, st.negative)
    assert error(ksample(model, st.positive, st.negative), wanted, ksample(st.patcher, st.positive, st.negative)) < 1e-4
    assert "'strength_model' at 0.5" in refused(st.patcher, adapter_of(tensors, unet_lora=pairs), 0.5)


def test_whole_tensors_of_another_adapter_go_below_the_loras():
    from support.host.small_casts import error, ksample, stage

    st = stage()
    tensors, pairs = unet_tensors(st.patcher), unet_pairs(st.patcher)
    model = apply(apply(st.patcher, adapter_of(unet_lora=pairs, id="one"))[0], adapter_of(tensors, id="two"))[0]
    new = {**st.patcher.model.diffusion_model.state_dict(), **tensors}
    wanted = ksample(with_state("SD15", {**tensors, **merged(new, pairs)}), st.positive, st.negative)
    assert error(ksample(model, st.positive, st.negative), wanted, ksample(st.patcher, st.positive, st.negative)) < 1e-4


def test_loras_where_the_host_keeps_weights_off_the_device():
    from support.host.small_casts import error, ksample, stage

    st = stage()
    pairs, state = unet_pairs(st.patcher), st.patcher.model.diffusion_model.state_dict()
    wanted = ksample(with_state("SD15", merged(state, pairs, 0.6)), st.positive, st.negative)
    model = apply(st.patcher, adapter_of(unet_lora=pairs), 0.6)[0]
    original = model.load
    model.load = lambda device_to=None, **kwargs: original(device_to, lowvram_model_memory=64)
    found = ksample(model, st.positive, st.negative)
    assert model.model.model_lowvram and error(found, wanted, ksample(st.patcher, st.positive, st.negative)) < 1e-4
    model.unpatch_model(model.offload_device)


# ---- the text encoder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "encoder"), [("sd15", "clip_l"), ("sd20", "clip_h"), ("sdxl", "clip_l"), ("sdxl", "clip_g")]
)
def test_the_prompt_is_that_of_a_clip_with_these_weights(clips, kind, encoder, caplog):
    from support.host.small_casts import stage
    from troupe.model_patches.hosts.comfyui.sampling.weights import weights_of

    clip, st = clips(kind), stage()
    tensors, module = text_tensors(clip, encoder), getattr(clip.cond_stage_model, encoder).transformer
    plain, saved = encode(clip), {name: value.clone() for name, value in module.state_dict().items()}
    with caplog.at_level("INFO", "troupe"):
        model, patched = apply(st.patcher, adapter_of(text=tensors), clip=clip)
    assert model is st.patcher and [r.message for r in caplog.records] == [
        f"Troupe: {len(tensors)} tensors of the text encoder of subjects.safetensors set on the model."
    ]
    assert weights_of(patched.patcher) == {"an adapter": 1.0} and weights_of(clip.patcher) == {}
    found = encode(patched)
    assert torch.equal(encode(clip), plain), "the checkpoint's CLIP is as it was"
    module.load_state_dict({**saved, **tensors})
    wanted = encode(clip)
    module.load_state_dict(saved)
    assert (wanted - plain).abs().max() > 0.05 and (found - wanted).abs().max() < 1e-4


@pytest.mark.parametrize(("kind", "streams"), [("sd15", "l"), ("sdxl", "l"), ("sdxl", "lg")])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_the_prompt_is_that_of_text_encoders_merged_by_hand(clips, kind, streams, strength, caplog):
    from support.host.small_casts import stage
    from troupe.model_patches.hosts.comfyui.sampling.weights import weights_of

    clip, st = clips(kind), stage()
    pairs = {stream: text_pairs(clip, stream, seed=700 + i, alpha=2.0 * i or None) for i, stream in enumerate(streams)}
    plain = encode(clip)
    with caplog.at_level("INFO", "troupe"):
        model, patched = apply(st.patcher, adapter_of(text_lora=pairs), 1.0, strength, clip)
    assert (
        model is st.patcher
        and weights_of(patched.patcher) == {"an adapter": strength}
        and weights_of(clip.patcher) == {}
    )
    assert f"Troupe: {len(streams) * len(pairs['l'])} LoRAs of the text encoder of subjects.safetensors" in caplog.text
    found = encode(patched)
    assert torch.equal(encode(clip), plain), "the checkpoint's CLIP is as it was"
    modules = {stream: getattr(clip.cond_stage_model, f"clip_{stream}").transformer for stream in streams}
    saved = {
        stream: {name: value.clone() for name, value in module.state_dict().items()}
        for stream, module in modules.items()
    }
    for stream, module in modules.items():
        module.load_state_dict({**saved[stream], **merged(saved[stream], pairs[stream], strength)})
    wanted = encode(clip)
    for stream, module in modules.items():
        module.load_state_dict(saved[stream])
    assert (wanted - plain).abs().max() > 0.05 and (found - wanted).abs().max() < 1e-4


def test_a_clip_without_one_of_the_text_encoders(clips):
    from support.host.small_casts import stage

    st, clip = stage(), clips("sdxl")
    adapter = adapter_of(text_lora={stream: text_pairs(clip, stream) for stream in "lg"}, context=2048)
    message = refused(st.patcher, adapter, 1.0, 1.0, clips("sd15"))
    assert (
        "Expected a CLIP with CLIP-L and OpenCLIP bigG for the LoRAs of subjects.safetensors, found one "
        "with CLIP-L. Wire the CLIP of the SDXL checkpoint" in message
    )
    assert "found one with OpenCLIP H" in refused(st.patcher, adapter, 1.0, 1.0, clips("sd20"))
    wide = adapter_of(text_lora={"l": text_pairs(clip, "g")})
    assert "has the shape [768, 768] instead of [1280, 1280]" in refused(st.patcher, wide, 1.0, 1.0, clips("sd15"))
    assert not clips("sd15").patcher.patches
    assert apply(st.patcher, adapter, 1.0, 0.0, clips("sd15")) == (st.patcher, clips("sd15"))


def test_loras_of_text_encoders_without_a_clip(clips):
    from support.host.small_casts import stage

    st, said = stage(), []
    adapter = adapter_of(unet_lora=unet_pairs(st.patcher), text_lora={"l": text_pairs(clips("sd15"), "l")})
    assert apply(st.patcher, adapter, 0.8, 0.8, None, said.append)[1] is None
    assert len(said) == 1 and "also has LoRAs for the text encoders" in said[0]


def test_both_at_once_and_each_alone(clips, caplog):
    from support.host.small_casts import stage

    clip, st = clips("sd15"), stage()
    adapter = adapter_of(unet_tensors(st.patcher), text_tensors(clip))
    said = []
    with caplog.at_level("INFO", "troupe"):
        model, patched = apply(st.patcher, adapter, 1.0, 1.0, clip, said.append)
    assert model is not st.patcher and patched is not clip and not said
    counts = (
        f"{len(adapter.weights.unet)} tensors of the UNet and {len(adapter.weights.text)} tensors of the text encoder"
    )
    assert [r.message for r in caplog.records] == [f"Troupe: {counts} of subjects.safetensors set on the model."]
    for strengths in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        model, patched = apply(st.patcher, adapter, *strengths, clip, said.append)
        assert (model is not st.patcher, patched is not clip) == tuple(map(bool, strengths))
    assert not said and not st.patcher.patches and not clip.patcher.patches
    assert apply(st.patcher, adapter, 1.0, 1.0, None, said.append)[1] is None
    assert len(said) == 1 and "also has a text encoder" in said[0]
    apply(st.patcher, adapter, 1.0, 0.0, None, said.append)
    assert len(said) == 1


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [True, False], ids=["with weights", "without"])
@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_a_delayed_prompt_changes_on_its_model(weights, strength, clips):
    """For FastComposer and UMM-Diffusion this may be the only node of ours on the MODEL wire."""
    from dataclasses import replace

    from support.host.small_casts import ksample, stage
    from support.host.small_prompt_casts import prompt
    from support.prompt_fusions import FUSIONS
    from troupe.model_patches.adapter import PromptSpec
    from troupe.model_patches.hosts.comfyui.sampling.prompt_switch import PROMPT_KEY
    from troupe.model_patches.hosts.comfyui.sampling.weights import apply_weights

    st, said = stage(), []
    adapter = adapter_of(unet_tensors(st.patcher) if weights else None)
    adapter = replace(adapter, spec=replace(adapter.spec, parts=(PromptSpec(FUSIONS["postfuse"], {"l": 768}),)))
    model, _ = apply_weights(st.patcher, adapter, strength, warn=said.append)
    (positive, negative), (later, _) = prompt(), prompt(start_step=2)
    text = [[later[0][1][PROMPT_KEY].text, {}]]
    found, fused, plain, never = (
        ksample(model, c, negative, size=(8, 8), steps=4) for c in (later, positive, text, prompt(start_step=9)[0])
    )
    assert torch.equal(never, plain) and not torch.equal(found, fused) and not torch.equal(found, plain)
    assert not said


def test_an_adapter_without_weights_passes_everything_on(clips):
    from support.host.small_casts import stage

    st, said = stage(), []
    assert apply(st.patcher, st.adapter, 0.5, 0.5, clips("sd15"), said.append) == (st.patcher, clips("sd15"))
    assert len(said) == 1 and "test.safetensors has no weights for the base model" in said[0]


@pytest.mark.parametrize("strength", [0.5, 1.05, 2.0])
def test_whole_weights_have_no_half_strength(clips, strength):
    from support.host.small_casts import stage

    st, clip = stage(), clips("sd15")
    adapter = adapter_of(unet_tensors(st.patcher), text_tensors(clip))
    assert f"full weights replace the model's own, found 'strength_model' at {strength:g}" in refused(
        st.patcher, adapter, strength, 1.0, clip
    )
    assert f"'strength_clip' at {strength:g}. Set 'strength_clip' to 1, or to 0" in refused(
        st.patcher, adapter, 1.0, strength, clip
    )
    assert not st.patcher.patches and not clip.patcher.patches


def test_another_base(clips):
    from support.host import tiny_models
    from support.host.small_casts import stage

    st = stage()
    tensors = unet_tensors(st.patcher)
    adapter = adapter_of(tensors, text_tensors(clips("sd15")), context=1024)
    wide = tiny_models.micro_model("SD20", model_channels=64, context_dim=64)
    message = refused(wide, adapter, 1.0, 0.0)
    assert (
        "Expected a MODEL of the SD2.x family for the weights of subjects.safetensors, found this UNetModel" in message
    )
    assert f"where {len(tensors)} of {len(tensors)} tensors do not fit" in message
    assert (
        "'input_blocks.0.0.weight' has the shape [64, 4, 3, 3] instead of [32, 4, 3, 3]" in message
        and "Wire the checkpoint that subjects.safetensors was trained on" in message
    )
    unknown = adapter_of({**tensors, "double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 3)})
    assert (
        f"1 of {len(tensors) + 1} tensors do not fit: there is no weight named 'double_blocks.0.img_attn.qkv.weight'"
        in refused(st.patcher, unknown)
    )
    pairs = unet_pairs(st.patcher)
    message = refused(wide, adapter_of(unet_lora=pairs, context=1024))
    name = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    assert (
        f"{len(pairs)} of {len(pairs)} tensors do not fit: '{name}' has the shape [64, 64] instead of [32, 32]"
        in message
    )
    message = refused(st.patcher, adapter, 0.0, 1.0, clips("sd20"))
    assert "Expected the CLIP of a SD2.x checkpoint" in message and "[49408, 1024] instead of [49408, 768]" in message
    assert "without a weight named 'mystery.weight'" in refused(
        st.patcher, adapter_of(text={"mystery.weight": torch.zeros(1)}), 1.0, 1.0, clips("sd20")
    )


# ---- a subject UNet loaded as a whole model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def five_channels(host, base_folder):
    """The name of a tiny SD2 UNet with five input channels in models/diffusion_models."""
    import safetensors.torch
    from support.host import tiny_models

    state = tiny_models.build_unet_sd("sd20", dtype=torch.float32, prefix="")
    state["input_blocks.0.0.weight"] = torch.cat((state["input_blocks.0.0.weight"], torch.zeros(320, 1, 3, 3)), 1)
    folder = base_folder / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(state, folder / "five.safetensors")
    return "five.safetensors"


def test_the_host_loads_a_five_channel_unet_and_cannot_sample_it(five_channels):
    """Why it is refused here: the host takes it for an inpainting model and gives it nine channels."""
    from support.host import tiny_models
    from support.host.small_casts import ksample

    import nodes

    (model,) = nodes.UNETLoader().load_unet(five_channels, "default")
    prompt = tiny_models.random_cond(77, 1024)
    with pytest.raises(RuntimeError, match=r"expected input.* to have 5 channels, but got 9 channels"):
        ksample(model, prompt, prompt, steps=1)
    message = refused(model, adapter_of({"input_blocks.0.0.bias": torch.zeros(320)}, context=1024))
    assert "Expected a UNet with 4 input channels, found 5: a Subject-Diffusion UNet" in message
    assert (
        "Load the SD2-base checkpoint it was trained on with Load Checkpoint, and this file with Load "
        "Subject Adapter and Apply Adapter Weights." in message
    )


def test_the_check_for_others():
    from support.host import tiny_models
    from troupe.model_patches.errors import MismatchError
    from troupe.model_patches.hosts.comfyui.sampling.weights import check_input_channels

    for channels in (4, 9):
        check_input_channels(tiny_models.micro_model("SD20", in_channels=channels))
    with pytest.raises(MismatchError, match="channel for box masks"):
        check_input_channels(tiny_models.micro_model("SD20", in_channels=5))


# ---- the node --------------------------------------------------------------------------------------------------------


def execute(**inputs):
    from troupe.nodes.apply_weights import ApplyAdapterWeights

    out = ApplyAdapterWeights.PREPARE_CLASS_CLONE(None).execute(**inputs)
    return (asyncio.run(out) if asyncio.iscoroutine(out) else out).result


def test_the_node(clips):
    from comfy_execution.graph_utils import ExecutionBlocker
    from support.host.small_casts import stage
    from troupe.model_patches.hosts.comfyui.sampling.weights import weights_of

    st, clip = stage(), clips("sd15")
    adapter = adapter_of(unet_tensors(st.patcher), text_tensors(clip))
    model, patched = execute(model=st.patcher, adapter=adapter, strength_model=1.0, strength_clip=1.0, clip=clip)
    assert weights_of(model) == weights_of(patched.patcher) == {"an adapter": 1.0}
    model, blocked = execute(model=st.patcher, adapter=adapter, strength_model=1.0, strength_clip=1.0)
    assert weights_of(model) == {"an adapter": 1.0} and isinstance(blocked, ExecutionBlocker)
    wanted = (
        "'clip' of Apply Adapter Weights is used, but its 'clip' input is not connected. Connect the CLIP to "
        "it, or use the CLIP directly."
    )
    assert blocked.message == wanted


def test_the_node_shows_that_a_file_brings_none():
    from support.host.small_casts import stage
    from troupe.nodes.apply_weights import ApplyAdapterWeights

    st = stage()
    found = ApplyAdapterWeights.PREPARE_CLASS_CLONE(None).execute(
        model=st.patcher, adapter=st.adapter, strength_model=1.0, strength_clip=1.0
    )
    assert found.args[0] is st.patcher
    [sentence] = json.loads(found.ui["troupe_messages"][0])["warnings"]
    assert "has no weights for the base model" in sentence
