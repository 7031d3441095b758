"""Every family of adapters, and what is asked of the one that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn

from ..adapter import Adapter, AdapterSpec
from ..checkpoints.adapter_file import AdapterFile, parts
from . import fastcomposer, gligen, ip_adapter, mm_diff, subject_diffusion, umm
from .family import Family

# the last refuses what none of them takes
FAMILIES = cast(
    "list[Family]",  # pyright takes a package's function `encode` for the module of that name
    [subject_diffusion, gligen, mm_diff, fastcomposer, umm, ip_adapter],
)


def read_adapter(path: str | Path, label: str | None = None, operations: Any = nn) -> Adapter:
    """Load the adapter in a file, or in the set of files that it belongs to; weights in the files' dtypes, on the CPU.

    Arguments:
        path: of the file; of a set: of any member.
        label: its name, for messages.
        operations: namespace with Linear, LayerNorm and Conv2d.
    Raises:
        CheckpointError: the file is unreadable, of another kind, incomplete, or what belongs to it is not beside it.
    """
    file = AdapterFile.read(path, label)
    family = next(family for family in FAMILIES if family.matches(file))
    return family.load(file, operations)


def labels() -> list[str]:
    """Return the name of every family in messages, the one that most files are of first."""
    return [label for family in [FAMILIES[-1], *FAMILIES[:-1]] for label in family.LABELS.values()]


def family_of(spec: AdapterSpec) -> Family:
    """Return the family of a loaded adapter."""
    return next(family for family in FAMILIES if spec.family in family.LABELS)


def belonging(path: Path) -> tuple[Path, ...]:
    """Return every file that may be read with this one, it first."""
    more = [*parts(path), *(file for family in FAMILIES for file in family.companions(path))]
    return (path, *(other for other in dict.fromkeys(more) if other != path))
