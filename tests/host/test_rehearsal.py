"""Load Rehearsal Models on a real host: its outputs work with the core's nodes and with ours, and both engines paint
the same picture.
"""

from __future__ import annotations

import gc
import shutil
import socket
import weakref

import pytest
import torch
from troupe_tools.pack import ROOT

SHIPPED = ROOT / "rehearsal" / "files"
PROMPT, SEED, STEPS, CFG = "a cat and a robot on grass", 3, 4, 3.0
TOLERANCE = 1e-3  # of a decoded picture in 0..1


@pytest.fixture(scope="module")
def folder(host, tmp_path_factory):
    """A folder with random files, in place of the pack's own."""
    from support.host import random_rehearsal_files as rehearsal_files
    from troupe.model_patches.hosts.comfyui.loading import rehearsal_models
    from troupe.rehearsal import files

    place = tmp_path_factory.mktemp("rehearsal")
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(files, "FOLDER", place)
        rehearsal_files.write_base(place)
        rehearsal_files.write_adapters(place, rehearsal_models.model())
        yield place


@pytest.fixture
def copy(folder, tmp_path, monkeypatch):
    """A copy of that folder, which a test may change."""
    from troupe.rehearsal import files

    place = tmp_path / "files"
    shutil.copytree(folder, place)
    monkeypatch.setattr(files, "FOLDER", place)
    return place


@pytest.fixture(scope="module")
def models(folder):
    """Outputs of the node."""
    with torch.inference_mode():
        return load()


def load(adapter="mip_adapter", subjects=("cat", "robot", "bird")):
    from support.host.node_chains import run
    from troupe.nodes.rehearsal import LoadRehearsalModels

    return run(LoadRehearsalModels, adapter=adapter, **{f"subject_{n}": kind for n, kind in enumerate(subjects, 1)})


def prompts(clip):
    import nodes

    return [nodes.CLIPTextEncode().encode(clip, text)[0] for text in (PROMPT, "")]


def ksample(model, positive, negative, size=128, seed=SEED):
    import nodes

    latent = nodes.EmptyLatentImage().generate(size, size)[0]
    return nodes.common_ksampler(model, seed, STEPS, CFG, "euler", "simple", positive, negative, latent)[0]


def references_of(models, names=("cat", "robot"), boxes=None):
    from support.host.node_chains import run
    from troupe.nodes.add_subject import AddSubject
    from troupe.nodes.encode_subjects import EncodeSubjects
    from troupe.nodes.place_subjects import PlaceSubjects

    _, clip, _, _, adapter, *pictures = models
    cast = None
    for name, picture in zip(names, pictures, strict=False):
        cast = run(AddSubject, image=picture, name=name, weight=1.0, start_percent=0.0, end_percent=1.0, cast=cast)[0]
    if boxes is not None:
        cast = run(PlaceSubjects, cast=cast, width=128, height=128, boxes=boxes, layout="none")[0]
    return run(EncodeSubjects, adapter=adapter, cast=cast, framing="auto", clip=clip)[0]


def host_picture(models, merge, references, **widgets):
    """[3, 128, 128] of Apply Image Attention, KSampler and VAE Decode."""
    from support.host.node_chains import run
    from troupe.nodes.apply_image_attention import ApplyImageAttention

    import nodes

    model, clip, vae, *_ = models
    positive, negative = prompts(clip)
    values = {
        "weight": 1.0,
        "merge": merge,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "box_strength": 1.0,
        "box_end_percent": 1.0,
        "box_feather": 0.05,
        "sharpness": 1.0,
        "background": 1.0,
        **widgets,
    }
    applied = run(
        ApplyImageAttention, model=model, references=references, positive=positive, negative=negative, **values
    )
    return nodes.VAEDecode().decode(vae, ksample(*applied[:3]))[0][0].movedim(-1, 0)


# ---- outputs ---------------------------------------------------------------------------------------------------------


