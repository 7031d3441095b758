"""Reading weight files safely, and reading only their headers."""
from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..errors import CheckpointError

EXTENSIONS = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt")
Shapes = dict[str, tuple[int, ...]]


def read_state(path: str | os.PathLike, label: str | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a weight file, nested dicts flattened with dots, on the CPU, dtypes as in the file.

    Safetensors, or a pickle of plain tensors (`weights_only`: no code is run).
    Raises:
        CheckpointError: the file is missing, truncated, holds code, or holds no tensors.
    """
    path, label = Path(path), label or Path(path).name
    _check_present(path, label)
    try:
        tree = safetensors.torch.load_file(path) if path.suffix in (".safetensors", ".sft") else _unpickle(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"'{label}' to hold nothing but tensors", f"something else that was not loaded ({_first_line(error)})", "It may be damaged or hostile: delete it and download it from its publisher, as .safetensors where there is one.") from error
    except Exception as error:  # every reader has exceptions of its own for a damaged file
        raise CheckpointError(f"'{label}' to be a readable weight file", f"{_size(path)} that could not be read ({_first_line(error)})", "The download was probably cut off: delete it and download it again.") from error
    state = flatten(tree)
    if not state:
        raise CheckpointError(f"tensors in '{label}'", "none", "Choose the adapter's weight file.")
    return state


def read_shapes(path: str | os.PathLike) -> Shapes:
    """Names and shapes of a file's tensors without reading the weights; {} where the file cannot be read."""
    path = Path(path)
    try:
        if path.suffix in (".safetensors", ".sft"):
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > path.stat().st_size:
                    return {}
                header = json.loads(file.read(length))
            return {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}
        return {k: tuple(v.shape) for k, v in flatten(_unpickle(path)).items()}
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


def _unpickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _check_present(path: Path, label: str) -> None:
    if not path.is_file():
        raise CheckpointError(f"the file '{label}'", f"nothing at {path}", "It was moved or deleted: put it back, or choose another file and refresh the list (R).")


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:160] if text else type(error).__name__


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes"
