"""The rehearsal world's CLIP: what it is trained on, and its folder in transformers' layout."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from support.exported_folders import check_exported, check_shipped
from troupe.rehearsal import files
from troupe.rehearsal.training import clip, export
from troupe.rehearsal.training.loop import Trainer, random_scenes
from troupe.rehearsal.training.vocabulary import BOS, EOS, known_ids, tokens
from troupe.rehearsal.world import CELLS, draw, masks

SHIPPED = files.FOLDER / files.CLIP
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def words():
    return clip.tokenizer()


@pytest.fixture
def few_steps(monkeypatch):
    """Trainings end after three steps and are not measured."""
    monkeypatch.setattr(Trainer, "progress", property(lambda self: self.step / 3))
    monkeypatch.setattr(clip, "accuracy", lambda *_: {})


def scenes(count: int):
    return random_scenes(random.Random(6), count)


# ---- what it is trained on -------------------------------------------------------------------------------------------


def test_texts_are_split_as_clip_splits_them(words):
    """Every caption and name has one row of CLIP's own tokens; another word is no end of the text."""
    place = {token: row for row, token in enumerate(known_ids())}
    for text in [*(scene.caption for scene in scenes(60)), *clip.NAMES]:
        theirs = tokens(text)
        assert words(text)["input_ids"] == [place[token] for token in theirs[: theirs.index(EOS) + 1]]
        assert len(words(text)["input_ids"]) < clip.LENGTH
    assert place[BOS] == words.bos_token_id and place[EOS] == words.eos_token_id == len(place) - 1
    other = words("a dog and a cat")["input_ids"]
    assert other[-2:] == [place[tokens("cat")[1]], words.eos_token_id] and other.count(words.eos_token_id) == 1
    assert words.unk_token_id in other
    table = clip.build(words).text_model.get_input_embeddings().weight
    assert table.shape[0] == len(words) and not table[len(place) :].any() and table[: len(place)].any(1).all()


@pytest.mark.parametrize("size", [(128, 128), (56, 40), (24, 31)])
def test_pictures_are_read_as_its_processor_reads_them(size):
    coarse = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    expected = torch.as_tensor(clip.processor()(images=[picture], return_tensors="pt")["pixel_values"])
    assert expected.shape == (1, 3, clip.SIDE, clip.SIDE)
    assert torch.allclose(clip.seen(pixels), expected, atol=0.02), "a grey level is 0.015"


def test_a_crop_is_its_subject():
    for scene in scenes(40):
        for subject, mask in zip(scene.subjects, masks(scene), strict=True):
            top, left, bottom, right = clip.crop_around(subject)
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0
            moved = clip.crop_around(subject, random.Random(subject.column))
            assert all(abs(a - b) <= 2 for a, b in zip((top, left, bottom, right), moved, strict=True))
            assert min(moved) >= 0 and max(moved) <= CELLS
        pixels = torch.from_numpy(draw(scene)).permute(2, 0, 1)[None].float() / 255
        crop = clip.crops_of(pixels, [clip.crop_around(scene.subjects[0])])
        top, left, bottom, right = (4 * side for side in clip.crop_around(scene.subjects[0]))
        assert torch.equal(crop, clip.seen(pixels[:, :, top:bottom, left:right]))
    subject = scenes(1)[0].subjects[0]
    assert len({clip.crop_around(subject, random.Random(seed)) for seed in range(20)}) > 5


