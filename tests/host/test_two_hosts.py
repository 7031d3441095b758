"""ComfyUI and the embedded engine check each other: the same weights, references and inputs give the same numbers."""

import random
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from troupe.model_patches.attention.merges import MERGES

pytestmark = pytest.mark.usefixtures("host")
TOLERANCE = 1e-4  # of the peak
SIZE = (13, 20)  # latent cells, odd on purpose
PIXELS = {"height": SIZE[0] * 8, "width": SIZE[1] * 8}


def twin_unet(patcher, base):
    """The diffusers UNet with the weights of a micro model of the host."""
    import comfy.utils
    from diffusers import UNet2DConditionModel

    config = patcher.model.model_config.unet_config
    names = comfy.utils.unet_to_diffusers(
        {**config, **{k: list(config[k]) for k in ("transformer_depth", "transformer_depth_output")}}
    )
    width, context = config["model_channels"], config["context_dim"]
    more = (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": config["adm_in_channels"],
        }
        if base == "SDXL"
        else {}
    )
    blocks = config["num_res_blocks"][0]
    depths = config["transformer_depth"][::blocks]  # of each level
    attends = ["CrossAttn" if depth else "" for depth in depths]
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=[width * factor for factor in config["channel_mult"]],
        layers_per_block=blocks,
        transformer_layers_per_block=[depth or 1 for depth in depths],
        cross_attention_dim=context,
        attention_head_dim=config["num_heads"],
        use_linear_projection=config["use_linear_in_transformer"],
        down_block_types=[f"{kind}DownBlock2D" for kind in attends],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(attends)],
        **more,
    )
    host = patcher.model.diffusion_model.state_dict()
    renamed = {name: host[names[name]].view(value.shape) for name, value in unet.state_dict().items() if name in names}
    embedding = (
        {
            f"add_embedding.linear_{i + 1}.{k}": host[f"label_emb.0.{2 * i}.{k}"]
            for i in (0, 1)
            for k in ("weight", "bias")
        }
        if more
        else {}
    )
    unet.load_state_dict({**renamed, **embedding})
    return unet.eval().requires_grad_(False)


def schedule():
    """Stable Diffusion's noise levels."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def embedded(references, state):
    """The same references with the adapter's modules on plain torch."""
    from troupe.model_patches.families.ip_adapter import build

    return replace(references, adapter=build(state, "test.safetensors"))


def both(base, text_gain=False):
    """A stage and the twin of its UNet; 64 channels, since group norm over single channels would hide the time and size
    embeddings.
    """
    from support.host.small_casts import CONTEXT, stage
    from support.host.tiny_models import micro_model

    st = stage(base, text_gain, patcher=micro_model(base, model_channels=64, context_dim=CONTEXT))
    for entries in (st.positive, st.negative):
        entries[0][1].update(PIXELS)
    return st, twin_unet(st.patcher, base)


def host_calls(unet, wired, **sampling):
    """Inputs and outputs of every call of the UNet in a run of the host's KSampler. wired: (model, positive, negative)
    after the Apply nodes.
    """
    from support.host.small_casts import ksample

    calls = []

    def keep(unet, args, kwargs, output):
        calls.append((args, kwargs, output))

    hook = unet.register_forward_hook(keep, with_kwargs=True)
    try:
        ksample(*wired, SIZE, steps=3, **sampling)
    finally:
        hook.remove()
    return calls


def compare(base, references_of, settings, text_gain=False, **sampling):
    """Every call's prediction in both hosts; returns the percents of the calls in which the references acted."""
    from troupe.model_patches.hosts.diffusers.image_attention import ImageAttention

    st, unet = both(base, text_gain)
    references = references_of(st)
    calls = host_calls(st.patcher.model.diffusion_model, st.apply(references, settings), **sampling)
    return same_predictions(unet, [ImageAttention(unet, embedded(references, st.state), settings)], calls, st)


