"""Pictures with captions become records: with annotators that make no mistake, they are the known truth."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.dataset_scenes import Perfect, needs_inflect, write_scenes
from support.start_methods import needs_fork
from troupe.training.data import journal
from troupe.training.data.engine import Plan, parse_shard, work
from troupe.training.data.making import Maker
from troupe.training.data.records import DatasetError, read_records, write_records
from troupe.training.data.selection import Rules
from troupe.training.data.sources import folder_sources, read_captions
from troupe.training.data.words import FUNCTION_WORDS

pytestmark = needs_inflect
ALL = Rules(area=(0, 1), aspect=(0, 10), fill=0.1)
COUNT = 7


@pytest.fixture
def scenes(tmp_path):
    return write_scenes(tmp_path / "in", COUNT)


def maker_for(out, scenes, **more):
    perfect = Perfect(scenes)
    maker = Maker(out, ALL, detector=lambda: perfect.detect, segmenter=lambda: perfect.segment, **more)
    return maker, perfect


def build(folder, scenes, plan=None, **more):
    out = folder / "out"
    maker, perfect = maker_for(out, scenes, **more)
    work(out, folder_sources(folder / "in"), maker, plan or Plan(batch=3))
    return out, perfect


def check(out, scenes):
    """The records of a folder are those of the scenes."""
    records = read_records(out)
    assert len(records) == len(scenes)
    by_caption = {known.caption: known for known in scenes.values()}
    assert len(by_caption) == len(scenes)
    for record in records:
        known = by_caption[record.caption]
        assert (np.asarray(Image.open(record.picture)) == known.picture).all()
        assert [(one.name, one.box) for one in record.subjects] == [(name, box) for name, _, box in known.subjects]
        for one, (_, mask, _) in zip(record.subjects, known.subjects, strict=True):
            assert ((np.asarray(Image.open(one.mask)) > 127) == mask).all()


@pytest.mark.slow
def test_perfect_annotators_give_the_truth(tmp_path, scenes):
    out, perfect = build(tmp_path, scenes)
    journal.finish(out)
    check(out, scenes)
    assert not FUNCTION_WORDS & {word for words in perfect.asked for word in words}


def test_a_vocabulary_limits_the_words(tmp_path, scenes):
    kinds = tuple({name for known in scenes.values() for name, _, _ in known.subjects})
    out, perfect = build(tmp_path, scenes, vocabulary=kinds)
    journal.finish(out)
    check(out, scenes)
    assert all(
        words == [name for name, _, _ in known.subjects]
        for words, known in zip(perfect.asked, scenes.values(), strict=True)
    )


def test_a_broken_picture_is_named_and_stops_no_other(tmp_path, scenes):
    good = (tmp_path / "in" / "03.png").read_bytes()
    (tmp_path / "in" / "03.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "in" / "04.txt").unlink()
    (tmp_path / "in" / "05.txt").write_text("there it is")
    out, _ = build(tmp_path, scenes)
    entries = journal.finish(out)
    check(out, {name: known for name, known in scenes.items() if name not in ("03.png", "04.png", "05.png")})
    assert [(key, entry.notes[0][0]) for key, entry in entries.items() if entry.record is None] == [
        ("03.png", "picture does not open"),
        ("04.png", "no caption"),
        ("05.png", "no word to look for"),
    ]


def test_a_captioner_writes_what_is_missing(tmp_path, scenes):
    (tmp_path / "in" / "04.txt").unlink()
    written = []

    def captioner(pictures):
        written.append(len(pictures))
        return [scenes["04.png"].caption for _ in pictures]

    out, _ = build(tmp_path, scenes, captioner=lambda: captioner)
    journal.finish(out)
    check(out, scenes)
    assert written == [1]


class Stop(Exception):
    pass


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path, scenes):
    out = tmp_path / "out"
    maker, perfect = maker_for(out, scenes)

    def stopping(batch):
        if batch[0].key == "04.png":
            raise Stop
        return maker(batch)

    sources = folder_sources(tmp_path / "in")
    with pytest.raises(Stop):
        work(out, sources, stopping, Plan(batch=2))
    (path,) = (out / "journal").glob("*.jsonl")
    with path.open("a") as file:
        file.write('{"key": "04.png", "rec')  # killed while it wrote
    assert work(out, sources, maker, Plan(batch=2)) == 3
    assert work(out, sources, maker, Plan(batch=2)) == 0
    assert len(perfect.asked) == COUNT
    assert len(path.read_text().splitlines()) == COUNT
    journal.finish(out)
    check(out, scenes)


def test_shards_that_share_a_folder(tmp_path, scenes):
    for index in range(3):
        out, perfect = build(tmp_path, scenes, Plan(index, 3))
        assert len(perfect.asked) == len(range(index, COUNT, 3))
    assert len(list((out / "journal").glob("*.jsonl"))) == 3
    journal.finish(out)
    check(out, scenes)


def test_shards_on_disks_of_their_own_are_merged(tmp_path, scenes):
    sources, parts = folder_sources(tmp_path / "in"), []
    for index in range(2):
        parts.append(tmp_path / f"part{index}")
        work(parts[-1], sources, maker_for(parts[-1], scenes)[0], Plan(index, 2))
    journal.merge(tmp_path / "all", parts)
    check(tmp_path / "all", scenes)
    journal.merge(tmp_path / "all", parts[:1])  # again
    check(tmp_path / "all", scenes)
    with pytest.raises(DatasetError, match="journal"):
        journal.merge(tmp_path / "all", [tmp_path / "in"])
    lines = parts[0] / "journal" / "00000-of-00002.jsonl"
    lines.write_text(lines.read_text().replace(scenes["00.png"].caption, "another caption"))
    with pytest.raises(DatasetError, match="two different records for '00.png'"):
        journal.merge(tmp_path / "all", parts[:1])


@pytest.mark.slow
@needs_fork
def test_processes(tmp_path, scenes):
    pytest.importorskip("datasets")
    out, perfect = build(tmp_path, scenes, Plan(processes=2, batch=2))
    assert perfect.asked == []  # not in this process
    assert len(list((out / "journal").glob("*.jsonl"))) == 2
    journal.finish(out)
    check(out, scenes)


@pytest.mark.slow
def test_processes_without_fork_are_a_sentence(tmp_path, monkeypatch):
    """macOS can fork, but starts processes anew by default."""
    pytest.importorskip("datasets")
    write_scenes(tmp_path / "in", 4)
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn", "fork", "forkserver"])
    with pytest.raises(DatasetError, match="a system that forks processes .* with --shard instead"):
        work(tmp_path / "out", folder_sources(tmp_path / "in"), lambda batch: [], Plan(processes=2))


class Unpicklable(Exception):
    def __init__(self, one, other):
        super().__init__(one)


@pytest.mark.slow
@needs_fork
def test_an_error_of_a_process_arrives(tmp_path):
    """An exception that cannot be unpickled would let the pool wait for ever. DatasetError: see the command's tests."""
    pytest.importorskip("datasets")
    write_scenes(tmp_path / "in", 4)

    def fail(batch):
        raise Unpicklable("a fault", 2)

    with pytest.raises(RuntimeError, match="a fault"):
        work(tmp_path / "out", folder_sources(tmp_path / "in"), fail, Plan(processes=2))


