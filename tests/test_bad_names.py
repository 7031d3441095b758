"""Names, metadata and shapes that only damage or malice gives: never an endless loop, never another exception than
ours.
"""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from support.file_mutations import Bag
from support.published_layouts import clip_text, flat, gligen_state, layers, mm_diff_members, umm_state
from support.refused_files import STATE, checked, refused
from support.side_effects import outcome, watched
from support.small_checkpoints import FEW, FORMATS, PLUS
from troupe.model_patches.adapter import GatedSpec
from troupe.model_patches.checkpoints import clip_vision
from troupe.model_patches.checkpoints.clip_text import text_weights
from troupe.model_patches.errors import CheckpointError
from troupe.model_patches.families.ip_adapter import build
from troupe.model_patches.families.mm_diff import unet as mm_diff_unet
from troupe.model_patches.families.registry import read_adapter

LONG = "9" * 5000
NAMES = {
    "plus": ["image_proj.layers.999999999.0.to_q.weight", "image_proj.layers.٣.x"],
    "IP-Adapter": ["ip_adapter.999999999.to_k_ip.weight", "ip_adapter.٣.to_k_ip.weight"],
    "MM-Diff bundle": [
        "unet.9999.x",
        "unet.999.to_k_lora.down.weight",
        "face_embeds_proj.refiner.layers.999999999.0.to_q.weight",
    ],
    "UMM-Diffusion": ["mapping.layers.999999999.weight"],
    "Subject-Diffusion bundle": [
        "clip_text.text_model.encoder.layers.999999999.mlp.fc1.weight",
        "unet.down_blocks.99999.attentions.0.transformer_blocks.0.fuser.linear.weight",
    ],
    "GLIGEN text, pruned": ["input_blocks.99999.1.transformer_blocks.0.fuser.linear.weight"],
}


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, names in NAMES.items() for name in names])
def test_a_name_with_a_huge_number_is_refused_at_once(tmp_path, kind, name):
    folder = FORMATS[kind]()
    path = tmp_path / folder.chosen
    bag = folder.files[folder.chosen]
    path.write_bytes(bag.bytes(bag.state | {name: torch.ones(2, 2)}))
    with watched():
        _, error = outcome(lambda: read_adapter(path))
    # no transformer block's name: passed over, as is whatever else a UNet's file holds
    if "99999." in name and "999999" not in name:
        assert error is None or type(error) is CheckpointError
    else:
        refused(path)


@pytest.mark.parametrize(
    "build",
    [
        lambda: read_long("plus", f"image_proj.layers.{LONG}.x"),
        lambda: mm_diff_unet.read(
            mm_diff_members(8, (2, 4))["unet_adapter_weights"] | {f"{LONG}.to_q_lora.down.weight": torch.ones(1, 1)},
            "x",
        ),
        lambda: text_weights(clip_text(8) | {f"text_model.encoder.layers.{LONG}.x": torch.ones(1)}, 8, "x", "x"),
    ],
    ids=["plus", "mm_diff", "clip_text"],
)
def test_five_thousand_digits_are_no_number(build):
    with watched(reserve=192 << 20), pytest.raises(CheckpointError):  # with the tensors that the test makes
        build()


def read_long(kind, name):
    return build(flat(PLUS, layers(16, (2,))) | {name: torch.ones(1), f"ip_adapter.{LONG}.x": torch.ones(1)}, "x")


@pytest.mark.parametrize(
    "texts",
    [
        {"tokens": LONG},
        {"tokens": "99999999999"},
        {"activation": "x" * 10_000},
        {"base": "a\nb"},
        {"version": "v" * 999},
    ],
)
def test_metadata_are_shown_short_and_never_taken_for_a_huge_number(tmp_path, texts):
    safetensors.torch.save_file(umm_state((768, 3, 768)), tmp_path / "x.safetensors", texts)
    assert len(refused(tmp_path / "x.safetensors")) < 400


@pytest.mark.parametrize("slots", [LONG, "99999999999", "100"])
def test_a_bundle_for_a_huge_number_of_subjects_has_the_usual(tmp_path, slots):
    bag = FORMATS["Subject-Diffusion bundle"]().files["bundle.safetensors"]
    (tmp_path / "x.safetensors").write_bytes(Bag(bag.state, metadata=bag.metadata | {"slots": slots}).bytes())
    assert read_adapter(tmp_path / "x.safetensors").spec.part(GatedSpec).slots == 2


@pytest.mark.parametrize("shape", [(), (0,), (2,), (4, 3)])
def test_an_attention_that_does_not_part_in_three_is_refused_by_name(shape):
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    with pytest.raises(CheckpointError, match=name):
        clip_vision.overlay({name: torch.ones(shape)}, "x.bin")


@pytest.mark.parametrize("name", ["visual.proj", "visual_projection.weight"])
@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3)])
def test_a_projection_that_is_no_matrix_is_refused_by_name(name, shape):
    with pytest.raises(CheckpointError, match=name):
        clip_vision.overlay({name: torch.ones(shape), "vision_model.x": torch.ones(1)}, "x.bin")


def test_one_projection_in_both_layouts_is_refused_by_both_names():
    """They need not be equal, and only one would be taken."""
    with pytest.raises(
        CheckpointError, match=r"one layout in 'x\.bin', found both 'visual_projection\.weight' and 'visual\.proj'"
    ):
        clip_vision.overlay({"visual_projection.weight": torch.ones(3, 4), "visual.proj": torch.ones(4, 3)}, "x.bin")


def test_the_shape_of_a_misshapen_query_is_the_files_own():
    state = flat(PLUS, layers(16, (2,)))
    with pytest.raises(
        CheckpointError,
        match=r"'image_proj\.layers\.0\.0\.to_q\.weight' of 'x\.bin' to have rows in a multiple of 64, found the "
        r"shape \[2, 16\]",
    ):
        build(state | {"image_proj.layers.0.0.to_q.weight": torch.ones(2, 16)}, "x.bin")


@pytest.mark.parametrize(
    "matrix",
    [
        torch.ones(3),
        torch.ones(()),
        torch.ones(1, 2, 2),
        torch.full((16, 16), float("nan")),
        torch.ones(16, 16, dtype=torch.int64),
    ],
)
def test_a_matrix_of_another_form_is_refused_by_its_files_name(tmp_path, matrix):
    safetensors.torch.save_file(gligen_state("text_image", FEW, feature=16, hidden=4), tmp_path / "m.safetensors")
    (tmp_path / "image_project").mkdir()
    safetensors.torch.save_file(
        {"project.weight": matrix}, tmp_path / "image_project" / "diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(CheckpointError) as caught:
        read_adapter(tmp_path / "m.safetensors")
    checked(caught.value, "diffusion_pytorch_model.safetensors")


def test_parts_are_found_whatever_signs_are_in_their_name(tmp_path):
    names = list(STATE)
    for i, part in enumerate((names[:4], names[4:]), 1):
        safetensors.torch.save_file(
            {name: STATE[name] for name in part}, tmp_path / f"[a]*b-0000{i}-of-00002.safetensors"
        )
    assert read_adapter(tmp_path / "[a]*b-00001-of-00002.safetensors").spec.family == "ip_adapter"
