"""What an engine is, and how it fails."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...model_patches.errors import TroupeError
from ..tasks import Task


class EngineLostError(TroupeError):
    """The engine cannot be reached any more: its task is given to another engine."""


class Engine(Protocol):
    """A place that paints tasks, one at a time."""

    @property
    def name(self) -> str:
        """Which engine it is, e.g. its address; unique among the engines of a run."""
        ...

    def paint(self, task: Task) -> np.ndarray:
        """Return the picture, [H, W, 3] uint8 RGB.

        Raises:
            EngineLostError: the engine is gone; another one may paint the task.
            TroupeError: this task cannot be painted here; the engine goes on with others.
        """
        ...
