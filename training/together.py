"""Several processes of one training: a fault in one of them ends all of them, with one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from ..model_patches.errors import TroupeError
from .stop import TrainingError

T = TypeVar("T")


class OtherProcessError(Exception):
    """A training ended, and the main process says why."""


def together(accelerator: Accelerator, do: Callable[[], T]) -> T:
    """Return what a function without exchange between processes returns; if it fails in one process, fail in all.

    A process that ended alone would leave the others waiting for its gradients.

    Raises:
        TroupeError: the function's own; in processes in which it did not fail, a TrainingError with the same sentence.
    """
    fault: TroupeError | None = None
    done: list[T] = []
    try:
        done.append(do())
    except TroupeError as error:
        fault = error
    own = [] if fault is None else [(fault.expected, fault.found, fault.remedy)]
    every = gather_object(own) if accelerator.num_processes > 1 else own
    if fault is not None:
        raise fault
    if every:
        raise TrainingError(*every[0])
    return done[0]


@contextmanager
def said_once(accelerator: Accelerator) -> Iterator[None]:
    """Let a fault that ends all processes be one sentence. Raises OtherProcessError in all but the main process."""
    try:
        yield
    except TroupeError as error:
        if accelerator.is_main_process:
            raise
        raise OtherProcessError from error
