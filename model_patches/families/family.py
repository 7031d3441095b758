"""What a family of adapters is: a module with these names, listed in registry.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..adapter import Adapter
from ..checkpoints.adapter_file import AdapterFile
from ..encoding.interfaces import EncodeInputs
from ..subjects import References


class Family(Protocol):
    """Adapters that share a layout of files and a way of encoding subjects."""

    @property
    def LABELS(self) -> Mapping[str, str]:
        """Each value of `AdapterSpec.family` that it makes -> its name in messages; in a module, a constant."""
        ...

    def matches(self, file: AdapterFile) -> bool:
        """Return whether the file is of this family, whole or not, by its tensors."""
        ...

    def load(self, file: AdapterFile, operations: Any) -> Adapter:
        """Build the modules, weights in the file's dtypes, on the CPU.

        operations: namespace with Linear, LayerNorm and Conv2d. Raises CheckpointError: incomplete, damaged or of a
        variant that is not supported.
        """
        ...

    def encode(self, given: EncodeInputs) -> tuple[References, list[str]]:
        """Encode the cast; with a sentence for each thing that is allowed but probably not meant.

        Raises SubjectError or MismatchError.
        """
        ...

    def companions(self, path: Path) -> Iterable[Path]:
        """Return the files that may be read together with the file at `path`, by their names and places alone."""
        ...