def test_sampling_decoding_and_encoding_with_the_core_s_nodes(models):
    import nodes

    model, clip, vae, clip_vision, *_ = models
    latent = ksample(model, *prompts(clip))
    assert latent["samples"].shape == (1, 12, 16, 16)
    picture = nodes.VAEDecode().decode(vae, latent)[0]
    assert picture.shape == (1, 128, 128, 3) and picture.min() >= 0 and picture.max() <= 1 and picture.std() > 0.05
    assert torch.allclose(nodes.VAEDecodeTiled().decode(vae, latent, tile_size=64, overlap=16)[0], picture, atol=1e-5)
    encoded = nodes.VAEEncode().encode(vae, picture)[0]["samples"]
    assert encoded.shape == (1, 12, 16, 16)
    assert torch.allclose(nodes.VAEEncodeTiled().encode(vae, picture, 64, 16)[0]["samples"], encoded, atol=1e-4)
    assert torch.allclose(nodes.VAEDecode().decode(vae, {"samples": encoded})[0], picture, atol=1e-5)
    wide = nodes.VAEEncode().encode(vae, torch.rand(2, 140, 260, 3))[0]["samples"]
    assert wide.shape == (2, 12, 17, 32), "what does not fill a cell is cropped, as by any VAE"
    assert nodes.CLIPVisionEncode().encode(clip_vision, picture, "center")[0]["image_embeds"].shape == (1, 256)


def test_any_sampler_a_batch_and_an_image_to_image_run(models):
    import nodes

    model, clip, vae, *_ = models
    positive, negative = prompts(clip)
    latent = nodes.EmptyLatentImage().generate(96, 160, 2)[0]
    for sampler, scheduler in (("dpmpp_2m", "karras"), ("euler_ancestral", "sgm_uniform"), ("lcm", "normal")):
        made = nodes.common_ksampler(model, 1, 2, 1.5, sampler, scheduler, positive, negative, latent)[0]["samples"]
        assert made.shape == (2, 12, 20, 12) and made.isfinite().all()
    start = nodes.VAEEncode().encode(vae, torch.rand(1, 128, 128, 3))[0]
    again = nodes.common_ksampler(model, 1, 4, 1.5, "euler", "simple", positive, negative, start, denoise=0.5)[0][
        "samples"
    ]
    assert again.shape == (1, 12, 16, 16) and (again - start["samples"]).abs().max() > 0.1


def test_the_prediction_is_v(models):
    """The model's denoised latent is the formula of v-prediction on what its UNet gives."""
    model = models[0].model
    x, sigma = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(0)) * 2, torch.tensor([2.0])
    context = torch.randn(1, 77, 128, generator=torch.Generator().manual_seed(1))
    v = model.diffusion_model(x / (sigma**2 + 1) ** 0.5, model.model_sampling.timestep(sigma).float(), context=context)
    expected = x / (sigma**2 + 1) - v * sigma / (sigma**2 + 1) ** 0.5
    assert v.std() > 1e-3 and torch.allclose(model.apply_model(x, sigma, c_crossattn=context), expected, atol=1e-5)


def test_the_preview_is_the_average_colour_of_a_cell(models):
    """With the host's own previewer."""
    from latent_preview import Latent2RGBPreviewer
    from troupe.rehearsal import codec

    latent_format, latent = (
        models[0].model.latent_format,
        torch.randn(1, 12, 5, 7, generator=torch.Generator().manual_seed(0)) * 0.5,
    )
    shown = Latent2RGBPreviewer(
        latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    ).decode_latent_to_preview(latent)
    expected = torch.nn.functional.avg_pool2d(codec.decode(latent), 8)[0].movedim(0, -1)
    assert shown.size == (7, 5)
    assert torch.equal(
        torch.tensor(list(shown.getdata())).view(5, 7, 3),
        (((expected + 1) / 2).clamp(0, 1) * 255).to(torch.uint8).long(),
    )


def test_clip_skip_is_harmless(models):
    """Names are read at the default layer, prompts at the chosen one, as with any CLIP."""
    import nodes

    skipped = nodes.CLIPSetLastLayer().set_last_layer(models[1], -2)[0]
    full, fewer = prompts(models[1])[0][0][0], prompts(skipped)[0][0][0]
    assert fewer.shape == full.shape == (1, 77, 128) and (fewer - full).abs().max() > 1e-3
    a, b = references_of(models), references_of((models[0], skipped, *models[2:]))
    assert all(torch.equal(x.name_tokens, y.name_tokens) for x, y in zip(a.subjects, b.subjects, strict=True))


def test_the_words_of_the_world_have_meaning_and_others_have_none(models):
    import nodes

    def encoded(text):
        return nodes.CLIPTextEncode().encode(models[1], text)[0][0][0]

    table = models[1].cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    cat, horse = (models[1].tokenize(word)["l"][0][1][0] for word in ("cat", "horse"))
    assert table.shape == (49408, 128) and table[cat].abs().max() > 0 and table[horse].abs().max() == 0
    assert not torch.allclose(encoded("a cat"), encoded("a robot"))
    assert torch.equal(encoded("a horse"), encoded("a lion"))


