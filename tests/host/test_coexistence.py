"""Core nodes beside every kind of Troupe node: both act, it does not matter which stands first, and further calls of
the model see who is whose.
"""

from functools import cache, partial

import pytest
import torch
from support.host.both_packs import SAME, VISIBLE, both_act

pytestmark = pytest.mark.usefixtures("host")
KINDS = ["attention", "gated", "prompt"]
LORA = "another_lora.safetensors"


@pytest.fixture(scope="module", autouse=True)
def lora(base_folder, host):
    from support.host.partner_nodes import lora_file, troupe

    with torch.inference_mode():
        lora_file(troupe().patcher, base_folder / "models" / "loras" / LORA)


def on_model(module, name, **inputs):
    """A partner that is one core node on the MODEL wire."""

    def partner(model, positive, negative):
        from support.host.partner_nodes import core

        return core(module, name, model=model, **inputs), positive, negative

    return partner


@cache
def other_model():
    from support.host import tiny_models

    return tiny_models.micro_model("SD15", model_channels=64, context_dim=64, mult=(1, 2), seed=9)


def merged(model, positive, negative):
    from support.host.partner_nodes import core

    return (
        core("nodes_model_merging", "ModelMergeSimple", model1=model, model2=other_model(), ratio=0.8),
        positive,
        negative,
    )


def lora_loader(model, positive, negative):
    from support.host.partner_nodes import core

    return (
        core("nodes", "LoraLoader", model=model, clip=None, lora_name=LORA, strength_model=0.8, strength_clip=1.0)[0],
        positive,
        negative,
    )


def controlled(model, positive, negative):
    from support.host.partner_nodes import control_net, core
    from support.host.small_casts import random

    picture = random(1, 64, 96, 3, seed=4).clamp(0, 1)
    return model, *core(
        "nodes",
        "ControlNetApplyAdvanced",
        positive=positive,
        negative=negative,
        control_net=control_net(),
        image=picture,
        strength=0.5,
        start_percent=0.0,
        end_percent=1.0,
    )


def boxed(model, positive, negative):
    from support.host.partner_nodes import core, text_boxes, troupe

    gligen, clip = text_boxes(troupe().patcher)
    return (
        model,
        core(
            "nodes",
            "GLIGENTextBoxApply",
            conditioning_to=positive,
            clip=clip,
            gligen_textbox_model=gligen,
            text="a fox",
            width=48,
            height=48,
            x=16,
            y=8,
        ),
        negative,
    )


def with_area(model, positive, negative):
    from support.host.partner_nodes import core

    area = core("nodes", "ConditioningSetArea", conditioning=positive, width=48, height=64, x=48, y=0, strength=1.5)
    return model, core("nodes", "ConditioningCombine", conditioning_1=positive, conditioning_2=area), negative


def with_mask(model, positive, negative):
    from support.host.partner_nodes import core

    mask = torch.zeros(1, 64, 96)
    mask[:, 16:, 32:] = 1
    masked = core(
        "nodes", "ConditioningSetMask", conditioning=positive, mask=mask, set_cond_area="mask bounds", strength=1.5
    )
    return model, core("nodes", "ConditioningCombine", conditioning_1=positive, conditioning_2=masked), negative


def scheduled_lora():
    from support.host.partner_nodes import core

    hooks = core("nodes_hooks", "CreateHookLoraModelOnly", lora_name=LORA, strength_model=0.8)
    frames = core("nodes_hooks", "CreateHookKeyframe", strength_mult=1.0, start_percent=0.0)
    frames = core("nodes_hooks", "CreateHookKeyframe", strength_mult=0.4, start_percent=0.5, prev_hook_kf=frames)
    return core("nodes_hooks", "SetHookKeyframes", hooks=hooks, hook_kf=frames)


def hooked(model, positive, negative):
    from support.host.partner_nodes import core

    return model, *core(
        "nodes_hooks",
        "PairConditioningSetProperties",
        positive_NEW=positive,
        negative_NEW=negative,
        strength=1.0,
        set_cond_area="default",
        hooks=scheduled_lora(),
    )


