"""The exported adapter file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save_file

from .checkpoints import FAULTS
from .recipes.recipe import Exported
from .stop import TrainingError, first_line


def write_export(exported: Exported, path: Path, half: bool = True) -> Path:
    """Write an adapter as a safetensors file, whole or not at all. half: numbers as float16, as published.

    Raises TrainingError if it cannot be written.
    """
    state = {
        name: (value.half() if half and value.is_floating_point() else value).contiguous()
        for name, value in exported.state.items()
    }
    odd = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if odd:
        do = "Set half = false in [output] if the weights are too large for float16." if half else "Train again."
        raise TrainingError("finite weights to export", f"others in '{odd[0]}'", do)
    writing = path.with_name(f"{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, writing, exported.metadata or None)
        writing.replace(path)
    except FAULTS as error:
        with suppress(OSError):
            writing.unlink()
        raise TrainingError(
            f"to write {path}", first_line(error), "Free space, or choose another 'folder' in [output]."
        ) from error
    return path
