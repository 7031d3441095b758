"""A benchmark: its cases, and the tasks that they make with methods and seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...model_patches.errors import TroupeError
from ...training.data.pictures import pictures_below
from ..tasks import Method, Task, TaskSubject

BOXES = "boxes"  # setting of a method that works with the subjects' boxes


class SuiteError(TroupeError):
    """A benchmark's folder is missing, empty, or has another layout."""


@dataclass(frozen=True)
class Case:
    """A prompt with its subjects.

    name: unique in the suite; group: cases of one group are averaged first, and the groups then; compared: photos of
    each subject that scores compare with, () for those of `subjects`; seeds: its own, None for those of the settings.
    """

    name: str
    prompt: str
    subjects: tuple[TaskSubject, ...]
    group: str
    compared: tuple[tuple[str, ...], ...] = ()
    seeds: tuple[int, ...] | None = None

    @property
    def references(self) -> tuple[tuple[str, ...], ...]:
        """Photos of each subject that scores compare with."""
        return self.compared or tuple(subject.photos for subject in self.subjects)


@dataclass(frozen=True)
class Suite:
    """Cases of a benchmark.

    folder: the photos' paths are relative to it; notes: what the report says about it; paint_folder: those of the
    subjects' photos are relative to this one, None for `folder`; upright: whether scores turn photos as their EXIF data
    say.
    """

    name: str
    folder: Path
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    paint_folder: Path | None = None
    upright: bool = True

    @property
    def painted_from(self) -> Path:
        """Folder to which the photos are relative that pictures are painted from."""
        return self.paint_folder or self.folder


def tasks_of(suite: Suite, methods: Sequence[Method], seeds: Sequence[int]) -> list[Task]:
    """Return a task for each case, seed and method. Subjects have boxes only for methods with `boxes = true`."""
    return [
        Task(suite.name, case.name, method, case.prompt, _subjects(case, method), seed)
        for case in suite.cases
        for seed in (seeds if case.seeds is None else case.seeds)
        for method in methods
    ]


def _subjects(case: Case, method: Method) -> tuple[TaskSubject, ...]:
    if method.settings.get(BOXES):
        return case.subjects
    return tuple(replace(subject, box=None) for subject in case.subjects)


# ---- reading folders -------------------------------------------------------------------------------------------------


def existing_folder(path: Path, what: str, key: str = "folder") -> Path:
    """Return the folder. what: which benchmark's, key: in [suite], for the message. Raises SuiteError where it is
    none.
    """
    if not path.is_dir():
        found = "no such folder" if not path.exists() else "a file"
        raise SuiteError(f"the folder of {what} at '{path}'", found, f"Correct '{key}' in [suite] of the settings.")
    return path


def photos_in(root: Path, folder: Path, what: str) -> tuple[str, ...]:
    """Return the pictures in a folder as paths relative to root, with forward slashes, sorted.

    Raises:
        SuiteError: there is no folder, or no picture in it.
    """
    found = [] if not folder.is_dir() else [path for path in pictures_below(folder) if path.parent == folder]
    if not found:
        raise SuiteError(
            f"pictures of {what} in '{folder}'", "none" if folder.is_dir() else "no such folder", "Download them again."
        )
    return tuple(path.relative_to(root).as_posix() for path in found)


def read_lines(path: Path, what: str) -> list[str]:
    """Read a text file's lines without the ends' spaces. Raises SuiteError where it cannot be read."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise SuiteError(f"the file '{path}' of {what}", "none", "Use the folder as it was published.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"a text file '{path}' of {what}", f"{error}", "Download it again.") from error


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file. Raises SuiteError where it cannot be read."""
    try:
        return json.loads("\n".join(read_lines(path, what)))
    except json.JSONDecodeError as error:
        raise SuiteError(f"JSON in '{path}' of {what}", f"{error}", "Download it again.") from error