# ---- reference pictures ----------------------------------------------------------------------------------------------


def test_reference_pictures(models):
    from troupe.rehearsal.cast import CAST, SECOND
    from troupe.rehearsal.world import Figure, reference

    def drawn(figure):
        return torch.from_numpy(reference(figure))[None].float() / 255

    assert all(
        torch.equal(found, drawn(CAST[kind])) for found, kind in zip(models[5:], ("cat", "robot", "bird"), strict=True)
    )
    first, second, tree = load(subjects=("cat", "cat", "tree"))[5:]
    assert (
        torch.equal(first, drawn(CAST["cat"]))
        and torch.equal(second, drawn(Figure("cat", SECOND["cat"])))
        and torch.equal(tree, drawn(CAST["tree"]))
    )
    assert not torch.equal(first, second)
    assert all(look.held_out for look in (*(figure.look for figure in CAST.values()), *SECOND.values())), (
        "an adapter may have been trained on it"
    )


# ---- both engines ----------------------------------------------------------------------------------------------------


def embedded_picture(folder, kind, names, pictures, merge):
    """[3, 128, 128] of the embedded engine."""
    from troupe.rehearsal.engine.paint import encode, load_rehearsal, paint

    rehearsal = load_rehearsal(folder)
    return paint(rehearsal, PROMPT, SEED, encode(rehearsal, kind, pictures, names), merge, steps=STEPS, cfg=CFG)[0]


