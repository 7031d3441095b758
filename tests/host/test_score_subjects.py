"""Score Subjects and Keep Best on a real host: with the rehearsal models, with a text tower, with a DINO."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from troupe_tools.pack import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import scores as scores_script
import scores_page

SEEDS = 2  # drawings of each kind and cast
PICTURES = ("right", "swapped", "cloned", "missing")


@pytest.fixture(scope="module")
def cases(host):
    """Drawn pictures of one cast each, whose verdicts are known."""
    from drawn_cases import drawn_case

    return {case: drawn_case(case, True, 0) for case in PICTURES}


@pytest.fixture(scope="module")
def models(host):
    from support.host.node_chains import run
    from troupe.nodes.rehearsal import LoadRehearsalModels

    with torch.inference_mode():
        return run(LoadRehearsalModels, adapter="mip_adapter", subject_1="cat", subject_2="robot", subject_3="bird")


def cast_of(case):
    from troupe.rehearsal.engine.trials import cast_of

    return cast_of(case.figures)


def references_of(models, cast):
    from support.host.node_chains import run
    from troupe.nodes.encode_subjects import EncodeSubjects

    return run(EncodeSubjects, adapter=models[4], cast=cast, framing="auto", clip=models[1])[0]


def score(image, **wired):
    from support.host.node_chains import run
    from troupe.nodes.score_subjects import ScoreSubjects

    return run(ScoreSubjects, image=image, **{"encoder": "clip_vision", "threshold": 0.2, "prompt": "", **wired})


def words(scores):
    return [[subject["verdict"] for subject in picture["subjects"]] for picture in json.loads(scores)["pictures"]]


@pytest.mark.parametrize("case", PICTURES)
@pytest.mark.parametrize("wired", ["references", "cast", "both"])
def test_the_node_says_the_truth_about_a_drawn_picture(models, cases, case, wired):
    """References alone bring the adapter's encoder and the photos as it saw them."""
    one = cases[case]
    cast = cast_of(one)
    given = {"references": references_of(models, cast)} if wired != "cast" else {"clip_vision": models[3]}
    given |= {} if wired == "references" else {"cast": cast}
    scores, numbers, right, matrix, report = score(one.picture[None], masks=one.masks, **given)
    assert words(scores) == [list(one.verdicts)] and right == [case == "right"] and len(numbers) == 1
    assert matrix.shape[0] == 1 and matrix.shape[1] == matrix.shape[2] and matrix.min() >= 0 and matrix.max() <= 1
    assert all(word in report for word in one.verdicts) and "No CLIP-T" in report


def test_the_adapter_s_encoder_is_not_loaded_again(models, cases, monkeypatch):
    import comfy.clip_vision

    references = references_of(models, cast_of(cases["right"]))

    def refuse(*args):
        raise AssertionError("an encoder was loaded again")

    monkeypatch.setattr(comfy.clip_vision, "load", refuse)
    monkeypatch.setattr(comfy.clip_vision, "ClipVisionModel", refuse)
    score(cases["right"].picture[None], references=references, masks=cases["right"].masks)


def test_the_matrix_shows_the_subjects_colours(models, cases):
    from troupe.model_patches.placement.palette import colour_of

    one = cases["right"]
    scores, _, _, matrix, _ = score(one.picture[None], cast=cast_of(one), clip_vision=models[3], masks=one.masks)
    side, dark = matrix.shape[1] // 3, torch.full((3,), 24 / 255)
    for i, subject in enumerate(json.loads(scores)["pictures"][0]["subjects"]):
        for j, value in enumerate(subject["likeness"]):
            corner = matrix[0, (i + 2) * side - 8, (j + 2) * side - 8]
            colour = torch.tensor(list(bytes.fromhex(colour_of(j)[1:]))) / 255
            assert torch.allclose(corner, torch.lerp(dark, colour, max(value, 0.0)), atol=0.01), (i, j)


