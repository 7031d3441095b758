"""The training set's folder: what is written is read back, and each fault of a line is a sentence that names it."""

import json
import pickle

import pytest
from troupe.model_patches.subjects import Box
from troupe.training.data.records import DatasetError, PictureRecord, SubjectRecord, read_records, write_records

CAT = {"name": "cat", "box": [0.1, 0.2, 0.3, 0.5], "mask": "m.png", "references": ["r.png"], "quality": 0.5}
LINE = {"file_name": "a.png", "text": "a Cat on the beach", "subjects": [CAT]}


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "m.png", "r.png"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder, *lines):
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_what_is_written_is_read_back(folder):
    write(folder, LINE, {"file_name": "a.png", "text": "an empty beach"})
    records = read_records(folder)
    cat = SubjectRecord("cat", Box(0.1, 0.2, 0.3, 0.5), folder / "m.png", (folder / "r.png",), 0.5)
    assert records == [
        PictureRecord(folder / "a.png", "a Cat on the beach", (cat,)),
        PictureRecord(folder / "a.png", "an empty beach"),
    ]
    write_records(folder, records)
    assert read_records(folder) == records


@pytest.mark.parametrize(
    "change, said",
    [
        ({"file_name": "gone.png"}, "no file 'gone.png'"),
        ({"file_name": None}, "'file_name'"),
        ({"text": " "}, "'text'"),
        ({"subjects": {"name": "cat"}}, "list of objects"),
        ({"subjects": ["cat"]}, "list of objects"),
        ({"subjects": [CAT | {"name": "dog"}]}, "'dog'"),
        ({"subjects": [{"name": ""}]}, "'name'"),
        ({"subjects": [CAT | {"box": [0.5, 0, 0.6, 1]}]}, "inside the picture"),
        ({"subjects": [CAT | {"box": [0, 0, 0, 1]}]}, "inside the picture"),
        ({"subjects": [CAT | {"box": [0, 0, float("nan"), 1]}]}, "inside the picture"),
        ({"subjects": [CAT | {"box": [0, 0, 1]}]}, "inside the picture"),
        ({"subjects": [CAT | {"mask": "gone.png"}]}, "no file 'gone.png'"),
        ({"subjects": [CAT | {"references": ["gone.png"]}]}, "no file 'gone.png'"),
        ({"subjects": [CAT | {"references": "r.png"}]}, "list of files"),
        ({"subjects": [CAT | {"quality": "good"}]}, "'quality'"),
    ],
)
def test_a_fault_is_named_with_its_line(folder, change, said):
    write(folder, LINE, LINE | change)
    with pytest.raises(DatasetError, match="line 2 of ") as error:
        read_records(folder)
    assert said in str(error.value)


@pytest.mark.parametrize("text, said", [(None, "none in"), ("", "an empty"), ("\n{", "line 2"), ("[1]", "line 1")])
def test_a_folder_without_usable_metadata(folder, text, said):
    if text is not None:
        (folder / "metadata.jsonl").write_text(text)
    with pytest.raises(DatasetError) as error:
        read_records(folder)
    assert said in str(error.value)


def test_metadata_in_another_encoding_is_a_sentence(folder):
    (folder / "metadata.jsonl").write_bytes(json.dumps(LINE).encode("utf-16"))
    with pytest.raises(DatasetError, match="metadata.jsonl to be a text file in UTF-8, found .*Save it as UTF-8"):
        read_records(folder)


def test_a_fault_in_another_process_has_all_its_parts(folder):
    """Processes that read pictures hand it on as a pickle."""
    write(folder, LINE | {"text": " "})
    with pytest.raises(DatasetError) as error:
        read_records(folder)
    found = pickle.loads(pickle.dumps(error.value))  # noqa: S301
    assert type(found) is DatasetError and str(found) == str(error.value)
    assert (found.expected, found.found, found.remedy) == (
        f"a text 'text' in line 1 of {folder / 'metadata.jsonl'}",
        "' '",
        "Add it, or delete the line.",
    )
