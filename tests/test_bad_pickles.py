"""What files may ask for and do not get: code, memory beyond their size, depth. Each case was found by test_fuzz_files.py or in reading for it."""
from __future__ import annotations

import tarfile
import zipfile

import pytest
import torch
from mutations import Bag, archive, bomb, evil, packed, value, with_code
from published import flat, layers
from small_files import PLAIN
from test_checkpoints import checked
from troupe.model_patches.checkpoints import files
from troupe.model_patches.checkpoints.files import read_metadata, read_shapes, read_state
from troupe.model_patches.checkpoints.load import read_adapter
from troupe.model_patches.errors import CheckpointError, shown
from watch import SLACK, outcome, starved, watched

STATE = flat(PLAIN, layers(16, (2, 4)))
HARMLESS = {  # pushed by opcodes that reserve nothing and run nothing
    "omegaconf", "a class", "encode", "cuda", "mars", "deep list", "deep tuple", "memo", "number", "text", "None", "dict",
}


def refused(path, read=read_adapter):
    """The text of the refusal of a file, within the watch's seconds and bytes; nothing ran."""
    with watched(reserve=SLACK + 4 * path.stat().st_size) as seen:
        _, error = outcome(lambda: read(path))
    assert type(error) is CheckpointError and not seen and not starved(error), (error, error and error.__cause__, seen)
    return checked(error, path.name)


@pytest.mark.parametrize("container", ["zip", "old"])
@pytest.mark.parametrize("way", [0, 1, 2], ids=["an item", "thrown away", "alone"])
@pytest.mark.filterwarnings("ignore")
def test_a_pickle_that_asks_for_more_than_tensors_is_refused(tmp_path, container, way):
    bag, path = Bag(STATE, container, tree=True), tmp_path / "x.bin"
    path.write_bytes(bag.bytes())
    read_adapter(path)
    for name, code in evil(container == "old").items():
        path.write_bytes(with_code(bag, code, way))
        if name not in HARMLESS:
            refused(path)
            assert read_shapes(path) == {}


@pytest.mark.parametrize("code", ["bytearray", "Tensor", "UntypedStorage", "os.system"])
def test_the_refusal_says_what_was_asked_for(tmp_path, code):
    path = tmp_path / "x.bin"
    path.write_bytes(with_code(Bag(STATE, "zip"), evil(False)[code], 0))
    text = refused(path)
    assert "hostile" in text and code.rpartition(".")[2] in text


def test_a_deep_key_does_not_overflow_the_stack(tmp_path):
    """Hashing a tuple nested a million times ends the process."""
    path = tmp_path / "x.bin"
    path.write_bytes(with_code(Bag(STATE, "zip"), b"}" + b")" + b"\x85" * 1_000_000 + value(1) + b"s", 0))
    refused(path)


def test_a_dict_that_is_in_itself_many_times_is_refused_at_once(tmp_path):
    tree = {"x": 1}
    for _ in range(40):
        tree = {"a": tree, "b": tree}
    torch.save(tree, tmp_path / "x.bin")
    refused(tmp_path / "x.bin")


def test_views_larger_than_the_file_are_refused_and_shared_tensors_are_not(tmp_path):
    path = tmp_path / "x.bin"
    whole = torch.randn(64, 64)
    torch.save({"a": whole, "b": whole, "c": whole.T}, path)
    assert read_state(path).keys() == {"a", "b", "c"}
    torch.save({"a": torch.as_strided(whole, (2**16, 2**16), (0, 0))}, path)
    refused(path, read_state)
    torch.save({f"{i}": whole.T for i in range(100)}, path)
    refused(path, read_state)


@pytest.mark.parametrize("member", ["archive/data.pkl", "archive/data/0", "archive/version"])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, member):
    path, data = tmp_path / "x.bin", bomb(member)
    path.write_bytes(data)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as file:
        for name, content in archive(Bag(STATE, "zip").bytes()).items():
            if name != member:
                file.writestr(name, content)
    refused(path)


def test_compressed_members_are_refused_instead_of_taken_for_numbers(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(packed(archive(Bag(STATE, "zip").bytes()), zipfile.ZIP_DEFLATED))
    refused(path)


def test_a_tar_is_refused_before_torch_sees_it(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    path.write_bytes(Bag(STATE, "old", tree=True).bytes())
    read_adapter(path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch was asked"))
    monkeypatch.setattr(tarfile, "is_tarfile", lambda _: True)
    refused(path)


def test_8_bit_floats_in_a_pickle_are_read(tmp_path):
    state = {name: t.to(torch.float8_e4m3fn) for name, t in STATE.items()}
    torch.save(state, tmp_path / "x.bin")
    read = read_state(tmp_path / "x.bin")
    assert read.keys() == state.keys() and all(t.dtype == torch.float8_e4m3fn and torch.equal(t.float(), state[name].float()) for name, t in read.items())


@pytest.mark.parametrize("name", ["a" * 100_000, "line\nbreak", "\u202eright to left"])
def test_a_name_that_is_no_word_is_refused_in_a_short_sentence(tmp_path, name):
    (tmp_path / "x.safetensors").write_bytes(Bag(STATE | {name: torch.ones(2)}).bytes())
    assert len(refused(tmp_path / "x.safetensors")) < 300


def test_what_is_shown_is_one_short_line():
    assert shown("fox") == "'fox'" and shown("a\nb") == r"'a\nb'" and len(shown("x" * 999)) <= 60 and shown("x" * 999).endswith("...'")


@pytest.mark.parametrize("shape", ['"ab"', "[true]", "[-1]", "[1.5]", "null", "{}"])
def test_a_header_with_shapes_that_are_none_is_no_candidate(tmp_path, shape):
    text = ('{"visual.class_embedding": {"dtype": "F32", "shape": ' + shape.replace("{}", '{"a": 1}') + ', "data_offsets": [0, 0]}, "__metadata__": {"a": 1, "b": "c"}}').encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert read_shapes(tmp_path / "x.safetensors") == {} and read_metadata(tmp_path / "x.safetensors") == {"b": "c"}


def test_entries_are_counted_to_a_bound(monkeypatch):
    monkeypatch.setattr(files, "ENTRIES", 3)
    assert files.flatten({"a": {"b": torch.ones(1)}, "c": 1}).keys() == {"a.b"}
    with pytest.raises(ValueError):
        files.flatten({"a": {"b": torch.ones(1)}, "c": 1, "d": 2})