def test_the_best_of_a_batch_with_its_latent(models, cases):
    from support.host.node_chains import run
    from troupe.nodes.keep_best import KeepBest

    cast, one = cast_of(cases["right"]), cases["right"]
    pictures = torch.stack([torch.rand(128, 128, 3), one.picture, one.picture * 0.5])
    scores, numbers, *_ = score(pictures, cast=cast, clip_vision=models[3], masks=one.masks)
    latent = {"samples": torch.arange(3.0).view(3, 1, 1, 1), "batch_index": [4, 5, 6]}
    image, kept, index, best = run(KeepBest, image=[pictures], scores=[scores], keep=[1], latent=[latent])
    assert index == 1 and best == pytest.approx(max(numbers), abs=1e-4) and torch.equal(image, pictures[1:2])
    assert kept["samples"].flatten().tolist() == [1] and kept["batch_index"] == [5]
    image, kept, index, _ = run(KeepBest, image=list(pictures.split(1)), scores=numbers, keep=[2])
    assert kept is None and index == 1 and torch.equal(image[0], pictures[1]) and len(image) == 2


def test_keep_best_takes_any_numbers_and_refuses_what_does_not_fit(host):
    from support.host.node_chains import run
    from troupe.model_patches.errors import MismatchError, SubjectError
    from troupe.nodes.keep_best import KeepBest

    pictures = [torch.rand(2, 8, 8, 3), torch.rand(1, 16, 8, 3)]
    keep = [1]
    assert run(KeepBest, image=pictures, scores=[0.1, 0.2, 3], keep=keep)[0].shape == (1, 16, 8, 3)
    assert run(KeepBest, image=pictures, scores=[[0.4, 0.4], 0.1], keep=keep)[2] == 0, "of equal ones the first"
    for scores, kept, latent, error, sentence in (
        ([0.1], keep, None, MismatchError, "a score for each of the 3 pictures, found 1"),
        (["cat"], keep, None, SubjectError, "scores in 'scores', found 'cat'"),
        ([float("nan")] * 3, keep, None, SubjectError, "scores in 'scores'"),
        ([1, 2, 3], [2], None, MismatchError, "pictures of one size, found 8x8 and 8x16"),
        ([1, 2, 3], keep, [{"samples": torch.zeros(2, 4, 8, 8)}], MismatchError, "a latent for each of the 3 pictures"),
    ):
        with pytest.raises(error, match=sentence):
            run(KeepBest, image=pictures, scores=scores, keep=kept, latent=latent)


def test_a_noise_mask_goes_with_its_latent(host):
    from troupe.model_patches.scores.choice import chosen_latents

    latents = [{"samples": torch.zeros(2, 4, 8, 8), "noise_mask": torch.arange(2.0).view(2, 1, 1)}]
    assert chosen_latents(latents, [1], 2)["noise_mask"].flatten().tolist() == [1]


def test_what_is_missing_is_said(models, cases):
    from troupe.model_patches.errors import CheckpointError, MismatchError, SubjectError
    from troupe.model_patches.subjects import Cast

    picture, cast = cases["right"].picture[None], cast_of(cases["right"])
    with pytest.raises(MismatchError, match="an image encoder to compare with, found no CLIP vision encoder"):
        score(picture, cast=cast)
    with pytest.raises(SubjectError, match="subjects to compare the picture with, found none"):
        score(picture, clip_vision=models[3])
    with pytest.raises(SubjectError, match="subjects to compare the picture with, found none"):
        score(picture, clip_vision=models[3], cast=Cast())
    with pytest.raises(CheckpointError, match="a folder 'gone' in models/dino with a DINO, found none"):
        score(picture, cast=cast, encoder="gone")


def test_references_without_photo_counts_ask_for_the_cast(models, cases):
    from dataclasses import replace

    from troupe.model_patches.errors import SubjectError

    references = references_of(models, cast_of(cases["right"]))
    assert references.photo_counts == (1, 1)
    with pytest.raises(SubjectError, match="Connect 'cast' from Add Subject too"):
        score(cases["right"].picture[None], references=replace(references, photo_counts=()))


