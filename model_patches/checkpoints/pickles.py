"""Pickles of tensors: torch reads them, and runs no code; before that a look at what they ask for.

torch's reader makes what a pickle names, however large: a bytearray or a tensor of any size, a member that unpacks to
any size, a key nested deeper than the stack. The look goes through the same opcodes with placeholders that hold
nothing, and refuses a file that asks for something other than tensors, or for more than it holds. Torch before 2.6
could be made to run code by an archive of its oldest kind (tar) and by a TorchScript program, which are refused too. So
is an archive whose directory torch might find elsewhere than the look did.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import tarfile
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

ZIP = b"PK\x03\x04"
# pickles at the start of a file from before torch 1.6: two numbers, the system, the tensors, the order of their
# storages
OLD_PARTS = 5
PICKLE = 2**24  # bytes of all pickles in a file; a whole SDXL checkpoint has under 1 MB
ENTRY_BYTES = 100  # bytes of a dict's entry, at least
SHARED = 2  # a file's tensors together, in bytes for each of the file: some lie in it once and have two names
SETTINGS = (  # what the training settings inside GLIGEN's official files are made of: names in their pickles
    *(
        f"omegaconf.{name}"
        for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "base.Metadata", "base.ContainerMetadata")
    ),
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String", "Union")
    ),
    "typing.Any",
    "collections.defaultdict",
    *(f"builtins.{kind}" for kind in ("dict", "list", "int", "float", "bool", "str")),
)
STORAGES = {  # bytes of an element
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
    "torch.ComplexFloatStorage": 8,
    "torch.ComplexDoubleStorage": 16,
    "torch.storage.UntypedStorage": 1,
}
TENSOR, TYPED, PARAMETER, ORDERED = (
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "collections.OrderedDict",
)
# of a zip archive; the last two of large ones
END, LOCATOR, END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
FOLDER_MARK = 0x10  # an archive's mark on a member
ENCODED_BYTES = "_codecs.encode"  # bytes, as Python 3 writes them for Python 2
# of those that torch's reader knows, all that need no care
OPCODES = b"()]}.acehjqrtGJKMNQUX\x80\x85\x86\x87\x88\x89\x8a"
# what names something in a dict; a deep tuple would overflow the stack when it is hashed
KEY_TYPES = (str, int, float, bool, bytes, type(None))


class ForeignArchive(pickle.UnpicklingError):
    """A file that torch could read, or a program could, but of a kind that no publisher of weights needs."""


def unpickled(path: Path) -> Any:
    """Return the contents of a file of tensors, on the CPU; an archive that is not called .safetensors is mapped into
    memory instead of read.

    Raises:
        ForeignArchive: an archive of another kind ("a tar archive").
        pickle.UnpicklingError: it asks for something else than tensors ("GLOBAL os.system"), or for more than it holds.
        Exception: the readers' own, for a damaged file.
    """
    zipped = _examine(path)
    # torch 2.4 has none; there such settings are refused
    allowing = getattr(torch.serialization, "safe_globals", nullcontext)
    with allowing(list(STAND_INS)):
        if zipped and path.suffix.lower() != ".safetensors":  # torch chooses another reader by that suffix
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)


def _examine(path: Path) -> bool:
    """Look at what a file asks for; whether it is a zip archive. Raises as `unpickled`."""
    size = path.stat().st_size
    # a mapping reads no more than there is, whatever length it is asked for
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        zipped = data[:4] == ZIP
        if zipped:
            _check_end(data)
            with zipfile.ZipFile(file) as archive:
                pickled, records = _members(archive, size)
                look = _PickleScanner(archive.read(pickled), size)
            look.load()
            lacking = [key for key, storage in look.storages.items() if storage.bytes > records.get(f"data/{key}", -1)]
            if lacking:
                raise EOFError(f"storage {lacking[0]!r}")
        else:
            if tarfile.is_tarfile(file):
                raise ForeignArchive("a tar archive")
            look = _PickleScanner(data[:PICKLE], size)
            for _ in range(OLD_PARTS):
                look.load()
            if sum(storage.bytes for storage in look.storages.values()) > size:
                raise EOFError("storages larger than the file")
    return zipped


def _check_end(data: mmap.mmap) -> None:
    """Whether an archive ends as torch's do: nothing behind its directory but the records that tell where it is.
    Readers that look for those records in different places would otherwise see different archives. Raises BadZipFile.
    """
    tail = len(data) - END.size
    mark, *_, length, start, comment = END.unpack(data[tail:])
    if data[tail - LOCATOR.size : tail][:4] == b"PK\x06\x07":
        at, tail = LOCATOR.unpack(data[tail - LOCATOR.size : tail])[2], tail - LOCATOR.size - END64.size
        mark64, *_, length, start = END64.unpack(data[tail : tail + END64.size])
        if (mark64, at) != (b"PK\x06\x06", tail):
            raise zipfile.BadZipFile("its directory's place")
    if (mark, comment, start + length) != (b"PK\x05\x06", 0, tail):
        raise zipfile.BadZipFile("its directory's end")


def _members(archive: zipfile.ZipFile, size: int) -> tuple[zipfile.ZipInfo, Mapping[str, int]]:
    """The pickle in an archive of torch's, and the sizes of what lies beside it.

    Raises BadZipFile unless everything is stored as it is, once, in the file.
    """
    infos = archive.infolist()
    if any(
        info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size
        for info in infos
    ):
        raise ForeignArchive("compressed or encrypted members")
    if any(info.file_size and info.external_attr & FOLDER_MARK for info in infos):
        # which torch reads when it maps the archive, and otherwise takes whatever its memory holds
        raise zipfile.BadZipFile("a folder with bytes")
    names, raw = ({name(info).lower() for info in infos} for name in (lambda info: info.filename, _raw_name))
    if (
        not len(names) == len(raw) == len(infos)
        or sum(info.file_size for info in infos) > size
        or min((info.header_offset for info in infos), default=1)
    ):
        raise zipfile.BadZipFile("members twice, or larger than the file, or behind something else")
    for info in infos:
        # compares the directory with what stands before the member, where torch looks for its place
        archive.open(info).close()
    root = infos[0].filename.partition("/")[0]
    records = {info.filename.removeprefix(f"{root}/"): info.file_size for info in infos}
    if "constants.pkl" in map(str.lower, records):
        raise ForeignArchive("a TorchScript program")
    pickled = archive.getinfo(f"{root}/data.pkl")
    if pickled.file_size > PICKLE:
        raise pickle.UnpicklingError(f"a pickle of {pickled.file_size} bytes")
    return pickled, records


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    """A member's name as it is in the archive, which torch compares without reading its alphabet."""
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


