"""What an engine hands back to run.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

Say = Callable[[str], None]
StepsDone = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Result:
    """Pictures, the references as the encoder saw them, and for each Apply node its facts (`report.facts_of`) and the
    layers in which it acted; lines: what was said.
    """

    pictures: tuple[Image.Image, ...]
    previews: tuple[Image.Image, ...]
    facts: tuple[dict[str, Any], ...]
    reached: tuple[int, ...]
    lines: tuple[str, ...] = ()