def hooked_positive(model, positive, negative):
    from support.host.partner_nodes import core

    return (
        model,
        core(
            "nodes_hooks",
            "ConditioningSetProperties",
            cond_NEW=positive,
            strength=1.0,
            set_cond_area="default",
            hooks=scheduled_lora(),
        ),
        negative,
    )


MODEL_NODES = {
    "HyperTile": on_model("nodes_hypertile", "HyperTile", tile_size=32, swap_size=1, max_depth=0, scale_depth=False),
    "TomePatchModel": on_model("nodes_tomesd", "TomePatchModel", ratio=0.5),
    "FreeU": on_model("nodes_freelunch", "FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    "FreeU_V2": on_model("nodes_freelunch", "FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "PerturbedAttentionGuidance": on_model("nodes_pag", "PerturbedAttentionGuidance", scale=3.0),
    "SelfAttentionGuidance": on_model("nodes_sag", "SelfAttentionGuidance", scale=0.8, blur_sigma=2.0),
    "RescaleCFG": on_model("nodes_model_advanced", "RescaleCFG", multiplier=1.0),
    "APG": on_model("nodes_apg", "APG", eta=1.0, norm_threshold=15.0, momentum=0.0),
    "TCFG": on_model("nodes_tcfg", "TCFG"),
    "Mahiro": on_model("nodes_mahiro", "Mahiro"),
    "CFGZeroStar": on_model("nodes_cfg", "CFGZeroStar"),
    "FreSca": on_model("nodes_fresca", "FreSca", scale_low=1.0, scale_high=1.5, freq_cutoff=2),
    "ModelSamplingDiscrete v_prediction": on_model(
        "nodes_model_advanced", "ModelSamplingDiscrete", sampling="v_prediction", zsnr=False
    ),
    "ModelSamplingDiscrete v_prediction zsnr": on_model(
        "nodes_model_advanced", "ModelSamplingDiscrete", sampling="v_prediction", zsnr=True
    ),
    "ModelSamplingContinuousEDM": on_model(
        "nodes_model_advanced", "ModelSamplingContinuousEDM", sampling="v_prediction", sigma_max=120.0, sigma_min=0.002
    ),
    "ModelComputeDtype": on_model("nodes_model_advanced", "ModelComputeDtype", dtype="bf16"),
    "UNetSelfAttentionMultiply": on_model(
        "nodes_attention_multiply", "UNetSelfAttentionMultiply", q=1.2, k=1.0, v=0.8, out=1.0
    ),
    "UNetCrossAttentionMultiply": on_model(
        "nodes_attention_multiply", "UNetCrossAttentionMultiply", q=1.2, k=1.0, v=0.8, out=1.0
    ),
    "PatchModelAddDownscale": on_model(
        "nodes_model_downscale",
        "PatchModelAddDownscale",
        block_number=1,
        downscale_factor=2.0,
        start_percent=0.0,
        end_percent=0.9,
        downscale_after_skip=True,
        downscale_method="bicubic",
        upscale_method="bicubic",
    ),
    "ModelMergeSimple": merged,
    "LoraLoader": lora_loader,
}
CONDITIONING_NODES = {
    "ControlNetApplyAdvanced": controlled,
    "GLIGENTextBoxApply": boxed,
    "ConditioningSetArea": with_area,
    "ConditioningSetMask in its bounds": with_mask,
    "a LoRA's schedule on both": hooked,
    "a LoRA's schedule on the positive": hooked_positive,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*MODEL_NODES, *CONDITIONING_NODES])
