"""Readers of published benchmarks: their layouts, how prompts and references are taken from them, and a sentence for
each strange file.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support import fake_benchmarks as fake
from torchvision.transforms import functional
from troupe.evaluation.suites.concept101 import concept101
from troupe.evaluation.suites.crops import cropped
from troupe.evaluation.suites.dreambench import dreambench, dreambench_pairs
from troupe.evaluation.suites.dreambench_plus import dreambench_plus
from troupe.evaluation.suites.registry import SUITES, SuiteSettings, read_suite
from troupe.evaluation.suites.suite import SuiteError, tasks_of
from troupe.evaluation.suites.xverse import MULTI, SINGLE, xverse
from troupe.evaluation.tasks import Method, TaskSubject


def test_dreambench(tmp_path):
    suite = dreambench(fake.dreambench(tmp_path))
    assert [(case.name, case.prompt, case.group) for case in suite.cases] == [
        ("backpack 00", "a backpack in the jungle", "backpack"),
        ("backpack 01", "a cube shaped backpack", "backpack"),
        ("cat 00", "a cat in the jungle", "cat"),
        ("cat 01", "a cat wearing a red hat", "cat"),
        ("cat 02", "a cube shaped cat", "cat"),
        ("dog6 00", "a dog in the jungle", "dog6"),
        ("dog6 01", "a dog wearing a red hat", "dog6"),
        ("dog6 02", "a cube shaped dog", "dog6"),
        ("red_cartoon 00", "a cartoon in the jungle", "red_cartoon"),
        ("red_cartoon 01", "a cube shaped cartoon", "red_cartoon"),
    ]
    cat = suite.cases[2]
    assert cat.subjects == (TaskSubject("cat", ("cat/00.jpg",)),), "painted from one photo"
    assert cat.references == (("cat/00.jpg", "cat/02.jpg"),), "compared with all"


def test_pairs_that_troupe_chooses(tmp_path):
    suite = dreambench_pairs(fake.dreambench(tmp_path))
    groups = list(dict.fromkeys(case.group for case in suite.cases))
    assert len(groups) == 4 and dreambench_pairs(tmp_path) == suite
    assert all(sum(name in group.split("+") for group in groups) == 2 for name in ("backpack", "cat", "dog6"))
    assert any("Troupe's choice" in note for note in suite.notes)
    live = [case for case in suite.cases if set(case.group.split("+")) == {"cat", "dog6"}]
    assert len(live) in (0, 3)


def test_pairs_of_a_file(tmp_path):
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("cat, dog6\n\nbackpack,cat\n")
    suite = dreambench_pairs(fake.dreambench(tmp_path / "set"), pairs)
    assert [case.prompt for case in suite.cases] == [
        "a cat and a dog in the jungle",
        "a cat and a dog wearing a red hat",
        "a cube shaped cat and a dog",
        "a backpack and a cat in the jungle",
        "a cube shaped backpack and a cat",
    ]
    assert [subject.name for subject in suite.cases[0].subjects] == ["cat", "dog"]
    assert suite.cases[3].references == (("backpack/00.jpg",), ("cat/00.jpg", "cat/02.jpg"))
    assert not any("Troupe's choice" in note for note in suite.notes)
    pairs.write_text("cat, dog9\n")
    with pytest.raises(SuiteError, match="found 'cat, dog9'"):
        dreambench_pairs(tmp_path / "set", pairs)


def test_concept101(tmp_path):
    suite = concept101(fake.concept101(tmp_path))
    assert [(case.group, case.prompt) for case in suite.cases] == [
        ("001 sofa + chair", "photo of sofa and the chair."),
        ("001 sofa + chair", "A photo of sofa at dawn with sofa."),
        ("001 sofa + chair", "chair near sofa."),
        ("002 chair + sofa", "photo of chair and the sofa."),
        ("002 chair + sofa", "A photo of chair at dawn with chair."),
        ("002 chair + sofa", "sofa near chair."),
    ]
    photos = tuple(f"benchmark_dataset/furniture_chair3/{i}.jpeg" for i in range(2))
    assert suite.cases[3].subjects[1] == TaskSubject("sofa", photos) and suite.cases[3].references[1] == photos
    assert any("furniture_chair3 a sofa is kept" in note and "002 chair + sofa" in note for note in suite.notes)


def test_the_wrong_sofa_can_be_left_out(tmp_path):
    suite = concept101(fake.concept101(tmp_path), keep_wrong=False)
    assert {case.group for case in suite.cases} == {"001 sofa + chair"}
    assert any(note.startswith("Left out, unlike in published figures: 002 chair + sofa") for note in suite.notes)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (1200, 900), (800, 1201)])
@pytest.mark.parametrize("box", [(99, 0, 730, 300), (400, 20, 600, 790), (-5, 7, 500, 512), (3, 5, 4, 600)])
def test_crops_are_those_of_torchvision(size, box, tmp_path):
    """Shorter side to 800, the box, fitted into 224 with a white border that is rounded down at the left and top."""
    picture = Image.open(fake.save_photo(tmp_path / "photo.png", 3, size))
    crop = functional.resize(picture, [800]).crop(box)
    ratio = (box[2] - box[0]) / (box[3] - box[1])
    w, h = (224, int(224 / ratio)) if ratio > 1 else (int(224 * ratio), 224)
    w = max(w, 1)
    left, top = (224 - w) // 2, (224 - h) // 2
    borders = [left, top, 224 - w - left, 224 - h - top]
    expected = functional.pad(functional.resize(crop, [h, w]), borders, fill=255)
    assert np.array_equal(np.asarray(cropped(picture, box)), np.asarray(expected))


def test_concept101_painted_from_crops(tmp_path):
    folder = fake.concept101(tmp_path / "set")
    boxes, made = fake.concept_boxes(tmp_path / "json_data", folder), tmp_path / "made"
    settings = SuiteSettings("concept101", str(folder), crops=str(boxes), cases=4)
    suite = read_suite(settings, made, False, None)
    plain = read_suite(SuiteSettings("concept101", str(folder), cases=4), made, False, None)
    assert [case.references for case in suite.cases] == [case.references for case in plain.cases], "the whole photos"
    assert [(case.name, case.prompt) for case in suite.cases] == [(case.name, case.prompt) for case in plain.cases]
    assert suite.folder == folder and suite.painted_from == made and plain.painted_from == folder
    crop = "crops/furniture_sofa1/0.jpeg.99_0_730_300.png"
    assert suite.cases[0].subjects[0].photos == (crop, "crops/furniture_sofa1/1.jpeg.400_20_600_790.png")
    photo = Image.open(folder / "benchmark_dataset" / "furniture_sofa1" / "0.jpeg")
    assert np.array_equal(np.asarray(Image.open(made / crop)), np.asarray(cropped(photo, (99, 0, 730, 300))))
    assert len(list(made.rglob("*.png"))) == 6 and not list(folder.rglob("*.png"))
    assert any("Painted from crops" in note for note in suite.notes)
    assert any("here the photos are whole" in note for note in plain.notes) and len(plain.notes) == len(suite.notes)


def test_boxes_belong_to_photos_as_they_are_stored(tmp_path):
    """Without the turn that EXIF data ask for."""
    folder = fake.concept101(tmp_path / "set")
    photo = folder / "benchmark_dataset" / "furniture_sofa1" / "0.jpeg"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(photo)
    picture.save(photo, exif=exif)
    settings = SuiteSettings(
        "concept101", str(folder), crops=str(fake.concept_boxes(tmp_path / "boxes", folder)), cases=1
    )
    crop = tmp_path / "made" / read_suite(settings, tmp_path / "made", False, None).cases[0].subjects[0].photos[0]
    stored = Image.open(photo)
    assert np.array_equal(np.asarray(Image.open(crop)), np.asarray(cropped(stored, (99, 0, 730, 300))))


def test_strange_boxes(tmp_path):
    folder = fake.concept101(tmp_path / "set")
    boxes = fake.concept_boxes(tmp_path / "boxes", folder)

    def read(**changes):
        read_suite(SuiteSettings("concept101", str(folder), **{"crops": str(boxes), **changes}), tmp_path, False, None)

    with pytest.raises(SuiteError, match="json_data at '.*nowhere', found no such folder. Correct 'crops' in"):
        read(crops=str(tmp_path / "nowhere"))
    with pytest.raises(SuiteError, match="'crops' in .suite. for concept101 only, found 'crops' for dreambench"):
        read_suite(SuiteSettings("dreambench", str(folder), crops=str(boxes)), tmp_path, False, None)
    damaged = boxes / "furniture_chair1" / "1.json"
    for text, words in (
        ("{}", "KeyError"),
        ('{"mask": [{"box": [0, 0, 9, 9]}]}', "IndexError"),
        ('{"mask": [{}, {"box": [5, 5, 5, 9]}]}', "from 5, 5 to 5, 9"),
        ('{"mask": [{}, {"box": [5, 5, "x", 9]}]}', "ValueError"),
        ("[", "JSON in"),
    ):
        damaged.write_text(text)
        with pytest.raises(SuiteError, match=words):
            read()
    damaged.unlink()
    with pytest.raises(SuiteError, match=r"the file '.*furniture_chair1.1.json' of MIP-Adapter's json_data"):
        read()


def test_dreambench_plus(tmp_path):
    suite = dreambench_plus(fake.dreambench_plus(tmp_path))
    assert [(case.name, case.prompt, case.subjects[0].name) for case in suite.cases] == [
        ("animal/00 0", "a kitten on a table", "kitten"),
        ("animal/00 1", "an oil painting of a kitten", "kitten"),
        ("object/07 0", "a vintage camera on a table", "vintage camera"),
        ("object/07 1", "an oil painting of a vintage camera", "vintage camera"),
    ]
    assert suite.cases[0].references == (("images/animal/00.jpg",),)


def test_xverse_names_are_what_the_prompt_says(tmp_path):
    [case] = xverse(fake.xverse(tmp_path), MULTI).cases
    assert (case.name, case.prompt) == ("4", "A woman with red hair holds a teapot beside a dog.")
    assert case.subjects == tuple(
        TaskSubject(name, (f"data/{photo}.png",)) for name, photo in (("woman", "a"), ("teapot", "b"), ("dog", "c"))
    )


MAKERS = {
    "dreambench": fake.dreambench,
    "dreambench_pairs": fake.dreambench,
    "concept101": fake.concept101,
    "dreambench_plus": fake.dreambench_plus,
    "xverse_multi": fake.xverse,
}


def test_every_suite_is_read_by_its_name(tmp_path):
    assert set(SUITES) == {*MAKERS, "rehearsal", SINGLE}
    for name, make in MAKERS.items():
        folder = make(tmp_path / name)
        suite = read_suite(SuiteSettings(name, str(folder), cases=1), tmp_path, False, None)
        assert (suite.name, len(suite.cases)) == (name, 1)
        tasks = tasks_of(suite, [Method("a"), Method("b")], range(3))
        assert len({task.key for task in tasks}) == 6 and {task.seed for task in tasks} == {0, 1, 2}


@pytest.mark.parametrize("name", [*MAKERS, SINGLE])
def test_a_missing_or_empty_folder_is_one_sentence(name, tmp_path):
    with pytest.raises(SuiteError, match=rf"'folder' in \[suite\] for {name}, found none"):
        read_suite(SuiteSettings(name), tmp_path, False, None)
    with pytest.raises(SuiteError, match="found no such folder. Correct 'folder'"):
        read_suite(SuiteSettings(name, str(tmp_path / "nowhere")), tmp_path, False, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SuiteError) as error:
        read_suite(SuiteSettings(name, str(tmp_path / "empty")), tmp_path, False, None)
    assert str(error.value).startswith("Expected the f") and "\n" not in str(error.value)


def test_strange_files(tmp_path):
    folder = fake.dreambench(tmp_path / "a")
    shutil.rmtree(folder / "dog6")
    with pytest.raises(SuiteError, match="pictures of the subject dog6 in .*found no such folder"):
        dreambench(folder)
    (folder / "dog6").mkdir()
    with pytest.raises(SuiteError, match="pictures of the subject dog6 in .*found none"):
        dreambench(folder)
    (folder / "prompts_and_classes.txt").write_text("Classes\ncat,cat\n")
    with pytest.raises(SuiteError, match="found no object prompts and no live"):
        dreambench(folder)
    (folder / "prompts_and_classes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SuiteError, match="a text file"):
        dreambench(folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "JSON in"),
        ("{}", "a list of pairs"),
        ("[]", "a list of pairs"),
        ("[[1, 2, 3]]", "two concepts and their prompts in pair 1"),
        ('[[{"class_prompt": "cat"}]]', "two concepts and their prompts in pair 1"),
    ],
)
def test_strange_pairs(text, sentence, tmp_path):
    folder = fake.concept101(tmp_path)
    (folder / "dataset_multiconcept.json").write_text(text)
    with pytest.raises(SuiteError, match=sentence):
        concept101(folder)


@pytest.mark.parametrize("change", ["modulation", "prompt", "src_inputs", "image"])
def test_strange_entries_of_xverse(change, tmp_path):
    folder = fake.xverse(tmp_path)
    path = folder / "eval" / "tools" / "XVerseBench_multi.json"
    [entry] = json.loads(path.read_text())
    if change == "image":
        (folder / "data" / "b.png").unlink()
    elif change == "src_inputs":
        entry["modulation"][0]["src_inputs"] = []
    else:
        del entry[change]
    path.write_text(json.dumps([entry]))
    with pytest.raises(SuiteError, match="found no data/b.png" if change == "image" else "in entry 0 of"):
        xverse(folder, MULTI)


def test_strange_captions(tmp_path):
    folder = fake.dreambench_plus(tmp_path)
    (folder / "captions" / "animal" / "00.txt").write_text("Kitten\n")
    with pytest.raises(SuiteError, match="found 1 lines"):
        dreambench_plus(folder)
    (folder / "captions" / "animal" / "00.txt").unlink()
    with pytest.raises(SuiteError, match="found none"):
        dreambench_plus(folder)
