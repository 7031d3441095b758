"""Files of gated adapters: GLIGEN in every layout, Subject-Diffusion as four modules or one bundle; what is refused,
and in which words.
"""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import open_clip.transformer
import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.clip_image_project_model import CLIPImageProjection
from support import published_layouts as published
from support.prompt_fusions import FUSIONS
from support.published_layouts import (
    SD2,
    SD15,
    SD_PLACES,
    SD_WIDTHS,
    SDXL,
    SDXL_PLACES,
    SDXL_WIDTHS,
    clip_text,
    diffusers_path,
    fuser,
    gligen_state,
    nested,
    position_net,
    save_members,
    sdxl_path,
    subject_diffusion_members,
)
from support.refused_files import Bomb, checked
from support.small_checkpoints import FEW
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from troupe.model_patches.adapter import AdapterSpec, EncoderNeed, GatedSpec, PhotoSpec, PromptSpec
from troupe.model_patches.checkpoints.adapter_file import adapter_label
from troupe.model_patches.checkpoints.catalogue import ENCODERS, GATED, PROJECTION_MATRIX, published_file
from troupe.model_patches.checkpoints.files import flatten, read_metadata, read_state
from troupe.model_patches.checkpoints.unet_names import block_paths, ldm_name, order, resblocks
from troupe.model_patches.encoders.fuser import GatedFuser, published_heads
from troupe.model_patches.encoders.grounding import GroundingNet, TextImagePositionNet, TextPositionNet, TextSpace
from troupe.model_patches.encoders.leaf_parameter import module_name, published_name
from troupe.model_patches.encoders.mlp import MLP
from troupe.model_patches.errors import CheckpointError
from troupe.model_patches.families.gligen import layout as gligen
from troupe.model_patches.families.gligen.matrix import read_matrix
from troupe.model_patches.families.registry import belonging, read_adapter
from troupe.model_patches.families.subject_diffusion import layout as subject_diffusion
from troupe.model_patches.families.subject_diffusion.members import members
from troupe.model_patches.hosts.diffusers.encoders import load_adapter as load_embedded

LAYOUTS = ("ldm", "wrapped", "checkpoint", "diffusers")
MATRIX = torch.randn(SD15, SD15, generator=torch.Generator().manual_seed(3)) * SD15**-0.5


def loaded(module, state):
    """The module with published tensors, straight by name."""
    module.load_state_dict({module_name(name): tensor for name, tensor in state.items()})
    return module


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hollow_fuser(width, context):
    """A layer's names and shapes at any width, without numbers."""
    with torch.device("meta"):
        return {
            published_name(name): tensor
            for name, tensor in GatedFuser(width, context, published_heads(width, context)).state_dict().items()
        }


def refusal(state, file="my.safetensors", **extra):
    """The error of building a GLIGEN adapter from these tensors, after checking its form."""
    with pytest.raises(CheckpointError) as caught:
        gligen.build(state, file, **extra)
    return checked(caught.value, file)


def sd_refusal(parts, file="my.bin"):
    with pytest.raises(CheckpointError) as caught:
        subject_diffusion.build(parts, file)
    return checked(caught.value, file)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_the_sixteen_transformers_of_sd_go_there_and_back():
    theirs = {f"{path}.transformer_blocks.0": f"{ldm}.transformer_blocks.0" for path, ldm in SD_PLACES.items()}
    names = [f"{path}.fuser.linear.weight" for path in theirs]
    assert resblocks(names) == 2
    assert {name: ldm_name(name, 2) for name in theirs} == theirs
    found = block_paths(sorted(names), "fuser")
    assert found == {ldm: path for path, ldm in theirs.items()} and list(found) == list(theirs.values())
    assert block_paths(reversed([f"{ldm}.fuser.linear.weight" for ldm in theirs.values()]), "fuser") == {
        ldm: ldm for ldm in theirs.values()
    }


@pytest.mark.parametrize(
    "kind, paths, config",
    [
        ("SD", {f"{path}.transformer_blocks.0": f"{ldm}.transformer_blocks.0" for path, ldm in SD_PLACES.items()}, {}),
        (
            "SDXL",
            {
                f"{path}.transformer_blocks.{k}": f"{ldm}.transformer_blocks.{k}"
                for path, (ldm, depth) in SDXL_PLACES.items()
                for k in range(depth)
            },
            {
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "block_out_channels": (8, 8, 8),
                "transformer_layers_per_block": (1, 2, 10),
            },
        ),
    ],
)
def test_the_names_are_those_of_a_real_diffusers_unet(kind, paths, config):
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            **{
                "block_out_channels": (8, 8, 8, 8),
                "norm_num_groups": 4,
                "cross_attention_dim": 8,
                "attention_head_dim": 4,
                **config,
            }
        )
    names = list(unet.state_dict())
    assert max(i for i, name in enumerate(names) if name.startswith("mid_block")) > max(
        i for i, name in enumerate(names) if name.startswith("up_blocks")
    ), "the trap is there"
    found = block_paths(names, "attn2")
    assert {path: ldm for ldm, path in found.items()} == paths
    assert list(found) == list(paths.values()) == sorted(found, key=order)
    assert (
        ldm_name("conv_in.weight", 2) == "input_blocks.0.0.weight"
        and ldm_name("conv_out.weight", 2) == "conv_out.weight"
    )


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_residual_blocks_a_level_are_read_off_the_names(layers):
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            cross_attention_dim=8,
            attention_head_dim=4,
            layers_per_block=layers,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    assert resblocks(unet.state_dict()) == layers
    found = list(block_paths(unet.state_dict(), "attn2"))
    down = [f"input_blocks.{j + 1}.1.transformer_blocks.0" for j in range(layers)]
    up = [f"output_blocks.{layers + 1 + j}.1.transformer_blocks.0" for j in range(layers + 1)]
    assert found == [*down, *up, "middle_block.1.transformer_blocks.0"]


