"""A script: import every test that needs neither host nor browser as on Windows, without what only POSIX systems have.
It prints a line for each module that cannot be imported; their number is the exit status.

Packages of others take another way on Windows than here, so they are imported before anything is taken away.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "pty", "syslog")
SIGNALS = ("SIGKILL", "SIGHUP", "SIGALRM", "SIGQUIT", "SIGCHLD", "SIGUSR1", "SIGUSR2", "setitimer", "alarm")
CALLS = (
    "fork",
    "getuid",
    "geteuid",
    "getgid",
    "killpg",
    "setsid",
    "uname",
    "getloadavg",
    "sched_getaffinity",
    "mkfifo",
)


def import_tests() -> dict[str, Exception]:
    """{test: what its import raised}."""
    faults: dict[str, Exception] = {}
    importlib.import_module("conftest")
    for path in sorted(TESTS.glob("test_*.py")):
        try:
            importlib.import_module(path.stem)
        except pytest.skip.Exception:  # of a package that is not installed
            continue
        except Exception as error:
            faults[path.stem] = error
    return faults


def forget_repository() -> None:
    """Drop the modules of this repository, so that they are imported again."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name != "__main__" and file and Path(file).is_relative_to(TESTS.parent):
            del sys.modules[name]


def take_away() -> None:
    """Remove the modules, signals and calls that Windows lacks."""
    sys.modules |= dict.fromkeys(MODULES)  # importing None raises ImportError
    for module, names in ((signal, SIGNALS), (os, CALLS)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)


if __name__ == "__main__":
    sys.path[0] = str(TESTS)
    import_tests()
    forget_repository()
    take_away()
    found = import_tests()
    print(*(f"{name}: {type(error).__name__}: {error}" for name, error in found.items()), sep="\n", end="", flush=True)
    os._exit(len(found))  # tearing down what was imported twice has crashed
