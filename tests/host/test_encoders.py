"""The host's CLIP and CLIP vision behind our interfaces: the same numbers as the host's own calls, in one pass."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from support import published_layouts as published
from support import tiny_open_clip
from support.host import tiny_models
from troupe.model_patches.adapter import Adapter, AdapterSpec, EncoderNeed, GatedSpec, PhotoSpec, Weights
from troupe.model_patches.encoders.mlp import MLP
from troupe.model_patches.encoding.framing import frame
from troupe.model_patches.errors import MismatchError, SubjectError
from troupe.model_patches.subjects import Cast, make_subject

EOS = 49407
NAMES = ["cat", "red-haired girl", r"rem \(re:zero\)", "red_haired_girl", "少女"]


@pytest.fixture(scope="module", params=["sd15", "sd20", "sdxl"])
def clip(request, host):
    return tiny_models.tiny_clip(request.param)


@pytest.fixture(scope="module")
def vision(host, tmp_path_factory):
    return tiny_models.tiny_clip_vision(tmp=str(tmp_path_factory.mktemp("vision") / "config.json"))


@pytest.fixture
def counted(monkeypatch):
    """Counts the calls of a method: counted(owner, "name") -> a list that grows."""

    def count(owner, name):
        calls, original = [], getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
        return calls

    return count


def name_encoder(clip):
    from troupe.model_patches.hosts.comfyui.loading.encoders import HostNameEncoder

    return HostNameEncoder(clip)


def image_encoder(vision):
    from troupe.model_patches.hosts.comfyui.loading.encoders import HostImageEncoder

    return HostImageEncoder(vision)


def alone(clip, name):
    """The host's own encoding of one bare name: all 77 rows, and how many tokens the name has."""
    tokens = {
        stream: [[(entry[0], 1.0) for entry in chunk] for chunk in chunks]
        for stream, chunks in clip.tokenize(name).items()
    }
    ids = [token for token, _ in next(iter(tokens.values()))[0]]
    return clip.encode_from_tokens(tokens)[0], ids.index(EOS, 1) - 1


# ---- names -----------------------------------------------------------------------------------------------------------