def test_a_level_down_alone_tells_its_residual_blocks():
    assert resblocks(["down_blocks.0.attentions.0.x", "down_blocks.0.attentions.1.x", "mid_block.attentions.0.x"]) == 2
    assert resblocks(["input_blocks.1.1.x"]) == 0


def test_a_tensors_name_goes_there_and_back():
    for name in (
        "fusers.0.alpha_attn.weight",
        "fusers.0.linear.weight",
        "net.null_text_feature.weight",
        "net.linears.0.bias",
    ):
        assert module_name(published_name(name)) == name
    assert published_name("fusers.0.alpha_dense.weight") == "fusers.0.alpha_dense"


# ---- GLIGEN: what is recognised --------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True], ids=["pruned", "whole"])
@pytest.mark.parametrize("kind", ["text", "text_image"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_adapter(layout, kind, whole):
    adapter = gligen.build(gligen_state(kind, layout=layout, whole=whole), "any.bin", image_project=MATRIX)
    spec = adapter.spec
    photos = () if kind == "text" else (PhotoSpec(EncoderNeed("pooled", SD15), framing="center"),)
    gated = GatedSpec(kind, SD_WIDTHS, SD15, SD15, 30, 1 if kind == "text" else 2)
    label = "GLIGEN text boxes" if kind == "text" else "GLIGEN text-image boxes"
    assert spec == AdapterSpec("gligen", "any.bin", SD15, (gated, *photos), label)
    assert list(spec.part(GatedSpec).block_widths) == list(SD_WIDTHS)
    assert (adapter.projection is None) == (kind == "text") and adapter.layers is None and not adapter.weights.unet
    assert "GLIGEN" in spec.describe() and "16" in spec.describe() and "SD1.5" in spec.describe()
    for number, place in enumerate(SD_WIDTHS):
        ours = adapter.gated.fusers[number].state_dict()
        for name, tensor in fuser(SD_WIDTHS[place], SD15, 100 + number).items():
            assert torch.equal(ours[module_name(name)], tensor), (place, name)
    net = adapter.gated.net.state_dict()
    assert all(
        torch.equal(net[module_name(name)], tensor) for name, tensor in position_net(kind, SD15, SD15, 16).items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_an_sdxl_file_has_seventy_layers(layout):
    state = gligen_state(sdxl=True, layout=layout, context=SDXL, feature=SDXL)
    adapter = gligen.build(state, "x")
    spec = adapter.spec.part(GatedSpec)
    assert list(spec.block_widths) == list(SDXL_WIDTHS) and (spec.object_dim, spec.feature_dim, adapter.spec.base) == (
        SDXL,
        SDXL,
        "SDXL",
    )
    where = sdxl_path if layout == "diffusers" else str
    for number, place in enumerate(spec.block_widths):
        assert torch.equal(adapter.gated.fusers[number].linear.weight, state[f"{where(place)}.fuser.linear.weight"])
        assert adapter.gated.fusers[number].heads == 1


@pytest.mark.parametrize("context, millions", [(SD15, 208.0), (SD2, 211.2)])
def test_the_layers_of_the_real_models_are_all_there(context, millions):
    """Names and shapes only; the numbers of parameters are those of the published layers."""
    widths = dict(zip(SD_WIDTHS, published.UNET_WIDTHS[SD15], strict=True))
    fusers = {
        f"{place}.fuser.{name}": tensor
        for place, width in widths.items()
        for name, tensor in hollow_fuser(width, context).items()
    }
    net = {f"position_net.{name}": tensor.to("meta") for name, tensor in position_net("text", SD15, context).items()}
    adapter = gligen.build(fusers | net, "x")
    assert adapter.spec.part(GatedSpec).block_widths == widths
    assert round(sum(p.numel() for p in adapter.gated.fusers.parameters()) / 1e6, 1) == millions
    assert [f.heads for f in adapter.gated.fusers] == [
        8 if context == SD15 else width // 64 for width in widths.values()
    ]


@torch.no_grad()
def test_layers_run_as_ones_built_by_hand():
    adapter = gligen.build(gligen_state("text", FEW, layout="diffusers"), "x")
    boxes, masks, text = (
        torch.tensor([[[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 0.0, 0.0]]]),
        torch.tensor([[True, False]]),
        random(1, 2, SD15),
    )
    objects = adapter.gated.net(boxes, masks, text)
    assert torch.equal(
        objects, loaded(TextPositionNet(SD15, SD15, 16), position_net("text", SD15, SD15, 16))(boxes, masks, text)
    )
    for number, width in enumerate(FEW.values()):
        mine = loaded(GatedFuser(width, SD15, published_heads(width, SD15)), fuser(width, SD15, 100 + number))
        theirs = adapter.gated.fusers[number]
        x = random(2, 12, width, seed=number)
        out = theirs(x, theirs.project(objects))
        assert torch.equal(out, mine(x, mine.project(objects))) and not torch.equal(out, x)


def test_photos_of_a_text_image_file_go_through_its_own_net():
    adapter = gligen.build(gligen_state("text_image", FEW), "x", image_project=MATRIX)
    given = (
        torch.rand(1, 2, 4),
        torch.ones(1, 2).bool(),
        torch.tensor([[True, False]]),
        torch.tensor([[False, True]]),
        random(1, 2, SD15),
        random(1, 2, SD15, seed=1),
    )
    direct = loaded(TextImagePositionNet(SD15, SD15, 16), position_net("text_image", SD15, SD15, 16))
    assert torch.equal(adapter.gated.net(*given), direct(*given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_modules_keep_the_dtypes_of_the_file(dtype):
    state = {name: tensor.to(dtype) for name, tensor in gligen_state("text_image", FEW).items()}
    adapter = gligen.build(state, "x", image_project=MATRIX.to(dtype))
    assert {p.dtype for p in [*adapter.gated.parameters(), *adapter.projection.parameters()]} == {dtype}
    assert not any(p.requires_grad or p.is_meta for p in adapter.gated.parameters())
    assert not adapter.gated.training
    assert (
        adapter.gated.fusers[0].linear.weight.data_ptr()
        == state["input_blocks.1.1.transformer_blocks.0.fuser.linear.weight"].data_ptr()
    )


@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_on_disk_is_read_in_every_form(tmp_path, layout, kind):
    state, path = gligen_state("text", FEW, layout=layout), tmp_path / "any.bin"
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(nested(state) if layout == "wrapped" else state, path, _use_new_zipfile_serialization=kind == "zip")
    adapter = read_adapter(path)
    assert adapter.spec == gligen.build(state, "any.bin").spec
    assert torch.equal(adapter.gated.fusers[1].linear.weight, fuser(128, SD15, 101)["linear.weight"])


def test_a_file_cut_into_parts_is_one(tmp_path):
    """As diffusers saves big ones; any part is chosen."""
    whole = gligen_state("text", FEW, layout="diffusers")
    cut = [dict(list(whole.items())[i::3]) for i in range(3)]
    paths = [tmp_path / "unet" / f"diffusion_pytorch_model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
    paths[0].parent.mkdir()
    for path, tensors in zip(paths, cut, strict=True):
        safetensors.torch.save_file(tensors, path)
    for path in paths:
        assert (
            read_adapter(path).spec.part(GatedSpec).block_widths == FEW
            and set(belonging(path)) == set(paths)
            and belonging(path)[0] == path
        )
    assert read_adapter(paths[1]).spec.file == "unet/diffusion_pytorch_model-00002-of-00003.safetensors"
    paths[2].unlink()
    with pytest.raises(CheckpointError, match="3 parts of 'unet/.*found 2\\."):
        read_adapter(paths[0])


def test_the_embedded_engine_loads_them_in_32_bits(tmp_path):
    state = {name: tensor.half() for name, tensor in gligen_state("text_image", FEW).items()}
    torch.save(state, tmp_path / "half.bin")
    torch.save(MATRIX.half(), tmp_path / "projection_matrix")
    adapter = load_embedded(tmp_path / "half.bin")
    assert {p.dtype for module in (adapter.gated, adapter.projection) for p in module.parameters()} == {torch.float32}
    assert torch.equal(
        adapter.gated.fusers[0].linear.weight,
        state["input_blocks.1.1.transformer_blocks.0.fuser.linear.weight"].float(),
    )
    torch.save({name: tensor for name, tensor in gligen_state("text", FEW).items()}, tmp_path / "text.bin")
    assert load_embedded(tmp_path / "text.bin").projection is None


# ---- GLIGEN: the projection matrix -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "projection_matrix",
        "projection_matrix.pt",
        "projection_matrix.pth",
        "projection_matrix.bin",
        "projection_matrix.safetensors",
        "image_project/diffusion_pytorch_model.bin",
        "../image_project/diffusion_pytorch_model.safetensors",
    ],
)
def test_the_projection_matrix_is_found_beside_the_file(tmp_path, name):
    path = tmp_path / "unet" / "diffusion_pytorch_model.bin"
    path.parent.mkdir()
    torch.save(gligen_state("text_image", FEW, layout="diffusers"), path)
    there, in_diffusers = (path.parent / name).resolve(), "image_project" in name
    there.parent.mkdir(exist_ok=True)
    state = {
        "project.weight" if in_diffusers else "projection_matrix": (MATRIX.T if in_diffusers else MATRIX).contiguous()
    }
    if name.endswith("safetensors"):
        safetensors.torch.save_file(state, there)
    else:
        torch.save(state if in_diffusers else MATRIX, there)
    adapter = read_adapter(path)
    assert isinstance(adapter.projection, TextSpace)
    e = random(3, SD15)
    found = adapter.projection(e)
    v = e @ MATRIX
    torch.testing.assert_close(found, 28.7 * v / v.norm(dim=-1, keepdim=True))
    assert there in [file.resolve() for file in belonging(path)]


def test_diffusers_image_project_is_the_matrix_transposed(tmp_path):
    """Their module, saved by diffusers itself, and their normalisation give the same features as ours."""
    theirs = CLIPImageProjection(SD15)
    theirs.save_pretrained(tmp_path / "image_project")
    torch.save(gligen_state("text_image", FEW, layout="diffusers"), tmp_path / "unet.bin")
    e = random(4, SD15)
    with torch.no_grad():
        feature = theirs(e)
    expected = feature / feature.norm(dim=-1, keepdim=True) * 28.7
    torch.testing.assert_close(read_adapter(tmp_path / "unet.bin").projection(e), expected)
    assert torch.equal(read_matrix(tmp_path / "unet.bin"), theirs.project.weight.T)


def test_without_its_projection_matrix_a_text_image_file_says_where_to_get_it(tmp_path):
    path = tmp_path / "ti.bin"
    torch.save(gligen_state("text_image", FEW), path)
    with pytest.raises(CheckpointError) as caught:
        read_adapter(path)
    text = checked(caught.value, "ti.bin")
    assert PROJECTION_MATRIX.link in text and "beside" in text
    torch.save(gligen_state("text", FEW), path)
    assert read_adapter(path).projection is None


@pytest.mark.parametrize("matrix", [torch.zeros(4, 4), torch.zeros(SD15), torch.zeros(SD15, SD15, dtype=torch.int8)])
def test_another_projection_matrix_is_refused(matrix):
    assert "projection matrix of 768 x 768" in refusal(gligen_state("text_image", FEW), image_project=matrix)


def test_the_matrix_itself_is_no_adapter(tmp_path):
    for content in (MATRIX, {"project.weight": MATRIX}):
        torch.save(content, tmp_path / "projection_matrix.pt")
        with pytest.raises(CheckpointError, match="projection matrix of a GLIGEN text-image file"):
            read_adapter(tmp_path / "projection_matrix.pt")


def test_a_matrix_file_with_more_in_it_is_refused(tmp_path):
    torch.save({"a": MATRIX, "b": MATRIX}, tmp_path / "projection_matrix")
    with pytest.raises(CheckpointError, match="one matrix in 'projection_matrix'"):
        read_matrix(tmp_path / "x.bin")


# ---- GLIGEN: what is refused -----------------------------------------------------------------------------------------

OTHERS = {
    "keypoint": (
        ["null_person_feature", "null_xy_feature", "person_embeddings", "keypoint_embeddings", "linears.0.weight"],
        "keypoints",
    ),
    "sem": (
        ["in_conv.weight", "convnext_tiny_backbone.features.0.0.weight", "null_feature", "pos_embedding"],
        "semantic maps",
    ),
    "canny": (
        ["convnext_tiny_backbone.features.0.0.weight", "null_feature", "pos_embedding", "linears.0.weight"],
        "maps of the whole picture",
    ),
}


@pytest.mark.parametrize("layout", ["ldm", "wrapped"])
@pytest.mark.parametrize("modality", OTHERS)
def test_other_modalities_are_refused_by_name(tmp_path, modality, layout):
    names, word = OTHERS[modality]
    prefix = published.GLIGEN_PREFIXES[layout]
    state = {
        name: tensor for name, tensor in gligen_state("text", FEW, layout=layout).items() if "position_net" not in name
    }
    path = tmp_path / "m.bin"
    torch.save(state | {f"{prefix}position_net.{name}": torch.zeros(2, 2) for name in names}, path)
    with pytest.raises(CheckpointError) as caught:
        read_adapter(path)
    assert word in checked(caught.value, "m.bin")


def test_gated_cross_attention_is_refused_by_name():
    state = {name: tensor for name, tensor in gligen_state("text", FEW).items() if ".fuser.linear." not in name}
    assert "gated cross-attention" in refusal(state)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_inpainting_file_is_refused_where_it_shows(layout):
    text = refusal(gligen_state("text", FEW, layout=layout, whole=True, channels=9))
    assert "inpainting" in text and "9 channels" in text


SMALL = {"input_blocks.1.1.transformer_blocks.0": 8, "middle_block.1.transformer_blocks.0": 8}
EVERY_TENSOR = [(kind, name) for kind in ("text", "text_image") for name in gligen_state(kind, SMALL, hidden=4)]


DAMAGES = {
    "longer": lambda t: torch.cat((t.flatten(), t.flatten()[:1])),
    "one more axis": lambda t: t.unsqueeze(0),
    "integers": lambda t: t.to(torch.int8),
}


@pytest.mark.parametrize("kind, name", EVERY_TENSOR)
def test_one_missing_tensor_is_named(kind, name):
    state = gligen_state(kind, SMALL, hidden=4)
    del state[name]
    text = refusal(state, image_project=MATRIX)
    assert name in text or ("null_positive_feature" in text and "null_text" in name)


@pytest.mark.parametrize("kind, name", EVERY_TENSOR)
@pytest.mark.parametrize("damage", DAMAGES)
def test_one_misshapen_tensor_is_refused(kind, name, damage):
    state = gligen_state(kind, SMALL, hidden=4)
    text = refusal(state | {name: DAMAGES[damage](state[name])}, image_project=MATRIX)
    # the null feature tells the width of what it is put beside
    assert name in text or ("linears" in text and damage == "longer" and "null_" in name)


def test_a_missing_tensor_has_its_name_in_that_file():
    state = gligen_state("text", FEW, layout="wrapped")
    del state["model.middle_block.1.transformer_blocks.0.fuser.norm2.bias"]
    assert "'model.middle_block.1.transformer_blocks.0.fuser.norm2.bias'" in refusal(state)
    state = gligen_state("text", FEW, layout="diffusers")
    del state["mid_block.attentions.0.transformer_blocks.0.fuser.alpha_attn"]
    assert "'mid_block.attentions.0.transformer_blocks.0.fuser.alpha_attn'" in refusal(state)


def test_a_layer_that_a_whole_unet_lacks_is_named():
    state = {
        name: tensor
        for name, tensor in gligen_state("text", FEW, whole=True).items()
        if not name.startswith("output_blocks.3.1.transformer_blocks.0.fuser")
    }
    assert "'output_blocks.3.1.transformer_blocks.0.fuser.linear.weight'" in refusal(state)


@pytest.mark.parametrize(
    "part, word", [("position_net", "position_net.null_position_feature"), ("fuser", "fuser.linear.weight")]
)
def test_half_a_file_is_refused(tmp_path, part, word):
    safetensors.torch.save_file(
        {name: tensor for name, tensor in gligen_state("text", FEW).items() if part not in name},
        tmp_path / "half.safetensors",
    )
    with pytest.raises(CheckpointError) as caught:
        read_adapter(tmp_path / "half.safetensors")
    assert word in checked(caught.value, "half.safetensors")


def test_layers_and_net_for_two_base_models_are_refused():
    state = gligen_state("text", FEW) | {
        f"position_net.{name}": tensor for name, tensor in position_net("text", SD15, SD2, 16).items()
    }
    assert "of size 1024" in refusal(state)


def test_widths_that_do_not_split_into_heads_are_refused():
    assert "multiple of 64" in refusal(
        gligen_state("text", {"input_blocks.1.1.transformer_blocks.0": 40}, context=SDXL, feature=SDXL)
    )


@pytest.mark.parametrize("extra", ["position_net.extra", "input_blocks.1.1.transformer_blocks.0.fuser.extra"])
def test_a_tensor_of_something_else_is_refused_by_name(extra):
    assert f"'{extra}'" in refusal(gligen_state("text", FEW) | {extra: torch.zeros(2)})


# ---- GLIGEN: pickles with training settings --------------------------------------------------------------------------

WRITER = """
import sys, types, typing, collections, torch
def module(name, *classes):
    sys.modules[name] = found = types.ModuleType(name)
    for label in classes:
        setattr(found, label, type(label, (), {"__module__": name}))
    return found
module("omegaconf")
d = module("omegaconf.dictconfig", "DictConfig").DictConfig()
l = module("omegaconf.listconfig", "ListConfig").ListConfig()
a = module("omegaconf.nodes", "AnyNode").AnyNode()
base = module("omegaconf.base", "Metadata", "ContainerMetadata")
m, c = base.Metadata(), base.ContainerMetadata()
m.__dict__.update(ref_type=typing.Any, object_type=None, optional=True, key=None, flags={}, flags_root=False, resolver_cache=collections.defaultdict(dict, {"now": {"x": 1}}))
c.__dict__.update(vars(m), object_type=dict, key_type=typing.Any, element_type=int)
a.__dict__.update(_metadata=m, _parent=d, _val=7)
l.__dict__.update(_metadata=c, _parent=d, _content=[a])
d.__dict__.update(_metadata=c, _parent=None, _content={"a": a, "l": l})
state = torch.load(sys.argv[1])
torch.save({"model": state, "config_dict": vars(d), "whole": d}, sys.argv[2], _use_new_zipfile_serialization=sys.argv[3] == "zip")
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zip", "old"])
def test_training_settings_in_a_file_are_passed_over(tmp_path, form):
    """As OmegaConf's objects lie in the official files; there is no such package here, and nothing of one is left
    behind.
    """
    assert "omegaconf" not in sys.modules
    state = gligen_state("text", FEW)
    torch.save(state, tmp_path / "state.pt")
    subprocess.run([sys.executable, "-c", WRITER, tmp_path / "state.pt", tmp_path / "official.bin", form], check=True)
    before = set(torch.serialization.get_safe_globals())  # torch promises no order
    read = read_state(tmp_path / "official.bin")
    assert read.keys() == {f"model.{name}" for name in state} and all(
        torch.equal(read[f"model.{name}"], tensor) for name, tensor in state.items()
    )
    assert set(torch.serialization.get_safe_globals()) == before and "omegaconf" not in sys.modules
    assert read_adapter(tmp_path / "official.bin").spec.part(GatedSpec).kind == "text"


class Forged:
    """A pickle of it calls a stand-in's name with a command."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_beside_training_settings_is_not_run(tmp_path):
    flag = tmp_path / "ran"
    for evil in (Bomb(flag), Forged(getattr, "x", "y"), Forged(eval, f"open({str(flag)!r}, 'w')")):
        torch.save(
            {"config_dict": {"_metadata": Forged(dict, [("a", 1)]), "evil": evil}, "model": {"a": torch.zeros(1)}},
            tmp_path / "x.bin",
        )
        with pytest.raises(CheckpointError) as caught:
            read_state(tmp_path / "x.bin")
        assert "which was not run" in checked(caught.value, "x.bin")
    assert not flag.exists()


def test_what_stands_in_for_settings_does_nothing(tmp_path):
    torch.save(
        {"config_dict": Forged(dict, [("a", torch.zeros(1))]), "model": {"a": torch.ones(1)}}, tmp_path / "x.bin"
    )
    assert b"builtin" in (tmp_path / "x.bin").read_bytes()
    assert read_state(tmp_path / "x.bin").keys() == {"model.a"}


def test_one_bare_tensor_is_read(tmp_path):
    torch.save(MATRIX, tmp_path / "m")
    assert torch.equal(read_state(tmp_path / "m")["tensor"], MATRIX)
    assert flatten({"a": {"b": MATRIX}}).keys() == {"a.b"}


# ---- Subject-Diffusion -----------------------------------------------------------------------------------------------


def test_the_four_modules_become_one_adapter():
    parts = subject_diffusion_members()
    adapter = subject_diffusion.build(parts, "unet_0_449999/pytorch_model.bin")
    spec = adapter.spec
    assert (spec.family, spec.context_dim, spec.base) == ("subject_diffusion", SD2, "SD2.x")
    assert isinstance(adapter.projection, MLP)
    photos, layers = spec.part(PhotoSpec), spec.part(GatedSpec)
    assert photos == PhotoSpec(EncoderNeed("last", 1280), framing="pad") and "ViT-H" in photos.encoder.describe()
    assert layers == GatedSpec("patches", SD_WIDTHS, SD2, 1280, 2, 256) and list(layers.block_widths) == list(SD_WIDTHS)
    assert spec.part(PromptSpec) == PromptSpec(FUSIONS["placeholder"], {"h": SD2}) and len(spec.parts) == 3
    for number, width in enumerate(SD_WIDTHS.values()):
        ours = adapter.gated.fusers[number].state_dict()
        assert all(
            torch.equal(ours[module_name(name)], tensor) for name, tensor in fuser(width, SD2, 300 + number).items()
        )
        assert adapter.gated.fusers[number].heads == width // 64
    cls = random(2, 1024)
    mlp = adapter.projection
    assert isinstance(mlp, MLP) and not mlp.residual
    assert torch.equal(mlp(cls), loaded(MLP(1024, SD2, 16), parts["mlp"])(cls))
    given = random(1, 2, 256, 1280), torch.tensor([[True, False]]), torch.rand(1, 2, 4)
    assert torch.equal(adapter.gated.net(*given), loaded(GroundingNet(1280, SD2, 16, 256), parts["proj"])(*given))


def test_the_first_convolution_is_split_without_loss():
    parts = subject_diffusion_members(SMALL_SD)
    adapter = subject_diffusion.build(parts, "x")
    x, conv = random(2, 5, 6, 10), parts["unet"]
    whole = torch.nn.functional.conv2d(x, conv["conv_in.weight"], conv["conv_in.bias"], padding=1)
    base = torch.nn.functional.conv2d(
        x[:, :4],
        adapter.weights.unet["input_blocks.0.0.weight"],
        adapter.weights.unet["input_blocks.0.0.bias"],
        padding=1,
    )
    torch.testing.assert_close(base + adapter.gated.mask_conv(x[:, 4:]), whole)


@pytest.mark.slow
def test_the_base_models_weights_have_the_hosts_names():
    parts = subject_diffusion_members(text_layers=2)
    weights = subject_diffusion.build(parts, "x").weights
    assert len(weights.unet) == 16 * 2 + 2
    for place in SD_WIDTHS:
        for leaf in ("attn2.to_k.weight", "attn2.to_v.weight"):
            assert torch.equal(weights.unet[f"{place}.{leaf}"], parts["unet"][f"{diffusers_path(place)}.{leaf}"])
    assert {name: id(tensor) for name, tensor in weights.text.items()} == {
        name: id(tensor) for name, tensor in parts["clip_text"].items() if "position_ids" not in name
    }
    assert not weights.vision


def test_a_text_encoder_without_its_first_name_is_the_same():
    """As transformers 5 saves it."""
    parts = subject_diffusion_members(SMALL_SD)
    bare = {name.removeprefix("text_model."): tensor for name, tensor in parts["clip_text"].items()}
    assert (
        subject_diffusion.build(parts | {"clip_text": bare}, "x").weights.text.keys()
        == subject_diffusion.build(parts, "x").weights.text.keys()
    )


SMALL_SD = {
    "input_blocks.1.1.transformer_blocks.0": 64,
    "output_blocks.5.1.transformer_blocks.0": 64,
    "middle_block.1.transformer_blocks.0": 64,
}


def small(**more):
    """Members of a few tensors, for damage and files; widths of their own."""
    return subject_diffusion_members(SMALL_SD, context=128, pooled=8, feature=16, tokens=3, **more)


EVERY_SD_TENSOR = [
    (member, name)
    for member, state in small().items()
    for name in state
    if name != "text_model.embeddings.position_ids"
    and "attn1" not in name
    and not name.endswith("to_q.weight")
    and "time_embedding" not in name
    or "fuser" in name
]


@pytest.mark.parametrize("member, name", EVERY_SD_TENSOR)
def test_one_missing_tensor_of_a_member_is_named(member, name):
    parts = small()
    parts[member] = {key: tensor for key, tensor in parts[member].items() if key != name}
    assert name in sd_refusal(parts)


@pytest.mark.parametrize("member, name", EVERY_SD_TENSOR)
def test_one_misshapen_tensor_of_a_member_is_refused(member, name):
    parts = small()
    parts[member] = parts[member] | {name: parts[member][name].unsqueeze(-1)}
    sd_refusal(parts)


def test_the_variant_that_was_never_released_is_refused_by_name():
    parts = small()
    text = sd_refusal(parts | {"proj": published._tensors(1, **published._mlp(2560, 1280, 128))})
    assert "never released" in text and "[1280, 2560]" in text


@pytest.mark.parametrize("channels", [4, 9])
def test_a_unet_without_the_mask_channel_is_refused(channels):
    parts = small()
    parts["unet"]["conv_in.weight"] = torch.zeros(64, channels, 3, 3)
    assert "5 channels" in sd_refusal(parts)


def test_members_of_two_base_models_are_refused():
    assert "of size 1024" in sd_refusal(small() | {"mlp": subject_diffusion_members(SMALL_SD)["mlp"]})
    sd_refusal(small() | {"clip_text": clip_text(64)})


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("chosen", ["unet", "clip_text", "mlp", "proj"])
def test_a_set_is_chosen_by_any_of_its_members(tmp_path, chosen, flat):
    parts = small()
    paths = save_members(parts, tmp_path, flat=flat)
    save_members(small(text_layers=2), tmp_path, "0_5000", flat=flat)  # another step beside them
    adapter = read_adapter(paths[chosen])
    assert adapter.spec.family == "subject_diffusion" and "layers.1." not in " ".join(adapter.weights.text)
    assert (
        members(paths[chosen]) == paths
        and belonging(paths[chosen])[0] == paths[chosen]
        and set(belonging(paths[chosen])) == set(paths.values())
    )
    assert torch.equal(adapter.projection.fc1.weight, parts["mlp"]["fc1.weight"])


def test_a_member_of_the_only_other_step_is_taken(tmp_path):
    parts = small()
    paths = save_members({name: parts[name] for name in ("unet", "mlp", "proj")}, tmp_path) | save_members(
        {"clip_text": parts["clip_text"]}, tmp_path, "0_5"
    )
    assert members(paths["unet"]) == paths
    assert read_adapter(paths["unet"]).spec.family == "subject_diffusion"


@pytest.mark.parametrize("absent", ["clip_text", "mlp", "proj", "unet"])
def test_a_missing_member_is_named(tmp_path, absent):
    parts = small()
    paths = save_members({name: state for name, state in parts.items() if name != absent}, tmp_path)
    for step in ("0_5", "0_6"):
        save_members({absent: parts[absent]}, tmp_path, step)  # two others: neither is taken
    with pytest.raises(CheckpointError) as caught:
        read_adapter(paths["proj" if absent != "proj" else "mlp"])
    text = checked(caught.value, "0_449999/pytorch_model.bin")
    assert f"found no {absent} that fits" in text


def test_a_unet_with_fusers_anywhere_says_what_belongs_to_it(tmp_path):
    torch.save(small()["unet"], tmp_path / "downloaded.bin")
    with pytest.raises(CheckpointError, match="no clip_text and no mlp and no proj"):
        read_adapter(tmp_path / "downloaded.bin")


def test_other_files_in_a_folder_called_like_a_member_are_what_they_are(tmp_path):
    (tmp_path / "unet").mkdir()
    torch.save(
        gligen_state("text", FEW, layout="diffusers", whole=True), tmp_path / "unet" / "diffusion_pytorch_model.bin"
    )
    assert read_adapter(tmp_path / "unet" / "diffusion_pytorch_model.bin").spec.family == "gligen"
    (tmp_path / "mlp").mkdir()
    safetensors.torch.save_file(
        published.FAMILIES["ip-adapter_sd15 (and light)"].state, tmp_path / "mlp" / "model.safetensors"
    )
    assert read_adapter(tmp_path / "mlp" / "model.safetensors").spec.family == "ip_adapter"


def test_files_that_all_have_one_name_are_called_with_their_folder():
    assert adapter_label("subject_adapters\\unet_0_449999\\pytorch_model.bin") == "unet_0_449999/pytorch_model.bin"
    assert adapter_label("gligen/gligen_sd14.safetensors") == "gligen_sd14.safetensors"


def test_an_open_clip_vision_tower_in_a_set_is_transformers_own():
    """A whole small tower: the converted weights give what open_clip gives."""
    torch.manual_seed(0)
    theirs = open_clip.transformer.VisionTransformer(28, 14, 32, 2, 2, 4.0, output_dim=8).eval()
    ours = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            projection_dim=8,
            hidden_act="gelu",
        )
    ).eval()
    weights = subject_diffusion.build(small() | {"clip_visual": theirs.state_dict()}, "x").weights.vision
    ours.load_state_dict(weights)
    x = random(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).image_embeds, theirs(x), rtol=1e-4, atol=1e-5)
    part = {
        f"visual.{name}": tensor
        for name, tensor in theirs.state_dict().items()
        if name.startswith(("transformer.resblocks.1.", "ln_post", "proj"))
    }
    found = subject_diffusion.build(small() | {"clip_visual": part}, "x").weights.vision
    assert found.keys() == {
        name for name in weights if "layers.1." in name or "post_layernorm" in name or "visual_projection" in name
    }
    assert (
        subject_diffusion.build(small() | {"clip_visual": dict(ours.state_dict())}, "x").weights.vision.keys()
        == weights.keys()
    )
    assert "clip_visual" in sd_refusal(small() | {"clip_visual": {"x": torch.zeros(1)}})


def test_a_fifth_member_is_found_and_used(tmp_path):
    vision = {"transformer.resblocks.31.ln_1.weight": torch.ones(16), "ln_post.weight": torch.ones(16)}
    paths = save_members(small() | {"clip_visual": vision}, tmp_path)
    for chosen in ("clip_visual", "unet"):
        assert read_adapter(paths[chosen]).weights.vision.keys() == {
            "vision_model.encoder.layers.31.layer_norm1.weight",
            "vision_model.post_layernorm.weight",
        }


# ---- Subject-Diffusion: the bundle -----------------------------------------------------------------------------------


def convert(*arguments):
    tool = Path(__file__).parent.parent / "tools" / "convert_subject_diffusion.py"
    return subprocess.run([sys.executable, str(tool), *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
def test_the_tool_makes_a_bundle_that_is_the_same_adapter(tmp_path, half):
    parts = small() | {"clip_visual": {"ln_post.weight": random(16)}}
    paths = save_members(parts, tmp_path)
    out = tmp_path / "bundle.safetensors"
    ran = convert(paths["proj"], out, *(["--half"] if half else []))
    assert ran.returncode == 0, ran.stderr
    names = read_state(out)
    assert (
        not any("attn1" in name or "time_embedding" in name or "position_ids" in name for name in names)
        and "unet.conv_in.weight" in names
    )
    assert read_metadata(out) == {"format": "subject_diffusion", "version": "1", "slots": "2"}
    dtype = torch.float16 if half else torch.float32
    assert {tensor.dtype for tensor in names.values()} == {dtype}
    found, expected = read_adapter(out), read_adapter(paths["proj"])
    assert found.spec.parts == expected.spec.parts
    pairs = [
        (found.gated.state_dict(), expected.gated.state_dict()),
        (found.projection.state_dict(), expected.projection.state_dict()),
    ]
    pairs += [(getattr(found.weights, kind), getattr(expected.weights, kind)) for kind in ("unet", "text", "vision")]
    for mine, theirs in pairs:
        assert mine.keys() == theirs.keys() and mine
        assert all(torch.equal(mine[name], tensor.to(dtype)) for name, tensor in theirs.items())


@pytest.mark.slow
def test_the_tool_says_what_is_missing(tmp_path):
    paths = save_members({name: state for name, state in small().items() if name != "mlp"}, tmp_path)
    ran = convert(paths["unet"], tmp_path / "out.safetensors")
    assert (
        ran.returncode == 1
        and "no mlp" in ran.stderr
        and "Traceback" not in ran.stderr
        and not (tmp_path / "out.safetensors").exists()
    )


def test_a_bundle_says_how_many_subjects_it_was_trained_with(tmp_path):
    out, tensors = tmp_path / "b.safetensors", subject_diffusion.needed(small())
    for metadata, slots in (({"slots": "4"}, 4), ({}, 2), ({"slots": "many"}, 2), ({"slots": "0"}, 2)):
        safetensors.torch.save_file(tensors, out, metadata)
        assert read_adapter(out).spec.part(GatedSpec).slots == slots


def test_a_bundle_of_a_later_version_is_refused(tmp_path):
    safetensors.torch.save_file(
        subject_diffusion.needed(small()), tmp_path / "b.safetensors", {"format": "subject_diffusion", "version": "2"}
    )
    with pytest.raises(CheckpointError, match="version 2"):
        read_adapter(tmp_path / "b.safetensors")


def test_a_bundle_without_a_member_is_refused(tmp_path):
    tensors = {
        name: tensor for name, tensor in subject_diffusion.needed(small()).items() if not name.startswith("proj.")
    }
    safetensors.torch.save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="no proj in it"):
        read_adapter(tmp_path / "b.safetensors")


def test_metadata_is_read_from_safetensors_only(tmp_path):
    (tmp_path / "x.bin").write_bytes(pickle.dumps({"format": "x"}))
    assert read_metadata(tmp_path / "x.bin") == {} == read_metadata(tmp_path / "gone")


# ---- the table of published files ------------------------------------------------------------------------------------


def test_every_gated_file_of_the_table_has_its_folder_and_link():
    assert all(
        file.folder == "gligen"
        and re.match(r"https://huggingface\.co/[\w-]+/[\w-]+/(resolve/main/|tree/main/unet$)", file.link)
        for file in GATED
    )
    assert {file.encoder for file in GATED} <= {"", *(encoder.name for encoder in ENCODERS)}
    assert len({file.name for file in GATED}) == len(GATED) and not any("inpainting" in file.link for file in GATED)


def test_files_of_one_name_are_told_apart_by_their_folders():
    found = published_file("gligen\\Gligen_Text_Image\\unet\\diffusion_pytorch_model.safetensors")
    assert found.link.startswith("https://huggingface.co/anhnct/") and "ViT-L" in found.encoder
    assert published_file("gligen/gligen-xl-1024/unet/diffusion_pytorch_model.safetensors").base == "SDXL"
    assert (
        published_file("diffusion_pytorch_model.safetensors") is None
        and published_file("gligen/projection_matrix") is PROJECTION_MATRIX
    )
