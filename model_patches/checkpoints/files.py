"""Reading weight files safely, and reading only their headers."""
from __future__ import annotations

import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..errors import CheckpointError

EXTENSIONS = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt")
CODE = re.compile(r"GLOBAL ([\w.]+)")  # in torch's refusal of a pickle
Shapes = dict[str, tuple[int, ...]]


def read_state(path: str | os.PathLike, label: str | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a weight file, nested dicts flattened with dots, on the CPU, dtypes as in the file.

    Safetensors, or a pickle of plain tensors (`weights_only`: no code is run), told apart by their first bytes.
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
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < path.stat().st_size else {}
        return {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}
    except Exception:  # a folder may hold anything; what cannot be read is simply not a candidate
        return {}


def flatten(tree: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Nested mappings of tensors -> one dict with dotted names; entries that are no tensors are dropped."""
    flat: dict[str, torch.Tensor] = {}
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


def _unpickle(path: Path) -> Any:
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
