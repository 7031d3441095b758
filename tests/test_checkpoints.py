"""Adapter files, good and bad: what is recognised, what is refused, and in which words."""

import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support import published_layouts as published
from support.published_layouts import (
    FAMILIES,
    NARROW,
    REFUSED,
    SD15,
    SDXL,
    cast,
    flat,
    image_proj,
    layers,
    nested,
    resampler,
)
from support.refused_files import Bomb, checked
from troupe.model_patches.adapter import GatedSpec, ImageAttentionSpec, PhotoSpec, PromptSpec
from troupe.model_patches.checkpoints.adapter_file import AdapterFile
from troupe.model_patches.checkpoints.catalogue import ADAPTERS, ENCODERS, encoder_of_width, published_file
from troupe.model_patches.checkpoints.files import read_shapes, read_state
from troupe.model_patches.errors import CheckpointError
from troupe.model_patches.families.ip_adapter import build
from troupe.model_patches.families.registry import adapter_in

PLAIN = FAMILIES["ip-adapter_sdxl_vit-h"].state
SMALL = {  # one of every family, small enough to break every tensor in turn
    "ImageProj": flat(image_proj(SD15, 1024), layers(SD15, (8, 16))),
    "Resampler": flat(resampler(SD15), layers(SD15, (8, 16))),
    "FaceMLP": flat(published.face_mlp(embed=64), layers(SD15, (8, 16))),
    "MIP": flat(image_proj(SDXL, 1280), layers(SDXL, (8, 16), text_gain=True)),
}
EVERY_TENSOR = [(kind, name) for kind, state in SMALL.items() for name in state]


DAMAGES = {
    "longer": lambda tensor: torch.cat((tensor, tensor[:1])),
    "flattened": lambda tensor: tensor.flatten()[:-1],
    "one more axis": lambda tensor: tensor.unsqueeze(0),
    "a number": lambda tensor: tensor.flatten()[0],
    "empty": lambda tensor: tensor[:0],
}


def saved(path, content, kind="safetensors"):
    """Write tensors as .safetensors, or as the .bin that torch writes (nested, zip) or wrote before 1.6 (nested, plain
    pickle).
    """
    if kind == "safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(nested(content), path, _use_new_zipfile_serialization=kind != "old bin")
    return path


def refusal(state, file="my_adapter.safetensors"):
    """The error of a file with these tensors, after checking its form."""
    with pytest.raises(CheckpointError) as caught:
        adapter_in(AdapterFile(Path(file), file, state))
    return checked(caught.value, file)


# ---- what is recognised ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_every_published_family_is_recognised_by_its_tensors(name):
    family = FAMILIES[name]
    spec = build(family.state, "renamed by its owner.safetensors").spec
    photos, attention = spec.part(PhotoSpec), spec.part(ImageAttentionSpec)
    assert not spec.has(GatedSpec) and not spec.has(PromptSpec)
    assert (spec.family, attention.projection, spec.base, attention.tokens) == (
        family.family,
        family.projection,
        family.base,
        family.tokens,
    )
    assert (photos.encoder.kind, photos.encoder.width) == family.encoder
    assert family.encoder_name in photos.encoder.describe()
    assert attention.widths == NARROW
    assert attention.text_gain == (family.family == "mip_adapter")
    assert (photos.framing, attention.merge) == ("pad", "relevance")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs_forward(name):
    family = FAMILIES[name]
    adapter = build(family.state, "x")
    tokens = adapter.projection(family.features)
    assert tokens.shape == (2, family.tokens or family.features.shape[1], adapter.spec.context_dim)
    for layer, width in zip(adapter.layers.layers, NARROW, strict=True):
        assert layer.to_k_ip(tokens).shape[-1] == layer.to_v_ip(tokens).shape[-1] == width
        gain = layer.gain_weights(torch.device("cpu"), torch.float32)
        assert (gain is None) if family.family == "ip_adapter" else torch.equal(gain, layer.text_to_weight.weight[0])


@pytest.mark.parametrize("context, count", [(SD15, 16), (SDXL, 70)])
def test_the_layers_of_the_real_models_are_all_there(context, count):
    widths = published.UNET_WIDTHS[context]
    thin = {
        k: v.as_strided(v.shape, (0, 0))
        for k, v in (
            (f"{2 * j + 1}.to_{kv}_ip.weight", torch.zeros(1).expand(w, context))
            for j, w in enumerate(widths)
            for kv in "kv"
        )
    }
    spec = build(flat(image_proj(context, 1024), thin), "x").spec
    assert len(widths) == count and spec.part(ImageAttentionSpec).widths == widths