def test_both_act_in_either_order(name, kind):
    from support.host.partner_nodes import four, troupe

    found = four(troupe(), kind, (MODEL_NODES | CONDITIONING_NODES)[name])
    both_act(found)
    assert found.order < SAME


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["PerpNegGuider", "DualCFGGuider"])
def test_guiders_of_the_host(name, kind):
    from support.host.partner_nodes import core, four, guided, troupe
    from support.host.small_casts import random

    other = [[random(1, 77, 64, seed=6), {}]]

    def sample(model, positive, negative):
        if name == "PerpNegGuider":
            return guided(
                core(
                    "nodes_perpneg",
                    name,
                    model=model,
                    positive=positive,
                    negative=negative,
                    empty_conditioning=other,
                    cfg=5.0,
                    neg_scale=1.0,
                )
            )
        return guided(
            core(
                "nodes_custom_sampler",
                name,
                model=model,
                cond1=positive,
                cond2=other,
                negative=negative,
                cfg_conds=5.0,
                cfg_cond2_negative=3.0,
                style="regular",
            )
        )

    both_act(four(troupe(), kind, lambda *wires: wires, sample))


class Vae:
    """Latents from pixels without a model."""

    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8).repeat(1, 2, 1, 1)[:, :4] * 2 - 1


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_inpaint_model_conditioning(kind, channels):
    """Also the picture outside the mask stays, and the one inside is ours."""
    from support.host.partner_nodes import STEPS, core, four, troupe
    from support.host.small_casts import random

    import nodes

    mask = torch.zeros(1, 64, 96)
    mask[..., 48:] = 1
    photo, made = random(1, 64, 96, 3, seed=4).clamp(0, 1), []

    def partner(model, positive, negative):
        *both, latent = core(
            "nodes",
            "InpaintModelConditioning",
            positive=positive,
            negative=negative,
            vae=Vae(),
            pixels=photo,
            mask=mask,
            noise_mask=True,
        )
        made[:] = [latent]
        return model, *both

    def sample(model, positive, negative):
        return nodes.common_ksampler(model, 1, STEPS, 5.0, "euler", "normal", positive, negative, made[0])[0]["samples"]

    found = four(troupe(channels), kind, partner, sample)
    both_act(found)
    assert found.order < SAME
    torch.testing.assert_close(found.before[..., :6], Vae().encode(photo)[..., :6])


@pytest.mark.parametrize("kind", KINDS)
def test_differential_diffusion(kind):
    from support.host.partner_nodes import SIZE, STEPS, core, four, troupe
    from support.host.small_casts import random

    import nodes

    latent = {"samples": random(1, 4, *SIZE, seed=2), "noise_mask": torch.linspace(0, 1, 96).expand(1, 64, 96)}

    def sample(model, positive, negative):
        return nodes.common_ksampler(model, 1, STEPS, 5.0, "euler", "normal", positive, negative, latent)[0]["samples"]

    def partner(model, positive, negative):
        return (
            core("nodes_differential_diffusion", "DifferentialDiffusion", model=model, strength=1.0),
            positive,
            negative,
        )

    found = four(troupe(), kind, partner, sample, sample)
    both_act(found)
    assert found.order < SAME


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
def test_steps_that_a_cache_leaves_out(name, kind, caplog):
    from support.host.partner_nodes import core, four, sampled, troupe

    def partner(model, positive, negative):
        return (
            core(
                "nodes_easycache",
                f"{name}Node",
                model=model,
                reuse_threshold=0.5,
                start_percent=0.0,
                end_percent=1.0,
                verbose=False,
            ),
            positive,
            negative,
        )

    longer = partial(sampled, steps=6)
    with caplog.at_level("INFO"):
        found = four(troupe(), kind, partner, longer, longer)
    both_act(found)
    assert found.order < SAME
    skipped = [int(r.message.split("skipped ")[1].split("/")[0]) for r in caplog.records if "skipped " in r.message]
    assert len(skipped) == 3 and min(skipped) > 0


