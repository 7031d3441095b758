"""From a file to an adapter: which kind it is, told by its tensors, and the files that belong to it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..adapter import Adapter
from ..checkpoints.files import read_metadata, read_state
from ..checkpoints.sets import MEMBER, MM_DIFF, adapter_label, beside, member_name, members, read_matrix, read_whole
from ..checkpoints.tensors import State
from . import fastcomposer, gligen, ip_adapter, mm_diff, subject_diffusion, umm


def read_adapter(path: str | Path, label: str | None = None, operations: Any = nn) -> Adapter:
    """The adapter in a file, or in the set of files that it belongs to; weights in the files' dtypes, on the CPU.

    Arguments:
        path: of the file; of a set: of any member.
        label: its name, for messages.
        operations: namespace with Linear, LayerNorm and Conv2d.
    Raises:
        CheckpointError: the file is unreadable, of another kind, incomplete, or what belongs to it is not beside it.
    """
    path = Path(path)
    label = label or adapter_label(path)
    state = read_whole(path, label)
    if subject_diffusion.is_bundle(state):
        return subject_diffusion.build(subject_diffusion.unbundled(state), label, operations, "in it", subject_diffusion.slots_of(read_metadata(path), label))
    if gligen.recognised(state):
        return gligen.build(state, label, operations, read_matrix(path) if gligen.reads_photos(state) else None)
    if mm_diff.is_bundle(state):
        return mm_diff.build(state, label, operations, read_metadata(path))
    if member := mm_diff_member(path, state):
        return mm_diff.build(mm_diff.bundled(read_mm_diff(path, member, state)), label, operations, beside="beside it")
    if fastcomposer.recognised(state):
        return fastcomposer.build(state, label, operations)
    if umm.recognised(state):
        return umm.build(state, label, operations, read_metadata(path))
    if member := member_of(path, state):
        return subject_diffusion.build(read_members(path, member, state), label, operations, f"that fits '{member_name(path) or label}' beside it")
    return ip_adapter.build(state, label, operations)


def member_of(path: Path, state: State) -> str | None:
    """Which of Subject-Diffusion's modules a file is: a UNet by its tensors alone, the others by their place too."""
    if subject_diffusion.fits(state, "unet"):
        return "unet"
    name = member_name(path)
    member = MEMBER.match(name)[1] if name else None
    return member if subject_diffusion.fits(state, member) else None


def read_members(path: Path, member: str, state: State) -> dict[str, State]:
    """The tensors of all members beside the chosen one, whose tensors `state` are read already. Raises CheckpointError."""
    found = {name: read_state(file) for name, file in members(path).items() if file != path}
    return {**found, member: state}


def mm_diff_member(path: Path, state: State) -> str | None:
    """Which of MM-Diff's files a file is, by its tensors; a text encoder's LoRA, which could be anybody's, by its name or by both others beside it too."""
    member = mm_diff.member_of(state)
    others = set(beside(path, MM_DIFF)) - {mm_diff.TEXT}
    return None if member == mm_diff.TEXT and path.stem != member and len(others) < 2 else member


def read_mm_diff(path: Path, member: str, state: State) -> dict[str, State]:
    """The tensors of MM-Diff's files in the folder, by their usual names, of which the chosen one, read already, is `member`. Raises CheckpointError."""
    return {name: read_state(file) for name, file in beside(path, MM_DIFF).items() if name != member} | {member: state}
