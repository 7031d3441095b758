"""MM-Diff (arXiv 2403.15059): three files that belong together, or all in one bundle."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from ...adapter import Adapter
from ...checkpoints.adapter_file import AdapterFile, beside
from ...checkpoints.files import read_state
from ...checkpoints.tensors import State
from .encode import encode as encode
from .layout import MEMBERS, TEXT, build, bundled, is_bundle, member_of

LABELS = {"mm_diff": "MM-Diff"}


def matches(file: AdapterFile) -> bool:
    """Return whether the file is a bundle or one of the three."""
    return is_bundle(file.state) or which_member(file.path, file.state) is not None


def load(file: AdapterFile, operations: Any = nn) -> Adapter:
    """See `layout.build`; the other two files are read from beside the chosen one."""
    if is_bundle(file.state):
        return build(file.state, file.label, operations, file.metadata)
    member = which_member(file.path, file.state) or ""
    return build(bundled(read_members(file.path, member, file.state)), file.label, operations, beside="beside it")


def companions(path: Path) -> Iterable[Path]:
    """Return the three files beside it, by their usual names."""
    return beside(path, MEMBERS).values()


def which_member(path: Path, state: State) -> str | None:
    """Return which of the three files a file is, by its tensors; a text encoder's LoRA, which could belong to any
    model, by its name or by both others beside it too.
    """
    member = member_of(state)
    others = set(beside(path, MEMBERS)) - {TEXT}
    return None if member == TEXT and path.stem != member and len(others) < 2 else member


def read_members(path: Path, member: str, state: State) -> dict[str, State]:
    """Read the three files in the folder, by their usual names, of which the chosen one, read already, is `member`.

    Raises CheckpointError.
    """
    return {name: read_state(file) for name, file in beside(path, MEMBERS).items() if name != member} | {member: state}
