"""Socket types and small helpers that the nodes share."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from typing import Any

from comfy_api.latest import io

CATEGORY = "Troupe"
HAS_ALIASES = "search_aliases" in {field.name for field in fields(io.Schema)}
Adapter = io.Custom("TROUPE_ADAPTER")
CastType = io.Custom("TROUPE_CAST")
ReferencesType = io.Custom("TROUPE_REFERENCES")
Faces = io.Custom("TROUPE_FACES")
RecordType = io.Custom("TROUPE_RECORD")


def found_by(*words: str) -> dict[str, list[str]]:
    """Return words by which the host's search finds a node besides its name, as an argument of io.Schema; nothing where
    the host has no such argument.
    """
    return {"search_aliases": list(words)} if HAS_ALIASES else {}


# widgets that beginners never touch, where the host can fold them
FOLDED = {"advanced": True} if "advanced" in signature(io.Float.Input.__init__).parameters else {}


def percent(id: str, default: float, tooltip: str, **kwargs: Any) -> Any:
    """Return a FLOAT widget for a point of the sampling run, 0..1."""
    return io.Float.Input(id, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip, **kwargs)