def test_a_record_is_used_where_there_is_no_box(models, cases):
    from troupe.model_patches.relevance.maps import AppliedMaps, RecordedRun, SubjectMap

    one = cases["right"]
    cast = cast_of(one)
    maps = [mask[::8, ::8] * 0.5 + 0.25 for mask in one.masks]
    subjects = tuple(SubjectMap(s.name, m) for s, m in zip(cast.subjects, maps, strict=True))
    record = SimpleNamespace(run=RecordedRun("all", (AppliedMaps("a", "relevance", subjects),)))
    scores, *_ = score(one.picture[None], cast=cast, clip_vision=models[3], record=record)
    (picture,) = json.loads(scores)["pictures"]
    assert [subject["place"]["from"] for subject in picture["subjects"]] == ["relevance map"] * 2
    empty = SimpleNamespace(run=None)
    scores, *_ = score(one.picture[None], cast=cast, clip_vision=models[3], record=empty)
    (picture,) = json.loads(scores)["pictures"]
    assert [subject["place"]["from"] for subject in picture["subjects"]] == ["whole picture"] * 2


@pytest.mark.parametrize("encoder", ["colours", "clip_vision"])
def test_a_picture_with_nan_costs_the_others_nothing(models, cases, encoder):
    """A VAE in fp16 makes such pictures. Where one has no numbers it counts as white."""
    from troupe.model_patches.hosts.comfyui import scoring

    one = cases["right"]
    broken, partly = torch.full_like(one.picture, torch.nan), one.picture.clone()
    broken[:64] = torch.inf
    partly[one.masks[1] > 0.5] = torch.nan
    given = {"cast": cast_of(one), "encoder": encoder, "masks": one.masks.repeat(3, 1, 1), "clip_vision": models[3]}
    scores, numbers, right, matrix, _ = score(torch.stack((broken, one.picture, partly)), **given)
    assert words(scores)[1] == ["right"] * 2 and right[:2] == [False, True]
    assert numbers[1] > numbers[2] > numbers[0] and matrix.isfinite().all()
    if encoder == "colours":  # white has none; this CLIP's threshold is no use on white
        assert words(scores) == [["missing"] * 2, ["right"] * 2, ["right", "missing"]]
    json.loads(scores, parse_constant=pytest.fail)  # NaN is no JSON
    warned = []
    scoring.only_numbers(torch.stack((broken, one.picture)), warned.append)
    assert len(warned) == 1 and "picture 1" in warned[0]


@pytest.mark.parametrize("case", PICTURES)
def test_colours_need_no_model(cases, case):
    """Without a CLIP nobody asks for CLIP-T."""
    one = cases[case]
    scores, *_, report = score(one.picture[None], cast=cast_of(one), encoder="colours", masks=one.masks)
    assert words(scores) == [list(one.verdicts)] and "CLIP-T" not in report


def test_a_clip_beside_another_encoder_is_of_no_use(models, cases):
    one = cases["right"]
    report = score(one.picture[None], cast=cast_of(one), encoder="colours", clip=models[1], masks=one.masks)[4]
    assert "only CLIP has a text encoder" in report


# ---- once each -------------------------------------------------------------------------------------------------------


def test_a_second_figure_is_said_and_shown(host):
    from drawn_cases import drawn_case

    twice, background = (drawn_case(case, False, 0) for case in ("twice", "background"))
    assert twice.figures != background.figures
    for one, right, verdicts, further in (
        (twice, False, ["cloned", "right"], ["cloned"]),
        (background, True, ["right", "right"], [None, None]),
    ):
        wired = scores_script.wired_places(one.masks, "bounding_boxes")
        scores, numbers, all_right, matrix, report = score(
            one.picture[None], cast=cast_of(one), encoder="colours", **wired
        )
        [picture] = json.loads(scores)["pictures"]
        assert all_right == [right] == [picture["all_right"]] and words(scores) == [verdicts]
        assert [place["verdict"] for place in picture["further"]] == further
        assert all(len(place["likeness"]) == 2 and place["place"]["w"] > 0 for place in picture["further"])
        cell = matrix.shape[2] // 3
        assert matrix.shape[1] // cell == 3 + len(further)
        assert (matrix[0, 3 * cell + 10 :, :cell] < 0.99).any(), "the further crop is in the picture"
        first = one.figures[0].words
        assert (f"1 {first}: cloned, it is in the picture twice" in report) is not right
        assert (f"Another bounding box: cloned, it has the looks of 1 {first} too" in report) is not right
        assert ("2 other bounding boxes show none of the subjects clearly." in report) is right
        assert numbers == [pytest.approx(picture["score"], abs=1e-4)]


