"""Watching what a call does: how long it takes, how much memory it reserves, and whether anything runs or is
written.
"""

from __future__ import annotations

import codecs
import signal
import sys
import threading
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

SECONDS = 5.0
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
        Hang: it took longer than `seconds`.
    """
    global _watching, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    with _limited(reserve), _timed(seconds):
        _watching = seen = []
        try:
            yield seen
        finally:
            _watching = None


@contextmanager
def _timed(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
