"""Literal prompt texts that feed an input, traced through an API-format graph."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TEXT_INPUTS = ("text", "text_g", "text_l", "prompt", "positive_prompt", "string", "value", "string_a", "string_b")
MAX_NODES = 200


def literal_texts(graph: Mapping[str, Any] | None, node_id: str | None, inputs: Sequence[str]) -> list[str]:
    """Texts of the encoders upstream of a node's inputs.

    Arguments:
        graph: {node id: {"class_type", "inputs": {name: literal or [node id, output]}}}, or None.
        node_id: whose inputs are followed; inputs: their names.
    Returns:
        literal strings in order of distance; [] where the text cannot be known (made by another node at run time, or no link).
    """
    node = (graph or {}).get(str(node_id))
    if not node:
        return []
    waiting = [node["inputs"][name] for name in inputs if _is_link(node["inputs"].get(name))]
    seen: set[str] = set()
    texts: list[str] = []
    while waiting and len(seen) < MAX_NODES:
        source = str(waiting.pop(0)[0])
        if source in seen or source not in graph:
            continue
        seen.add(source)
        for name, value in graph[source]["inputs"].items():
            if _is_link(value):
                waiting.append(value)
            elif isinstance(value, str) and name in TEXT_INPUTS:
                texts.append(value)
    return texts


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and isinstance(value[1], int)
