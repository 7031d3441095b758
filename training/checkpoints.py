"""Checkpoints: everything that a training needs to go on as if it had not been interrupted.

A folder `checkpoints/step-00000500` holds what `Accelerator.save_state` writes (trained weights, optimiser, learning
rate, average, random states) and `training.json` with the step, the number of processes and the settings. The step says
which pictures come next (`examples.draws`). The folder is written under another name and renamed, so a folder with that
name is always whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from .stop import TrainingError, first_line
from .together import together

FOLDER, ABOUT, WRITING = "checkpoints", "training.json", ".writing"
FAULTS = (OSError, RuntimeError, SafetensorError)  # torch and safetensors report a full disk in their own ways


def checkpoints(output: Path) -> list[tuple[int, Path]]:
    """Return the steps and folders of whole checkpoints, oldest first."""
    found = [
        (int(path.name.removeprefix("step-")), path)
        for path in (output / FOLDER).glob("step-*")
        if (path / ABOUT).is_file() and path.name.removeprefix("step-").isdecimal()
    ]
    return sorted(found)


def path_of(output: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return output / FOLDER / f"step-{step:08}"


def save_checkpoint(accelerator: Accelerator, output: Path, step: int, settings: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint and delete the oldest ones beyond `keep`. Called in every process.

    Raises TrainingError in every process if it cannot be written in one: the earlier ones are unchanged.
    """
    path = path_of(output, step)
    writing = path.with_name(f"{path.name}{WRITING}")

    @contextmanager
    def faults() -> Iterator[None]:
        try:
            yield
        except FAULTS as error:
            shutil.rmtree(writing, ignore_errors=True)
            raise TrainingError(
                f"to write a checkpoint of step {step} into {path.parent}",
                first_line(error),
                f"{left_in(output)} Free space, or choose another 'folder' in [output].",
            ) from error

    def write() -> None:
        with faults():
            writing.mkdir(parents=True, exist_ok=True)
            accelerator.save_state(str(writing))

    def finish() -> None:
        if not accelerator.is_main_process:
            return
        with faults():
            about = {"step": step, "processes": accelerator.num_processes, "settings": settings}
            (writing / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
            shutil.rmtree(path, ignore_errors=True)
            writing.rename(path)
            for _, old in checkpoints(output)[:-keep]:
                shutil.rmtree(old)

    together(accelerator, write)  # all of it, before it gets its name
    together(accelerator, finish)
    return path


def left_in(output: Path) -> str:
    """Return a sentence about the newest checkpoint."""
    earlier = checkpoints(output)
    return f"The checkpoint of step {earlier[-1][0]} is unchanged." if earlier else "There is no earlier one."


def set_aside(output: Path) -> Path:
    """Move an earlier training's checkpoints aside, so that a new one neither deletes them nor goes on from them.

    Return their folder's new path.

    Raises TrainingError if it cannot be renamed.
    """
    path = output / FOLDER
    target = next(found for n in count(1) if not (found := output / f"{FOLDER}_{n}").exists())
    try:
        return path.rename(target)
    except OSError as error:
        do = "Choose another 'folder' in [output]."
        raise TrainingError(f"to rename {path} to {target.name}", str(error), do) from error


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the differences of two trainings' settings, without those of files and sheets."""
    return [
        f"{section}.{key} {was!r} -> {now[section][key]!r}"
        for section in ("recipe", "base", "data", "training")
        for key, was in before[section].items()
        if now[section].get(key, was) != was
    ]


def load_checkpoint(accelerator: Accelerator, path: Path, settings: dict[str, Any]) -> tuple[int, list[str]]:
    """Load a checkpoint into what `accelerator` has prepared.

    Return its step, and the settings that have changed since, as 'training.lr 0.01 -> 0.001'.

    Raises TrainingError if it is of another recipe, optimiser, or kind of base or data, or cannot be read.
    """
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        before: dict[str, Any] = about["settings"]
        for section, key in (
            ("recipe", "name"),
            ("base", "kind"),
            ("data", "kind"),
            ("training", "ema"),
            ("training", "optimizer"),
        ):
            was, now = before[section][key], settings[section][key]
            if was != now:
                raise TrainingError(
                    f"to go on with {section}.{key} = {was!r} from {path}",
                    repr(now),
                    "Use the same settings, choose another 'folder' in [output], or set resume = false.",
                )
        accelerator.load_state(str(path))
        return int(about["step"]), changes(before, settings)
    except (*FAULTS, KeyError, ValueError) as error:
        raise TrainingError(
            f"a checkpoint of this training in {path}",
            first_line(error),
            "Delete that folder to go on from an earlier checkpoint, or set resume = false.",
        ) from error
