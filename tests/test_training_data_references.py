"""References are other pictures of the same individual, never the training picture itself unless that is asked for."""

import numpy as np
import pytest
from PIL import Image
from support.dataset_scenes import needs_inflect
from troupe.model_patches.subjects import Box
from troupe.training.data import journal
from troupe.training.data.engine import Plan, work
from troupe.training.data.making import Maker
from troupe.training.data.records import DatasetError, PictureRecord, SubjectRecord
from troupe.training.data.references import add_references, from_folders, from_table, keys_of
from troupe.training.data.selection import Thing
from troupe.training.data.sources import Source

pytestmark = needs_inflect
LEFT, RIGHT = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 0.5, 0.8)


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8))


def make_set(folder, names, things=(("cat", LEFT),)):
    """A set of random pictures made from files of these names."""
    words = tuple(Thing((name,), box) for name, box in things)
    sources = []
    for seed, name in enumerate(names):
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path)
        sources.append(Source(name, path, (), words))
    out = folder / "out"
    work(out, sources, Maker(out), Plan())
    journal.finish(out)
    from troupe.training.data.records import read_records

    records = read_records(out)
    assert len(records) == len(names)
    return out, records, keys_of(out, records)


def by_key(records, keys):
    return {keys[i]: record for i, record in enumerate(records)}


NAMES = ["rex/1.png", "rex/2.png", "rex/3.png", "tom/1.png", "tom/2.png", "solo/1.png", "nobody.png"]


def test_each_subject_gets_the_others_of_its_individual(tmp_path):
    out, records, keys = make_set(tmp_path, NAMES)
    found, report = add_references(out, records, from_folders(records, keys))
    assert (report.distinct, report.own, report.none, report.unknown, report.individuals) == (5, 0, 2, 1, 3)
    records = by_key(found, keys)
    seeds = {name: seed for seed, name in enumerate(NAMES)}
    for name, others in (
        ("rex/1.png", ["rex/2.png", "rex/3.png"]),
        ("rex/2.png", ["rex/1.png", "rex/3.png"]),
        ("tom/2.png", ["tom/1.png"]),
        ("solo/1.png", []),
        ("nobody.png", []),
    ):
        references = [np.asarray(Image.open(path)) for path in records[name].subjects[0].references]
        expected = []
        for other in others:
            square = np.full((40, 40, 3), 255, np.uint8)
            square[:, 5:35] = np.asarray(picture(seeds[other]))[:, :30]
            expected.append(square)
        assert len(references) == len(expected)
        assert all((one == other).all() for one, other in zip(references, expected, strict=True))


def test_the_same_picture_under_another_name_is_no_reference(tmp_path):
    out, records, keys = make_set(tmp_path, ["rex/1.png", "rex/2.png"])
    records[1].picture.unlink()
    picture(0).save(records[1].picture.with_suffix(".bmp"))  # the same pixels in another file
    records[1] = PictureRecord(records[1].picture.with_suffix(".bmp"), records[1].caption, records[1].subjects)
    found, report = add_references(out, records, from_folders(records, keys), least_difference=0)
    assert report.none == 2 and report.skipped == {"same picture under another name": 2}
    assert not any(one.references for record in found for one in record.subjects)


def test_frames_that_hardly_differ_are_no_references(tmp_path):
    out, records, keys = make_set(tmp_path, ["rex/1.png", "rex/2.png", "rex/3.png"])
    pixels = np.asarray(picture(0)).astype(int)
    Image.fromarray((pixels * 0.99).astype(np.uint8)).save(records[1].picture)
    found, report = add_references(out, records, from_folders(records, keys))
    assert report.skipped == {"too similar": 2}
    assert [len(record.subjects[0].references) for record in found] == [1, 1, 2]
    assert add_references(out, records, from_folders(records, keys), least_difference=0)[1].skipped == {}


