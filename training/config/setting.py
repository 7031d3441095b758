"""A dataclass field with the values that it allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any


def setting(
    default: Any,
    choices: Sequence[str] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> Any:
    """Return a field. choices: allowed texts; least, most: smallest and largest number; above: the number must be
    larger.
    """
    return field(default=default, metadata={"choices": choices, "least": least, "above": above, "most": most})


def chance(default: float = 0.0) -> Any:
    """Return a field for a probability, 0..1."""
    return setting(default, least=0.0, most=1.0)