def test_the_best_picture_has_each_subject_once(host):
    """In a batch the boxes of each picture; the matrices have as many rows as the largest."""
    from drawn_cases import drawn_case
    from troupe.model_patches.scores.choice import best

    one = drawn_case("twice", True, 1)
    boxes = scores_script.wired_places(one.masks, "bounding_boxes")["bounding_boxes"]
    pictures = one.picture[None].expand(2, -1, -1, -1)
    scores, numbers, right, matrix, report = score(
        pictures, cast=cast_of(one), encoder="colours", bounding_boxes=[boxes, boxes[:2]]
    )
    assert right == [False, True] and best(numbers, 1) == [1]
    assert matrix.shape[0] == 2 and matrix.shape[1] > matrix.shape[2]
    assert torch.equal(matrix[1, -20:], torch.ones_like(matrix[1, -20:])) and (matrix[0, -20:] < 0.99).any()
    assert f"1 {one.figures[0].words} cloned, it is there twice" in report
    assert "If a subject is there twice: Give each subject a box, or try another seed." in report


@pytest.mark.parametrize("by", scores_script.INPUTS)
@pytest.mark.parametrize("encoder", scores_script.ENCODERS)
def test_clear_cases_get_the_true_verdict_through_every_input(host, encoder, by):
    """As `benchmarks/scores.py` counts them; 48 verdicts each."""
    kinds = (*PICTURES, "twice", "background")
    counts = [
        count
        for cast in scores_script.CASTS
        for count in scores_script.drawn(encoder, cast, by, range(SEEDS), kinds).values()
    ]
    true, asked = scores_page.summed(counts)
    assert asked == 2 * len(kinds) * 2 * SEEDS and true / asked >= 0.95, counts


def test_painted_pictures_are_counted_as_the_page_has_them(host):
    """A few of those of `benchmarks/scores.py`; on another processor a picture may come out otherwise."""
    counts = scores_script.true_verdicts(4)["colours"]
    assert set(counts) == {"segs", "bounding_boxes", "record"}
    for by in ("segs", "bounding_boxes"):
        (true, asked), (there_true, there) = counts[by]["clear"], counts[by]["there"]
        assert 12 <= asked <= 32 and there < asked <= counts[by]["all"][1]
        assert true - there_true == asked - there, "who has no place is missing"
        assert true / asked >= 0.85


# ---- CLIP-T ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "stream"), [("sd15", "l"), ("sd20", "h"), ("sdxl", "g"), ("sdxl", "l")])
def test_the_prompt_is_what_transformers_projects(clips, kind, stream):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection
    from troupe.model_patches.hosts.comfyui.scoring import FIRST_PART, text_vector

    clip = clips(kind).clone()
    tower = getattr(clip.cond_stage_model, f"clip_{stream}")
    state = {name: value.float() for name, value in tower.transformer.state_dict().items()}
    width = len(state["text_projection.weight"])
    layers = 1 + max(int(name.split(".")[3]) for name in state if ".layers." in name)
    config = CLIPTextConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads={768: 12, 1024: 16, 1280: 20}[width],
        hidden_act="quick_gelu" if stream == "l" else "gelu",
        eos_token_id=49407,
    )
    model = CLIPTextModelWithProjection(config).eval()
    missing = model.load_state_dict(state, strict=False)
    assert not missing.missing_keys
    prompt = "a cat and a robot on grass"
    ids = [token for token, *_ in clip.tokenize(prompt)[stream][0]]
    truth = model(input_ids=torch.tensor([ids])).text_embeds[0]
    found, said = text_vector(clip, prompt, stream, tower)
    assert torch.cosine_similarity(found, truth, dim=0) > 0.9999 and said == ""
    assert torch.allclose(found, truth, rtol=1e-3, atol=1e-3 * float(truth.abs().max()))
    assert text_vector(clip, "cat " * 100, stream, tower)[1] == FIRST_PART


