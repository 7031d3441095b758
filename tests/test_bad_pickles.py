"""What files may ask for and do not get: code, memory beyond their size, depth.

Each case was found by test_fuzz_files.py or in reading for it.
"""

from __future__ import annotations

import gc
import pickle
import signal
import struct
import tarfile
import time
import zipfile

import pytest
import torch
from support.file_mutations import Bag, archive, bomb, call, evil, packed, value, with_code
from support.refused_files import STATE, refused
from support.side_effects import Hang, watched
from troupe.model_patches.checkpoints import files, pickles
from troupe.model_patches.checkpoints.files import read_metadata, read_shapes, read_state
from troupe.model_patches.checkpoints.pickles import unpickled
from troupe.model_patches.errors import quoted
from troupe.model_patches.families.registry import read_adapter

HARMLESS = {  # pushed by opcodes that reserve nothing and run nothing
    "omegaconf",
    "a class",
    "encode",
    "cuda",
    "mars",
    "deep list",
    "deep tuple",
    "memo",
    "number",
    "text",
    "None",
    "dict",
}


@pytest.fixture
def no_torch(monkeypatch):
    """Torch must not be asked: older ones would do what the file says."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch was asked"))


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert "as torch.save writes it, found compressed or encrypted members" in refused(path)


def test_a_tar_is_refused_before_torch_sees_it(tmp_path, monkeypatch, no_torch):
    path = tmp_path / "x.bin"
    path.write_bytes(Bag(STATE, "old", tree=True).bytes())
    monkeypatch.setattr(tarfile, "is_tarfile", lambda _: True)
    assert "found a tar archive. Load it where it was made" in refused(path)


@pytest.mark.parametrize("name", ["constants.pkl", "CONSTANTS.pkl"])
def test_a_program_is_refused_before_torch_sees_it(tmp_path, name, no_torch):
    """Torch before 2.6 ran TorchScript whatever it was asked for."""
    path = tmp_path / "x.bin"
    path.write_bytes(packed(archive(Bag(STATE, "zip").bytes()) | {f"archive/{name}": b"\x80\x02)."}))
    assert "found a TorchScript program" in refused(path)


def test_a_file_of_torch_ends_as_is_asked_for(tmp_path):
    """By torch's own writer and by Python's; large ones have two records more, which torch's writer may always
    write.
    """
    torch.save(STATE, tmp_path / "x.bin")
    (tmp_path / "y.bin").write_bytes(Bag(STATE, "zip").bytes())
    (tmp_path / "z.bin").write_bytes(with_records((tmp_path / "y.bin").read_bytes()))
    for name in ("x.bin", "y.bin", "z.bin"):
        assert read_state(tmp_path / name).keys() == STATE.keys()


def with_records(data: bytes, place: int | None = None, start: int | None = None) -> bytes:
    """An archive with the two records of large ones. place: where the second says that the first is; start: where that
    says that the directory is.
    """
    if data[-42:-38] == b"PK\6\7":
        data = data[:-98] + data[-22:]
    _, _, _, count, _, length, begin, _ = pickles.END.unpack(data[-22:])
    first = pickles.END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, begin if start is None else start)
    return (
        data[:-22]
        + first
        + pickles.LOCATOR.pack(b"PK\6\7", 0, len(data) - 22 if place is None else place, 1)
        + data[-22:]
    )


def with_comment(data: bytes) -> bytes:
    return data[:-2] + struct.pack("<H", 3) + b"abc"


def hidden_directory(data: bytes) -> bytes:
    """A directory, 46 bytes and its name, before the one that stands directly before the end."""
    _, _, _, count, _, length, begin, _ = pickles.END.unpack(data[-22:])
    return (
        data[:begin] + bytes(46) + data[begin:-22] + pickles.END.pack(b"PK\5\6", 0, 0, count, count, length, begin, 0)
    )


ENDS = {
    "the first record elsewhere": lambda data: with_records(data, place=0),
    "the directory elsewhere": lambda data: with_records(data, start=0),
    "a comment": with_comment,
    "something behind": lambda data: data + bytes(22),
    "two directories": hidden_directory,
}


@pytest.mark.parametrize("name", ENDS)
def test_an_archive_that_readers_may_see_differently_is_refused(tmp_path, name, no_torch):
    path, members = tmp_path / "x.bin", archive(Bag(STATE, "zip").bytes())
    path.write_bytes(ENDS[name](packed(members)))
    refused(path)
    with pytest.raises(zipfile.BadZipFile, match="its directory's"):
        unpickled(path)


@pytest.mark.parametrize("content, refusing", [(b"1234", True), (b"", False)])
def test_a_folder_with_bytes_is_refused(tmp_path, content, refusing):
    """Torch's two ways to read an archive would give different numbers.

    One without bytes, as archives packed by hand have, is no harm.
    """
    path = tmp_path / "x.bin"
    path.write_bytes(packed(archive(Bag(STATE, "zip").bytes())))
    with zipfile.ZipFile(path, "a") as file:
        (folder := zipfile.ZipInfo("archive/data/more")).external_attr = pickles.FOLDER_MARK
        file.writestr(folder, content)
    if not refusing:
        assert all(torch.equal(tensor, STATE[name]) for name, tensor in read_state(path).items())
        return
    refused(path)
    with pytest.raises(zipfile.BadZipFile, match="a folder with bytes"):
        unpickled(path)


def test_one_name_in_two_alphabets_is_refused(tmp_path, no_torch):
    """Torch compares the bytes, which are the same."""
    path, members = tmp_path / "x.bin", archive(Bag(STATE, "zip").bytes())
    path.write_bytes(
        packed(members | {"archive/é": b"a", "archive/QQ": b"b"}).replace(b"archive/QQ", b"archive/\xc3\xa9")
    )
    with zipfile.ZipFile(path) as file:
        assert len(set(file.namelist())) == len(members) + 2, "two names for Python"
    refused(path)
    with pytest.raises(zipfile.BadZipFile, match="members twice"):
        unpickled(path)


KEPT, AGAIN = b"r\x60\xea\0\0", b"j\x60\xea\0\0"  # keep what was pushed last, push it again
MULTIPLIED = {  # pushed once, and again and again by a few bytes
    "a text": value("a" * 100_000) + KEPT + call("_codecs", "encode", AGAIN, value("latin1")) * 2000,
    "pairs": value([(f"a{i}", 1) for i in range(2000)]) + KEPT + call("collections", "OrderedDict", AGAIN) * 2000,
    "a state": value({f"a{i}": 1 for i in range(2000)})
    + KEPT
    + (call("collections", "OrderedDict") + AGAIN + b"b") * 2000,
    "a state of items": b"}("
    + b"".join(value(f"a{i}") + b"N" for i in range(2000))
    + b"u"
    + KEPT
    + (call("collections", "OrderedDict") + AGAIN + b"b") * 2000,
}


@pytest.mark.parametrize("container", ["zip", "old"])
@pytest.mark.parametrize("name", MULTIPLIED)
def test_copies_without_end_are_refused_unread(tmp_path, container, name, no_torch):
    path = tmp_path / "x.bin"
    path.write_bytes(with_code(Bag(STATE, container, tree=True), b"](" + MULTIPLIED[name] + b"e", 0))
    refused(path)
    with pytest.raises(pickle.UnpicklingError, match="copies larger than the file"):
        unpickled(path)


@pytest.mark.parametrize("container", ["zip", "old"])
def test_a_pickle_has_a_bound(tmp_path, container, monkeypatch, no_torch):
    path = tmp_path / "x.bin"
    path.write_bytes(with_code(Bag(STATE, container, tree=True), value(list(range(5000))), 0))
    monkeypatch.setattr(pickles, "PICKLE", 4000)
    refused(path)


LONG_NAME = value("a" * 200_000) + KEPT
LONG_NAMES = {
    "one dict": b"}" + LONG_NAME + b"}(" + b"".join(value(f"{i}") + b"N" for i in range(20_000)) + b"us",
    "one in the other": b"}" + LONG_NAME + (b"}" + AGAIN) * 400 + b"N" + b"s" * 401,
}


@pytest.mark.parametrize("way", LONG_NAMES)
def test_long_names_are_not_multiplied(tmp_path, way):
    """A name of 200 kB for each of 20,000 entries of a file of 1 MB would be 4 GB."""
    path = tmp_path / "x.bin"
    path.write_bytes(with_code(Bag(STATE, "zip"), LONG_NAMES[way], 0))
    refused(path, read_state)
    assert read_shapes(path) == {}


def test_8_bit_floats_in_a_pickle_are_read(tmp_path):
    state = {name: t.to(torch.float8_e4m3fn) for name, t in STATE.items()}
    torch.save(state, tmp_path / "x.bin")
    read = read_state(tmp_path / "x.bin")
    assert read.keys() == state.keys() and all(
        t.dtype == torch.float8_e4m3fn and torch.equal(t.float(), state[name].float()) for name, t in read.items()
    )


@pytest.mark.parametrize("name", ["a" * 100_000, "line\nbreak", "\u202eright to left"])
def test_a_name_that_is_no_word_is_refused_in_a_short_sentence(tmp_path, name):
    (tmp_path / "x.safetensors").write_bytes(Bag(STATE | {name: torch.ones(2)}).bytes())
    assert len(refused(tmp_path / "x.safetensors")) < 300


def test_what_is_shown_is_one_short_line():
    assert (
        quoted("fox") == "'fox'"
        and quoted("a\nb") == r"'a\nb'"
        and len(quoted("x" * 999)) <= 60
        and quoted("x" * 999).endswith("...'")
    )


@pytest.mark.parametrize("shape", ['"ab"', "[true]", "[-1]", "[1.5]", "null", "{}"])
def test_a_header_with_shapes_that_are_none_is_no_candidate(tmp_path, shape):
    text = (
        '{"visual.class_embedding": {"dtype": "F32", "shape": '
        + shape.replace("{}", '{"a": 1}')
        + ', "data_offsets": [0, 0]}, "__metadata__": {"a": 1, "b": "c"}}'
    ).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert read_shapes(tmp_path / "x.safetensors") == {} and read_metadata(tmp_path / "x.safetensors") == {"b": "c"}


def test_entries_are_counted_to_a_bound(monkeypatch):
    monkeypatch.setattr(files, "ENTRIES", 3)
    assert files.flatten({"a": {"b": torch.ones(1)}, "c": 1}).keys() == {"a.b"}
    with pytest.raises(ValueError):
        files.flatten({"a": {"b": torch.ones(1)}, "c": 1, "d": 2})


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a system without timers")
@pytest.mark.parametrize("is_busy", [True, False])
def test_a_call_that_does_not_end_is_stopped(is_busy):
    """A check of the tests' own watch: a slow machine is allowed for, a loop and a long wait are not."""
    with watched(0.2):
        time.sleep(0.4)
    with pytest.raises(Hang), watched(0.1):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if not is_busy:
                time.sleep(20)


class Remains:
    """In a cycle with itself; compiles an expression when it ends, as a traceback does that is printed."""

    def __init__(self, ended):
        self.itself, self.ended = self, ended

    def __del__(self):
        compile("1", "<unknown>", "eval")
        self.ended.append(True)


def test_what_ends_while_a_call_is_watched_is_not_the_calls():
    """A check of the tests' own watch: what earlier tests left is collected at any time."""
    ended = []
    Remains(ended)
    with watched() as seen:
        _ = [[] for _ in range(10_000)]  # many more than Python waits for
        during = [*ended]
    assert not seen and not during
    gc.collect()
    assert ended