class _Named(NamedTuple):
    """A name in a pickle, of which nothing is imported."""

    path: str


class _Storage(NamedTuple):
    """A storage as a pickle declares it: its elements, and the bytes of one."""

    elements: int
    width: int

    @property
    def bytes(self) -> int:
        return self.elements * self.width


class _Nothing:
    """What a call in a pickle gives."""

    __slots__ = ()


class _Tensor(_Nothing):
    """The same where it is a tensor, which takes no state: torch would make it as large as that says."""

    __slots__ = ()


class _Opcodes(dict):
    """What to do at each opcode."""

    def __missing__(self, code: int) -> Any:
        raise pickle.UnpicklingError(f"opcode {code}")


# the one in Python: the one in C reserves memory for whatever place a pickle names
class _PickleScanner(pickle._Unpickler):
    """Goes through pickles of tensors and makes nothing but dicts of names. pickles: their bytes, what follows them or
    a part of it too; size: of the file. storages: as declared, by key; bytes, of all tensors together, as if none were
    shared; copies: bytes of texts and dicts that torch would make of others."""

    # of pickle._Unpickler, whose types nobody has written down
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, pickles: bytes, size: int):
        super().__init__(io.BytesIO(pickles), encoding="latin1")
        self.storages: dict[str, _Storage] = {}
        self.size, self.bytes, self.copies = size, 0, 0

    def find_class(self, module: str, name: str) -> _Named:
        module, name = NAME_MAPPING.get((module, name)) or (IMPORT_MAPPING.get(module, module), name)
        path = f"{module}.{name}"
        # getattr would import what torch loads late
        dtype = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        if not dtype and path not in STORAGES and path not in HARMLESS:
            raise pickle.UnpicklingError(f"GLOBAL {path}")
        return _Named(path)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, location, elements, *_ = pid
        width = STORAGES[storage.path]
        found = _Storage(elements, width)
        if (
            kind != "storage"
            or type(key) is not str
            or type(location) is not str
            or type(elements) is not int
            or elements < 0
            or self.storages.setdefault(key, found) != found
        ):
            raise pickle.UnpicklingError("no storage")
        return found

    def made(self, what: _Named, *arguments: Any) -> Any:
        """A call, by what is called. Raises UnpicklingError."""
        path = what.path
        if path in (TENSOR, TYPED):
            storage, offset, size, stride = arguments[:4]
            return self.tensor(
                storage,
                offset,
                size,
                stride,
                vars(torch)[arguments[6].path.rpartition(".")[2]].itemsize if path == TYPED else storage.width,
            )
        if path == PARAMETER and isinstance(arguments[0], _Tensor):
            return arguments[0]
        if path == ORDERED:
            pairs = (arguments or ((),))[0]
            self.copy(len(pairs) * ENTRY_BYTES)
            if all(isinstance(key, KEY_TYPES) for key, _ in pairs):
                return dict.fromkeys(key for key, _ in pairs)
        if path == ENCODED_BYTES and type(arguments[0]) is str and arguments[1:] == ("latin1",):
            self.copy(len(arguments[0]))
            return _Nothing()
        if path in SETTINGS:
            return {} if path.endswith("defaultdict") else _Nothing()
        raise pickle.UnpicklingError(f"GLOBAL {path}")

    def tensor(
        self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], width: int
    ) -> _Tensor:
        """A tensor [size] in a storage, of elements of `width` bytes. Raises UnpicklingError unless it lies within."""
        if any(type(number) is not int or number < 0 for number in (offset, *size, *stride)) or len(size) != len(
            stride
        ):
            raise pickle.UnpicklingError("a tensor of no size")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if all(size) else -1
        if (last + 1) * width > storage.bytes:
            raise EOFError("a tensor larger than its storage")
        self.bytes += prod(size) * width
        if self.bytes > SHARED * self.size:
            raise pickle.UnpicklingError("tensors larger than the file")
        return _Tensor()

    def copy(self, size: int) -> None:
        """Note bytes that torch would copy. Raises UnpicklingError if they are more than the file's."""
        self.copies += size
        if self.copies > self.size:
            raise pickle.UnpicklingError("copies larger than the file")

    def reduce(self) -> None:
        arguments, what = self.stack.pop(), self.stack.pop()
        self.append(self.made(what, *arguments))

    def build(self) -> None:
        state, what = self.stack.pop(), self.stack[-1]
        if type(what) is not _Nothing and not (type(what) is dict and type(state) is dict):
            raise pickle.UnpicklingError("a state for no object")
        if type(state) is dict:
            self.copy(len(state) * ENTRY_BYTES)

    def set_items(self) -> None:
        items = self.pop_mark()
        self.set_pairs(items)

    def set_item(self) -> None:
        items = [self.stack.pop(), self.stack.pop()]
        self.set_pairs(items[::-1])

    def set_pairs(self, items: list[Any]) -> None:
        if (
            type(self.stack[-1]) is not dict
            or len(items) % 2
            or not all(isinstance(key, KEY_TYPES) for key in items[::2])
        ):
            raise pickle.UnpicklingError("items of no dict")
        self.stack[-1].update(dict.fromkeys(items[::2]))

    dispatch = _Opcodes(
        {code: pickle._Unpickler.dispatch[code] for code in OPCODES}
        | {
            pickle.REDUCE[0]: reduce,
            pickle.NEWOBJ[0]: reduce,
            pickle.BUILD[0]: build,
            pickle.SETITEM[0]: set_item,
            pickle.SETITEMS[0]: set_items,
        }
    )


class _Inert:
    """A placeholder for an object of training settings: made of anything, keeps nothing, does nothing."""

    def __new__(cls, *args: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _InertDict(_Inert):
    """The same where the pickle puts items in: an ordinary dict."""

    def __new__(cls, *args: Any) -> Any:
        return {}


def _stand_in(path: str) -> type:
    """An inert class under the name that the unpickler looks for."""
    module, _, name = path.rpartition(".")
    return type(name, (_InertDict if name == "defaultdict" else _Inert,), {"__module__": module})


STAND_INS = tuple(map(_stand_in, SETTINGS))
HARMLESS = {TENSOR, TYPED, PARAMETER, ORDERED, ENCODED_BYTES, *SETTINGS}