def test_clip_t_is_never_made_up(clips, vision):
    """Only where the sizes are those of a pair that was trained together, and the projection is in the file."""
    from troupe.model_patches.hosts.comfyui import scoring
    from troupe.model_patches.scores.scoring import ClipPictures

    def asked(clip, hidden, pooled, size=224, prompt="a cat"):
        return scoring.prompt_vector(
            clip, prompt, ClipPictures(SimpleNamespace(hidden=hidden, pooled=pooled, size=size))
        )

    clip = clips("sd15")
    assert asked(clip, 1024, 768)[0].shape == (768,)
    assert asked(clip, 1024, 768, 336) == asked(clip, 1280, 1024) == asked(clip, 32, 16) == (None, scoring.NO_TOWER)
    assert asked(clips("sdxl"), 1664, 1280)[0].shape == (1280,) and asked(clips("sd20"), 1280, 1024)[0].shape == (1024,)
    assert asked(clip, 1024, 768, prompt=" ") == asked(None, 1024, 768) == (None, scoring.NO_PROMPT)
    projection = clip.cond_stage_model.clip_l.transformer.text_projection
    before = projection.weight.clone()
    try:
        projection.weight.copy_(torch.eye(768))
        assert asked(clip, 1024, 768) == (None, scoring.NO_PROJECTION)
    finally:
        projection.weight.copy_(before)


@pytest.fixture(scope="module")
def pair(clips, tmp_path_factory):
    """A CLIP vision encoder and a CLIP of ViT-L's sizes with few layers, and the CLIPModel of transformers with the
    same weights.
    """
    from support.host import tiny_models
    from transformers import CLIPConfig, CLIPModel

    with torch.inference_mode():
        file = str(tmp_path_factory.mktemp("vit_l") / "config.json")
        sizes = {"image_size": 224, "hidden": 1024, "layers": 2, "projection": 768, "patch": 56}
        vision, clip = tiny_models.tiny_clip_vision(tmp=file, **sizes), clips("sd15")
    tower = clip.cond_stage_model.clip_l.transformer.state_dict()
    config = CLIPConfig(
        text_config={
            **{"hidden_size": 768, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 64},
            **{"hidden_act": "quick_gelu", "eos_token_id": 49407},
        },
        vision_config={
            **{"hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 2048},
            **{"image_size": 224, "patch_size": 56, "hidden_act": "gelu"},
        },
        projection_dim=768,
    )
    with torch.inference_mode(False):
        model = CLIPModel(config).eval()
        state = {name: value.float().clone() for name, value in {**tower, **vision.model.state_dict()}.items()}
        found = model.load_state_dict(state, strict=False)
    assert {name for name in found.missing_keys if "position_ids" not in name} == {"logit_scale"}
    return vision, clip, model


@pytest.mark.parametrize("size", [(224, 224), (300, 280)])
def test_clip_i_and_clip_t_are_those_of_transformers(host, pair, size):
    """Two subjects with one photo and two, two pictures. Pictures of another size are resized by torch in the node and
    by PIL in transformers.
    """
    import numpy as np
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPTokenizer
    from troupe.model_patches.subjects import Cast, make_subject

    vision, clip, model = pair
    chance = np.random.default_rng(0)

    def coarse():
        spots = chance.integers(0, 2, (5, 6, 3)).astype(np.uint8) * 255
        return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)

    def as_image(picture):
        return torch.from_numpy(np.array(picture))[None].float() / 255

    def unit(vectors):
        vectors = getattr(vectors, "pooler_output", vectors)
        return vectors / vectors.norm(dim=-1, keepdim=True)

    painted, photos = [coarse(), coarse()], [[coarse()], [coarse(), coarse()]]
    cast = Cast()
    for number, own in enumerate(photos, 1):
        cast = cast.add(make_subject(f"subject {number}", [as_image(one) for one in own], number=number))
    prompt = "a cat and a robot on grass"
    given = {"cast": cast, "clip_vision": vision, "clip": clip, "prompt": prompt}
    scores, *_, report = score(torch.cat([as_image(one) for one in painted]), **given)
    assert "No CLIP-T" not in report

    def images(pictures):
        pixels = CLIPImageProcessor()(images=pictures, return_tensors="pt")["pixel_values"]
        return unit(model.get_image_features(pixel_values=pixels))

    ids = CLIPTokenizer.from_pretrained(host / "comfy" / "sd1_tokenizer")(prompt, return_tensors="pt")["input_ids"]
    vectors, text = images(painted), unit(model.get_text_features(input_ids=ids))
    clip_i = torch.stack([(vectors @ images(own).T).mean(1) for own in photos]).mean(0)
    clip_t = (vectors @ text.T)[:, 0]
    assert (clip_i[0] - clip_i[1]).abs() > 0.01 and (clip_t[0] - clip_t[1]).abs() > 0.001
    near = 6e-5 if size == (224, 224) else 1e-3  # the node writes four digits
    for i, picture in enumerate(json.loads(scores)["pictures"]):
        assert picture["clip_i"] == pytest.approx(clip_i[i].item(), abs=near)
        assert picture["clip_t"] == pytest.approx(clip_t[i].item(), abs=near)


