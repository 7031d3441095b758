"""Files of adapters that put subjects into the prompt: MM-Diff as three files or one bundle, UMM-Diffusion's mapping,
FastComposer's whole model.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from support import published_layouts as published
from support.prompt_fusions import FUSIONS
from support.published_layouts import (
    SD_PLACES,
    SDXL_PLACES,
    clip_lora,
    fastcomposer_state,
    mm_diff_members,
    nested,
    save_mm_diff,
    sdxl_path,
    subject_head,
    umm_state,
)
from support.refused_files import checked
from troupe.model_patches.adapter import AdapterSpec, EncoderNeed, ImageAttentionSpec, PhotoSpec, PromptSpec
from troupe.model_patches.checkpoints.catalogue import ENCODERS, PROMPT, published_file, where_to_get
from troupe.model_patches.checkpoints.files import read_metadata, read_state
from troupe.model_patches.checkpoints.unet_layout import SD, SDXL, ldm_names, sd_shapes, transformer_paths
from troupe.model_patches.encoders.decoupled import DecoupledLayer
from troupe.model_patches.encoders.mm_diff import LoraLayer
from troupe.model_patches.encoders.pseudo_words import PseudoWords
from troupe.model_patches.encoders.refiner import SubjectHead
from troupe.model_patches.encoders.words import PhotoToWords, Postfuse, WordFusion
from troupe.model_patches.errors import CheckpointError
from troupe.model_patches.families import fastcomposer, umm
from troupe.model_patches.families.mm_diff import layout as mm_diff
from troupe.model_patches.families.mm_diff import text_lora
from troupe.model_patches.families.mm_diff import unet as mm_diff_unet
from troupe.model_patches.families.mm_diff.layout import MEMBERS as MM_DIFF
from troupe.model_patches.families.registry import belonging, read_adapter

# wide enough to tell everything apart
THIN = {"context": 32, "hidden": (8, 16), "text": (12, 20), "pooled": 24, "patches": 40}


@cache
def made(**sizes):
    return mm_diff_members(**THIN | sizes)


def thin(**more):
    """MM-Diff's three files, a few hundred kilobytes; each time dicts of their own."""
    return {member: dict(state) for member, state in made(**more).items()}


def built(members, file="custom_weights.bin", **more):
    return mm_diff.build(mm_diff.bundled(members), file, **more)


