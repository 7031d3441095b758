"""Socket types and small helpers that the nodes share."""
from __future__ import annotations

from typing import Any

from comfy_api.latest import io

CATEGORY = "Troupe"
Adapter = io.Custom("TROUPE_ADAPTER")
CastType = io.Custom("TROUPE_CAST")
ReferencesType = io.Custom("TROUPE_REFERENCES")
Faces = io.Custom("TROUPE_FACES")
RecordType = io.Custom("TROUPE_RECORD")


def percent(id: str, default: float, tooltip: str, **kwargs: Any) -> Any:
    """A FLOAT widget for a point of the sampling run, 0..1."""
    return io.Float.Input(id, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip, **kwargs)
