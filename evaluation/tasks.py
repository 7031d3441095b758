"""What an evaluation paints: one task is one picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class TaskSubject:
    """A subject of a task.

    name: as in the prompt; photos: reference pictures, paths relative to the suite's folder; box: x, y, width, height
    in 0..1, or None.
    """

    name: str
    photos: tuple[str, ...]
    box: Box | None = None


@dataclass(frozen=True)
class Method:
    """A way to paint. settings: plain JSON values that an engine understands, e.g. adapter, merge, weight."""

    name: str
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One picture to paint. suite: the benchmark; case: its prompt and cast, unique in the suite; seed: the noise."""

    suite: str
    case: str
    method: Method
    prompt: str
    subjects: tuple[TaskSubject, ...]
    seed: int

    @property
    def key(self) -> str:
        """A short name that is safe as a file name and changes with every value of the task."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def file(self) -> str:
        """Where the picture lies in the results folder, with forward slashes."""
        return str(PurePosixPath("pictures") / f"{self.key}.png")
