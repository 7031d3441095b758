"""Two trainings of `tools/train.py` in this process, one of several; each is to end with a fault."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from troupe_tools.commands import train

from . import tiny_training as small


def train_twice(settings: str, output: str, ports: Sequence[int]) -> None:
    """Train, first with a main process that cannot write its checkpoint, then with the settings' own fault, and write
    both exit statuses and seconds to `RANK.json`. ports: at which the processes meet, one for each training.
    """
    rank, save, found = int(os.environ["RANK"]), Accelerator.save_state, []
    for folder, steps, port in zip(("full", "unreadable"), (1, 9), ports, strict=True):
        small.forget_accelerate()
        os.environ["MASTER_PORT"] = str(port)
        if folder == "full" and rank == 0:
            Accelerator.save_state = _no_space
        changes = [f"output.folder={output}/{folder}", f"training.steps={steps}"]
        begun = time.monotonic()
        status = train.main([settings, "--cpu", *(word for change in changes for word in ("--set", change))])
        found.append((status, time.monotonic() - begun))
        Accelerator.save_state = save
    (Path(output) / f"{rank}.json").write_text(json.dumps(found))


def _no_space(*given: Any, **named: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
