"""The object quality score is the paper's, and the filter keeps exactly what is above the threshold."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny_annotators
from troupe.model_patches.subjects import Box
from troupe.training.data.engine import Plan, work
from troupe.training.data.quality import (
    JOURNAL,
    ClipScorer,
    Scoring,
    filter_set,
    object_quality,
    picture_quality,
    scored_records,
    unfiltered_items,
)
from troupe.training.data.records import DatasetError, PictureRecord, SubjectRecord, read_records, write_records
from troupe.training.data.report import contact_sheet, quality_lines, quality_rows

NAMES = ["cat", "dog", "red fish"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(tiny_annotators.save_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def folder(tmp_path):
    """Ten pictures with one to three subjects."""
    chance, records = random.Random(0), []
    (tmp_path / "pictures").mkdir()
    for i in range(10):
        path = tmp_path / "pictures" / f"{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (60, 80, 3), np.uint8)).save(path)
        boxes = [Box(chance.random() / 2, chance.random() / 2, 0.4, 0.5) for _ in NAMES[: i % 3 + 1]]
        subjects = tuple(SubjectRecord(name, box) for name, box in zip(NAMES, boxes, strict=False))
        records.append(PictureRecord(path, "a cat, a dog, a red fish", subjects))
    write_records(tmp_path, records)
    return tmp_path


def score(folder, clip, plan=None, cut_outs=False):
    items = unfiltered_items(folder)
    work(folder, items, Scoring(lambda: ClipScorer.load(clip, "cpu"), cut_outs), plan or Plan(batch=4), JOURNAL)
    return scored_records(folder, items)


def cosine(one, other):
    return float(np.dot(one, other) / np.sqrt(np.dot(one, one) * np.dot(other, other)))


def independent(record, clip):
    """S from its definition, in float64, picture by picture."""
    scorer = ClipScorer.load(clip, "cpu")
    model, processor = scorer.clip.model.double(), scorer.clip.processor
    picture = Image.open(record.picture).convert("RGB")
    w, h = picture.size
    images, texts = [], []
    for one in record.subjects:
        x, y = one.box.x, one.box.y
        crop = picture.crop((round(x * w), round(y * h), round((x + one.box.w) * w), round((y + one.box.h) * h)))
        inputs = processor(images=crop, text=one.name, return_tensors="pt")
        with torch.no_grad():
            outputs = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                pixel_values=inputs["pixel_values"].double(),
            )
        images.append(outputs.image_embeds[0].numpy())
        texts.append(outputs.text_embeds[0].numpy())
    n = len(images)
    single = sum(cosine(text, image) for text, image in zip(texts, images, strict=True)) / n
    if n == 1:
        return single
    pairs = sum(cosine(images[i], images[j]) for i in range(n) for j in range(n) if i != j)
    return single - pairs / (n * (n - 1))


@pytest.mark.slow
def test_the_score_is_the_papers(folder, clip):
    scored, faulty, missing = score(folder, clip)
    assert (len(scored), faulty, missing) == (10, [], 0)
    for record in scored:
        assert picture_quality(record) == pytest.approx(independent(record, clip), abs=1e-5)
    assert len({round(picture_quality(record), 4) for record in scored}) == 10


def test_parts_of_subjects():
    images = torch.tensor([[2.0, 0.0], [0.0, 5.0], [3.0, 3.0]])
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    half = 0.5**0.5
    expected = [1 - half / 2, 0 - half / 2, half - half]
    assert object_quality(texts, images).tolist() == pytest.approx(expected)
    assert object_quality(texts[:1], images[2:]).tolist() == pytest.approx([half])


@pytest.mark.parametrize("nth", [0, 3, 8])
def test_the_filter_keeps_exactly_what_is_above(folder, clip, nth):
    scored, faulty, _ = score(folder, clip)
    values = sorted(picture_quality(record) for record in scored)
    before = read_records(folder)
    done = filter_set(folder, scored, faulty, threshold=values[nth])  # not what is equal
    kept = read_records(folder)
    expected = {record.picture for record in scored if picture_quality(record) > values[nth]}
    assert {record.picture for record in kept} == expected and len(kept) == 9 - nth
    assert [record.picture for record in done.kept + done.dropped] == [
        record.picture for record in sorted(scored, key=picture_quality, reverse=True)
    ]
    assert [picture_quality(record) for record in kept] == [
        picture_quality(record) for record in scored if record.picture in expected
    ]
    # another threshold begins with all again, and scores nothing
    again, _, missing = scored_records(folder, unfiltered_items(folder))
    assert missing == 0 and [record.picture for record in again] == [record.picture for record in before]


def test_the_best_ones(folder, clip):
    scored, faulty, _ = score(folder, clip)
    done = filter_set(folder, scored, faulty, keep=6)
    for count, number in {1: 2, 2: 2, 3: 2}.items():  # of 4, 3 and 3 pictures
        every, kept = (
            [picture_quality(one) for one in records if len(one.subjects) == count] for records in (scored, done.kept)
        )
        assert kept == sorted(every, reverse=True)[:number]
    assert {one.picture for one in read_records(folder)} == {one.picture for one in done.kept}
    assert len(filter_set(folder, scored, faulty, keep=30).kept) == 10


def test_many_subjects_are_no_reason_to_be_dropped(tmp_path):
    """S of two subjects is lower than that of one with any CLIP; a set of both keeps both."""
    records = [
        PictureRecord(
            tmp_path / f"{n}_{i}.png",
            "a cat, a dog",
            tuple(SubjectRecord(name, Box(0, 0, 1, 1), quality=q) for name in NAMES[:n]),
        )
        for n, qualities in ((1, (0.24, 0.25, 0.26, 0.27)), (2, (-0.43, -0.42, -0.41, -0.40)))
        for i, q in enumerate(qualities)
    ]
    for record in records:
        Image.new("RGB", (8, 8)).save(record.picture)
    done = filter_set(tmp_path, records, [], keep=4)
    assert [picture_quality(one) for one in done.kept] == pytest.approx([0.27, -0.40, 0.26, -0.41])
    assert [picture_quality(one) for one in done.dropped] == pytest.approx([0.25, -0.42, 0.24, -0.43])
    said = quality_lines(done)
    assert (
        said[0] == "4 of 8 pictures kept"
        and "  1 subject: 4 pictures, mean S 0.2550, 2 kept with S from 0.2600" in said
    )
    assert not any("warning" in line for line in said)
    done = filter_set(tmp_path, records, [], threshold=-0.5)
    assert any("warning: one threshold compares" in line for line in quality_lines(done))


def test_a_filter_that_keeps_nothing_changes_nothing(folder, clip):
    scored, faulty, _ = score(folder, clip)
    before = (folder / "metadata.jsonl").read_bytes()
    with pytest.raises(DatasetError, match="the best has"):
        filter_set(folder, scored, faulty, threshold=3)
    assert (folder / "metadata.jsonl").read_bytes() == before


def test_pictures_without_a_score_are_dropped_and_named(folder, clip):
    (folder / "pictures" / "3.png").write_bytes(b"broken")
    records = read_records(folder)
    write_records(folder, [PictureRecord(records[0].picture, "no subjects"), *records[1:]])
    scored, faulty, missing = score(folder, clip)
    assert len(scored) == 8 and missing == 0
    done = filter_set(folder, scored, faulty)
    assert [one.picture.name for one in done.faulty] == ["0.png", "3.png"]
    assert "2 without a score, dropped: 0.png, 3.png" in "\n".join(quality_lines(done))


@pytest.mark.slow
def test_shards_score_a_part_and_changed_boxes_are_scored_again(folder, clip):
    assert score(folder, clip, Plan(0, 2))[2] == 5
    scored, _, missing = score(folder, clip, Plan(1, 2))
    assert missing == 0
    records = read_records(folder)
    one = records[0]
    moved = PictureRecord(one.picture, one.caption, (SubjectRecord("cat", Box(0, 0, 0.9, 0.9)),))
    write_records(folder, [moved, *records[1:]])
    assert scored_records(folder, unfiltered_items(folder))[2] == 1
    again, _, _ = score(folder, clip)
    assert picture_quality(again[0]) == pytest.approx(independent(moved, clip), abs=1e-5)


def test_cut_outs_are_scored_without_their_background(folder, clip):
    (folder / "masks").mkdir()
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 10:40] = 255
    Image.fromarray(mask).save(folder / "masks" / "m.png")
    one = read_records(folder)[0]
    box = Box(0.1, 0.1, 0.5, 0.7)
    records = [PictureRecord(one.picture, one.caption, (SubjectRecord("cat", box, folder / "masks" / "m.png"),))]
    write_records(folder, records)
    (found,), _, _ = score(folder, clip, cut_outs=True)
    pixels = np.asarray(Image.open(one.picture)).copy()
    pixels[mask == 0] = 255
    white = Image.new("RGB", (42, 42), "white")  # the box is 40 x 42 pixels
    white.paste(Image.fromarray(pixels).crop((8, 6, 48, 48)), (1, 0))
    white.save(folder / "pictures" / "white.png")
    alone = PictureRecord(folder / "pictures" / "white.png", "cat", (SubjectRecord("cat", Box(0, 0, 1, 1)),))
    assert picture_quality(found) == pytest.approx(independent(alone, clip), abs=1e-5)


def test_the_report_counts_every_picture(folder, clip):
    scored, faulty, _ = score(folder, clip)
    done = filter_set(folder, scored, faulty, keep=4)
    lines = quality_lines(done)
    assert lines[0] == "4 of 10 pictures kept"
    bars = [line.split() for line in lines if " .. " in line]
    assert sum(int(bar[3]) for bar in bars) == 10
    assert [line.strip()[:24] for line in lines[1:4]] == [
        "1 subject: 4 pictures, m",
        "2 subjects: 3 pictures, ",
        "3 subjects: 3 pictures, ",
    ]
    contact_sheet(quality_rows(done), folder / "report" / "q.png")
    with Image.open(folder / "report" / "q.png") as sheet:
        assert sheet.width > 3 * 176 and sheet.height > 4 * 176
        assert len(sheet.getcolors(1 << 20)) > 1000  # the pictures are on it
