"""Every family of adapters, and what is asked of the one that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn

from ..adapter import Adapter, AdapterSpec
from ..checkpoints.adapter_file import AdapterFile, parts
from ..checkpoints.refused import no_adapter, other_kind
from ..errors import CheckpointError
from . import fastcomposer, gligen, ip_adapter, mm_diff, subject_diffusion, umm
from .family import Family

# the first that recognises a file loads it
FAMILIES = cast(
    "list[Family]",  # pyright takes a package's function `encode` for the module of that name
    [subject_diffusion, gligen, mm_diff, fastcomposer, umm, ip_adapter],
)
SUPPORTED_FOLDERS = "Choose an adapter file from 'models/ipadapter', 'models/gligen' or 'models/subject_adapters'."


def read_adapter(path: str | Path, label: str | None = None, operations: Any = nn) -> Adapter:
    """Load the adapter in a file, or in the set of files that it belongs to; weights in the files' dtypes, on the CPU.

    Arguments:
        path: of the file; of a set: of any member.
        label: its name, for messages.
        operations: namespace with Linear, LayerNorm and Conv2d.
    Raises:
        CheckpointError: the file is unreadable, of another kind, incomplete, or what belongs to it is not beside it.
    """
    return adapter_in(AdapterFile.read(path, label), operations)


def adapter_in(file: AdapterFile, operations: Any = nn) -> Adapter:
    """Load the adapter in a file that is read: see `read_adapter`."""
    family = next((family for family in FAMILIES if family.matches(file)), None)
    if family is None:
        raise _no_family(file)
    return family.load(file, operations)


def _no_family(file: AdapterFile) -> CheckpointError:
    """The error about a file that none of the families recognises."""
    known = other_kind(file.state)
    if known is not None:
        return no_adapter(file.label, *known, labels())
    found = f"{len(file.state)} tensors such as '{next(iter(file.state))}'"
    return no_adapter(file.label, found, SUPPORTED_FOLDERS, labels())


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