def test_the_loss_is_clips_own_and_equal_texts_are_right_alike(words):
    torch.manual_seed(0)
    model = clip.build(words).eval()
    chosen = list(clip.NAMES[:6])
    inputs = words(chosen, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(pixel_values=torch.randn(6, 3, 32, 32), **inputs, return_loss=True)
    scale = model.logit_scale.exp()
    ours = clip.contrastive_loss(theirs.image_embeds, theirs.text_embeds, chosen, scale)
    assert torch.isclose(ours, theirs.loss, atol=1e-5)
    pictures, texts = torch.nn.functional.normalize(torch.randn(2, 3, 5), dim=-1)
    found = clip.contrastive_loss(pictures, texts, ["cat", "fish", "cat"], torch.tensor(3.0))
    parts = []
    for table in (3 * pictures @ texts.T, 3 * texts @ pictures.T):
        logs = table.log_softmax(1)
        parts += [(logs[0, 0] + logs[0, 2]) / 2, logs[1, 1], (logs[2, 0] + logs[2, 2]) / 2]
    assert torch.isclose(found, -sum(parts) / 6, atol=1e-6)


@pytest.mark.slow
def test_it_is_trained_on_training_looks_and_measured_on_held_out_ones(words, few_steps, tmp_path, monkeypatch):
    seen = []
    loss = clip.batch_loss
    monkeypatch.setattr(clip, "batch_loss", lambda *given: seen.extend(given[2]) or loss(*given))
    clip.train_clip(tmp_path, 1.0, batch=4)
    assert len(seen) == 12 and {one.figure.look.held_out for scene in seen for one in scene.subjects} == {False}
    monkeypatch.undo()
    drawn = []
    monkeypatch.setattr(clip, "random_scenes", lambda *given: drawn.extend(random_scenes(*given)) or drawn)
    found = clip.accuracy(clip.build(words).eval(), words, count=8)
    assert len(drawn) == 8 and {one.figure.look.held_out for scene in drawn for one in scene.subjects} == {True}
    assert set(found) == {"caption", "picture", "name", "other class", "other variant", "other place"}
    assert all(0 <= share <= 1 for share in found.values())


@pytest.mark.slow
def test_a_few_steps_are_the_same_again(few_steps, tmp_path):
    states = []
    for name in ("one", "two"):
        clip.train_clip(tmp_path / name, 1.0, batch=4)
        states.append(torch.load(tmp_path / name / "checkpoint.pt", weights_only=True))
    first, second = (state["modules"]["clip"] for state in states)
    assert states[0]["step"] == 3 and states[0]["samples"] == 12
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    torch.manual_seed(4)
    fresh = clip.build(clip.tokenizer()).state_dict()
    unchanged = [
        name for name, value in fresh.items() if torch.equal(value, first[name]) and "position_ids" not in name
    ]
    assert unchanged == [], "every parameter is trained"


def test_another_caption_differs_in_one_thing():
    chance = random.Random(0)
    for scene in scenes(60):
        own = scene.subjects
        place = clip.altered(chance, scene, "place")
        assert place.place != scene.place and place.subjects == own
        for part, other in (("class", "variant"), ("variant", "kind")):
            changed = clip.altered(chance, scene, part)
            pairs = [(a.figure, b.figure) for a, b in zip(own, changed.subjects, strict=True) if a != b]
            [(before, after)] = pairs
            assert getattr(before, other) == getattr(after, other) and before.words != after.words
            assert after.words not in [one.figure.words for one in own] and changed.place == scene.place


# ---- its folder ------------------------------------------------------------------------------------------------------


def test_the_shipped_folder(words):
    others = {"config.json", "preprocessor_config.json", *TOKENIZER_FILES}
    check_shipped(SHIPPED, others, clip.build(words).state_dict(), "CLIPModel")
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 1.2e6


@pytest.mark.slow
def test_it_reads_held_out_drawings(words):
    found = clip.accuracy(clip.load(files.FOLDER).eval(), words, count=64)
    assert found["name"] > 0.9 and found["other place"] > 0.9, found


@pytest.mark.slow
def test_exported_weights_are_the_averaged_ones(few_steps, tmp_path):
    clip.train_clip(tmp_path / "clip", 1.0, batch=4)
    export.export_all(tmp_path, tmp_path / "files")
    found, folder = clip.load(tmp_path / "files").state_dict(), tmp_path / "files" / files.CLIP
    check_exported(tmp_path / "clip" / "checkpoint.pt", "clip", found, folder, SHIPPED)