@pytest.mark.parametrize("kind", ["mip", "ip"])
@pytest.mark.parametrize("merge", ["relevance", "add", "joint"])
def test_both_engines_paint_the_same_picture(folder, models, kind, merge):
    models = load(f"{kind}_adapter")
    found = host_picture(models, merge, references_of(models))
    without = host_picture(models, merge, references_of(models), weight=0.0)
    expected = embedded_picture(folder, kind, ["cat", "robot"], models[5:7], merge)
    assert (found - without).abs().max() > 0.1, "the references have no effect, so nothing is tested"
    assert (found - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("merge", ["relevance", "add"])
def test_both_engines_paint_the_same_picture_with_the_shipped_files(host, monkeypatch, merge):
    from troupe.rehearsal import files

    monkeypatch.setattr(files, "FOLDER", SHIPPED)
    models = load()
    found = host_picture(models, merge, references_of(models))
    assert (found - embedded_picture(SHIPPED, "mip", ["cat", "robot"], models[5:7], merge)).abs().max() < TOLERANCE


# ---- with our other nodes --------------------------------------------------------------------------------------------


def test_place_subjects_moves_the_subjects(models):
    plain = host_picture(models, "relevance", references_of(models))
    boxes = (
        '[{"label": "cat", "x": 0.0, "y": 0.0, "w": 0.5, "h": 1.0}, {"label": "robot", "x": 0.5, "y": 0.0, "w": '
        '0.5, "h": 1.0}]'
    )
    left_right = host_picture(models, "relevance", references_of(models, boxes=boxes))
    assert (left_right - plain).abs().max() > 0.05


def test_relevance_is_recorded_and_shown(models):
    from support.host.node_chains import run
    from troupe.model_patches.binding.settings import ImageAttentionSettings, mixing_for
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention
    from troupe.nodes.preview_relevance import PreviewRelevance
    from troupe.nodes.record_relevance import RecordRelevance

    import nodes

    model, clip, vae, *_ = models
    references = references_of(models)
    model, positive, negative, _ = apply_image_attention(
        model, references, ImageAttentionSettings(1.0, mixing_for(references, "auto")), *prompts(clip)
    )
    model, record = run(RecordRelevance, model=model, blocks="all")
    latent = ksample(model, positive, negative)
    maps, report = run(PreviewRelevance, record=record, latent=latent, image=nodes.VAEDecode().decode(vae, latent)[0])
    assert maps.shape[0] == 1 and maps.std() > 0.01 and "cat" in report and "robot" in report


@pytest.mark.parametrize("merge", ["relevance", "add"])
def test_both_engines_record_the_same_relevance(folder, models, merge):
    from support.host.node_chains import run
    from troupe.model_patches.binding.settings import ImageAttentionSettings, mixing_for
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention
    from troupe.nodes.record_relevance import RecordRelevance
    from troupe.rehearsal.engine.paint import encode, load_rehearsal, paint

    model, clip, *_ = models
    references, theirs = references_of(models), []
    model, positive, negative, _ = apply_image_attention(
        model, references, ImageAttentionSettings(1.0, mixing_for(references, merge)), *prompts(clip)
    )
    model, record = run(RecordRelevance, model=model, blocks="all")
    ksample(model, positive, negative)
    rehearsal = load_rehearsal(folder)
    paint(
        rehearsal,
        PROMPT,
        SEED,
        encode(rehearsal, "mip", models[5:7], ["cat", "robot"]),
        merge,
        steps=STEPS,
        cfg=CFG,
        record=theirs,
    )
    (ours,), (embedded,) = record.run.applied, theirs
    assert (ours.merge, ours.file) == (embedded.merge, embedded.file) and [s.name for s in ours.subjects] == [
        s.name for s in embedded.subjects
    ]
    for mine, other in zip(ours.subjects, embedded.subjects, strict=True):
        assert (
            mine.values.shape == (16, 16)
            and mine.values.std() > 1e-3
            and (mine.values - other.values).abs().max() < TOLERANCE
        )


@pytest.mark.parametrize("wired", [True, False], ids=["encoder wired", "encoder found"])
def test_quick_subjects(models, wired):
    """It does what the four nodes do."""
    from support.host.node_chains import run
    from troupe.nodes.quick_subjects import QuickSubjects
    from troupe.rehearsal import files

    import nodes

    model, clip, vae, clip_vision, _, first, second, _ = models
    positive, negative = prompts(clip)
    made = run(
        QuickSubjects,
        model=model,
        clip=clip,
        adapter_name=f"rehearsal/{files.ADAPTERS['mip']}",
        weight=1.0,
        image_1=first,
        name_1="cat",
        image_2=second,
        name_2="robot",
        positive=positive,
        negative=negative,
        clip_vision=clip_vision if wired else None,
    )
    picture = nodes.VAEDecode().decode(vae, ksample(*made[:3]))[0][0].movedim(-1, 0)
    assert torch.equal(picture, host_picture(models, "auto", references_of(models)))


@pytest.mark.parametrize("watched", [True, False])
def test_quick_subjects_shows_the_maps_after_every_run(models, watched, monkeypatch):
    """With a browser; the picture is what it is without them."""
    import folder_paths
    import server
    from PIL import Image
    from support.host.host_executor import Server
    from support.host.node_chains import run
    from troupe.model_patches.hosts.comfyui import quick
    from troupe.nodes.quick_subjects import QuickSubjects
    from troupe.rehearsal import files

    stand_in = Server()
    stand_in.client_id = "a browser" if watched else None
    monkeypatch.setattr(server.PromptServer, "instance", stand_in, raising=False)
    model, clip, _, _, _, first, second, _ = models
    positive, negative = prompts(clip)
    made = run(
        QuickSubjects,
        model=model,
        clip=clip,
        adapter_name=f"rehearsal/{files.ADAPTERS['mip']}",
        weight=1.0,
        image_1=first,
        name_1="cat",
        image_2=second,
        name_2="robot",
        positive=positive,
        negative=negative,
        show_relevance=False,
    )
    plain = ksample(*made[:3])["samples"]
    shown = (quick.with_relevance_shown(made[0], "7"), *made[1:3])
    for _ in range(2):
        assert torch.equal(ksample(*shown)["samples"], plain)
    pictures = [data for event, data in stand_in.events if event == "troupe.picture"]
    assert [data["node"] for data in pictures] == ["7", "7"] * watched
    for data in pictures:
        with Image.open(
            f"{folder_paths.get_temp_directory()}/{data['picture']['subfolder']}/{data['picture']['filename']}"
        ) as picture:
            assert picture.width == 512 and len(picture.getcolors(1 << 20)) > 50, "two maps below each other"
    assert len({data["picture"]["filename"] for data in pictures}) == 2 * watched


def test_the_adapter_of_another_base_model_is_refused(models):
    """And ours on another base model."""
    from support.host import small_casts as stage
    from troupe.model_patches.errors import MismatchError
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention

    other = stage.stage("SDXL")
    with pytest.raises(MismatchError, match="Expected"):
        apply_image_attention(other.patcher, references_of(models), stage.settings())
    with pytest.raises(MismatchError, match="Expected"):
        apply_image_attention(models[0], other.references(2), stage.settings())


# ---- lists of files --------------------------------------------------------------------------------------------------


def test_the_adapters_come_last_in_the_lists_and_other_packs_do_not_see_them(folder, base_folder):
    import folder_paths
    import safetensors.torch
    from troupe.model_patches.hosts.comfyui.loading import adapters
    from troupe.nodes.load_adapter import LoadAdapter
    from troupe.nodes.quick_subjects import QuickSubjects

    own = [f"rehearsal/rehearsal_{kind}_adapter.safetensors" for kind in ("ip", "mip")]
    theirs = base_folder / "models" / "subject_adapters" / "zzz.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, theirs)
    try:
        names = adapters.adapter_names()
        assert names[-2:] == own and "zzz.safetensors" in names[:-2]
        for node in (LoadAdapter, QuickSubjects):
            assert next(entry for entry in node.define_schema().inputs if entry.id == "adapter_name").options == names
    finally:
        theirs.unlink()
    listed = {
        name
        for key in folder_paths.folder_names_and_paths
        if key != "custom_nodes"
        for name in folder_paths.get_filename_list(key)
    }
    assert not {
        name
        for name in listed
        if "rehearsal" in name
        or name.endswith(("unet.safetensors", "text_encoder.safetensors", "image_encoder.safetensors"))
    }
    assert LoadAdapter.validate_inputs(own[0], "auto") is True
    assert LoadAdapter.validate_inputs(own[0].replace("/", "\\"), "auto") is True


def test_load_subject_adapter_loads_them_too(models):
    from support.host.node_chains import run
    from troupe.nodes.load_adapter import LoadAdapter

    adapter = run(LoadAdapter, adapter_name="rehearsal/rehearsal_mip_adapter.safetensors", clip_vision_name="auto")[0]
    expected, found = references_of(models), references_of((*models[:4], adapter, *models[5:]))
    assert adapter.id == models[4].id and adapter.clip_vision() is models[3]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(expected.subjects, found.subjects, strict=True))


