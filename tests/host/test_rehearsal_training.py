"""Adapters that were trained for the rehearsal world: the real host paints the trainer's own validation picture."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from support import tiny_training as small
from troupe.model_patches.adapter import GatedSpec, ImageAttentionSpec, PromptSpec
from troupe_tools.pack import ROOT

BOXES = [{"x": 0.0, "y": 0.3, "w": 0.5, "h": 0.6}, {"x": 0.5, "y": 0.25, "w": 0.4, "h": 0.7}]
TOLERANCE = 1e-3  # of a decoded picture in 0..1
STEPS, CFG, SEED, CAPTION = 4, 3.0, 5, "a cat and a robot on grass"

pytestmark = [pytest.mark.usefixtures("host"), pytest.mark.slow]


@pytest.fixture(scope="module")
def models(host):
    """(MODEL, CLIP, VAE, image encoder, -, cat, robot, -) of the shipped files."""
    from support.host.node_chains import run
    from troupe.nodes.rehearsal import LoadRehearsalModels
    from troupe.rehearsal import files

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(files, "FOLDER", ROOT / "rehearsal" / "files")
        kinds = {"subject_1": "cat", "subject_2": "robot", "subject_3": "bird"}
        return run(LoadRehearsalModels, adapter="mip_adapter", **kinds)


def trained(recipe, half=False, **options):
    """A trainee of the rehearsal world with weights of no training; half: that float16 has exactly."""
    from troupe.training.model.base import rehearsal_base

    trainee = small.trainee(recipe, rehearsal_base(), **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in trainee.named_parameters():
            if parameter.requires_grad:
                size = 0.02 * parameter.std().nan_to_num(0.02) if name.startswith("unet.") else 0.1
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
            if half:
                parameter.copy_(parameter.half())
    trainee.finish()
    return trainee


def host_picture(models, path, names):
    """[128, 128, 3] of the nodes that the adapter needs (Apply Adapter Weights and Encode Prompt with Subjects if it
    acts in the prompt, its own Apply node) and KSampler, without subjects for no names.
    """
    import comfy.ops
    from support.host.node_chains import run
    from troupe.model_patches.families.registry import read_adapter
    from troupe.model_patches.hosts.comfyui.loading.adapters import host_adapter
    from troupe.nodes.add_subject import AddSubject
    from troupe.nodes.apply_gated import ApplyGated
    from troupe.nodes.apply_image_attention import ApplyImageAttention
    from troupe.nodes.apply_weights import ApplyAdapterWeights
    from troupe.nodes.encode_prompt import EncodePrompt
    from troupe.nodes.encode_subjects import EncodeSubjects
    from troupe.nodes.place_subjects import PlaceSubjects

    import nodes

    model, clip, vae, clip_vision, _, *pictures = models
    adapter = host_adapter(read_adapter(path, path.name, comfy.ops.manual_cast))
    if adapter.spec.has(PromptSpec):
        own = {"strength_model": 1.0, "strength_clip": 1.0}
        model, clip = run(ApplyAdapterWeights, model=model, adapter=adapter, clip=clip, **own)[:2]
    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (CAPTION, ""))
    if names:
        cast = None
        for name, picture in zip(names, pictures, strict=False):
            node = {"image": picture, "name": name, "weight": 1.0, "start_percent": 0.0, "end_percent": 1.0}
            cast = run(AddSubject, cast=cast, **node)[0]
        size = {"width": 128, "height": 128, "layout": "none"}
        cast = run(PlaceSubjects, cast=cast, boxes=json.dumps(BOXES), **size)[0]
        references = run(
            EncodeSubjects, adapter=adapter, cast=cast, framing="auto", clip=clip, clip_vision=clip_vision
        )[0]
        if adapter.spec.has(PromptSpec):
            widgets = {"text": CAPTION, "fuse_start_percent": 0.0, "fuse_start_step": 0, "quirks": "clean"}
            positive = run(EncodePrompt, clip=clip, references=references, **widgets)[0]
        wires = {"model": model, "positive": positive, "negative": negative, "references": references}
        if adapter.spec.has(GatedSpec):
            widgets = {"strength": 1.0, "end_percent": 1.0, "decay_percent": 0.0, "use_bbox": "on"}
            model, positive, negative, _ = run(ApplyGated, **wires, **widgets)
        if adapter.spec.has(ImageAttentionSpec):
            widgets = {"weight": 1.0, "merge": "auto", "start_percent": 0.0, "end_percent": 1.0, "box_strength": 0.0}
            more = {"box_end_percent": 1.0, "box_feather": 0.0, "sharpness": 1.0, "background": 1.0}
            model, positive, negative, _ = run(ApplyImageAttention, **wires, **widgets, **more)
    latent = nodes.EmptyLatentImage().generate(128, 128)[0]
    latent = nodes.common_ksampler(model, SEED, STEPS, CFG, "euler", "simple", positive, negative, latent)[0]
    return nodes.VAEDecode().decode(vae, latent)[0][0]


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("fastcomposer", "fastcomposer"),
        ("umm_diffusion", "umm"),
        ("subject_diffusion", "subject_diffusion"),
        ("mm_diff", "mm_diff"),
    ],
)
def test_load_rehearsal_models_offers_the_adapters_of_the_prompt(kind, family, monkeypatch):
    from support.host.node_chains import run
    from troupe.nodes.rehearsal import LoadRehearsalModels
    from troupe.rehearsal import files

    monkeypatch.setattr(files, "FOLDER", ROOT / "rehearsal" / "files")
    kinds = {"subject_1": "cat", "subject_2": "robot", "subject_3": "bird"}
    adapter = run(LoadRehearsalModels, adapter=kind, **kinds)[4]
    assert adapter.spec.family == family and adapter.spec.has(PromptSpec)


@pytest.mark.parametrize(
    "recipe, options, half",
    [
        ("ip_adapter", {}, False),
        ("ip_adapter", {"projection": "Resampler"}, False),
        ("mip_adapter", {}, False),
        ("mip_adapter", {}, True),
        ("umm_diffusion", {}, False),
        ("fastcomposer", {}, False),
        ("fastcomposer", {}, True),
        ("mm_diff", {}, False),
        ("subject_diffusion", {}, False),
    ],
    ids=[
        "ip",
        "ip plus",
        "mip",
        "mip half",
        "umm",
        "fastcomposer",
        "fastcomposer half",
        "mm_diff",
        "subject_diffusion",
    ],
)
def test_the_host_paints_the_validation_picture_of_the_trainer(recipe, options, half, models, tmp_path):
    from troupe.model_patches.subjects import Box, Cast, Photo, Subject
    from troupe.training.config.schema import SheetConfig
    from troupe.training.export import write_export
    from troupe.training.sheet import paint

    trainee = trained(recipe, half, **options)
    path = write_export(trainee.export(), tmp_path / "trained.safetensors", half=half)
    assert {value.dtype for value in load_file(path).values()} == {torch.float16 if half else torch.float32}
    sheet = SheetConfig(steps=STEPS, cfg=CFG, seed=SEED)
    boxes = [Box(**box) for box in BOXES] if recipe == "subject_diffusion" else [None, None]
    names = enumerate(("cat", "robot"))
    cast = Cast(tuple(Subject(name, (Photo(models[5 + i][0]),), box=boxes[i]) for i, name in names))
    with torch.no_grad():
        expected = paint(trainee.base, trainee.adapter(), CAPTION, cast, sheet, 128)
        without = paint(trainee.base, trainee.adapter(), CAPTION, None, sheet, 128)
    with torch.inference_mode():
        found, plain = (host_picture(models, path, names) for names in (("cat", "robot"), ()))
    assert (expected - without).abs().max() > 0.1, "the references have no effect, so nothing is tested"
    assert (found - expected).abs().max() < TOLERANCE
    assert (plain - without).abs().max() < TOLERANCE