def below(state, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def loaded(module, state):
    module.load_state_dict(state)
    return module.eval()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def refusal(build, *arguments, file="my.bin", **more):
    """The error of building from these tensors, after checking its form."""
    with pytest.raises(CheckpointError) as caught:
        build(*arguments, file, **more)
    return checked(caught.value, file)


def changed(members, member, **tensors):
    """The members with some tensors of one of them replaced, or, where None, left out; '__' stands for a dot."""
    state = members[member] | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return members | {member: {name: tensor for name, tensor in state.items() if tensor is not None}}


# ---- layers ----------------------------------------------------------------------------------------------------------


def test_layers_of_both_kinds_are_asked_in_one_way():
    """`keys` and `values` with the UNet's projections and the LoRA's strength in them, which only one of the kinds
    reads.
    """
    tokens, base = random(2, 3, 6), torch.nn.Linear(6, 4, bias=False)
    plain, pairs = DecoupledLayer(6, 4, False), LoraLayer(6, 4, 2, 3)
    assert (plain.needs_base, pairs.needs_base) == (False, True) and pairs.gain_weights(
        tokens.device, tokens.dtype
    ) is None
    assert torch.equal(plain.keys(tokens, None, 1.0), plain.to_k_ip(tokens)) and torch.equal(
        plain.values(tokens, base, 0.5), plain.to_v_ip(tokens)
    )
    for strength in (0.0, 0.7, 1.0):
        for made, image, text in (
            (pairs.keys(tokens, base, strength), pairs.to_k_lora_image, pairs.to_k_lora),
            (pairs.values(tokens, base, strength), pairs.to_v_lora_image, pairs.to_v_lora),
        ):
            wanted = base(tokens) - strength * text(tokens) + image(tokens)
            torch.testing.assert_close(made, wanted, rtol=1e-6, atol=1e-6)
    merged = torch.nn.Linear(6, 4, bias=False)
    merged.weight.data = base.weight + 0.7 * pairs.to_k_lora.up.weight @ pairs.to_k_lora.down.weight
    wanted = base(tokens) + tokens @ (pairs.to_k_lora_image.up.weight @ pairs.to_k_lora_image.down.weight).T
    torch.testing.assert_close(pairs.keys(tokens, merged, 0.7), wanted)


# ---- names of UNets --------------------------------------------------------------------------------------------------


def test_transformer_blocks_are_those_of_the_tables():
    assert transformer_paths(SD) == [f"{ldm}.transformer_blocks.0" for ldm in SD_PLACES.values()]
    assert transformer_paths(SDXL) == [
        f"{ldm}.transformer_blocks.{t}" for ldm, depth in SDXL_PLACES.values() for t in range(depth)
    ]


@pytest.mark.parametrize("channels, context", [((320, 640, 1280, 1280), 768), ((32, 32, 64, 96), 24)])
def test_the_shapes_are_those_of_a_real_diffusers_unet(channels, context):
    with torch.device("meta"):
        unet = UNet2DConditionModel(block_out_channels=channels, cross_attention_dim=context, attention_head_dim=8)
    assert sd_shapes(channels, context) == {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}


def test_every_tensor_of_a_unet_has_its_own_ldm_name():
    names = ldm_names(sd_shapes((320, 640, 1280, 1280), 768))
    assert len(set(names.values())) == len(names) == 686
    some = {
        "conv_in.bias": "input_blocks.0.0.bias",
        "time_embedding.linear_2.weight": "time_embed.2.weight",
        "conv_norm_out.bias": "out.0.bias",
        "conv_out.weight": "out.2.weight",
        "down_blocks.0.resnets.1.time_emb_proj.weight": "input_blocks.2.0.emb_layers.1.weight",
        "down_blocks.1.downsamplers.0.conv.bias": "input_blocks.6.0.op.bias",
        "down_blocks.3.resnets.1.conv1.weight": "input_blocks.11.0.in_layers.2.weight",
        "mid_block.resnets.1.norm2.weight": "middle_block.2.out_layers.0.weight",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "up_blocks.3.resnets.2.conv_shortcut.weight": "output_blocks.11.0.skip_connection.weight",
        "mid_block.attentions.0.proj_in.weight": "middle_block.1.proj_in.weight",
        "up_blocks.2.attentions.0.transformer_blocks.0.ff.net.0.proj.bias": (
            "output_blocks.6.1.transformer_blocks.0.ff.net.0.proj.bias"
        ),
    }
    assert {name: names[name] for name in some} == some
    assert ldm_names(["text_model.x"]) == {"text_model.x": "text_model.x"}


# ---- MM-Diff ---------------------------------------------------------------------------------------------------------


def test_the_three_files_become_one_adapter():
    members = thin()
    adapter = built(members)
    spec, custom = adapter.spec, members["custom_weights"]
    widths = (8,) * 4 + (16,) * 50 + (8,) * 6 + (16,) * 10
    assert spec == AdapterSpec(
        "mm_diff",
        spec.file,
        32,
        (
            PhotoSpec(EncoderNeed("pooled", 24), framing="black"),
            ImageAttentionSpec("FaceHead", widths, 4, text_gain=False, merge="joint"),
            PromptSpec(FUSIONS["word"], {"l": 12, "g": 20}),
        ),
        "MM-Diff",
    )
    assert adapter.layers.widths == widths
    assert spec.describe().startswith("MM-Diff for ") and "FaceHead, 70 layers" in spec.describe()
    pooled, faces, dense = random(2, 24), random(3, 512), random(3, 5, 40)
    one, two, tokens = adapter.projection(pooled, faces, dense)
    words = loaded(PhotoToWords(24, 24, 12, 20), below(custom, "obj_embeds_proj."))(pooled)
    head_state = below(custom, "face_embeds_proj.")
    assert torch.equal(one, words[0]) and torch.equal(two, words[1])
    assert torch.equal(
        tokens, loaded(SubjectHead(**SubjectHead.widths(head_state)), head_state)(faces, dense)
    ) and tokens.shape == (3, 4, 32)
    for stream, prefix, width in (("l", "mm_fuse_one.", 12), ("g", "mm_fuse_two.", 20)):
        given = random(2, width), random(2, width, seed=1)
        assert torch.equal(
            adapter.fusion[stream](*given), loaded(WordFusion(2 * width, width, width), below(custom, prefix))(*given)
        )
    assert (
        adapter.weights.vision == below(custom, "image_encoder.")
        and not adapter.weights.unet
        and not adapter.weights.text
    )


@pytest.mark.slow
def test_the_real_ones_widths_are_read_as_published():
    """At the published widths, but for the heads' hidden ones; 121.9 M numbers in the UNet at rank 64."""
    with torch.device("meta"):
        narrow = published.mm_diff_unet(2048, rank=1, image_rank=1)
        real = {
            name: torch.zeros((64, tensor.shape[1]) if "down" in name else (tensor.shape[0], 64))
            for name, tensor in narrow.items()
        }
        layers, pairs = mm_diff_unet.read(real, "x")
    assert round(sum(tensor.numel() for tensor in real.values()) / 1e6, 1) == 121.9 and len(pairs) == 560
    assert layers.widths == published.UNET_WIDTHS[2048] and layers.context_dim == 2048
    adapter = built(mm_diff_members())
    need = adapter.spec.part(PhotoSpec).encoder
    assert (adapter.spec.base, need) == ("SDXL", EncoderNeed("pooled", 768)) and "ViT-L" in need.describe()
    assert adapter.spec.part(ImageAttentionSpec).tokens == 4
    assert adapter.spec.part(PromptSpec).streams == {"l": 768, "g": 1280}


def test_an_entrys_number_says_its_place():
    """diffusers numbers its attentions down, up, middle; the names are checked against a real UNet's module order
    elsewhere, here each tensor's way.
    """
    members = thin()
    unet, adapter = members["unet_adapter_weights"], built(members)
    paths = [f"{ldm}.transformer_blocks.{t}" for ldm, depth in SDXL_PLACES.values() for t in range(depth)]
    assert len(adapter.weights.unet_lora) == 140 * 4
    for j, path in enumerate(paths):
        for index, attention in ((2 * j, "attn1"), (2 * j + 1, "attn2")):
            for name, leaf in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
                pair = adapter.weights.unet_lora[f"{path}.{attention}.{leaf}.weight"]
                assert pair.alpha is None
                assert torch.equal(pair.down, unet[f"{index}.to_{name}_lora.down.weight"]) and torch.equal(
                    pair.up, unet[f"{index}.to_{name}_lora.up.weight"]
                )
        layer = adapter.layers.layers[j]
        for pair in ("to_k_lora", "to_v_lora", "to_k_lora_image", "to_v_lora_image"):
            assert torch.equal(getattr(layer, pair).down.weight, unet[f"{2 * j + 1}.{pair}.down.weight"])
            assert (
                torch.equal(getattr(layer, pair).up.weight, unet[f"{2 * j + 1}.{pair}.up.weight"])
                and getattr(layer, pair).factor == 1
            )


def test_the_places_are_those_of_diffusers_own_order():
    """`attn_processors` of a UNet with SDXL's blocks, whose order the numbers are."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(8, 8, 16),
            norm_num_groups=4,
            cross_attention_dim=32,
            attention_head_dim=4,
            transformer_layers_per_block=(1, 2, 10),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )
    theirs = [name.removesuffix(".processor") for name in unet.attn_processors]
    down, up, middle = ([name for name in theirs if name.startswith(start)] for start in ("down", "up", "mid"))
    assert down + up + middle == [
        f"{sdxl_path(path)}.{attention}" for path in transformer_paths(SDXL) for attention in ("attn1", "attn2")
    ]


def test_text_and_image_attention_share_their_tensors():
    adapter = built(thin())
    pair = adapter.weights.unet_lora["middle_block.1.transformer_blocks.9.attn2.to_k.weight"]
    assert adapter.layers.layers[69].to_k_lora.down.weight.data_ptr() == pair.down.data_ptr()


@pytest.mark.parametrize("vector, kind", [(512, "FaceHead"), (24, "ObjectHead"), (40, "CLSHead")])
def test_a_head_that_reads_photos_is_another_kind(vector, kind):
    assert built(thin(vector=vector)).spec.part(ImageAttentionSpec).projection == kind


def test_a_head_that_reads_something_else_is_refused():
    text = refusal(lambda members, file: built(members, file), thin(vector=300))
    assert "ArcFace vectors (512) or projected CLS (24) or CLS (40)" in text and "vectors of size 300" in text


@pytest.mark.parametrize("tokens", [1, 4, 6])
def test_the_number_of_tokens_is_read(tokens):
    assert built(thin(tokens=tokens)).spec.part(ImageAttentionSpec).tokens == tokens


@pytest.mark.parametrize("spelling", ["new", "old"])
@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_the_text_encoders_loras_in_every_spelling(spelling, mlp, alpha):
    members = thin(spelling=spelling, mlp=mlp, alpha=alpha)
    found, given = built(members).weights.text_lora, members["text_encoder_adapter_weights"]
    assert found.keys() == {"l", "g"}
    for stream, encoder, width in (("l", "text_encoder", 12), ("g", "text_encoder_2", 20)):
        assert len(found[stream]) == 2 * (6 if mlp else 4)
        for name in ("q", "k", "v", "out"):
            pair = found[stream][f"text_model.encoder.layers.1.self_attn.{name}_proj.weight"]
            stem = f"{encoder}.text_model.encoder.layers.1.self_attn." + (
                f"to_{name}_lora" if spelling == "old" else f"{name}_proj.lora_linear_layer"
            )
            assert (
                torch.equal(pair.down, given[f"{stem}.down.weight"])
                and torch.equal(pair.up, given[f"{stem}.up.weight"])
                and pair.alpha == alpha
            )
        if mlp:
            pair = found[stream]["text_model.encoder.layers.0.mlp.fc2.weight"]
            assert (tuple(pair.down.shape), tuple(pair.up.shape)) == ((2, 4 * width), (width, 2))


def test_an_alpha_may_stand_beside_the_weight_it_is_for():
    """As scripts for LoRAs write it."""
    lora = clip_lora("text_encoder", 12, 1) | {
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.alpha": torch.tensor(4.0)
    }
    found = text_lora.text_lora(lora, {"l": 12, "g": 20}, "x")["l"]
    assert {name.split(".")[-2]: pair.alpha for name, pair in found.items()} == {
        "q_proj": 4.0,
        "k_proj": None,
        "v_proj": None,
        "out_proj": None,
    }


def test_loras_of_one_text_encoder_are_enough():
    members = thin()
    members["text_encoder_adapter_weights"] = clip_lora("text_encoder", 12)
    assert built(members).weights.text_lora.keys() == {"l"}


def test_a_file_without_image_encoder_leaves_it_alone():
    members = thin()
    members["custom_weights"] = {
        name: tensor for name, tensor in members["custom_weights"].items() if not name.startswith("image_encoder.")
    }
    assert built(members).weights.vision == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_modules_keep_the_dtypes_of_the_files(dtype):
    members = {
        member: {name: tensor.to(dtype) for name, tensor in state.items()} for member, state in thin(alpha=2.0).items()
    }
    adapter = built(members)
    assert {
        p.dtype for module in (adapter.projection, adapter.layers, adapter.fusion) for p in module.parameters()
    } == {dtype}
    assert not any(
        p.requires_grad or p.is_meta
        for module in (adapter.projection, adapter.layers, adapter.fusion)
        for p in module.parameters()
    )
    assert not adapter.projection.training and not adapter.layers.training and not adapter.fusion.training
    assert {
        pair.down.dtype for pair in [*adapter.weights.unet_lora.values(), *adapter.weights.text_lora["g"].values()]
    } == {dtype}


EVERY = [(member, name) for member, state in thin().items() for name in state if not name.startswith("image_encoder.")]
SOME = [
    (member, name) for member, name in EVERY if member != "unet_adapter_weights" or name.split(".")[0] in ("0", "139")
]


@pytest.mark.parametrize("member, name", SOME)
def test_one_missing_tensor_is_named(member, name):
    members = thin()
    members[member] = {key: tensor for key, tensor in members[member].items() if key != name}
    text = refusal(lambda members, file: built(members, file), members)
    assert name in text and member in text


@pytest.mark.slow
@pytest.mark.parametrize("member, name", SOME)
def test_one_misshapen_tensor_is_refused(member, name):
    members = thin()
    members[member] = members[member] | {name: torch.cat((members[member][name],) * 2)}
    refusal(lambda members, file: built(members, file), members)
    members[member] = members[member] | {name: members[member][name].unsqueeze(-1)}
    refusal(lambda members, file: built(members, file), members)


@pytest.mark.parametrize(
    "member, name",
    [
        ("unet_adapter_weights", "3.to_q_lora.alpha"),
        ("unet_adapter_weights", "0.to_k_lora_image.down.weight"),
        ("unet_adapter_weights", "5.norm.weight"),
        ("text_encoder_adapter_weights", "text_encoder.text_model.final_layer_norm.weight"),
        ("custom_weights", "mm_fuse_one.fc3.weight"),
        ("custom_weights", "new_head.weight"),
    ],
)
def test_one_unknown_tensor_is_refused(member, name):
    members = thin()
    members[member] = members[member] | {name: torch.zeros(2, 2)}
    assert name in refusal(lambda members, file: built(members, file), members)


def test_quantised_files_are_refused():
    members = thin()
    for member, name in (
        ("unet_adapter_weights", "0.to_q_lora.up.weight"),
        ("custom_weights", "mm_fuse_two.fc1.weight"),
    ):
        damaged = changed(members, member, **{name: members[member][name].to(torch.int8)})
        assert "int8" in refusal(lambda members, file: built(members, file), damaged)


@pytest.mark.parametrize("entries", [34, 138, 142])
def test_a_file_for_another_unet_is_refused(entries):
    members = thin() | {"unet_adapter_weights": published.mm_diff_unet(32, (8, 16), entries=entries)}
    text = refusal(lambda members, file: built(members, file), members)
    assert (
        "the attentions of a known UNet in 'unet_adapter_weights of my.bin': 140 (SDXL), 32 (SD1.5), 14 (the rehearsal "
        f"world), found {entries}." in text
    )


def test_parts_for_two_base_models_are_refused():
    members = thin() | {"unet_adapter_weights": published.mm_diff_unet(32, (16, 16), entries=32)}
    text = refusal(lambda members, file: built(members, file), members)
    assert "low-rank pairs for the UNet of SD1.5 and words for text encoders l, g" in text


def test_entries_in_another_order_are_refused():
    """The middle block between down and up, as ComfyUI has it: the widths of some numbers are then others'."""
    unet = thin()["unet_adapter_weights"]
    order = [*range(48), *range(120, 140), *range(48, 120)]
    moved = {
        f"{new}.{name.partition('.')[2]}": tensor
        for new, old in enumerate(order)
        for name, tensor in unet.items()
        if name.startswith(f"{old}.")
    }
    text = refusal(lambda members, file: built(members, file), thin() | {"unet_adapter_weights": moved})
    assert (
        "order of SDXL's" in text
        and "32 -> 8 for output_blocks.3.1.transformer_blocks.0" in text
        and "32 -> 16 at number 109" in text
    )


@pytest.mark.slow
def test_files_of_two_trainings_are_refused():
    members = thin()
    assert "tokens of size 64 for the UNet" in refusal(
        lambda m, file: built(m, file), members | {"unet_adapter_weights": published.mm_diff_unet(64, (8, 16))}
    )
    other = thin(text=(12, 24))["custom_weights"]
    mixed = members["custom_weights"] | {
        name: tensor for name, tensor in other.items() if name.startswith("mm_fuse_two.")
    }
    assert "photos for OpenCLIP-bigG of size 24" in refusal(
        lambda m, file: built(m, file), members | {"custom_weights": mixed}
    )
    refusal(lambda m, file: built(m, file), members | {"text_encoder_adapter_weights": clip_lora("text_encoder", 16)})
    assert "CLIP vision encoder" in refusal(
        lambda m, file: built(m, file),
        changed(below_vision(members), "custom_weights", image_encoder__x=torch.zeros(1)),
    )


def below_vision(members):
    return members | {
        "custom_weights": {
            name: tensor for name, tensor in members["custom_weights"].items() if not name.startswith("image_encoder.")
        }
    }


# ---- MM-Diff: the files ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("chosen", MM_DIFF)
def test_the_set_is_chosen_by_any_of_its_files(tmp_path, chosen):
    members = thin()
    paths = save_mm_diff(members, tmp_path)
    adapter = read_adapter(paths[chosen])
    assert adapter.spec.family == "mm_diff" and adapter.spec.file == f"{chosen}.bin"
    assert (
        torch.equal(adapter.fusion["l"].fc1.weight, members["custom_weights"]["mm_fuse_one.fc1.weight"])
        and len(adapter.weights.unet_lora) == 560
    )
    assert adapter.weights.text_lora["g"].keys() == built(members).weights.text_lora["g"].keys()
    assert belonging(paths[chosen])[0] == paths[chosen] and set(belonging(paths[chosen])) == set(paths.values())


@pytest.mark.slow
@pytest.mark.parametrize("chosen", MM_DIFF)
def test_a_chosen_file_may_have_another_name(tmp_path, chosen):
    """It is known by its tensors; the others are found by their names."""
    paths = save_mm_diff(thin(), tmp_path)
    mine = paths[chosen].rename(tmp_path / "mine.bin")
    assert read_adapter(mine).spec.family == "mm_diff" and set(belonging(mine)) == {
        mine,
        *(path for member, path in paths.items() if member != chosen),
    }


@pytest.mark.slow
@pytest.mark.parametrize("extension", [".safetensors", ".pt"])
def test_files_of_other_extensions_are_found(tmp_path, extension):
    members = thin()
    paths = save_mm_diff(members, tmp_path)
    safe = tmp_path / f"unet_adapter_weights{extension}"
    if extension == ".safetensors":
        safetensors.torch.save_file(members["unet_adapter_weights"], safe)
        paths["unet_adapter_weights"].unlink()
    else:
        paths["unet_adapter_weights"].rename(safe)
    for chosen in (safe, paths["custom_weights"]):
        assert read_adapter(chosen).spec.family == "mm_diff" and safe in belonging(chosen)


@pytest.mark.parametrize("absent", MM_DIFF)
def test_a_missing_file_is_named(tmp_path, absent):
    paths = save_mm_diff({name: state for name, state in thin().items() if name != absent}, tmp_path)
    chosen = next(path for name, path in paths.items() if name != "text_encoder_adapter_weights")
    with pytest.raises(CheckpointError) as caught:
        read_adapter(chosen)
    text = checked(caught.value, chosen.name)
    assert f"found no {absent} beside it. Put all three into one folder" in text


def test_a_file_alone_names_both_others(tmp_path):
    paths = save_mm_diff(thin(), tmp_path)
    for member in ("unet_adapter_weights", "custom_weights"):
        paths[member].unlink()
    with pytest.raises(CheckpointError, match="no unet_adapter_weights and no custom_weights beside it"):
        read_adapter(paths["text_encoder_adapter_weights"])


def test_a_text_encoders_lora_of_somebody_else_is_a_lora(tmp_path):
    torch.save(clip_lora("text_encoder", 12), tmp_path / "my_style.bin")
    with pytest.raises(CheckpointError, match="found a LoRA"):
        read_adapter(tmp_path / "my_style.bin")
    torch.save(published.FAMILIES["ip-adapter_sd15 (and light)"].state, tmp_path / "custom_weights.bin")
    assert read_adapter(tmp_path / "custom_weights.bin").spec.family == "ip_adapter", "a name says nothing"


# ---- MM-Diff: the bundle ---------------------------------------------------------------------------------------------


def convert(*arguments):
    tool = Path(__file__).parent.parent / "tools" / "convert_mm_diff.py"
    return subprocess.run([sys.executable, str(tool), *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
def test_the_tool_makes_a_bundle_that_is_the_same_adapter(tmp_path, half):
    members = thin(alpha=3.0)
    members["custom_weights"]["image_encoder.vision_model.embeddings.position_ids"] = torch.arange(5)
    paths, out = save_mm_diff(members, tmp_path), tmp_path / "out" / "bundle.safetensors"
    ran = convert(paths["custom_weights"], out, *(["--half"] if half else []))
    assert ran.returncode == 0, ran.stderr
    assert read_metadata(out) == {"format": "mm_diff", "version": "1"}
    dtype, names = torch.float16 if half else torch.float32, read_state(out)
    assert {tensor.dtype for tensor in names.values()} == {dtype} and not any("position_ids" in name for name in names)
    found, expected = read_adapter(out), read_adapter(paths["unet_adapter_weights"])
    assert found.spec.file == "bundle.safetensors" and found.spec.parts == expected.spec.parts
    for room in ("projection", "layers", "fusion"):
        mine, theirs = getattr(found, room).state_dict(), getattr(expected, room).state_dict()
        assert mine.keys() == theirs.keys() and all(
            torch.equal(mine[name], tensor.to(dtype)) for name, tensor in theirs.items()
        )
    pairs = [
        (found.weights.unet_lora, expected.weights.unet_lora),
        *((found.weights.text_lora[s], expected.weights.text_lora[s]) for s in "lg"),
    ]
    for mine, theirs in pairs:
        assert mine.keys() == theirs.keys() and mine
        for name, pair in theirs.items():
            assert (
                torch.equal(mine[name].up, pair.up.to(dtype))
                and torch.equal(mine[name].down, pair.down.to(dtype))
                and mine[name].alpha == pair.alpha
            )
    assert (
        all(
            torch.equal(found.weights.vision[name], tensor.to(dtype))
            for name, tensor in expected.weights.vision.items()
        )
        and found.weights.vision
    )


@pytest.mark.slow
def test_the_tool_says_what_is_missing(tmp_path):
    paths = save_mm_diff({name: state for name, state in thin().items() if name != "custom_weights"}, tmp_path)
    ran = convert(paths["unet_adapter_weights"], tmp_path / "out.safetensors")
    assert (
        ran.returncode == 1
        and "no custom_weights" in ran.stderr
        and "Traceback" not in ran.stderr
        and not (tmp_path / "out.safetensors").exists()
    )
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.bin")
    ran = convert(tmp_path / "x.bin", tmp_path / "out.safetensors")
    assert ran.returncode == 1 and "one of MM-Diff's three files" in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.slow
def test_a_bundle_of_a_later_version_and_one_without_a_part_are_refused(tmp_path):
    bundle, path = mm_diff.bundled(thin()), tmp_path / "b.safetensors"
    safetensors.torch.save_file(bundle, path, {"format": "mm_diff", "version": "2"})
    with pytest.raises(CheckpointError, match="version 1 of the format mm_diff in 'b.safetensors', found version 2"):
        read_adapter(path)
    safetensors.torch.save_file(bundle, path)
    assert read_adapter(path).spec.family == "mm_diff", "without metadata it is the present version"
    for prefixes, name in (
        (("unet.",), "unet_adapter_weights"),
        (("text_encoder.", "text_encoder_2."), "text_encoder_adapter_weights"),
        (mm_diff.OWN, "custom_weights"),
    ):
        safetensors.torch.save_file(
            {key: tensor for key, tensor in bundle.items() if not key.startswith(prefixes)}, path
        )
        with pytest.raises(CheckpointError, match=f"no {name} in it"):
            read_adapter(path)


# ---- UMM-Diffusion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata, features, more",
    [
        ({}, ("pooled", 768), {}),
        ({"format": "umm_diffusion", "version": "1", "base": "sd15"}, ("pooled", 768), {}),
        ({"normalize": "true"}, ("pooled", 768), {"normalize": True}),
        ({"activation": "leaky_relu", "tokens": "3"}, ("pooled", 768), {"activation": "leaky_relu", "tokens": 3}),
        ({"image_feature": "pooled"}, ("unprojected", 1024), {}),
        ({"input": "norms"}, ("pooled", 768), {"input_norm": True, "output_norm": 768, "tokens": 2}),
    ],
)
def test_a_mapping_is_what_its_metadata_say(tmp_path, metadata, features, more):
    tokens = more.get("tokens", 1)
    norms = {name: more[name] for name in ("input_norm", "output_norm") if name in more}
    state = umm_state((features[1], 32, 24, 768), tokens, **norms)
    texts = {**metadata, "tokens": str(tokens)} if tokens > 1 else metadata
    safetensors.torch.save_file(state, tmp_path / "my.safetensors", texts)
    adapter = read_adapter(tmp_path / "my.safetensors")
    spec = adapter.spec
    need = EncoderNeed(*features)
    parts = PhotoSpec(need, "pad"), PromptSpec(FUSIONS["pseudo"], {"l": 768}, tokens)
    assert spec == AdapterSpec("umm", "my.safetensors", 768, parts, "UMM-Diffusion") and spec.base == "SD1.5"
    assert spec.describe() == "UMM-Diffusion for SD1.5 (subjects in the prompt)"
    assert "ViT-L" in need.describe() and need.fits(1024, 768) and not need.fits(1280, 1024)
    direct = PseudoWords((features[1], 32, 24, 768 * tokens), **more)
    direct.load_state_dict(below(state, "mapping."))
    photos = random(2, features[1])
    assert torch.equal(adapter.projection(photos), direct(photos)) and adapter.projection(photos).shape == (
        2,
        tokens,
        768,
    )
    assert adapter.layers is adapter.fusion is None and not adapter.weights.unet_lora


def test_a_pickle_of_a_mapping_has_no_metadata(tmp_path):
    torch.save(
        {"mapping": {name.removeprefix("mapping."): tensor.half() for name, tensor in umm_state().items()}},
        tmp_path / "x.pt",
    )
    adapter = read_adapter(tmp_path / "x.pt")
    assert (adapter.projection.normalize, adapter.projection.activation, adapter.projection.tokens) == (
        False,
        "gelu",
        1,
    )
    assert {p.dtype for p in adapter.projection.parameters()} == {torch.float16}


@pytest.mark.parametrize(
    "metadata, wanted, found",
    [
        ({"image_feature": "penultimate"}, "projected or pooled as 'image_feature'", "'penultimate'"),
        ({"normalize": "yes"}, "true or false as 'normalize'", "'yes'"),
        ({"activation": "tanh"}, "gelu or relu or leaky_relu or silu as 'activation'", "'tanh'"),
        ({"tokens": "0"}, "a number from 1 to 99 as 'tokens'", "'0'"),
        ({"tokens": "two"}, "a number from 1", "'two'"),
        ({"base": "sd21"}, "sd15 or rehearsal as 'base'", "'sd21'"),
        ({"image_encoder": "laion/H"}, "clip-vit-large-patch14 as 'image_encoder'", "laion/H"),
        ({"format": "other"}, "the format umm_diffusion", "'other'"),
        ({"version": "2"}, "version 1 of the format umm_diffusion", "version 2"),
        ({"image_feature": "pooled"}, "to read a photo's 1024 numbers", "768 columns"),
        ({"tokens": "2"}, "2 pseudo words of size 768", "768 rows"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(metadata, wanted, found):
    text = refusal(umm.build, umm_state(), metadata=metadata)
    assert wanted in text and found in text


@pytest.mark.parametrize(
    "state, words",
    [
        (umm_state((512, 32, 768)), "512 columns"),
        (umm_state((768, 32, 1024)), "one pseudo word of size 768, found 1024 rows"),
        (umm_state(output_norm=100), "to have 768 numbers"),
        (umm_state() | {"mapping.layers.1.weight": torch.zeros(768, 33)}, "32 columns"),
        (umm_state() | {"mapping.layers.3.weight": torch.zeros(4, 4)}, "'mapping.layers.2.weight'"),
        (umm_state() | {"mapping.gate": torch.zeros(1)}, "'mapping.gate'"),
        (umm_state() | {"unet.x": torch.zeros(1)}, "'unet.x'"),
    ],
)
def test_a_mapping_of_other_widths_is_refused(state, words):
    assert words in refusal(umm.build, state)


@pytest.mark.parametrize("name", umm_state(input_norm=True, output_norm=768))
def test_one_missing_tensor_of_a_mapping_is_named(name):
    state = umm_state(input_norm=True, output_norm=768)
    del state[name]
    if name.endswith("norm.weight"):
        assert name.replace("weight", "bias") in refusal(umm.build, state)
    else:
        assert name in refusal(umm.build, state)


# ---- FastComposer ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    return fastcomposer_state()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_the_whole_model_is_an_adapter(tmp_path, whole, kind):
    path = tmp_path / "pytorch_model.bin"
    (safetensors.torch.save_file if kind == "safetensors" else torch.save)(whole, path)
    adapter = read_adapter(path)
    spec = adapter.spec
    parts = PhotoSpec(EncoderNeed("pooled", 768), "black"), PromptSpec(FUSIONS["postfuse"], {"l": 768})
    assert spec == AdapterSpec("fastcomposer", spec.file, 768, parts, "FastComposer") and spec.base == "SD1.5"
    assert adapter.projection is None
    assert spec.describe() == "FastComposer for SD1.5 (subjects in the prompt)"
    given = random(2, 768), random(2, 768, seed=1)
    assert torch.equal(
        adapter.fusion["l"](*given), loaded(Postfuse(768, 768, 768, 768), below(whole, "postfuse_module."))(*given)
    )
    unet = below(whole, "unet.")
    names = ldm_names(unet)
    assert len(adapter.weights.unet) == len(unet) == 686 and all(
        torch.equal(adapter.weights.unet[names[name]], tensor) for name, tensor in unet.items()
    )
    assert adapter.weights.vision.keys() == {"visual_projection.weight", "vision_model.embeddings.class_embedding"}
    assert adapter.projection is adapter.layers is None and not adapter.weights.text and not adapter.weights.text_lora


def test_it_keeps_its_dtypes(whole):
    half = {name: tensor.half() for name, tensor in whole.items()}
    adapter = fastcomposer.build(half, "x")
    assert (
        {p.dtype for p in adapter.fusion.parameters()}
        == {torch.float16}
        == {tensor.dtype for tensor in adapter.weights.unet.values()}
    )
    assert adapter.weights.unet["out.2.weight"].data_ptr() == half["unet.conv_out.weight"].data_ptr()


def test_damaged_ones_are_refused(whole):
    for name in (
        "postfuse_module.mlp2.fc2.bias",
        "postfuse_module.layer_norm.weight",
        "unet.mid_block.resnets.0.conv2.bias",
        "unet.down_blocks.3.resnets.0.conv1.weight",
        "unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0.weight",
    ):
        assert name in refusal(fastcomposer.build, {key: tensor for key, tensor in whole.items() if key != name})
        refusal(fastcomposer.build, whole | {name: whole[name].unsqueeze(-1)})
    inpainting = refusal(fastcomposer.build, whole | {"unet.conv_in.weight": torch.zeros(32, 9, 3, 3)})
    assert "'unet.conv_in.weight' of 'my.bin' to have the shape [32, 4, 3, 3], found [32, 9, 3, 3]" in inpainting
    assert "unet.add_embedding.linear_1.weight" in refusal(
        fastcomposer.build, whole | {"unet.add_embedding.linear_1.weight": torch.zeros(2, 2)}
    )
    assert "to give 768 numbers" in refusal(
        fastcomposer.build, whole | {"image_encoder.visual_projection.weight": torch.zeros(512, 8)}
    )


# ---- the table of published files ------------------------------------------------------------------------------------


def test_the_table_leads_to_the_files():
    assert {file.folder for file in PROMPT} == {"subject_adapters"} and {file.encoder for file in PROMPT} <= {
        encoder.name for encoder in ENCODERS
    }
    assert (
        published_file("subject_adapters/fastcomposer.bin").base == "SD1.5"
        and published_file("subject_adapters/unet_0_449999/pytorch_model.bin") is None
    )
    found = published_file("subject_adapters\\portrait_generation\\custom_weights.bin")
    assert (
        where_to_get(found) == "Look on https://github.com/alibaba/mm-diff for it and save it as "
        "models/subject_adapters/portrait_generation/custom_weights.bin"
    )


def test_the_head_alone_has_as_many_numbers_as_published():
    state = {name: tuple(tensor.shape) for name, tensor in hollow_head().items()}
    assert round(sum(torch.Size(shape).numel() for shape in state.values()) / 1e6, 1) == 149.5


def hollow_head():
    with torch.device("meta"):
        return SubjectHead(
            512,
            1024,
            4,
            2048,
            {"dim": 2048, "depth": 4, "inner": 2048, "ff_inner": 4096, "embed_dim": 1024, "out_dim": 2048},
        ).state_dict()


def test_the_builder_has_the_published_names():
    assert subject_head(32).keys() == below(mm_diff_members(**THIN)["custom_weights"], "face_embeds_proj.").keys()
    assert {
        name.replace("layers.0.", "layers.2.") for name in subject_head(32) if "layers.0." in name
    } <= hollow_head().keys()
    assert nested({"a.b": torch.zeros(1)}).keys() == {"a"}