def test_a_later_run_keeps_references_and_undoes_a_filter(tmp_path, scenes):
    out, _ = build(tmp_path, scenes)
    journal.finish(out)
    records = read_records(out)
    first = replace(records[0].subjects[0], references=(records[1].picture,), quality=0.5)
    changed = [replace(records[0], subjects=(first, *records[0].subjects[1:])), *records[1:]]
    stale = replace(records[3], caption=f"{records[3].caption} again")  # of other settings
    write_records(out, [*changed[:3], stale, *changed[4:]], journal.UNFILTERED)
    write_records(out, records[2:4])  # the filter's
    journal.finish(out)
    assert read_records(out) == changed and not (out / journal.UNFILTERED).exists()


def test_other_settings_are_not_mixed(tmp_path):
    journal.check_settings(tmp_path, {"area": (0.1, 0.7), "detector": "a"})
    journal.check_settings(tmp_path, {"area": (0.1, 0.7), "detector": "a"})
    with pytest.raises(DatasetError, match="detector 'a' instead of 'b'"):
        journal.check_settings(tmp_path, {"area": (0.1, 0.7), "detector": "b"})


def test_the_same_name_in_two_folders(tmp_path):
    """Files of a set are named by the whole path."""
    for name in ("one", "two"):
        write_scenes(tmp_path / "in" / name, 1)
    scenes = write_scenes(tmp_path / "other", 1)
    out, _ = build(tmp_path, scenes)
    journal.finish(out)
    first, second = read_records(out)
    assert first.picture != second.picture and first.subjects[0].mask != second.subjects[0].mask


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "1/"])
def test_a_shard_that_is_none(text):
    with pytest.raises(DatasetError, match="shard i/n"):
        parse_shard(text)
    assert parse_shard("2/8") == (2, 8)


def test_captions_in_one_file(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / ".hidden.png").write_bytes(b"")
    line = json.dumps({"file_name": "a.png", "text": " a cat "})
    (tmp_path / "metadata.jsonl").write_text(f"{line}\n\n")
    assert [source.captions for source in folder_sources(tmp_path)] == [("a cat",)]
    (tmp_path / "a.txt").write_text("a dog\n")
    assert [source.captions for source in folder_sources(tmp_path)] == [("a dog",)]
    (tmp_path / "metadata.jsonl").write_text(f'{line}\n{{"file_name": 3}}')
    with pytest.raises(DatasetError, match="line 2 of "):
        read_captions(tmp_path / "metadata.jsonl")


@pytest.mark.parametrize("folder, said", [("gone", "no folder"), ("empty", "pictures")])
def test_a_folder_without_pictures(tmp_path, folder, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=said):
        folder_sources(tmp_path / folder)
