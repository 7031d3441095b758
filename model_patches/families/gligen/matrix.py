"""GLIGEN's projection matrix, which lies beside a text-image checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from ...checkpoints.adapter_file import WEIGHTS
from ...checkpoints.files import EXTENSIONS, read_state
from ...checkpoints.tensors import check_numbers
from ...errors import CheckpointError

MATRIX = "projection_matrix"
IMAGE_PROJECT = "image_project"  # the same in a diffusers repository
MATRIX_AGAIN = "Download it again from the publisher of the file that it belongs to."


def matrix_file(path: Path) -> Path | None:
    """Return the file `projection_matrix` beside a checkpoint, or `image_project/diffusion_pytorch_model.*` beside it
    or one folder up.
    """
    beside = [path.parent / f"{MATRIX}{extension}" for extension in ("", *EXTENSIONS)]
    folders = [folder / IMAGE_PROJECT for folder in (path.parent, path.parent.parent)]
    beside += [
        folder / f"{name}{extension}" for folder in folders for name in reversed(WEIGHTS) for extension in EXTENSIONS
    ]
    return next((file for file in beside if file.is_file()), None)


def read_matrix(path: Path) -> torch.Tensor | None:
    """Read P [E, E] for the checkpoint at `path`, with which image features are `e P`; None if it has none beside
    it.

    The official file holds P itself, the weight of CLIP's text projection. diffusers keeps it as the weight of a Linear
    `project`, which computes `e W^T`: there P is W transposed. Raises:
        CheckpointError: the file is unreadable or holds something else.
    """
    file = matrix_file(path)
    if file is None:
        return None
    state = read_state(file)
    if len(state) != 1:
        raise CheckpointError(f"one matrix in '{file.name}'", f"{len(state)} tensors", MATRIX_AGAIN)
    ((name, matrix),) = state.items()
    if matrix.ndim != 2:
        raise CheckpointError(
            f"'{name}' of '{file.name}' to be a matrix", f"the shape {list(matrix.shape)}", MATRIX_AGAIN
        )
    check_numbers(matrix, name, file.name)
    return matrix.mT.contiguous() if name.endswith("project.weight") else matrix