def test_layers_are_ordered_by_number_not_by_text():
    kv = layers(SD15, tuple(range(8, 8 + 12)))
    shuffled = dict(sorted(kv.items()))  # 1, 11, 13, 15, ..., 3, 5
    adapter = build(flat(image_proj(SD15, 1024), shuffled), "x")
    assert adapter.spec.part(ImageAttentionSpec).widths == tuple(range(8, 20))
    for j, layer in enumerate(adapter.layers.layers):
        assert torch.equal(layer.to_k_ip.weight, kv[f"{2 * j + 1}.to_k_ip.weight"])
        assert torch.equal(layer.to_v_ip.weight, kv[f"{2 * j + 1}.to_v_ip.weight"])


def test_adapter_modules_is_another_name_for_ip_adapter():
    ours = build(flat(image_proj(SD15, 1024), layers(SD15), "adapter_modules"), "x")
    assert ours.spec == build(flat(image_proj(SD15, 1024), layers(SD15)), "x").spec


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old bin"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_file_comes_back_as_it_was_written(tmp_path, kind, dtype):
    state = cast(PLAIN, dtype)
    read = read_state(saved(tmp_path / f"x.{kind[-3:] if 'bin' in kind else kind}", state, kind))
    assert read.keys() == state.keys()
    assert all(torch.equal(read[k], v) and read[k].dtype == dtype for k, v in state.items())


@pytest.mark.parametrize(
    "name, kind",
    [
        ("x.bin", "safetensors"),
        ("x.safetensors", "bin"),
        ("X.SAFETENSORS", "safetensors"),
        ("x.ckpt", "bin"),
        ("x.pt", "old bin"),
    ],
)
def test_the_name_of_a_file_does_not_decide_how_it_is_read(tmp_path, name, kind):
    path = saved(tmp_path / name, PLAIN, kind)
    assert read_state(path).keys() == PLAIN.keys()
    assert read_shapes(path) == {k: tuple(v.shape) for k, v in PLAIN.items()}


@pytest.mark.parametrize(
    "dtype, kv_dtype",
    [(torch.float16, None), (torch.bfloat16, None), (torch.float32, torch.float16), (torch.float8_e4m3fn, None)],
)
def test_modules_keep_the_dtypes_of_the_file(dtype, kv_dtype):
    adapter = build(cast(FAMILIES["MIP model_sdxl_plus"].state, dtype, kv_dtype), "x")
    assert {p.dtype for p in adapter.projection.parameters()} == {dtype}
    assert {p.dtype for p in adapter.layers.parameters()} == {kv_dtype or dtype}
    assert not any(p.requires_grad for p in [*adapter.projection.parameters(), *adapter.layers.parameters()])


def test_mixed_file_keeps_its_weights_and_makes_none():
    state = cast(FAMILIES["ip-adapter-plus_sdxl_vit-h"].state, torch.float32, torch.float16)
    adapter = build(state, "x")
    assert adapter.projection.proj_in.weight.data_ptr() == state["image_proj.proj_in.weight"].data_ptr()
    assert not any(p.is_meta for p in [*adapter.projection.parameters(), *adapter.layers.parameters()])