# ---- DINO ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["vit", "dinov2"])
def dino(request, host, base_folder):
    """A tiny random DINO in models/dino, and the model itself."""
    import shutil

    import troupe.nodes  # registers the folder
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    assert troupe.nodes
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "image_size": 224}
    with torch.inference_mode(False):
        torch.manual_seed(0)
        model = (
            ViTModel(ViTConfig(intermediate_size=64, **sizes), add_pooling_layer=False)
            if request.param == "vit"
            else Dinov2Model(Dinov2Config(mlp_ratio=2, **{**sizes, "patch_size": 14}))
        )
        folder = base_folder / "models" / "dino" / request.param
        model.save_pretrained(folder)
    yield request.param, model.eval()
    shutil.rmtree(folder)


def test_a_dino_in_a_folder_is_listed_and_read(dino, models, cases):
    from troupe.model_patches.hosts.comfyui.loading.dino import encoder_names, load_dino
    from troupe.model_patches.scores.dino import dino_pixels

    name, model = dino
    assert encoder_names() == ["clip_vision", "colours", name]
    found = load_dino(name)
    assert load_dino(name) is found
    picture = torch.rand(1, 300, 260, 3, generator=torch.Generator().manual_seed(0))
    prepared = found.whole(picture[0])[None]
    truth = model(pixel_values=dino_pixels(prepared)).last_hidden_state[:, 0]
    assert torch.allclose(found.vectors(prepared), truth, atol=1e-5)
    one = cases["right"]
    scores, *_, report = score(one.picture[None], cast=cast_of(one), encoder=name, masks=one.masks)
    assert json.loads(scores)["encoder"] == name and "CLIP-T" not in report


def test_no_network_is_asked_for_a_dino(dino, monkeypatch):
    import socket

    from troupe.model_patches.hosts.comfyui.loading.dino import load_dino

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load_dino(dino[0]).vectors(torch.rand(1, 224, 224, 3)).shape == (1, 32)


def test_a_damaged_dino_gets_its_sentence(dino, base_folder):
    from troupe.model_patches.errors import CheckpointError
    from troupe.model_patches.hosts.comfyui.loading.dino import encoder_names, load_dino

    name, _ = dino
    folder = base_folder / "models" / "dino" / name
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="a folder that could not be read"):
        load_dino(name)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert encoder_names() == ["clip_vision", "colours"]