def test_own_cut_outs_only_where_asked_for(tmp_path):
    out, records, keys = make_set(tmp_path, NAMES)
    found, report = add_references(out, records, from_folders(records, keys), own=True)
    assert (report.distinct, report.own, report.none) == (5, 2, 0)
    records = by_key(found, keys)
    (own,) = records["solo/1.png"].subjects[0].references
    assert own.stem == f"{records['solo/1.png'].picture.stem}_0"
    for name in NAMES[:5]:
        assert not [
            path for path in records[name].subjects[0].references if path.stem.startswith(records[name].picture.stem)
        ]


def test_many_pictures_are_spread(tmp_path):
    out, records, keys = make_set(tmp_path, [f"rex/{i}.png" for i in range(9)])
    found, _ = add_references(out, records, from_folders(records, keys), each=3)
    places = [[one.picture.stem for one in records].index(path.stem[:-2]) for path in found[0].subjects[0].references]
    assert len(places) == 3 and places[0] == 1 and places[-1] == 8
    assert len(set(places)) == 3


def test_the_individual_is_the_named_one_or_the_largest(tmp_path):
    things = (("cat", LEFT), ("dog", RIGHT))
    _, records, keys = make_set(tmp_path, ["dog6/1.png", "rex/1.png"], things)
    found = from_folders(records, keys)
    assert {keys[i]: records[i].subjects[n].name for i, n in found} == {"dog6/1.png": "dog", "rex/1.png": "cat"}


def test_a_table_of_individuals(tmp_path):
    things = (("cat", LEFT), ("dog", RIGHT))
    out, records, keys = make_set(tmp_path, ["a.png", "b.png", "c.png"], things)
    table = tmp_path / "t.csv"
    rows = ["a.png,cat,tom", "b.png,CAT,tom", "a.png,dog,rex", "c.png,dog,rex", "dropped.png,dog,rex", "b.png,dog,"]
    table.write_text("picture,subject,individual\n" + "\n".join(rows))
    found, report = add_references(out, records, from_table(records, keys, table))
    assert (report.distinct, report.none, report.unknown) == (4, 2, 2)
    records = by_key(found, keys)
    stems = {
        name: [path.stem for one in record.subjects for path in one.references] for name, record in records.items()
    }
    assert stems["a.png"] == [f"{records['b.png'].picture.stem}_0", f"{records['c.png'].picture.stem}_1"]
    assert stems["b.png"] == [f"{records['a.png'].picture.stem}_0"]


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "no file"),
        ("", "no individual, picture"),
        ("picture,individual\na.png,tom", "cat, dog"),
        ("picture,subject,individual\na.png,owl,tom", "'owl'"),
        ("picture,subject,individual\nz.png,cat,tom", "column picture"),
    ],
)
def test_a_table_that_is_none(tmp_path, text, said):
    _, records, keys = make_set(tmp_path, ["a.png"], (("cat", LEFT), ("dog", RIGHT)))
    if text is not None:
        (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DatasetError) as error:
        from_table(records, keys, tmp_path / "t.csv")
    assert said in str(error.value)


def test_a_set_without_folders(tmp_path):
    _, records, keys = make_set(tmp_path, ["a.png"])
    with pytest.raises(DatasetError, match="one folder per individual"):
        from_folders(records, keys)


def test_earlier_references_of_unknown_individuals_stay(tmp_path):
    path = tmp_path / "a.png"
    picture(0).save(path)
    record = PictureRecord(path, "cat", (SubjectRecord("cat", references=(path,)),))
    (found,), report = add_references(tmp_path, [record], {}, own=True)
    assert found == record and (report.own, report.unknown) == (0, 1)


def test_a_broken_picture_is_named(tmp_path):
    out, records, keys = make_set(tmp_path, ["rex/1.png", "rex/2.png", "rex/3.png"])
    records[2].picture.unlink()
    records[2].picture.write_bytes(b"broken")
    found, report = add_references(out, records, from_folders(records, keys), own=True)
    assert report.distinct == 2 and [len(record.subjects[0].references) for record in found] == [1, 1, 0]
    assert any(records[2].picture.name in fault for fault in report.faults)
