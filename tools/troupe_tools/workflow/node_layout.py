"""Where nodes lie on the canvas: the room that is free, a group box round new nodes, and the view that a file
opens on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

GAP, HEAD = 40, 80  # pixels between nodes; of a group's title
VIEW = (1280, 800)  # pixels of the window that the group is fitted into when the file is opened
MARGIN = 110  # pixels for the front end's menus


def put_in_group(workflow: dict[str, Any], nodes: Sequence[dict[str, Any]], title: str) -> float:
    """Put a group box round the nodes, and return the y below it."""
    boxes = [(*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1]) for node in nodes]
    x, y = min(b[0] for b in boxes) - GAP / 2, min(b[1] for b in boxes) - HEAD
    right, bottom = max(b[2] for b in boxes) + GAP / 2, max(b[3] for b in boxes) + GAP / 2
    groups = workflow["groups"] = workflow.get("groups") or []
    number = max((group.get("id") or 0 for group in groups), default=0) + 1
    groups.append(
        {
            "id": number,
            "title": title,
            "bounding": [x, y, right - x, bottom - y],
            "color": "#3f789e",
            "font_size": 24,
            "flags": {},
        }
    )
    return bottom + HEAD + GAP


def show_group(workflow: dict[str, Any], title: str, top: float) -> None:
    """Let the file open on the first group of this title below `top`, as large as fits."""
    group = next(
        group for group in workflow["groups"] if group["title"] == title and group["bounding"][1] >= top - HEAD
    )
    x, y, width, height = group["bounding"]
    scale = int(1000 * min(1.0, (VIEW[0] - MARGIN) / width, (VIEW[1] - MARGIN) / height)) / 1000
    offset = [round(MARGIN / scale - x, 1), round(MARGIN / scale - y, 1)]
    workflow["extra"] = {**(workflow.get("extra") or {}), "ds": {"scale": scale, "offset": offset}}


def lowest(workflow: dict[str, Any]) -> float:
    """Return the y below all nodes and groups; 0 if there is none."""
    nodes = [pair(raw["pos"])[1] + pair(raw.get("size") or [0, 0])[1] for raw in workflow["nodes"] if raw.get("pos")]
    return max(
        [
            *nodes,
            *(
                group["bounding"][1] + group["bounding"][3]
                for group in workflow.get("groups") or []
                if group.get("bounding")
            ),
        ],
        default=0,
    )


def leftmost(workflow: dict[str, Any]) -> float:
    """Return the x where the leftmost node begins; 0 if there is none."""
    return min((pair(raw["pos"])[0] for raw in workflow["nodes"] if raw.get("pos")), default=0)


def pair(value: Any) -> tuple[float, float]:
    """Return a position or size as a pair; older files have {'0': x, '1': y}."""
    return (value["0"], value["1"]) if isinstance(value, dict) else (value[0], value[1])