@pytest.mark.parametrize("kind", ["attention", "gated"])
def test_masks_of_two_prompts(kind):
    """Subjects of a prompt under ConditioningSetMask act in its mask alone, beside another prompt in the rest."""
    from support.host.partner_nodes import change, core, sampled, troupe
    from support.host.small_casts import random

    mask = torch.zeros(1, 64, 96)
    mask[..., 40:] = 1
    other = core(
        "nodes",
        "ConditioningSetMask",
        conditioning=[[random(1, 77, 64, seed=6, gain=6.0), {}]],
        mask=1 - mask,
        set_cond_area="default",
        strength=1.0,
    )

    def partner(model, positive, negative):
        mine = core(
            "nodes", "ConditioningSetMask", conditioning=positive, mask=mask, set_cond_area="default", strength=1.0
        )
        return model, core("nodes", "ConditioningCombine", conditioning_1=mine, conditioning_2=other), negative

    place, once = troupe(), partial(sampled, steps=1)
    model, positive, _ = place.kinds[kind](*place.plain)
    plain, found, alone = (
        once(*place.plain),
        once(*partner(model, positive, place.plain[2])),
        once(model, positive, place.plain[2]),
    )
    masked = once(*partner(*place.plain))
    torch.testing.assert_close(found[..., :5], masked[..., :5], rtol=0, atol=1e-4 * float(masked.abs().max()))
    torch.testing.assert_close(found[..., 5:], alone[..., 5:], rtol=0, atol=1e-4 * float(alone.abs().max()))
    assert change(masked[..., :5], plain[..., :5]) > VISIBLE and change(alone[..., 5:], plain[..., 5:]) > VISIBLE


@pytest.mark.parametrize("kind", KINDS)
def test_a_deep_copy_of_a_conditioning_is_the_same_and_copies_no_weights(kind):
    """As packs make them before they change something."""
    from copy import deepcopy

    from support.host.partner_nodes import sampled, troupe

    model, positive, negative = troupe().kinds[kind](*troupe().plain)
    copied = deepcopy(positive)
    for key in {"troupe", "troupe_prompt"} & set(positive[0][1]):
        made, given = copied[0][1][key], positive[0][1][key]
        assert made is given or all(a is b for a, b in zip(made, given, strict=True))
    assert torch.equal(sampled(model, copied, deepcopy(negative)), troupe().alone(kind)[1])


STRANGER = """
import torch

NODE_CLASS_MAPPINGS = {}

def tiled(apply, args):
    x, t, c = args["input"], args["timestep"], args["c"]
    return torch.cat([apply(half, t, **c) for half in x.chunk(2, -2)], -2)

def apart(apply, args):
    rows, given = len(args["cond_or_uncond"]), args["c"]
    found, parts = [], (v.chunk(rows) for v in (args["input"], args["timestep"], given["c_crossattn"]))
    for i, (x, t, text) in enumerate(zip(*parts)):
        options = given["transformer_options"] | {"cond_or_uncond": [args["cond_or_uncond"][i]]}
        found.append(apply(x, t, **{**given, "c_crossattn": text, "transformer_options": options}))
    return torch.cat(found)

def more_rows(q, k, v, options):
    return tuple(torch.cat((t, t[:1])) for t in (q, k, v))

def fewer_rows(out, options):
    return out[:-1]

def half(q, k, v, options):
    return q[:, ::2], k, v

def doubled(out, options):
    return out.repeat_interleave(2, 1)

"""


@pytest.fixture(scope="module")
def stranger(host, tmp_path_factory):
    """A pack with ways of its own, loaded by the host."""
    import asyncio
    import sys

    import nodes

    place = tmp_path_factory.mktemp("custom_nodes") / "Strange-Pack v1.2"
    place.mkdir()
    (place / "__init__.py").write_text("from .ways import *\n")
    (place / "ways.py").write_text(STRANGER)
    assert asyncio.run(nodes.load_custom_node(str(place)))
    return sys.modules[str(place).replace(".", "_x_") + ".ways"]


def in_tiles(model, pack):
    model.set_model_unet_function_wrapper(pack.tiled)


def rows_apart(model, pack):
    model.set_model_unet_function_wrapper(pack.apart)


def more_rows(model, pack):
    model.set_model_attn2_patch(pack.more_rows)
    model.set_model_attn2_output_patch(pack.fewer_rows)


def half_the_positions(model, pack):
    model.set_model_attn2_patch(pack.half)
    model.set_model_attn2_output_patch(pack.doubled)