def same_predictions(unet, applied, calls, st):
    """Each of the host's calls once more in the embedded engine, with the references and without; see `compare`.
    applied: apply_... of that engine.
    """
    from troupe.model_patches.binding.layer_tokens import COND, UNCOND
    from troupe.model_patches.hosts.diffusers.encoders import Prompt
    from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, percent_of, size_condition

    acted = []
    with ExitStack() as stack:
        bound = [stack.enter_context(apply) for apply in applied]
        for (x, t, *_), kwargs, expected in calls:
            order = kwargs["transformer_options"]["cond_or_uncond"]
            percent = percent_of(float(t[0]), schedule())
            prompts = [
                Prompt(kwargs["context"][:1], (st.negative if i else st.positive)[0][1]["pooled_output"]) for i in order
            ]
            given = {
                "encoder_hidden_states": kwargs["context"],
                "added_cond_kwargs": size_condition(
                    unet, prompts, SamplingSettings(**PIXELS, batch=len(x) // len(order))
                ),
            }
            for apply in bound:
                apply.roles = tuple(UNCOND if i else COND for i in order)
                apply.at(percent)
            found = unet(x, t, **given).sample
            assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()
            for apply in bound:
                apply.roles = (None,) * len(order)
            without = unet(x, t, **given).sample
            effect = float((without - expected).abs().max() / expected.abs().max())
            assert effect < TOLERANCE or effect > 100 * TOLERANCE, "the references' effect is too small to be compared"
            if effect > TOLERANCE:
                acted.append(round(percent, 2))
    return acted


@pytest.mark.parametrize("base", ["SD15", "SD20", "SDXL"])
@pytest.mark.parametrize("merge", ["relevance", "joint"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_predictions(base, merge, count):
    from support.host.small_casts import settings

    assert compare(base, lambda st: st.references(count), settings(merge, 1.0)) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("merge", MERGES)
def test_predictions_with_everything_on(merge):
    """Trained gain, weights, a region, a box, sharpness, background, a batch of two."""
    from support.host.small_casts import settings
    from troupe.model_patches.subjects import Box

    def references(st):
        return st.references(
            3,
            weights=[1.0, 0.5, 1.5],
            regions=[None, torch.eye(40)[:, :33], None],
            boxes=[Box(0.1, 0.2, 0.5, 0.6), None, None],
        )

    assert compare(
        "SDXL", references, settings(merge, 1.0, 2.0, 0.5, box_feather=0.1, box_strength=0.8), True, batch=2
    ) == [0.0, 0.5, 1.0]


def test_ranges_begin_and_end_in_the_same_steps():
    from support.host.small_casts import settings

    ranges = [(0.0, 0.7), (0.4, 0.7)]
    assert compare("SD15", lambda st: st.references(2, ranges=ranges), settings(weight=1.0)) == [0.0, 0.5]
    assert compare("SD15", lambda st: st.references(2), settings(weight=1.0, start_percent=0.6)) == [1.0]


def test_boxes_hold_image_attention_alike():
    """Boxes on an odd latent, half of them off, with a soft edge, until 60% of the run."""
    from support.host.small_casts import settings
    from troupe.model_patches.subjects import Box

    def references(st):
        return st.references(2, boxes=[Box(0.05, 0.1, 0.45, 0.8), Box(0.5, 0.3, 0.37, 0.7)])

    assert compare("SDXL", references, settings(weight=1.0)) == [0.0, 0.5, 1.0]
    assert compare(
        "SD15", references, settings("uniform", 1.0, box_strength=0.7, box_end_percent=0.6, box_feather=0.2), batch=2
    ) == [0.0, 0.5, 1.0]


# ---- gated adapters --------------------------------------------------------------------------------------------------


def embedded_gated(references):
    """The same references with the gated layers on plain torch."""
    from support.host.small_gated_casts import published
    from troupe.model_patches.adapter import Adapter, GatedSpec
    from troupe.model_patches.encoders.gated import GatedLayers
    from troupe.model_patches.encoders.grounding import GroundingNet, TextImagePositionNet, TextPositionNet

    spec, module = references.adapter.spec, references.adapter.gated_patcher.model
    described = spec.part(GatedSpec)
    net = {"text": TextPositionNet, "text_image": TextImagePositionNet, "patches": GroundingNet}[described.kind]
    mask_width = None if module.mask_conv is None else module.mask_conv.out_channels
    layers = GatedLayers(
        net(**net.widths(published(module.net.state_dict()))),
        list(described.places.values()),
        described.object_dim,
        mask_width,
    )
    layers.load_state_dict(module.state_dict())
    return replace(references, adapter=Adapter(spec, None, None, layers.eval().requires_grad_(False)))


def compare_gated(kind, base, count, settings, attention=None, **changed):
    """Every call's prediction in both hosts, with boxes that hold the image attention of one more Apply node where its
    settings are given.
    """
    from support.host.small_casts import CONTEXT, Stage, adapter_state, host_adapter
    from support.host.small_gated_casts import BOXES, gated_stage
    from support.host.tiny_models import micro_model
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention as host_attention
    from troupe.model_patches.hosts.diffusers.gated import apply_gated
    from troupe.model_patches.hosts.diffusers.image_attention import ImageAttention
    from troupe.model_patches.subjects import Box

    patcher = micro_model(base, model_channels=64, context_dim=CONTEXT)
    gated, unet = gated_stage(kind, base, patcher=patcher), twin_unet(patcher, base)
    for entries in (gated.positive, gated.negative):
        entries[0][1].update(PIXELS)
    references = gated.references(count, **changed)
    wired, applied = gated.apply(references, settings), [apply_gated(unet, embedded_gated(references), settings)]
    if attention is not None:
        state = adapter_state(patcher)
        photos = Stage(patcher, host_adapter(state), state, gated.positive, gated.negative).references(
            count, boxes=[Box(*box) for box in BOXES[:count]]
        )
        wired = host_attention(wired[0], photos, attention, *wired[1:])[:3]
        applied.append(ImageAttention(unet, embedded(photos, state), attention))
    return same_predictions(unet, applied, host_calls(patcher.model.diffusion_model, wired, cfg=5.0, batch=2), gated)


@pytest.mark.parametrize("kind", ["text", "text_image", "patches"])
@pytest.mark.parametrize("base", ["SD15", "SDXL"])
@pytest.mark.parametrize("count", [1, 2])
def test_gated_predictions(kind, base, count):
    """Cond and uncond rows, a batch of two, an odd latent; with Subject-Diffusion's mask channel on it."""
    from troupe.model_patches.binding.settings import GatedSettings

    assert compare_gated(kind, base, count, GatedSettings()) == [0.0, 0.5, 1.0]


def test_gated_schedules_weights_and_ranges_are_alike():
    """tau and its decay by step, a subject's weight, and one that is out of its range in the last step."""
    from troupe.model_patches.binding.settings import GatedSettings

    assert compare_gated(
        "text_image", "SD15", 2, GatedSettings(0.7, 0.25, 0.5), weights=[0.5, 1.5], ranges=[(0.0, 1.0), (0.0, 0.4)]
    ) == [0.0, 0.5]
    assert compare_gated("patches", "SD15", 2, GatedSettings(use_bbox="off"), ranges=[(0.0, 0.3), (0.3, 1.0)]) == [
        0.0,
        0.5,
        1.0,
    ]


@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_gated_layers_beside_image_attention_in_boxes(kind):
    from support.host.small_casts import settings
    from troupe.model_patches.binding.settings import GatedSettings

    assert compare_gated(kind, "SD15", 2, GatedSettings(), settings(weight=1.0)) == [0.0, 0.5, 1.0]


def test_whole_gated_runs():
    """Noise, schedule, guidance and steps too, as `test_whole_runs`."""
    from support.host.small_casts import CONTEXT, ksample
    from support.host.small_gated_casts import gated_stage
    from support.host.tiny_models import micro_model
    from troupe.model_patches.binding.settings import GatedSettings
    from troupe.model_patches.hosts.diffusers.encoders import Prompt
    from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, sample

    patcher, settings = micro_model("SD15", model_channels=64, context_dim=CONTEXT), GatedSettings(0.8, 0.5)
    st, unet = gated_stage(patcher=patcher), twin_unet(patcher, "SD15")
    references = st.references(2)
    expected = patcher.model.process_latent_in(ksample(*st.apply(references, settings), SIZE, 2, 4, 5.0, seed=6))
    prompts = [Prompt(entries[0][0], None) for entries in (st.positive, st.negative)]
    plain, found = (
        sample(unet, schedule(), *prompts, SamplingSettings(**PIXELS, steps=4, cfg=5.0, seed=6, batch=2), applied)
        for applied in ((), [(embedded_gated(references), settings)])
    )
    assert (plain - expected).abs().max() > 100 * TOLERANCE * expected.abs().max()
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("base, cfg", [("SD15", 5.0), ("SDXL", 5.0), ("SD15", 1.0)])
def test_whole_runs(base, cfg):
    """Noise, schedule, guidance and steps too: 4 steps, whose timesteps (999, 666, 333, 0) both hosts have exactly."""
    from support.host.small_casts import ksample, settings
    from troupe.model_patches.hosts.diffusers.encoders import Prompt
    from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, sample

    st, unet = both(base)
    references, chosen = st.references(2), settings(weight=1.0)
    expected = ksample(*st.apply(references, chosen), SIZE, 2, 4, cfg, seed=6)
    expected = st.patcher.model.process_latent_in(expected)  # the host hands latents on without the VAE's factor
    prompts = [Prompt(entries[0][0], entries[0][1]["pooled_output"]) for entries in (st.positive, st.negative)]
    found = sample(
        unet,
        schedule(),
        *prompts,
        SamplingSettings(**PIXELS, steps=4, cfg=cfg, seed=6, batch=2),
        [(embedded(references, st.state), chosen)],
    )
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()


# ---- encoders --------------------------------------------------------------------------------------------------------


def text_twin(tower, hidden_act, projection):
    """The transformers model with the weights of one of the host's text encoders."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    state = {name: value.float() for name, value in tower.transformer.state_dict().items()}
    width = state["text_model.final_layer_norm.weight"].shape[0]
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=width // 64,
        hidden_act=hidden_act,
        projection_dim=width,
        eos_token_id=49407,
    )
    if projection:
        return loaded(CLIPTextModelWithProjection(config), state)
    return loaded(
        CLIPTextModel(config),
        {name.removeprefix("text_model."): value for name, value in state.items() if "text_projection" not in name},
    )


def loaded(model, state):
    wanted = set(model.state_dict()) - {name for name in model.state_dict() if name.endswith("position_ids")}
    model.load_state_dict({name: value for name, value in state.items() if name in wanted}, strict=False)
    assert not wanted - set(state)
    return model


def texts(kind):
    """(the host's CLIP, our ClipTexts) with the same weights."""
    from support.host import tiny_models
    from troupe.model_patches.hosts.diffusers.encoders import ClipTexts

    clip = tiny_models.tiny_clip(kind)
    inner = clip.cond_stage_model
    if kind == "sd15":
        return clip, ClipTexts.sd15(text_twin(inner.clip_l, "quick_gelu", False))
    if kind == "sd20":
        return clip, ClipTexts.sd2(text_twin(inner.clip_h, "gelu", False))
    return clip, ClipTexts.sdxl(text_twin(inner.clip_l, "quick_gelu", False), text_twin(inner.clip_g, "gelu", True))


def close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("kind", ["sd15", "sd20", "sdxl"])
def test_names_and_prompts(kind):
    from troupe.model_patches.hosts.comfyui.loading.encoders import HostNameEncoder

    clip, ours = texts(kind)
    names = ["cat", "Red  Fox", "(plush toy:1.3)", r"robot \(old\)", "garçon's 2nd bicycle!", ""]
    for found, expected in zip(ours.encode(names), HostNameEncoder(clip).encode(names), strict=True):
        close(found, expected)
    for prompt in [
        "",
        "a photo of a cat and a dog",
        "a (very (red:1.4)) fox, (low) light \\(dusk\\)",
        "one two three, " * 30 + "(a bright end:0.6)",
    ]:
        embeds, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
        found = ours.encode_prompt(prompt)
        close(found.embeds, embeds)
        if kind == "sdxl":
            close(found.pooled, pooled)


def test_prompt_notation_at_random():
    from comfy.sd1_clip import escape_important, token_weights, unescape_important
    from troupe.model_patches.prompt.emphasis import weighted_parts

    dice = random.Random(1)
    for _ in range(5000):
        prompt = "".join(
            dice.choice(["(", ")", ":", "1.2", "cat", "\\(", "\\)", " ", "a:2"]) for _ in range(dice.randint(0, 10))
        )
        expected = [
            (unescape_important(text), weight) for text, weight in token_weights(escape_important(prompt), 1.0) if text
        ]
        assert weighted_parts(prompt) == expected, prompt


def test_photos(tmp_path):
    from support.host import tiny_models
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    from troupe.model_patches.hosts.comfyui.loading.encoders import HostImageEncoder
    from troupe.model_patches.hosts.diffusers.encoders import ClipImages

    vision = tiny_models.tiny_clip_vision(tmp=str(tmp_path / "vision.json"))
    config = CLIPVisionConfig(
        hidden_size=32,
        image_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=3,
        patch_size=8,
        projection_dim=16,
        hidden_act="gelu",
    )
    host, ours = (
        HostImageEncoder(vision),
        ClipImages(
            loaded(
                CLIPVisionModelWithProjection(config),
                {name: value.float() for name, value in vision.model.state_dict().items()},
            )
        ),
    )
    assert (host.size, host.hidden, host.pooled) == (ours.size, ours.hidden, ours.pooled) == (32, 32, 16)
    pictures = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    for kind in ("pooled", "penultimate"):
        for given, blank in ((pictures, False), (pictures, True), (pictures[:0], True)):
            close(ours.encode(given, kind, blank), host.encode(given, kind, blank))
