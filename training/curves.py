"""Loss, learning rate, speed and memory over the steps, written by accelerate's trackers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from accelerate import Accelerator

from .stop import first_line

PROJECT = "troupe"  # folder of the curves in the output folder, and wandb's project


class Curves:
    """The curves of a training. If they cannot be written, there are no more curves, and the training goes on.

    accelerator: with the chosen trackers; say: takes sentences.
    """

    def __init__(self, accelerator: Accelerator, say: Callable[[str], None]):
        self._accelerator, self._say = accelerator, say

    def start(self) -> None:
        """Open the files."""
        options: dict[str, Any] = {"wandb": {"dir": self._accelerator.project_dir}}
        self._try(lambda: self._accelerator.init_trackers(PROJECT, init_kwargs=options))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write the values of a step, by name."""
        self._try(lambda: self._accelerator.log(dict(values), step=step))

    def close(self) -> None:
        """Write what is left, and leave the group of processes."""
        if not self._try(self._accelerator.end_training):
            self._accelerator.end_training()  # the second time without curves

    def _try(self, do: Callable[[], None]) -> bool:
        try:
            do()
        except (OSError, *_wandb_errors()) as error:
            self._accelerator.trackers = []
            self._say(f"The curves cannot be written ({first_line(error)}). The training goes on without them.")
            return False
        return True


def _wandb_errors() -> tuple[type[Exception], ...]:
    """What wandb raises where there is no account or no connection, if it is used."""
    wandb = sys.modules.get("wandb")
    return () if wandb is None else (wandb.Error,)