# ---- what is refused, by what it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_by_what_they_are(name):
    state, word = REFUSED[name]
    assert word in refusal(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faceid_sd15", "faceid-plusv2", "faceid-portrait", "Kolors plus", "FLUX by InstantX"])
def test_other_files_are_refused_from_bin_too(tmp_path, name):
    state, word = REFUSED[name]
    assert word in refusal(read_state(saved(tmp_path / "x.bin", state, "bin")))


def test_a_file_with_no_tensors_is_refused(tmp_path):
    for content, kind in (({}, "safetensors"), ({}, "bin")):
        path = saved(tmp_path / f"none.{kind}", content, kind)
        with pytest.raises(CheckpointError) as caught:
            read_state(path)
        assert "tensors" in checked(caught.value, path.name)


# ---- files that are damaged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, name", EVERY_TENSOR)
def test_one_missing_tensor_is_named(kind, name):
    state = {k: v for k, v in SMALL[kind].items() if k != name}
    text = refusal(state)
    number = name.split(".")[1]
    assert name in text or (number == "3" and "to_k_ip" in name), text


def test_a_missing_layer_in_the_middle_is_named():
    state = {k: v for k, v in PLAIN.items() if not k.startswith("ip_adapter.5.")}
    assert "'ip_adapter.5.to_k_ip.weight'" in refusal(state)


@pytest.mark.parametrize("kind, name", EVERY_TENSOR)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_one_misshapen_tensor_is_refused(kind, name, damage):
    refusal(SMALL[kind] | {name: DAMAGES[damage](SMALL[kind][name])})


@pytest.mark.parametrize(
    "kind, name",
    [
        (kind, name)
        for kind, name in EVERY_TENSOR
        if SMALL[kind][name].ndim > 1 and SMALL[kind][name].shape[-1] != SMALL[kind][name].shape[-2]
    ],
)
def test_one_transposed_tensor_is_refused(kind, name):
    refusal(SMALL[kind] | {name: SMALL[kind][name].mT})


@pytest.mark.parametrize(
    "name",
    ["image_proj.proj.weight", "image_proj.norm.weight", "ip_adapter.3.to_k_ip.weight", "ip_adapter.3.to_v_ip.weight"],
)
def test_a_tensor_with_too_many_axes_is_named_with_its_shape(name):
    bent = SMALL["ImageProj"][name].unsqueeze(0)
    text = refusal(SMALL["ImageProj"] | {name: bent})
    assert name in text and str(list(bent.shape)) in text


def test_a_resampler_whose_heads_do_not_fit_is_refused():
    refusal(flat(resampler(SD15, inner=100), layers(SD15)))


@pytest.mark.parametrize(
    "extra",
    [
        "image_proj.dummy_token",
        "ip_adapter.1.to_q_ip.weight",
        "ip_adapter.2.to_k_ip.weight",
        "ip_adapter.2.x",
        "ip_adapter.scale",
        "ip_adapter.²",
    ],
)
def test_a_tensor_of_something_else_is_refused_by_name(extra):
    assert f"'{extra}'" in refusal(PLAIN | {extra: torch.zeros(3, 3)})


@pytest.mark.parametrize(
    "extra",
    [
        "image_proj.layers.x.weight",
        "image_proj.layers",
        "image_proj.layers.0.weight",
        "image_proj.layers.9.0.to_q.weight",
        "image_proj.pos_emb.w",
    ],
)
def test_a_resampler_of_another_make_is_refused(extra):
    refusal(SMALL["Resampler"] | {extra: torch.zeros(3, 3)})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("name", ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype, name):
    text = refusal(PLAIN | {name: PLAIN[name].to(dtype)})
    assert name in text and str(dtype).removeprefix("torch.") in text


@pytest.mark.parametrize("half", ["image_proj.", "ip_adapter."])
def test_a_file_with_one_half_of_an_adapter_is_one_of_this_family(half):
    other = {"image_proj.": "ip_adapter.", "ip_adapter.": "image_proj."}[half]
    state = {name: tensor for name, tensor in PLAIN.items() if name.startswith(half)} | {"step": torch.zeros(1)}
    text = refusal(state)
    assert "an IP-Adapter or MIP-Adapter file" in text and f"none of them '{other}...'" in text


def test_a_file_of_no_family_is_refused_with_the_names_of_all():
    text = refusal({"something.weight": torch.zeros(2)})
    assert "1 tensors such as 'something.weight'" in text and "IP-Adapter, MIP-Adapter" in text and "GLIGEN" in text


def test_image_tokens_and_layers_for_two_base_models_are_refused():
    assert "one base model" in refusal(flat(image_proj(SD15, 1024), layers(SDXL)))


# ---- files that cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda bomb, path: torch.save(bomb, path),
        lambda bomb, path: path.write_bytes(pickle.dumps(bomb)),
        lambda bomb, path: torch.save({"image_proj": bomb}, path, _use_new_zipfile_serialization=False),
    ],
    ids=["zip", "raw pickle", "old"],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["x.bin", "x.safetensors"])
