"""The shipped templates by name, and one as its note says for another adapter."""

from __future__ import annotations

from typing import Any

from troupe_tools.pack import WORKFLOWS
from troupe_tools.workflow.graph import Graph
from troupe_tools.workflow.workflow_files import read_workflow

# the template, with the adapter and settings that its note has for photos
READS_PHOTOS = "7_place_subjects with photos"
SETTINGS = (
    ("TroupeLoadAdapter", "adapter_name", "gligen-generation-text-image-box.bin"),
    ("TroupeLoadAdapter", "clip_vision_name", "clip-vit-large-patch14.safetensors"),
    ("TroupeApplyGated", "end_percent", 1.0),
)


def template(name: str) -> dict[str, Any]:
    """A shipped workflow, or READS_PHOTOS."""
    if name != READS_PHOTOS:
        return read_workflow(WORKFLOWS / f"{name}.json")
    graph = Graph(template("7_place_subjects"))
    for kind, widget, value in SETTINGS:
        [node] = graph.of_type(kind)
        graph.write(node, widget, value)
        node.raw["properties"].pop("models", None)  # of the file that is no longer chosen
    graph.workflow["models"] = [model for model in graph.workflow["models"] if model["directory"] != "gligen"]
    return graph.workflow
