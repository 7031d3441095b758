"""Watching what a call does: how long it takes, how much memory it reserves, and whether anything runs or is
written.
"""

from __future__ import annotations

import codecs
import gc
import signal
import sys
import threading
import tracemalloc  # noqa: F401 warnings imports it to show a ResourceWarning, which may come at any time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.utils._device  # noqa: F401 torch imports it when it first needs it

for codec in ("cp437", "latin_1"):  # zipfile and pickle import them when they first need them
    codecs.lookup(codec)
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SECONDS = 5.0  # of processor time
WAITS = 12  # times as long may a call take where other processes run
SLACK = 64 << 20  # bytes that a call may reserve whatever it reads: stacks of threads, small tables
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "os.putenv",
    "os.startfile",
    "subprocess.Popen",
    "socket.",
    "shutil.",
    "urllib.",
    "ftplib.",
    "smtplib.",
    "webbrowser.",
    "ctypes.",
    "pty.",
    "tempfile.",
    "marshal.",
    "code.__new__",
    "builtins.input",
    "import",
)
_watching: list[str] | None = None
_installed = False


class Hang(BaseException):
    """A call took longer than it may. No `except Exception` catches it."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is None or threading.current_thread() is not threading.main_thread():
        return
    if event == "open":
        _, mode, flags = arguments
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (
            mode is None and isinstance(flags, int) and flags & 3
        ):
            _watching.append(f"open {arguments}")
    elif event in ("exec", "compile"):
        name = getattr(arguments[0], "co_filename", None) if event == "exec" else arguments[1]
        if not (isinstance(name, str) and Path(name).is_file()):
            _watching.append(f"{event} {name}")
    elif event.startswith(FORBIDDEN):
        _watching.append(f"{event} {arguments}")


@contextmanager
def watched(seconds: float = SECONDS, reserve: int | None = SLACK) -> Iterator[list[str]]:
    """Yields a list that afterwards says what was run, written, sent or imported in between; more memory than `reserve`
    is not to be had.

    Raises:
        Hang: it took more than `seconds` of processor time, or `WAITS` times as long.
    """
    global _watching, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    gc.disable()  # the end of what other tests left would be taken for the call's
    try:
        with _limited(reserve), _timed(seconds):
            _watching = seen = []
            yield seen
    finally:
        _watching = None
        gc.enable()


@contextmanager
def _timed(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise Hang(f"more than {seconds} s")

    # of this process, since others may slow it down; and a call that only waits ends too
    timers = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, WAITS * seconds))
    before = [(number, signal.signal(number, stop)) for _, number, _ in timers]
    for timer, _, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for timer, _, _ in timers:
            signal.setitimer(timer, 0)
        for number, handler in before:
            signal.signal(number, handler)


@contextmanager
def _limited(reserve: int | None) -> Iterator[None]:
    if resource is None or reserve is None or not Path("/proc/self/statm").is_file():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + reserve if soft < 0 else min(soft, now + reserve), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def starved(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, is about memory that was not to be had."""
    while error is not None:
        if (
            isinstance(error, MemoryError)
            or "allocate" in str(error)
            or "out of memory" in str(error).lower()
            or "Cannot allocate" in str(error)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def outcome(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """What a call returns, or the exception it raises."""
    try:
        return call(), None
    except Exception as error:
        return None, error
