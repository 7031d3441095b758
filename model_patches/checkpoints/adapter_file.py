"""An adapter file with its tensors: one file, or all parts of one that was cut into several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from glob import escape
from pathlib import Path

import torch

from ..errors import CheckpointError
from .files import EXTENSIONS, read_metadata, read_state
from .tensors import State

PART = re.compile(r"(.+)-\d{5}-of-(\d{5})$")  # diffusers cuts big files: diffusion_pytorch_model-00001-of-00002
WEIGHTS = ("pytorch_model", "model", "diffusion_pytorch_model")  # usual names within a folder


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """A file of an unknown kind. path: of the file, or of one of its parts; label: its name in messages; state: its
    tensors by name, on the CPU, in the file's dtypes."""

    path: Path
    label: str
    state: State

    @classmethod
    def read(cls, path: str | Path, label: str | None = None) -> AdapterFile:
        """Read a file, or all its parts. Raises CheckpointError if it is unreadable or a part is missing."""
        path = Path(path)
        label = label or adapter_label(path)
        return cls(path, label, read_whole(path, label))

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """The texts in a safetensors file's header, {} elsewhere."""
        return read_metadata(self.path)


def adapter_label(path: str | Path) -> str:
    """Return the label of a file: its name, with the folder's where the name is one that every file has."""
    path = Path(str(path).replace("\\", "/"))
    return (
        f"{path.parent.name}/{path.name}"
        if (PART.match(path.stem) or [path.stem, path.stem])[1] in WEIGHTS and path.parent.name
        else path.name
    )


def parts(path: Path) -> tuple[Path, ...]:
    """Return all parts of a file that was cut into several, or the file alone."""
    cut = PART.match(path.stem)
    return (
        tuple(sorted(path.parent.glob(f"{escape(cut[1])}-?????-of-{cut[2]}{escape(path.suffix)}"))) if cut else (path,)
    )


def read_whole(path: Path, label: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, or of all its parts, as `read_state` does. Raises CheckpointError if one is
    missing.
    """
    cut, found = PART.match(path.stem), parts(path)
    if cut and len(found) != int(cut[2]):
        raise CheckpointError(
            f"{int(cut[2])} parts of '{label}' beside each other",
            f"{len(found)}",
            "Download the others from the same page into the same folder.",
        )
    return {
        name: tensor
        for file in found
        for name, tensor in read_state(file, label if file == path else file.name).items()
    }


def beside(path: Path, names: Iterable[str]) -> dict[str, Path]:
    """Return the weight files in the folder of `path` that have these names, the one with its extension first."""
    files = {name: [path.parent / f"{name}{extension}" for extension in (path.suffix, *EXTENSIONS)] for name in names}
    return {
        name: next(filter(Path.is_file, candidates))
        for name, candidates in files.items()
        if any(map(Path.is_file, candidates))
    }
