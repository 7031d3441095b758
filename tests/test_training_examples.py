"""Training pictures: how they are cut, which comes when, and a sentence for each that is not usable."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny_training as small
from troupe.rehearsal.world import TRAINING_LOOKS
from troupe.training.data.pictures import read_mask
from troupe.training.data.records import DatasetError
from troupe.training.examples import folder as folder_module
from troupe.training.examples.drawn import DrawnSet
from troupe.training.examples.draws import Draws, Share
from troupe.training.examples.folder import FolderSet
from troupe.training.run import check_count
from troupe.training.stop import TrainingError
from troupe_tools.pack import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.write_set(tmp_path_factory.mktemp("pictures"))


def test_a_picture_and_its_masks_are_cut_alike(folder):
    """96 x 64 pixels to the 32 x 32 in the middle: 48 wide, 8 are cut on each side."""
    example = FolderSet(folder, 32, 4).get(0, random.Random(0))
    whole = torch.from_numpy(np.asarray(Image.open(folder / "p0.png").convert("RGB")).copy()).float() / 127.5 - 1
    assert example.pixels.shape == (3, 32, 32) and (example.original, example.crop) == ((64, 96), (0, 8))
    assert (example.pixels[:, 4, 4] - whole[8, 24]).abs().max() < 0.05  # inside a block of one colour
    first, second = (subject.mask for subject in example.subjects)
    assert first.shape == (32, 32) and first[10, 4] == 1 and first[10, 14] == 0 and first[30, 4] == 0
    assert second[10, 4] == 0 and second[10, 14] == 1
    assert [subject.name for subject in example.subjects] == ["cat", "red robot"]
    assert example.subjects[0].photo.image.shape == (40, 40, 3) and example.subjects[0].photo.cutout is None


def test_a_subject_that_the_cut_leaves_out_is_no_subject(tmp_path):
    """256 x 64 pixels: the middle square begins at 96. The cat ends at 90; one column of the dog is left."""
    Image.new("RGB", (256, 64), "green").save(tmp_path / "wide.png")
    boxes = {"cat": (10, 80), "dog": (60, 37), "robot": (100, 40)}
    subjects = [
        {"name": name, "box": [left / 256, 0.2, width / 256, 0.6], "references": ["wide.png"]}
        for name, (left, width) in boxes.items()
    ] + [{"name": "bird", "references": ["wide.png"]}]
    line = {"file_name": "wide.png", "text": "a cat, a dog, a robot and a bird", "subjects": subjects}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    example = FolderSet(tmp_path, 64, 4).get(0, random.Random(0))
    assert [subject.name for subject in example.subjects] == ["robot", "bird"], "a bird without a place may be there"
    (robot,) = FolderSet(tmp_path, 64, 1).get(0, random.Random(0)).subjects
    assert robot.name == "robot", "the first that is there, not none because the first of the line is not"


def test_a_transparent_picture_is_on_white_and_a_transparent_mask_black(tmp_path):
    """As the sheet, the builder and ComfyUI's own readers have them."""
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    clear.paste((255, 0, 0, 255), (16, 16, 48, 48))
    clear.save(tmp_path / "cut.png")
    subject = {"name": "cat", "mask": "mask.png", "references": ["cut.png"]}
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": "cut.png", "text": "a cat", "subjects": [subject]})
    )
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (16, 16, 48, 48))
    mask.save(tmp_path / "mask.png")
    read = read_mask(tmp_path / "mask.png", (64, 64))
    assert read.sum() == 32 * 32 and read[32, 32], "the builder reads it alike"
    example = FolderSet(tmp_path, 64, 4).get(0, random.Random(0))
    (cat,) = example.subjects
    assert example.pixels[:, 0, 0].tolist() == [1, 1, 1] and example.pixels[:, 32, 32].tolist() == [1, -1, -1]
    assert cat.photo.image[0, 0].tolist() == [1, 1, 1] and cat.mask[0, 0] == 0 and cat.mask[32, 32] == 1


