"""Reading weight files safely, and reading only their headers."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..errors import CheckpointError, quoted
from .compact import expanded
from .pickles import ForeignArchive, unpickled

EXTENSIONS = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt")
CODE = re.compile(r"GLOBAL ([\w.]{1,80})")  # in the refusal of a pickle
Shapes = dict[str, tuple[int, ...]]
BARE = "tensor"  # name given to the tensor of a file that holds one without a name
LONGEST_NAME = 250
LONGEST_PATH = 1000  # beyond it nothing more is read, since every entry below would have such a name too
ENTRIES = 100_000  # in a file's dicts; a whole SDXL checkpoint has 2500


def read_state(path: str | os.PathLike, label: str | None = None) -> dict[str, torch.Tensor]:
    """Read all tensors of a weight file, nested dicts flattened with dots, on the CPU, dtypes as in the file, and those
    in full that it stores in less room (`compact`).

    Safetensors, or a pickle of plain tensors (`weights_only`: no code is run; training settings inside are passed
    over), distinguished by their first bytes. A file of one tensor without a name has it as 'tensor'. Raises:
        CheckpointError: the file is missing, truncated, holds code, or holds no tensors.
    """
    path, label = Path(path), label or Path(path).name
    _check_present(path, label)
    try:
        state = expanded(flatten(safetensors.torch.load_file(path) if _is_safetensors(path) else unpickled(path)))
    except Exception as error:  # every reader has exceptions of its own for a damaged file
        raise _unreadable(path, label, error) from error
    odd = next((name for name in state if len(name) > LONGEST_NAME or not name.isprintable()), None)
    if odd is not None:
        raise CheckpointError(
            f"names of tensors in '{label}' to be words with dots between",
            quoted(odd),
            "It is damaged, or of an unknown kind: choose another file.",
        )
    if not state:
        raise CheckpointError(f"tensors in '{label}'", "none", "Choose the adapter's weight file.")
    return state


def read_shapes(path: str | os.PathLike) -> Shapes:
    """Read the names and shapes of a file's tensors without reading the weights; {} if the file cannot be read."""
    path = Path(path)
    try:
        if not _is_safetensors(path):
            return {k: tuple(v.shape) for k, v in flatten(unpickled(path)).items()}
        return {k: tuple(map(_size, v["shape"])) for k, v in _header(path).items() if k != "__metadata__"}
    except Exception:  # a folder may hold anything; what cannot be read is simply not a candidate
        return {}


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Read the texts that a safetensors file carries beside its tensors; {} if there are none, or it is no such
    file.
    """
    try:
        texts = _header(Path(path)).get("__metadata__", {}) if _is_safetensors(Path(path)) else {}
        return {name: text for name, text in texts.items() if isinstance(text, str)}
    except Exception:  # as in read_shapes
        return {}


def flatten(tree: Any) -> dict[str, torch.Tensor]:
    """Flatten nested mappings of tensors to one dict with dotted names; entries that are no tensors are dropped.

    Raises:
        ValueError: more than ENTRIES entries, as of a dict that is in itself many times; a name of more than
            LONGEST_PATH characters.
    """
    if isinstance(tree, torch.Tensor):
        return {BARE: tree.detach()}
    flat: dict[str, torch.Tensor] = {}
    for count, (name, value) in enumerate(_entries(tree)):
        if count == ENTRIES or len(name) > LONGEST_PATH:
            raise ValueError(f"more than {ENTRIES} entries, or {LONGEST_PATH} characters")
        if isinstance(value, torch.Tensor):
            flat[name] = value.detach()
    return flat


def _entries(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every entry of nested mappings by its dotted name, the mappings themselves too."""
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        name = f"{prefix}{key}"
        yield name, value
        yield from _entries(value, f"{name}.")


def _is_safetensors(path: Path) -> bool:
    """Eight bytes of length, then JSON: no zip and no pickle begins like that."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _size(number: Any) -> int:
    """A number of a shape. Raises ValueError for anything else."""
    if type(number) is not int or number < 0:
        raise ValueError(f"size {number!r}")
    return number


def _header(path: Path) -> dict[str, Any]:
    """What a safetensors file says about its tensors."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)) if length < path.stat().st_size else {}


def _check_present(path: Path, label: str) -> None:
    if not path.is_file():
        found = f"{'a folder' if path.is_dir() else 'nothing'} at {path}"
        raise CheckpointError(
            f"the file '{label}'",
            found,
            "It was moved or deleted: put it back, or choose another file and refresh the list (R).",
        )


def _unreadable(path: Path, label: str, error: Exception) -> CheckpointError:
    """What is wrong with a file that no reader takes. torch's own text is not passed on: it explains how to run the
    code in a file.
    """
    with open(path, "rb") as file:
        start = file.read(64)
    if (
        isinstance(error, pickle.UnpicklingError)
        and not isinstance(error, ForeignArchive)
        and start.startswith((b"PK", b"\x80"))
    ):
        code = CODE.search(str(error))
        found = f"something else, which was not run ({code[1] if code else type(error).__name__})"
        remedy = (
            "It may be damaged or hostile: delete it and download it from its publisher, as .safetensors where "
            "there is one."
        )
        return CheckpointError(f"'{label}' to hold nothing but tensors", found, remedy)
    if isinstance(error, ForeignArchive):
        return CheckpointError(
            f"'{label}' to be a file of tensors as torch.save writes it",
            str(error),
            "Load it where it was made and save its tensors as .safetensors.",
        )
    found, remedy = (
        f"{path.stat().st_size:,} bytes that could not be read",
        "The download was probably cut off: delete it and download it again.",
    )
    if start.lstrip().startswith(b"<"):
        found, remedy = (
            "a web page",
            "The link was to a page instead of the file (some need a login): delete it and use the direct "
            "download link.",
        )
    elif start.startswith(b"version https://git-lfs"):
        found, remedy = (
            "a Git LFS pointer instead of the file",
            "Delete it and download the file itself, or run 'git lfs pull' in the clone.",
        )
    return CheckpointError(f"'{label}' to be a readable weight file", found, remedy)
