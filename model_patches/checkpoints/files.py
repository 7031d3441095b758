"""Reading weight files safely, and reading only their headers."""
from __future__ import annotations

import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..errors import CheckpointError

EXTENSIONS = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt")
CODE = re.compile(r"GLOBAL ([\w.]+)")  # in torch's refusal of a pickle
Shapes = dict[str, tuple[int, ...]]
BARE = "tensor"  # name given to the tensor of a file that holds one without a name
SETTINGS = (  # what the training settings inside GLIGEN's official files are made of: names in their pickles
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "base.Metadata", "base.ContainerMetadata")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String", "Union")),
    "typing.Any", "collections.defaultdict", *(f"builtins.{kind}" for kind in ("dict", "list", "int", "float", "bool", "str")),
)


def read_state(path: str | os.PathLike, label: str | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a weight file, nested dicts flattened with dots, on the CPU, dtypes as in the file.

    Safetensors, or a pickle of plain tensors (`weights_only`: no code is run; training settings inside are passed over), told apart by their
    first bytes. A file of one tensor without a name has it as 'tensor'.
    Raises:
        CheckpointError: the file is missing, truncated, holds code, or holds no tensors.
    """
    path, label = Path(path), label or Path(path).name
    _check_present(path, label)
    try:
        state = flatten(safetensors.torch.load_file(path) if _is_safetensors(path) else _unpickle(path))
    except Exception as error:  # every reader has exceptions of its own for a damaged file
        raise _unreadable(path, label, error) from error
    if not state:
        raise CheckpointError(f"tensors in '{label}'", "none", "Choose the adapter's weight file.")
    return state


def read_shapes(path: str | os.PathLike) -> Shapes:
    """Names and shapes of a file's tensors without reading the weights; {} where the file cannot be read."""
    path = Path(path)
    try:
        if not _is_safetensors(path):
            return {k: tuple(v.shape) for k, v in flatten(_unpickle(path)).items()}
        return {k: tuple(v["shape"]) for k, v in _header(path).items() if k != "__metadata__"}
    except Exception:  # a folder may hold anything; what cannot be read is simply not a candidate
        return {}


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors; {} where there are none, or it is no such file."""
    try:
        return dict(_header(Path(path)).get("__metadata__", {})) if _is_safetensors(Path(path)) else {}
    except Exception:  # as in read_shapes
        return {}


def flatten(tree: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Nested mappings of tensors -> one dict with dotted names; entries that are no tensors are dropped."""
    flat: dict[str, torch.Tensor] = {}
    if isinstance(tree, torch.Tensor) and not prefix:
        return {BARE: tree.detach()}
    if not isinstance(tree, Mapping):
        return flat
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, torch.Tensor):
            flat[name] = value.detach()
        else:
            flat.update(flatten(value, f"{name}."))
    return flat


def _is_safetensors(path: Path) -> bool:
    """Eight bytes of length, then JSON: no zip and no pickle begins like that."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _header(path: Path) -> dict[str, Any]:
    """What a safetensors file says about its tensors."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)) if length < path.stat().st_size else {}


class _Inert:
    """Stands for an object of training settings: made of anything, keeps nothing, does nothing."""

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


def _unpickle(path: Path) -> Any:
    allowing = getattr(torch.serialization, "safe_globals", nullcontext)  # torch 2.4 has none; there such settings are refused
    with allowing(list(STAND_INS)):
        return _load_tensors(path)


def _load_tensors(path: Path) -> Any:
    if zipfile.is_zipfile(path) and path.suffix.lower() != ".safetensors":  # torch chooses another reader by that suffix
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with open(path, "rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_present(path: Path, label: str) -> None:
    if not path.is_file():
        found = f"{'a folder' if path.is_dir() else 'nothing'} at {path}"
        raise CheckpointError(f"the file '{label}'", found, "It was moved or deleted: put it back, or choose another file and refresh the list (R).")


def _unreadable(path: Path, label: str, error: Exception) -> CheckpointError:
    """What is wrong with a file that no reader takes. torch's own text is not passed on: it tells how to run the code in a file."""
    with open(path, "rb") as file:
        start = file.read(64)
    if isinstance(error, pickle.UnpicklingError) and start.startswith((b"PK", b"\x80")):
        code = CODE.search(str(error))
        found = f"something else, which was not run ({code[1] if code else type(error).__name__})"
        do = "It may be damaged or hostile: delete it and download it from its publisher, as .safetensors where there is one."
        return CheckpointError(f"'{label}' to hold nothing but tensors", found, do)
    found, do = f"{path.stat().st_size:,} bytes that could not be read", "The download was probably cut off: delete it and download it again."
    if start.lstrip().startswith(b"<"):
        found, do = "a web page", "The link led to a page instead of the file (some need a login): delete it and use the direct download link."
    elif start.startswith(b"version https://git-lfs"):
        found, do = "a Git LFS pointer, which only names the file", "Delete it and download the file itself, or run 'git lfs pull' where it was cloned."
    return CheckpointError(f"'{label}' to be a readable weight file", found, do)