def test_without_the_encoder_a_message_says_what_is_missing(models):
    """'none' stays none."""
    from support.host.node_chains import run
    from troupe.model_patches.errors import MismatchError
    from troupe.nodes.load_adapter import LoadAdapter

    adapter = run(LoadAdapter, adapter_name="rehearsal/rehearsal_mip_adapter.safetensors", clip_vision_name="none")[0]
    with pytest.raises(MismatchError, match="no such CLIP vision encoder"):
        references_of((*models[:4], adapter, *models[5:]))


# ---- bad days --------------------------------------------------------------------------------------------------------

NAMES = [
    "unet.safetensors",
    "text_encoder.safetensors",
    "image_encoder.safetensors",
    "rehearsal_mip_adapter.safetensors",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "harm", ["missing", "cut off", "empty", "another file", "one tensor short", "one tensor of another shape"]
)
def test_a_damaged_file_gets_its_sentence(copy, name, harm):
    import safetensors.torch
    from troupe.model_patches.errors import CheckpointError

    path = copy / name
    whole, state = path.read_bytes(), safetensors.torch.load_file(path)
    last = sorted(state)[-1] if "adapter" in name else sorted(state)[0]
    if harm == "missing":
        path.unlink()
    elif harm == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "another file":
        path.write_bytes((copy / NAMES[(NAMES.index(name) + 1) % len(NAMES)]).read_bytes())
    elif harm == "one tensor short":
        safetensors.torch.save_file({key: value for key, value in state.items() if key != last}, path)
    else:
        safetensors.torch.save_file({**state, last: state[last][:-1].clone()}, path)
    with pytest.raises(CheckpointError) as caught:
        load()
    sentence = str(caught.value)
    assert (
        name in sentence
        and sentence.startswith("Expected ")
        and sentence.endswith(" It comes with Troupe: reinstall or update the pack.")
        and "\n" not in sentence
    )
    path.write_bytes(whole)
    load()


def test_a_missing_adapter_is_not_listed_and_a_saved_choice_says_what_to_do(copy):
    from troupe.model_patches.hosts.comfyui.loading import adapters
    from troupe.nodes.load_adapter import LoadAdapter

    (copy / "rehearsal_mip_adapter.safetensors").unlink()
    name = "rehearsal/rehearsal_mip_adapter.safetensors"
    assert name not in adapters.adapter_names()
    assert LoadAdapter.validate_inputs(name, "auto").endswith("It comes with Troupe: reinstall or update the pack.")
    load("ip_adapter")


