"""What ends a training early: a request from outside, or a fault with a sentence for the user."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ..model_patches.errors import TroupeError


class TrainingError(TroupeError):
    """A training cannot go on."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the error's kind if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def how_to_go_on(resume: bool) -> str:
    """Return which command goes on from the newest checkpoint. resume: of the settings."""
    return "the same command" if resume else "the same command with --set resume=true"


@dataclass
class StopRequest:
    """Request to stop. signal: the number of the first SIGINT or SIGTERM, 0 before."""

    signal: int = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM while it is open, so that a step is finished and saved; a second SIGINT interrupts."""
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = request.signal or number

    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield request
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_interrupts(worker: int) -> None:
    """Let Ctrl-C stop the training alone, which still needs this process's pictures for the step that it finishes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
