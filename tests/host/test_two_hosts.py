"""ComfyUI and the embedded engine check each other: the same weights, references and inputs give the same numbers."""

import random
from dataclasses import replace

import pytest
import torch
from support.host.both_engines import (
    PIXELS,
    SIZE,
    TOLERANCE,
    both,
    close,
    embedded_gated,
    host_calls,
    loaded,
    same_predictions,
    schedule,
    texts,
    twin_unet,
)
from troupe.model_patches.attention.merges import MERGES

pytestmark = pytest.mark.usefixtures("host")


def embedded(references, state):
    """The same references with the adapter's modules on plain torch."""
    from troupe.model_patches.families.ip_adapter import build

    return replace(references, adapter=build(state, "test.safetensors"))


def compare(base, references_of, settings, text_gain=False, **sampling):
    """Every call's prediction in both hosts; returns the percents of the calls in which the references acted."""
    from troupe.model_patches.hosts.diffusers.image_attention import ImageAttention

    st, unet = both(base, text_gain)
    references = references_of(st)
    calls = host_calls(st.patcher.model.diffusion_model, st.apply(references, settings), **sampling)
    return same_predictions(unet, [ImageAttention(unet, embedded(references, st.state), settings)], calls, st)


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
