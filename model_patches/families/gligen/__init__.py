"""GLIGEN (arXiv 2301.07093): text boxes and text-image boxes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from ...adapter import Adapter
from ...checkpoints.adapter_file import AdapterFile
from .encode import encode as encode
from .layout import build, reads_photos, recognised
from .matrix import matrix_file, read_matrix

LABELS = {"gligen": "GLIGEN"}


def matches(file: AdapterFile) -> bool:
    """Return whether the file is a GLIGEN of any modality."""
    return recognised(file.state)


def load(file: AdapterFile, operations: Any = nn) -> Adapter:
    """See `layout.build`; a text-image file's projection matrix is read from beside it."""
    return build(file.state, file.label, operations, read_matrix(file.path) if reads_photos(file.state) else None)


def companions(path: Path) -> Iterable[Path]:
    """Return the projection matrix, where there is one."""
    matrix = matrix_file(path)
    return () if matrix is None else (matrix,)