def test_pictures_are_turned_as_their_exif_data_say(tmp_path):
    """Taken with the camera on its side: 40 x 20 pixels that are shown as 20 x 40, red on top."""
    sideways = Image.new("RGB", (40, 20), "blue")
    sideways.paste((255, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "photo.png", exif=exif)
    line = {"file_name": "photo.png", "text": "a cat", "subjects": [{"name": "cat", "references": ["photo.png"]}]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    example = FolderSet(tmp_path, 20, 4).get(0, random.Random(0))
    assert example.original == (40, 20) and example.subjects[0].photo.image.shape == (40, 20, 3)
    assert example.subjects[0].photo.image[0, 10].tolist() == [1, 0, 0]
    assert example.pixels[:, 0, 10].tolist() == [1, -1, -1] and example.pixels[:, -1, 10].tolist() == [-1, -1, 1]


def test_a_subject_without_a_reference_is_cut_out(folder, tmp_path):
    line = json.loads((folder / "metadata.jsonl").read_text().splitlines()[0])
    for subject in line["subjects"]:
        del subject["references"]
    del line["subjects"][1]["mask"]
    for path in folder.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    said: list[str] = []
    first, second = FolderSet(tmp_path, 32, 4, warn=said.append).get(0, random.Random(0)).subjects
    assert said == ["2 subjects have no reference picture: they are cut out of their training picture."]
    assert first.photo.image.shape == (64, 96, 3) and first.photo.cutout[20, 25] == 1
    box = second.photo.cutout.nonzero()
    assert [*box.min(0).values.tolist(), *box.max(0).values.tolist()] == [19, 38, 44, 57]  # 0.4, 0.3, 0.2, 0.4
    assert first.key != second.key


def test_pictures_without_subjects_are_left_out_where_they_are_needed(folder, tmp_path):
    (tmp_path / "p.png").write_bytes((folder / "p0.png").read_bytes())
    with_one = {"file_name": "p.png", "text": "a cat", "subjects": [{"name": "cat"}]}
    lines = [json.dumps(line) for line in (with_one, {"file_name": "p.png", "text": "nothing"})]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    said: list[str] = []
    assert len(FolderSet(tmp_path, 32, 4)) == 2 and len(FolderSet(tmp_path, 32, 4, True, said.append)) == 1
    assert said[0] == "1 of 2 pictures have no subjects and are left out."
    (tmp_path / "metadata.jsonl").write_text(lines[1])
    with pytest.raises(DatasetError, match="1 pictures without any"):
        FolderSet(tmp_path, 32, 4, True)


def test_a_broken_picture_is_a_sentence(folder, tmp_path):
    small.write_set(tmp_path)
    (tmp_path / "p1.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="a picture in .*p1.png, found a file that cannot be read"):
        FolderSet(tmp_path, 32, 4).get(1, random.Random(0))


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-40])


def black(path):
    Image.new("L", (96, 64)).save(path)


def text(path):
    path.write_text("no picture")


@pytest.mark.parametrize(
    "name, spoil, found_by",
    [
        ("p3.png", text, ("headers", "masks", "pictures")),
        ("m2_1.png", text, ("headers", "masks", "pictures")),
        ("r2_2.png", text, ("headers", "masks", "pictures")),
        ("m2_1.png", black, ("masks", "pictures")),
        ("m2_1.png", cut_off, ("masks", "pictures")),
        ("p3.png", cut_off, ("pictures",)),
        ("r2_2.png", cut_off, ("pictures",)),
    ],
)
def test_a_set_is_checked_before_a_training_comes_to_the_fault(tmp_path, name, spoil, found_by):
    pictures = FolderSet(small.write_set(tmp_path), 32, 4)
    for what in ("headers", "masks", "pictures"):
        pictures.check(what)
    spoil(tmp_path / name)
    for what in ("headers", "masks", "pictures"):
        if what in found_by:
            with pytest.raises(DatasetError, match=name):
                pictures.check(what)
        else:
            pictures.check(what)
    if spoil is text:  # in the part of one process, also of a subject that is taken where the first is cut away
        here = int(name[1]) % 2
        with pytest.raises(DatasetError, match=name):
            FolderSet(tmp_path, 32, 1).check("headers", here, 2)
        FolderSet(tmp_path, 32, 4).check("headers", 1 - here, 2)


def test_every_fault_of_a_set_is_named(tmp_path, monkeypatch):
    said: list[str] = []
    pictures = FolderSet(small.write_set(tmp_path), 32, 4)
    for name in ("p1.png", "p2.png", "m0_1.png"):
        text(tmp_path / name)
    with pytest.raises(DatasetError) as error:
        pictures.check(say=said.append)
    assert str(error.value).startswith(f"Expected a picture in {tmp_path / 'p1.png'}, found a file that cannot be read")
    others = f"{tmp_path / 'p2.png'}, {tmp_path / 'm0_1.png'}"
    assert str(error.value).endswith(f"delete its line. 2 more files have such a fault: {others}.") and not said
    monkeypatch.setattr(folder_module, "LISTED", 1)
    monkeypatch.setattr(folder_module, "MANY", 7)
    with pytest.raises(DatasetError, match=r"2 more files have such a fault: .*p2.png, \.\.\.\.$"):
        pictures.check(say=said.append)
    assert said == ['Reads 8 files before the first step. check = "headers" in [data] takes less time.']


def test_a_set_smaller_than_a_step_is_a_sentence(folder):
    pictures = FolderSet(folder, 32, 4)
    check_count(pictures, 4)
    with pytest.raises(TrainingError, match="a step takes, 5, found 4 in the training set. Add pictures, or lower"):
        check_count(pictures, 5)
    check_count(DrawnSet(), 5)


def test_every_pass_over_a_set_has_every_picture_once(folder):
    draws = Draws(FolderSet(folder, 32, 4), seed=1)
    labels = [draws[n].example.label for n in range(40)]
    turns = [tuple(labels[i : i + 4]) for i in range(0, 40, 4)]
    assert all(len(set(turn)) == 4 for turn in turns) and len(set(turns)) > 4


def test_a_draw_depends_on_its_number_alone(folder):
    once, again = (Draws(FolderSet(folder, 32, 4), seed=1) for _ in range(2))
    for number in (3, 0, 7):
        a, b = once[number], again[number]
        assert a.example.label == b.example.label and torch.equal(a.noise((4, 8, 8)), b.noise((4, 8, 8)))
    assert not torch.equal(once[0].noise((4,)), once[4].noise((4,)))
    assert not torch.equal(once[0].noise((4,)), Draws(once.examples, seed=2)[0].noise((4,)))
    assert not torch.equal(once[0].noise((4,)), once[0].noise((4,), "another use"))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_pictures_of_a_step(processes):
    """Together the processes draw what one process with batches as large as all of theirs does."""
    batch = 6 // processes
    whole = list(Share(1, 4, 2, 6))
    shares = [list(Share(1, 4, 2, batch, r, processes)) for r in range(processes)]
    assert [sum(turn, []) for turn in zip(*shares, strict=True)] == whole
    assert whole[0] == [12, 13, 14, 15, 16, 17] and len(whole) == 6 == len(Share(1, 4, 2, 6))


def test_drawn_pictures():
    """Names in the caption's order, masks where the subjects are, references of looks that may be trained on."""
    counts = set()
    for n in range(12):
        example = DrawnSet(2).get(n, random.Random(n))
        counts.add(len(example.subjects))
        places = [example.caption.find(subject.name) for subject in example.subjects]
        assert -1 not in places and example.pixels.shape == (3, 128, 128)
        for subject in example.subjects:
            assert subject.mask.shape == (128, 128) and 0.01 < subject.mask.mean() < 0.2
            assert subject.photo.image.shape == (128, 128, 3) and subject.photo.image.max() <= 1
    assert counts == {1, 2} and not any(look.held_out for look in TRAINING_LOOKS)


@pytest.mark.slow
def test_a_process_that_is_started_anew_can_draw(folder):
    """On Windows and macOS each of data.workers is a new Python that imports tools/train.py, not as the main module,
    and then receives the pictures.
    """
    script = """
import pickle, runpy, sys
sys.path.insert(0, sys.argv[1])
runpy.run_path(f"{sys.argv[1]}/train.py", run_name="__mp_main__")
draw = pickle.load(sys.stdin.buffer)[1]
print(draw.number, draw.example.pixels.double().sum().item())
"""
    draws = Draws(FolderSet(folder, 32, 4), 0)
    command = [sys.executable, "-c", script, str(ROOT / "tools")]
    done = subprocess.run(command, input=pickle.dumps(draws), capture_output=True)
    assert done.stdout.decode().split() == ["1", str(draws[1].example.pixels.double().sum().item())], done.stderr