def test_a_new_file_is_another_fingerprint(copy):
    from troupe.nodes.rehearsal import LoadRehearsalModels

    before = {adapter: LoadRehearsalModels.fingerprint_inputs(adapter) for adapter in ("mip_adapter", "ip_adapter")}
    shutil.copy(copy / "rehearsal_ip_adapter.safetensors", copy / "rehearsal_mip_adapter.safetensors")
    after = {adapter: LoadRehearsalModels.fingerprint_inputs(adapter) for adapter in ("mip_adapter", "ip_adapter")}
    assert before["mip_adapter"] != after["mip_adapter"] and before["ip_adapter"] == after["ip_adapter"]


def test_nothing_reaches_for_the_network(copy, monkeypatch):
    """From an empty memory; also not while it samples."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    models = load()
    host_picture(models, "relevance", references_of(models))


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_two_nodes_share_their_models(models):
    again, other = load(), load("ip_adapter")
    assert all(a is b for a, b in zip(models[:5], again[:5], strict=True))
    assert all(a is b for a, b in zip(models[:4], other[:4], strict=True)) and models[4] is not other[4]


def test_models_that_no_node_holds_are_freed(copy):
    import comfy.model_management

    models = load()
    host_picture(models, "relevance", references_of(models))
    watched = [
        weakref.ref(part)
        for part in (
            models[0].model,
            models[1].cond_stage_model,
            models[2].first_stage_model,
            models[3].model,
            models[4].layers_patcher.model,
        )
    ]
    del models
    gc.collect()
    comfy.model_management.cleanup_models()
    gc.collect()
    assert [found() for found in watched] == [None] * 5


def test_a_changed_file_is_loaded_again(copy):
    from safetensors.torch import load_file
    from support.host.random_rehearsal_files import save

    first = load()
    state = load_file(copy / "unet.safetensors")
    save({name: value + (name == "conv_out.bias") for name, value in state.items()}, copy / "unet.safetensors")
    second = load()
    assert first[0] is not second[0] and first[1] is second[1]
    assert not torch.equal(first[0].model.diffusion_model.out[2].bias, second[0].model.diffusion_model.out[2].bias)


def test_a_word_that_the_rehearsal_models_do_not_know_is_warned_of(models, caplog):
    import logging

    from support.host.node_chains import run
    from troupe.nodes.add_subject import AddSubject
    from troupe.nodes.encode_subjects import EncodeSubjects

    model, clip, vae, vision, adapter, *pictures = models
    cast = None
    for name, picture in zip(("small cat", "girl"), pictures, strict=False):
        (cast,) = run(AddSubject, image=picture, name=name, weight=1.0, start_percent=0.0, end_percent=1.0, cast=cast)
    with caplog.at_level(logging.WARNING, "troupe"):
        run(EncodeSubjects, adapter=adapter, cast=cast, framing="auto", clip=clip, clip_vision=vision)
    told = [r.message for r in caplog.records if "rehearsal models only know" in r.message]
    assert len(told) == 1 and "cat, " in told[0] and "not 'girl'" in told[0]


def test_a_photo_that_is_no_drawing_of_the_world_is_warned_of(models, caplog):
    """By its size or its many colours; the pictures that come with the models, and masked ones, are not."""
    import logging

    from support.host.node_chains import run
    from troupe.nodes.add_subject import AddSubject
    from troupe.nodes.encode_subjects import EncodeSubjects

    model, clip, vae, vision, adapter, *pictures = models
    noise = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))
    photos = {"cat": pictures[0], "robot": noise, "bird": torch.ones(1, 300, 200, 3)}
    cast = None
    for name, picture in photos.items():
        (cast,) = run(AddSubject, image=picture, name=name, weight=1.0, start_percent=0.0, end_percent=1.0, cast=cast)
    with caplog.at_level(logging.WARNING, "troupe"):
        run(EncodeSubjects, adapter=adapter, cast=cast, framing="auto", clip=clip, clip_vision=vision)
    told = [r.message for r in caplog.records if "comes out at random" in r.message]
    assert ["'robot'" in told[0], "'bird'" in told[1], len(told)] == [True, True, 2]
