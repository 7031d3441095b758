"""Literal prompt texts that feed an input, traced through an API-format graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

TEXT_INPUTS = ("text", "text_g", "text_l", "prompt", "positive_prompt", "string", "value", "string_a", "string_b")
MAX_NODES = 200
Inputs = dict[str, str]
MADE: dict[str, Callable[[Inputs], str]] = {  # the core's text nodes: class -> the text of its inputs, as it makes it
    "StringConcatenate": lambda given: given.get("delimiter", "").join((given["string_a"], given["string_b"])),
    "StringReplace": lambda given: given["string"].replace(given["find"], given["replace"]),
    "StringTrim": lambda given: given["string"].strip(),
}
PLAIN_CHOICES = ("mode",)  # string inputs that are no text


class Unknown(Exception):
    """A text that is made at run time, by a node of another pack."""


def literal_texts(graph: Mapping[str, Any] | None, node_id: str | None, inputs: Sequence[str]) -> list[str]:
    """Return the texts of the encoders upstream of a node's inputs.

    Arguments:
        graph: {node id: {"class_type", "inputs": {name: literal or [node id, output]}}}, or None.
        node_id: whose inputs are followed; inputs: their names.
    Returns:
        texts in order of distance; [] if any of them cannot be known (made by another node at run time), or there is
        no link.
    """
    graph = graph or {}
    node = graph.get(str(node_id))
    if not node:
        return []
    waiting = [node["inputs"][name] for name in inputs if is_link(node["inputs"].get(name))]
    seen: set[str] = set()
    texts: list[str] = []
    try:
        while waiting and len(seen) < MAX_NODES:
            source = str(waiting.pop(0)[0])
            if source in seen or source not in graph:
                continue
            seen.add(source)
            for name, value in graph[source]["inputs"].items():
                if name in TEXT_INPUTS and (isinstance(value, str) or is_link(value)):
                    texts.append(_text(graph, value, MAX_NODES, {}))
                elif is_link(value):
                    waiting.append(value)
    except Unknown:
        return []
    return texts


def _text(graph: Mapping[str, Any], value: Any, depth: int, known: dict[str, str]) -> str:
    """The text of a literal or a link; known: texts by node, those found so far. Raises Unknown."""
    if isinstance(value, str):
        return value
    if is_link(value) and str(value[0]) in known:
        return known[str(value[0])]
    node = graph.get(str(value[0])) if is_link(value) else None
    if node is None or depth == 0:
        raise Unknown
    make = MADE.get(node.get("class_type"))
    given = {
        name: _text(graph, part, depth - 1, known)
        for name, part in node["inputs"].items()
        if name not in PLAIN_CHOICES and (isinstance(part, str) or is_link(part))
    }
    # not a node that only holds or passes on one text
    if make is None and (len(given) != 1 or next(iter(given)) not in TEXT_INPUTS):
        raise Unknown
    try:
        known[str(value[0])] = next(iter(given.values())) if make is None else make(given)
    except KeyError:
        raise Unknown from None
    return known[str(value[0])]


def is_link(value: Any) -> bool:
    """Return whether an input of an API-format graph is a link, [node id, output]."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and isinstance(value[1], int)
    )
