"""The results folder of an evaluation: one picture and one line of the journal for each task, whatever happens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from ..model_patches.errors import TroupeError
from .tasks import Task

JOURNAL, LOCK = "journal.jsonl", ".lock"
PART = ".part"  # ending of a file that is being written


class ResultsError(TroupeError):
    """An error about the folder of results: in use, not writable, or of other photos or models."""


@dataclass(frozen=True)
class Row:
    """The outcome of a task. key: the task's; engine: who painted it, or tried last; seconds: of the last attempt;
    error: None, or why there is no picture.
    """

    key: str
    engine: str
    seconds: float
    error: str | None = None


def read_journal(results: Path) -> dict[str, Row]:
    """Return the rows of a results folder by the tasks' keys, in the order written.

    Lines that are no rows (the last one, if the machine stopped while it was written) are skipped. Of several rows with
    one key the last counts. A folder without a journal has no rows.
    """
    try:
        lines = (results / JOURNAL).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    return {row.key: row for line in lines if (row := _parsed(line)) is not None}


@contextmanager
def lock_results(results: Path) -> Iterator[None]:
    """Keep other runs out of a results folder, made if missing, while the context is open.

    Raises:
        ResultsError: another run uses the folder, or it cannot be written.
    """
    with _written_to(results):
        results.mkdir(parents=True, exist_ok=True)
        lock = FileLock(results / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ResultsError(
                "a results folder that no other run is using",
                f"{results} in use by another run",
                "Wait for that run, stop it, or choose another folder.",
            ) from None
    try:
        yield
    finally:
        lock.release()


def open_journal(results: Path, tasks: Iterable[Task], retry_failed: bool = True) -> Journal:
    """Open the journal of a locked results folder, and keep of its rows those that are true.

    A row of one of the tasks is dropped if its picture is missing or damaged, or if it failed and retry_failed is set.
    Raises:
        ResultsError: the folder cannot be written.
    """
    with _written_to(results):
        (results / "pictures").mkdir(parents=True, exist_ok=True)
        _remove_parts(results)
        rows = {row.key: row for row in _true_rows(results, {task.key: task for task in tasks}, retry_failed)}
        _rewrite(results / JOURNAL, rows.values())
    return Journal(results, rows)


class Journal:
    """A locked results folder. rows: what is there, by key."""

    def __init__(self, results: Path, rows: dict[str, Row]):
        self._results, self.rows = results, rows

    def write_picture(self, task: Task, picture: np.ndarray) -> None:
        """Write the picture of a task, [H, W, 3] uint8; its row is added after it. May be called by several threads.

        A machine that stops between the two leaves a picture without a row, which is painted again.
        Raises:
            ResultsError: it cannot be written, e.g. because the disk is full.
        """
        with _written_to(self._results):
            path = self._results / task.file
            with NamedTemporaryFile(dir=path.parent, suffix=PART, delete=False) as part:
                Image.fromarray(picture).save(part, "PNG")
                part.flush()
                os.fsync(part.fileno())
            os.replace(part.name, path)

    def add(self, row: Row) -> None:
        """Append a row, by one thread at a time.

        Raises:
            ResultsError: it cannot be written, e.g. because the disk is full.
            ValueError: its task has a row already.
        """
        if row.key in self.rows:
            raise ValueError(f"{row.key} has a row already")
        with _written_to(self._results), (self._results / JOURNAL).open("ab") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())
        self.rows[row.key] = row


@contextmanager
def _written_to(results: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResultsError(
            f"to write results into {results}",
            f"'{error.strerror or error}'",
            "Make room there or choose another folder, then run the same command again: what is there is kept.",
        ) from error


def _true_rows(results: Path, tasks: dict[str, Task], retry_failed: bool) -> Iterator[Row]:
    for row in read_journal(results).values():
        task = tasks.get(row.key)
        if task is None or (not retry_failed if row.error is not None else _is_whole(results / task.file)):
            yield row


def _is_whole(path: Path) -> bool:
    """Whether all of a PNG's chunks are there and their checksums hold."""
    try:
        with Image.open(path) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _rewrite(path: Path, rows: Iterable[Row]) -> None:
    """Write the whole journal, if it would differ: half a line at its end would spoil the next one."""
    text = b"".join(map(_line, rows))
    if path.is_file() and path.read_bytes() == text:
        return
    part = path.with_name(path.name + PART)
    with part.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _remove_parts(results: Path) -> None:
    for folder in (results, results / "pictures"):
        for part in folder.glob(f"*{PART}"):
            part.unlink()


def _line(row: Row) -> bytes:
    return json.dumps(asdict(row), ensure_ascii=False).encode() + b"\n"


def _parsed(line: bytes) -> Row | None:
    try:
        row = Row(**json.loads(line))
    except (ValueError, TypeError):
        return None
    sound = isinstance(row.key, str) and isinstance(row.engine, str) and isinstance(row.seconds, (int, float))
    return row if sound and (row.error is None or isinstance(row.error, str)) else None