def test_code_in_a_file_is_not_run(tmp_path, write, name):
    path, flag = tmp_path / name, tmp_path / "ran"
    write({"image_proj": {"proj.weight": torch.zeros(2)}, "evil": Bomb(flag)}, path)
    with pytest.raises(CheckpointError) as caught:
        read_state(path)
    text = checked(caught.value, path.name)
    assert not flag.exists()
    assert "hostile" in text and ("posix.system" in text or "UnpicklingError" in text)
    assert "can still be loaded" not in text  # torch's own message tells how to run the code
    assert read_shapes(path) == {} and not flag.exists()


def _truncated(path, kind):
    saved(path, PLAIN, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zip_of_text(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "not weights")


def _itself(path):
    knot = {}
    knot["knot"] = knot
    torch.save(knot, path)


UNREADABLE = {
    "cut-off safetensors": lambda path: _truncated(path, "safetensors"),
    "cut-off bin": lambda path: _truncated(path, "bin"),
    "cut-off old bin": lambda path: _truncated(path, "old bin"),
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"\x80"),
    "zeros": lambda path: path.write_bytes(b"\0" * 4096),
    "zip of text": _zip_of_text,
    "json": lambda path: path.write_text(json.dumps({"a": 1})),
    "a web page": lambda path: path.write_text("<!DOCTYPE html><html>Sign in</html>"),
    "a git pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"),
    "huge header": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "a dict that holds itself": _itself,
}


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin"])
@pytest.mark.parametrize("what", UNREADABLE)
def test_an_unreadable_file_gets_a_sentence(tmp_path, what, name):
    path = tmp_path / name
    UNREADABLE[what](path)
    with pytest.raises(CheckpointError) as caught:
        read_state(path)
    checked(caught.value, name)


@pytest.mark.parametrize("what, word", [("a web page", "web page"), ("a git pointer", "Git LFS")])
def test_what_is_downloaded_instead_of_a_file_is_recognised(tmp_path, what, word):
    path = tmp_path / "x.safetensors"
    UNREADABLE[what](path)
    with pytest.raises(CheckpointError, match=word):
        read_state(path)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    (tmp_path / "folder.bin").mkdir()
    for name, word in (("gone.bin", "nothing at"), ("folder.bin", "a folder")):
        with pytest.raises(CheckpointError, match=word) as caught:
            read_state(tmp_path / name)
        checked(caught.value, name)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old bin"])
def test_headers_tell_names_and_shapes(tmp_path, kind):
    path = saved(tmp_path / f"x.{kind[-3:] if 'bin' in kind else kind}", PLAIN, kind)
    assert read_shapes(path) == {k: tuple(v.shape) for k, v in PLAIN.items()}


def test_header_with_metadata_is_read(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(2, 3)}, tmp_path / "x.safetensors", {"made": "here"})
    assert read_shapes(tmp_path / "x.safetensors") == {"a": (2, 3)}


@pytest.mark.parametrize("what", [w for w in UNREADABLE if w != "cut-off safetensors"])
def test_a_damaged_header_is_no_candidate(tmp_path, what):
    path = tmp_path / "x.safetensors"
    UNREADABLE[what](path)
    assert read_shapes(path) == {}


@pytest.mark.parametrize("header", [b"not json", b"[1, 2]", b'{"a": 5}', b'{"a": {"dtype": "F16"}}', b"\xff\xfe{}"])
def test_a_header_of_another_form_is_no_candidate(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert read_shapes(path) == {}


def test_reading_headers_does_not_read_the_weights(tmp_path):
    path = saved(tmp_path / "x.safetensors", PLAIN)
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    path.write_bytes(path.read_bytes()[: 8 + length])
    assert read_shapes(path).keys() == PLAIN.keys()
    assert read_shapes(tmp_path / "gone.safetensors") == {} == read_shapes(tmp_path)


# ---- the table of published files ------------------------------------------------------------------------------------


def test_every_adapter_of_the_table_names_an_encoder_of_the_table():
    assert {a.encoder for a in ADAPTERS} <= {e.name for e in ENCODERS}
    assert all(a.link.startswith("https://huggingface.co/") and a.folder == "ipadapter" for a in ADAPTERS)


def test_1280_is_two_encoders():
    assert "ViT-H" in encoder_of_width("penultimate", 1280).name
    assert "bigG" in encoder_of_width("pooled", 1280).name


def test_a_published_file_is_known_under_any_folder_and_case():
    assert published_file("ipadapter\\sdxl\\Model_SDXL.bin").name == "model_sdxl.bin"
    assert published_file("mine.bin") is None