def test_names_are_encoded_as_each_of_them_alone(clip):
    *encoded, empty = name_encoder(clip).encode([*NAMES, ""])
    for name, tokens in zip(NAMES, encoded, strict=True):
        rows, length = alone(clip, name)
        assert length > 0
        torch.testing.assert_close(tokens, rows[1 : 1 + length], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(empty, alone(clip, "")[0][1:], rtol=1e-4, atol=1e-5)


def test_lengths_are_those_of_the_vocabulary(clip):
    encoded = name_encoder(clip).encode(["cat", "a cat", "photographer", "", "cat dog bird fish"])
    assert [len(t) for t in encoded] == [1, 2, 1, 76, 4]


@pytest.mark.parametrize("written", ["(cat:1.4)", "((cat))", "(cat:0.2)", " cat "])
def test_emphasis_is_read_and_dropped(clip, written):
    plain, weighted, _ = name_encoder(clip).encode(["cat", written, ""])
    torch.testing.assert_close(weighted, plain, rtol=1e-4, atol=1e-5)


def test_escaped_brackets_are_part_of_the_name(clip):
    bare, booru, _ = name_encoder(clip).encode(["rem re:zero", r"rem \(re:zero\)", ""])
    assert len(booru) == len(bare) + 2


def test_clip_skip_changes_nothing(clip):
    skipped = clip.clone()
    skipped.clip_layer(-3)
    assert not torch.equal(alone(skipped, "cat")[0], alone(clip, "cat")[0])
    for ours, default in zip(
        name_encoder(skipped).encode(["cat", ""]), name_encoder(clip).encode(["cat", ""]), strict=True
    ):
        torch.testing.assert_close(ours, default)
    assert skipped.layer_idx == -3


def test_one_text_pass_for_all_names(clip, counted):
    model = clip.cond_stage_model
    towers = [getattr(model, name) for name in ("clip_l", "clip_g", "clip_h") if hasattr(model, name)]
    passes = [counted(tower.transformer, "forward") for tower in towers]
    name_encoder(clip).encode([*NAMES, ""])
    assert passes == [[1]] * len(towers)


def unprojected(clip, name):
    """The host's own pooled vector of one name before the projection, of CLIP-L (or the only encoder)."""
    tokens = {
        stream: [[(entry[0], 1.0) for entry in chunk] for chunk in chunks]
        for stream, chunks in clip.tokenize(name).items()
    }
    if "g" not in tokens:
        return clip.encode_from_tokens(tokens, return_pooled="unprojected")[1][0]
    clip_l = clip.cond_stage_model.clip_l
    clip_l.set_clip_options({"projected_pooled": False})
    try:
        return torch.cat(
            (clip_l.encode_token_weights(tokens["l"])[1][0], clip.encode_from_tokens(tokens, return_pooled=True)[1][0])
        )
    finally:
        clip.cond_stage_model.reset_clip_options()


def test_pooled_names_are_the_hosts_own(clip):
    """CLIP-L before its projection; in SDXL bigG's projected vector behind it."""
    names = [*NAMES, "(cat:1.4)"]
    found = name_encoder(clip).pooled(names)
    for name, vector in zip(names, found, strict=True):
        torch.testing.assert_close(vector, unprojected(clip, name), rtol=1e-4, atol=1e-5)
    assert {len(v) for v in found} == {{"h": 1024, "l": 768, "gl": 2048}["".join(sorted(clip.tokenize("")))]}
    torch.testing.assert_close(found[-1], found[0], rtol=1e-4, atol=1e-5)


def test_pooled_names_take_one_pass_and_leave_the_hosts_settings(clip, counted):
    before, name = alone(clip, "cat")[0], clip.tokenize("cat")
    pooled = clip.encode_from_tokens(name, return_pooled=True)[1]
    skipped = clip.clone()
    skipped.clip_layer(-3)
    model = clip.cond_stage_model
    towers = [getattr(model, name) for name in ("clip_l", "clip_g", "clip_h") if hasattr(model, name)]
    passes = [counted(tower.transformer, "forward") for tower in towers]
    found = name_encoder(skipped).pooled(NAMES)
    assert passes == [[1]] * len(towers)
    torch.testing.assert_close(torch.stack(found), torch.stack(name_encoder(clip).pooled(NAMES)))
    options = [(tower.layer, tower.layer_idx, tower.return_projected_pooled) for tower in towers]
    assert options == [tower.options_default for tower in towers]
    assert torch.equal(alone(clip, "cat")[0], before) and torch.equal(
        clip.encode_from_tokens(name, return_pooled=True)[1], pooled
    )


def test_a_pooled_name_without_tokens_is_none(clip):
    nothing, cat = name_encoder(clip).pooled(["()", "cat"])
    assert nothing is None and cat is not None


def test_a_name_of_75_tokens_fits_and_one_of_76_is_refused(clip):
    longest, _ = name_encoder(clip).encode([" ".join(["cat"] * 75), ""])
    assert len(longest) == 75
    with pytest.raises(SubjectError, match="at most 75 tokens"):
        name_encoder(clip).encode([" ".join(["cat"] * 76), ""])


@pytest.mark.parametrize("name", ["()", "(())", "( )"])
def test_brackets_around_nothing_have_no_tokens(clip, name):
    assert len(name_encoder(clip).encode([name, ""])[0]) == 0


def test_a_text_encoder_of_another_kind_is_refused():
    flux = SimpleNamespace(
        clone=lambda: SimpleNamespace(tokenize=lambda text: {"l": [[(49406, 1.0)]], "t5xxl": [[(1, 1.0)] * 256]})
    )
    with pytest.raises(MismatchError, match="SD1.5, SD2 or SDXL.*t5xxl"):
        name_encoder(flux).encode(["cat", ""])


# ---- photos ----------------------------------------------------------------------------------------------------------


def photos(count):
    shapes = [(40, 20), (20, 40), (32, 32), (9, 80)]
    return torch.stack([frame(torch.rand(*shapes[i % 4], 3), 32, "pad") for i in range(count)])


@pytest.mark.parametrize("kind, theirs", [("pooled", "image_embeds"), ("penultimate", "penultimate_hidden_states")])
def test_photos_are_encoded_as_the_host_encodes_them(vision, kind, theirs):
    pictures = photos(5)
    torch.testing.assert_close(
        image_encoder(vision).encode(pictures, kind, blank=False),
        vision.encode_image(pictures)[theirs],
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_blank_row_is_zero_pixel_values_not_a_black_photo(vision):
    blank = image_encoder(vision).encode(photos(2), "penultimate", blank=True)[-1]
    zero = vision.model(pixel_values=torch.zeros(1, 3, 32, 32), intermediate_output=-2)[1][0]
    torch.testing.assert_close(blank, zero, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        blank, vision.encode_image(torch.zeros(1, 32, 32, 3)).penultimate_hidden_states[0], atol=1e-3
    )


def test_one_pass_for_all_photos_and_the_blank_row(vision, counted):
    passes = counted(vision.model, "forward")
    assert len(image_encoder(vision).encode(photos(7), "penultimate", blank=True)) == 8
    assert passes == [1]


def test_many_photos_go_in_parts_and_come_back_in_order(vision, counted):
    pictures = photos(33)
    passes = counted(vision.model, "forward")
    found = image_encoder(vision).encode(pictures, "pooled", blank=True)
    assert len(passes) == 2
    torch.testing.assert_close(found[:33], vision.encode_image(pictures).image_embeds, rtol=1e-4, atol=1e-5)


def test_no_photos_give_no_rows_or_the_blank_one(vision):
    none = torch.zeros(0, 32, 32, 3)
    assert image_encoder(vision).encode(none, "pooled", blank=False).shape == (0, 16)
    assert image_encoder(vision).encode(none, "penultimate", blank=True).shape == (1, 17, 32)


def test_widths_are_read_off_the_encoder(vision):
    encoder = image_encoder(vision)
    assert (encoder.size, encoder.hidden, encoder.pooled) == (32, 32, 16)


@pytest.mark.parametrize("model", [SimpleNamespace(), torch.nn.Linear(2, 2), None])
def test_an_encoder_of_another_kind_is_refused(host, model):
    with pytest.raises(MismatchError, match="a CLIP vision encoder"):
        image_encoder(SimpleNamespace(model=model, image_size=224))


# ---- patch tokens, and an adapter's own vision weights ---------------------------------------------------------------


def test_patch_tokens_and_pooled_vectors_are_the_hosts_in_one_pass(vision, counted):
    pictures = photos(33)
    theirs = vision.encode_image(pictures)
    passes = counted(vision.model, "forward")
    patches, pooled = image_encoder(vision).encode_patches(pictures)
    assert len(passes) == 2 and patches.shape == (33, 16, 32)  # 32 at a time
    torch.testing.assert_close(patches, theirs.last_hidden_state[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, theirs.image_embeds, rtol=1e-4, atol=1e-5)


def tuned(vision):
    """Other weights for the last layer and the projection."""
    g = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(value.shape, generator=g) / 8
        for name, value in vision.model.state_dict().items()
        if ".layers.2." in name or "visual_projection" in name
    }


def test_an_adapters_own_vision_weights_leave_the_encoder_as_it_was(vision, tmp_path):
    pictures, weights = photos(3), tuned(vision)
    other = tiny_models.tiny_clip_vision(tmp=str(tmp_path / "config.json"))
    other.model.load_state_dict(weights, strict=False)
    before, patcher = vision.encode_image(pictures), vision.patcher
    images = image_encoder(vision)
    mine = images.with_weights(weights)
    for _ in range(2):  # there and back, twice
        patches, pooled = mine.encode_patches(pictures)
        wanted, after = other.encode_image(pictures), vision.encode_image(pictures)
        torch.testing.assert_close(patches, wanted.last_hidden_state[:, 1:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pooled, wanted.image_embeds, rtol=1e-4, atol=1e-5)
        assert torch.equal(after.last_hidden_state, before.last_hidden_state) and torch.equal(
            after.image_embeds, before.image_embeds
        )
        assert not torch.allclose(patches, before.last_hidden_state[:, 1:], atol=1e-2)
    del mine
    torch.testing.assert_close(images.encode_patches(pictures)[1], before.image_embeds, rtol=1e-4, atol=1e-5)
    assert vision.patcher is patcher and not patcher.patches


def test_vision_weights_for_another_encoder_are_refused(vision):
    with pytest.raises(
        MismatchError, match="that fits the adapter's own 'vision_model.encoder.layers.31.mlp.fc1.bias'.*without"
    ):
        image_encoder(vision).with_weights({"vision_model.encoder.layers.31.mlp.fc1.bias": torch.zeros(64)})


def test_features_of_subject_diffusion_through_the_host(vision, tmp_path):
    """Photos to features under the host's memory management: own vision weights, one encoder pass, the MLP."""
    from troupe.model_patches.hosts.comfyui.apply import encode_references
    from troupe.model_patches.hosts.comfyui.loading.adapters import host_adapter

    weights, pictures = tuned(vision), photos(2)
    gated = GatedSpec("patches", {"middle_block.1.transformer_blocks.0": 64}, 24, 32, 2, 16)
    spec = AdapterSpec("subject_diffusion", "tiny.bin", 24, (PhotoSpec(EncoderNeed("last", 32), "center"), gated))
    mlp = MLP(16, 24, 24).requires_grad_(False)
    adapter = host_adapter(Adapter(spec, mlp, None, weights=Weights(vision=weights)))
    cast = Cast((make_subject("cat", [pictures[:1]]), make_subject("red fox", [pictures[1:]])))
    references = encode_references(adapter, cast, clip_vision=vision)
    other = tiny_models.tiny_clip_vision(tmp=str(tmp_path / "config.json"))
    other.model.load_state_dict(weights, strict=False)
    wanted = other.encode_image(pictures)
    for i, subject in enumerate(references.subjects):
        torch.testing.assert_close(subject.features.image, wanted.last_hidden_state[i, 1:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(subject.words["h"][0], mlp(wanted.image_embeds)[i], rtol=1e-4, atol=1e-5)


def test_open_clips_files_give_open_clips_numbers_through_the_host(host, tmp_path):
    """The host's own conversion, its model, our reading of it: patch tokens before the final norm, and the pooled
    vector.
    """
    import comfy.clip_vision

    tower = tiny_open_clip.vision_tower()
    vision = tiny_models.tiny_clip_vision(hidden=tiny_open_clip.WIDTH, tmp=str(tmp_path / "config.json"))
    missing, _ = vision.load_sd(comfy.clip_vision.convert_to_transformers(tiny_open_clip.file_of(tower), "visual."))
    pictures = photos(3)
    pixels = comfy.clip_vision.clip_preprocess(pictures, size=32)
    assert not missing
    for found, wanted in zip(
        image_encoder(vision).encode_patches(pictures), tiny_open_clip.patches_and_pooled(tower, pixels), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_our_names_for_an_open_clip_tower_are_the_hosts(host):
    import comfy.clip_vision
    from troupe.model_patches.checkpoints.clip_vision import with_transformers_names

    state = tiny_open_clip.file_of(tiny_open_clip.vision_tower())
    ours, theirs = with_transformers_names(state), comfy.clip_vision.convert_to_transformers(dict(state), "visual.")
    theirs = {name: value for name, value in theirs.items() if name.startswith(("vision_model.", "visual_projection."))}
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_phrases_through_the_host_load_no_encoder_of_photos(host, monkeypatch):
    from troupe.model_patches.hosts.comfyui.apply import encode_references
    from troupe.model_patches.hosts.comfyui.loading.adapters import HostAdapter, host_adapter

    monkeypatch.setattr(HostAdapter, "clip_vision", lambda self: pytest.fail("looked for an encoder of photos"))
    clip = tiny_models.tiny_clip("sd15")
    gated = GatedSpec("text", {"middle_block.1.transformer_blocks.0": 64}, 768, 768, 30, 1)
    adapter = host_adapter(Adapter(AdapterSpec("gligen", "tiny.safetensors", 768, (gated,)), None, None))
    (found,) = encode_references(adapter, Cast((make_subject("cat", [photos(1)]),)), clip=clip).subjects
    torch.testing.assert_close(found.features.text, unprojected(clip, "cat"), rtol=1e-4, atol=1e-5)


# ---- finding the encoder ---------------------------------------------------------------------------------------------

H, BIGG, L = (1280, 1024), (1664, 1280), (1024, 768)
H_NAMES = [
    "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
    "model.safetensors",
    "image_encoder.safetensors",
    "SD1.5/model.safetensors",
    "open_clip_pytorch_model.bin",
]


@pytest.fixture
def encoder_file(host, base_folder):
    """Puts an encoder's (few) tensors into models/clip_vision; they are gone after the test."""
    made = []

    def put(name, widths, layout="transformers"):
        path = base_folder / "models" / "clip_vision" / name
        path.parent.mkdir(exist_ok=True)
        state = {k: v.half() for k, v in published.vision_encoder(*widths, layout).items()}
        torch.save(state, path) if path.suffix == ".bin" else safetensors.torch.save_file(state, path)
        made.append(path)
        return path

    yield put
    for path in made:
        path.unlink(missing_ok=True)


def find(kind, width):
    from troupe.model_patches.hosts.comfyui.loading.adapters import find_clip_vision

    return find_clip_vision(EncoderNeed(kind, width))


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
@pytest.mark.parametrize("name", H_NAMES)
def test_the_encoder_is_found_under_any_name(encoder_file, name, layout):
    encoder_file("aaa ViT-H.safetensors", BIGG, layout)  # a wrong file with the right name
    encoder_file("zzz.safetensors", L, layout)
    encoder_file(name, H, layout)
    assert find("penultimate", 1280).replace("\\", "/") == name == find("pooled", 1024).replace("\\", "/")


NEEDS = [
    ("penultimate", 1280, "H"),
    ("pooled", 1280, "bigG"),
    ("penultimate", 1024, "L"),
    ("pooled", 1024, "H"),
    ("penultimate", 1664, "bigG"),
    ("pooled", 768, "L"),
]


@pytest.mark.parametrize("kind, width, right", NEEDS)
def test_equal_numbers_of_different_outputs_are_not_confused(encoder_file, kind, width, right):
    for name, of in (("H", H), ("bigG", BIGG), ("L", L)):
        encoder_file(f"{name}.safetensors", of)
    assert find(kind, width) == f"{right}.safetensors"


@pytest.mark.parametrize(
    "layout, table",
    [
        ("transformers", "vision_model.embeddings.position_embedding.weight"),
        ("open_clip", "visual.positional_embedding"),
    ],
)
def test_of_two_that_fit_the_one_for_smaller_pictures_is_taken(encoder_file, layout, table):
    """OpenAI's ViT-L/14 at 224 and at 336 pixels have the same widths; the larger one's name comes first in the
    list.
    """
    for name, positions in (
        ("clip-vit-large-patch14-336.safetensors", 577),
        ("clip-vit-large-patch14.safetensors", 257),
    ):
        path = encoder_file(name, L, layout)
        state = safetensors.torch.load_file(path)
        state[table] = torch.zeros(positions, 1024, dtype=torch.float16)
        safetensors.torch.save_file(state, path)
    assert find("pooled", 768) == "clip-vit-large-patch14.safetensors"


def test_the_file_saved_by_the_image_half_alone_is_found(host, base_folder):
    path = base_folder / "models" / "clip_vision" / "vision_only.safetensors"
    safetensors.torch.save_file(published.vision_encoder(*H, text=False), path)
    try:
        assert find("pooled", 1024) == path.name
    finally:
        path.unlink()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_other_files_in_the_folder_are_passed_over(encoder_file, base_folder):
    folder = base_folder / "models" / "clip_vision"
    junk = {"a.safetensors": b"", "b.bin": b"\x80nothing", "c.safetensors": b"<html>", "d.pth": b"PK\x03\x04"}
    for name, content in junk.items():
        (folder / name).write_bytes(content)
    safetensors.torch.save_file(
        {
            "vision_model.embeddings.class_embedding": torch.zeros(1, 1280),
            "visual_projection.weight": torch.zeros(1024),
        },
        folder / "e.safetensors",
    )
    encoder_file("z.safetensors", H)
    try:
        assert find("pooled", 1024) == "z.safetensors"
    finally:
        for name in [*junk, "e.safetensors"]:
            (folder / name).unlink()


def test_nothing_is_found_where_nothing_fits(encoder_file):
    encoder_file("l.safetensors", L)
    assert find("penultimate", 1280) is None


def test_a_file_that_was_replaced_is_read_again(encoder_file):
    encoder_file("x.safetensors", L)
    assert find("pooled", 1024) is None
    encoder_file("x.safetensors", H)
    assert find("pooled", 1024) == "x.safetensors"


def test_the_usual_folder_is_listed_beside_one_that_another_pack_or_a_path_file_gave(tmp_path, monkeypatch):
    import folder_paths
    from troupe.model_patches.hosts.comfyui.loading import adapters

    usual, other = os.path.join(folder_paths.models_dir, "ipadapter"), str(tmp_path)
    (tmp_path / "theirs.safetensors").touch()
    for given, expected in (
        (None, [usual]),
        (([other], set()), [other, usual]),
        (([usual], {".safetensors"}), [usual]),
    ):
        names = {name: value for name, value in folder_paths.folder_names_and_paths.items() if name != "ipadapter"}
        monkeypatch.setattr(
            folder_paths, "folder_names_and_paths", names if given is None else {**names, "ipadapter": given}
        )
        monkeypatch.setattr(folder_paths, "filename_list_cache", {})
        adapters.register_folders()
        adapters.register_folders()
        assert folder_paths.get_folder_paths("ipadapter") == expected
        assert ("theirs.safetensors" in adapters.adapter_names()) == (other in expected)
