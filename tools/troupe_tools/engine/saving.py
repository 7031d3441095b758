"""Writing what a run made: all of it or nothing, and never over what another run has written."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import RunError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# of safetensors, and of torch.save, which cannot say it better
FULL_WORDS = ("No space left", "Disk quota", "File too large", "unexpected pos")


def save_all(files: Mapping[str, Callable[[Path], None]], folder: Path) -> list[Path]:
    """Write files by name, each with its own function of a path, and return where they are, in the order given.

    They are written aside and moved when all are whole. Where one of the names is taken, by an earlier run or by one in
    another process, all of them begin with run_2_, run_3_, ... The last name distinguishes runs: every run has it.
    Raises:
        RunError: nothing can be written there, or the disk is full; no file is left then.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".troupe_", dir=folder) as aside:
            for name, write in files.items():
                write(Path(aside) / name)
            return _publish([Path(aside) / name for name in files], folder)
    except OSError as error:
        found = f"found '{error.strerror or error}': nothing was saved"
        raise RunError(
            f"Expected to write this run's {len(files)} files into {folder}, {found}. Make room there, or "
            "choose another folder with --output."
        ) from error


@contextmanager
def room_for_temporary_files() -> Iterator[None]:
    """Turn a full disk under the system's folder for temporary files into a RunError."""
    try:
        yield
    except Exception as error:  # every writer has exceptions of its own
        if getattr(error, "errno", None) not in FULL and not any(words in str(error) for words in FULL_WORDS):
            raise
        found = f"found '{os.strerror(errno.ENOSPC)}'"
        raise RunError(
            f"Expected room for this run's temporary files in {tempfile.gettempdir()}, {found}. Make room "
            "there, or set TMPDIR to another folder."
        ) from error


def check_output_folder(folder: Path) -> None:
    """Raise RunError if a folder is not there and cannot be made, before the time of a run is spent."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        found = f"found {place}, {'which may not be written' if place.is_dir() else 'a file'}"
        raise RunError(f"Expected a folder to save in at {folder}, {found}. Choose another folder with --output.")


def _publish(whole: list[Path], folder: Path) -> list[Path]:
    """Move finished files to names that were free."""
    places = _claim([path.name for path in whole], folder)
    try:
        for path, place in zip(whole, places, strict=True):
            os.replace(path, place)
    except BaseException:
        for place in places:
            place.unlink(missing_ok=True)
        raise
    return places


def _claim(names: list[str], folder: Path) -> list[Path]:
    """The first free set of paths; the last of them is made, empty, so that no other process takes the set."""
    number = 1
    while True:
        places = [folder / (name if number == 1 else f"run_{number}_{name}") for name in names]
        try:
            places[-1].open("x").close()
        except FileExistsError:
            number += 1
            continue
        if not any(place.exists() for place in places[:-1]):
            return places
        places[-1].unlink()
        number += 1
