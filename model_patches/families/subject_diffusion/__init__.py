"""Subject-Diffusion (arXiv 2307.11410): four modules that belong together, or all in one bundle."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from ...adapter import Adapter
from ...checkpoints.adapter_file import AdapterFile
from .encode import encode as encode
from .layout import boxed_of, build, is_bundle, slots_of, unbundled
from .members import member_name, member_of, members, read_members

LABELS = {"subject_diffusion": "Subject-Diffusion"}


def matches(file: AdapterFile) -> bool:
    """Return whether the file is a bundle, or one of the modules in its place among others."""
    return is_bundle(file.state) or member_of(file.path, file.state) is not None


def load(file: AdapterFile, operations: Any = nn) -> Adapter:
    """See `layout.build`; the other modules are read from beside the chosen one."""
    if is_bundle(file.state):
        slots = slots_of(file.metadata, file.label)
        return build(unbundled(file.state), file.label, operations, "in it", slots, boxed_of(file.metadata))
    found = read_members(file.path, member_of(file.path, file.state) or "", file.state)
    return build(found, file.label, operations, f"that fits '{member_name(file.path) or file.label}' beside it")


def companions(path: Path) -> Iterable[Path]:
    """Return the other modules beside it."""
    return members(path).values()