CANNOT = {  # what the pack does -> kind of node, what our warning says
    "attention in tiles": (
        "attention",
        in_tiles,
        "samples the picture in tiles: regions and boxes of Apply Image Attention cannot be mapped to tiles "
        "and are ignored",
    ),
    "gated in tiles": (
        "gated",
        in_tiles,
        "samples the picture in tiles: boxes cannot be mapped to tiles, so Apply Gated Adapter is skipped",
    ),
    "attention, rows apart": (
        "attention",
        rows_apart,
        "splits the batch of a model call, so rows cannot be matched to prompts: Apply Image Attention is "
        "skipped for them",
    ),
    "gated, rows apart": (
        "gated",
        rows_apart,
        "splits the batch of a model call, so rows cannot be matched to prompts: Apply Gated Adapter is "
        "skipped for them",
    ),
    "attention, more rows": (
        "attention",
        more_rows,
        "so rows cannot be matched to prompts: Apply Image Attention skips those layers",
    ),
    "attention, positions": (
        "attention",
        half_the_positions,
        "rearranged the positions of the picture: regions and boxes of Apply Image Attention are ignored in "
        "those layers",
    ),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_work_together_is_told_once_with_both_names(case, stranger, caplog):
    from support.host.partner_nodes import sampled, troupe

    kind, way, sentence = CANNOT[case]
    place, region = troupe(), torch.zeros(32, 32)
    region[:, :16] = 1
    if kind == "attention":
        from support.host.small_casts import settings
        from troupe.model_patches.hosts.comfyui.apply import apply_image_attention

        references = place.stage.references(2, regions=[region, None])
        model, positive, negative = apply_image_attention(place.patcher, references, settings(), *place.plain[1:])[:3]
    else:
        model, positive, negative = place.kinds[kind](*place.plain)
    model = model.clone()
    way(model, stranger)
    with caplog.at_level("INFO", "troupe"):
        assert torch.isfinite(sampled(model, positive, negative, batch=2)).all()
    said = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert not any("had no effect in this run" in r.message for r in caplog.records)
    assert len(said) == 1 and said[0].startswith("Troupe: Strange-Pack v1.2 ") and sentence in said[0]


@pytest.fixture
def calls(monkeypatch):
    """For every model call under a Troupe node on the MODEL: {index in the host's list: role or None}, and the rows'
    contexts by index.
    """
    from troupe.model_patches.hosts.comfyui.sampling.hook import Hook

    seen, original = [], Hook.apply_model

    def spy(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        call = transformer_options["troupe"].get(self.id)
        rows = list(zip(transformer_options["cond_or_uncond"], transformer_options["uuids"], strict=True))
        roles = {i: chunk.role if call and (chunk := call.table.get((i, u))) else None for i, u in rows}
        seen.append((roles, dict(zip((i for i, _ in rows), c_crossattn.chunk(len(rows)), strict=True))))
        return original(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    monkeypatch.setattr(Hook, "apply_model", spy)
    return seen


FURTHER_CALLS = {  # node -> roles in the calls of a step
    "PerturbedAttentionGuidance": [{1: "uncond", 0: "cond"}, {0: "cond"}],
    "SelfAttentionGuidance": [{1: "uncond", 0: "cond"}, {0: "uncond"}],
    "SkipLayerGuidanceDiT": [{1: "uncond", 0: "cond"}, {0: "cond"}],
    "SkipLayerGuidanceDiTSimple": [{0: "cond"}, {1: "uncond"}],
}
SKIP_LAYERS = {
    "SkipLayerGuidanceDiT": dict(
        scale=3.0, start_percent=0.0, end_percent=1.0, double_layers="0, 1", single_layers="0", rescaling_scale=0.0
    ),
    "SkipLayerGuidanceDiTSimple": dict(start_percent=0.0, end_percent=1.0, double_layers="0, 1", single_layers="0"),
}


@pytest.mark.parametrize("kind", ["attention", "gated"])
@pytest.mark.parametrize("name", FURTHER_CALLS)
def test_further_calls_of_a_step_see_who_is_whose(name, kind, calls):
    """Perturbed and skipped predictions have the subjects of the prompt they are of, a negative's never; as many calls
    as without Troupe, before or after it.
    """
    from support.host.partner_nodes import STEPS, sampled, troupe

    partner = MODEL_NODES.get(name) or on_model("nodes_slg", name, **SKIP_LAYERS[name])
    place = troupe()
    for wires in (place.kinds[kind](*partner(*place.plain)), partner(*place.kinds[kind](*place.plain))):
        calls.clear()
        sampled(*wires)
        assert [roles for roles, _ in calls] == FURTHER_CALLS[name] * STEPS


@pytest.mark.parametrize("name", FURTHER_CALLS)
def test_further_calls_of_a_step_see_its_text(name, calls):
    """Perturbed and skipped predictions of a prompt whose subjects enter it later have the text of the step."""
    from support.host.partner_nodes import STEPS, fused, sampled, troupe

    partner = MODEL_NODES.get(name) or on_model("nodes_slg", name, **SKIP_LAYERS[name])
    place = troupe()
    model, positive, negative = place.kinds["attention"](*fused(*place.plain))
    sampled(*partner(model, positive, negative))
    text, later = place.plain[1][0][0], positive[0][0]
    each = len(FURTHER_CALLS[name])
    assert len(calls) == each * STEPS
    for number, (roles, contexts) in enumerate(calls):
        for index, role in roles.items():
            expected = negative[0][0] if role == "uncond" else text if number < each else later
            assert torch.equal(contexts[index], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SKIP_LAYERS)
def test_skipping_layers_of_other_architectures_changes_nothing_on_a_unet(name, kind):
    """The host's nodes name blocks that a UNet does not have: with Troupe as without."""
    from support.host.partner_nodes import change, four, troupe

    found = four(troupe(), kind, on_model("nodes_slg", name, **SKIP_LAYERS[name]))
    assert found.effects[0] < 1e-5 < VISIBLE < found.effects[1]
    assert max(change(both, found.ours) for both in (found.before, found.after)) < 1e-5


@pytest.mark.parametrize("zsnr", [False, True], ids=["eps schedule", "zero terminal snr"])
@pytest.mark.parametrize("kind", ["attention", "gated"])
def test_v_prediction_models_of_the_sdxl_family(kind, zsnr):
    """As Illustrious and NoobAI are published: the file says so itself, the host makes the model; compared with the
    evaluation without hooks.
    """
    import comfy.model_sampling
    import comfy.sd
    from support.host import independent_evaluation as independent
    from support.host import independent_gated_evaluation as independent_gated
    from support.host import tiny_models
    from support.host.small_casts import error, ksample, noise_of, settings, stage
    from support.host.small_gated_casts import GatedStage, gated_adapter
    from troupe.model_patches.binding.settings import GatedSettings

    state = (
        tiny_models.build_unet_sd("sdxl_vega_topology", dtype=torch.float32)
        | {"v_pred": torch.tensor([])}
        | ({"ztsnr": torch.tensor([])} if zsnr else {})
    )
    patcher = comfy.sd.load_state_dict_guess_config(state, output_vae=False, output_clip=False)[0]
    sampling = patcher.get_model_object("model_sampling")
    assert isinstance(sampling, comfy.model_sampling.V_PREDICTION) and (float(sampling.sigma_max) > 1000) == zsnr
    st = stage(patcher=patcher)
    if kind == "attention":
        references, module = st.references(2), independent
        model, truth = st.apply(references, settings()), st.truth(references, settings())
        nothing = None
    else:
        st, module = GatedStage(patcher, gated_adapter(patcher), st.positive, st.negative), independent_gated
        references = st.references(2)
        model, truth = st.apply(references, GatedSettings()), [st.truth(references, GatedSettings())]
        nothing = []
    noise = noise_of((8, 8))
    expected, without = (module.sample(patcher, t, st.positive, st.negative, noise) for t in (truth, nothing))
    assert error(ksample(*model, size=(8, 8)), expected, without) < 1e-3
