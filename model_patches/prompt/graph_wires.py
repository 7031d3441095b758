"""Which nodes of an API-format graph take a conditioning from a node, and a MODEL from elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from .graph_text import is_link

Graph = Mapping[str, Any]
MODEL_OUTPUT = 0  # of the nodes that ask: the socket contract puts MODEL first
MODEL = "model"  # name of the input in the host's samplers and guiders, and in most packs'


def samplers_past(graph: Graph | None, node_id: str | None) -> list[tuple[str, str]]:
    """Return (id, class) of nodes that sample with one of this node's other outputs, and with a MODEL that has not
    passed it.

    graph: {node id: {"class_type", "inputs": {name: literal or [node id, output]}}}, or None. Conditionings are
    followed through nodes without a MODEL input, MODELs through all nodes.
    """
    own = str(node_id)
    if not graph or own not in graph:
        return []
    found, waiting, seen = [], [taker for taker, output in takers(graph, own) if output != MODEL_OUTPUT], set()
    while waiting:
        taker = waiting.pop(0)
        if taker in seen:
            continue
        seen.add(taker)
        link = graph[taker]["inputs"].get(MODEL)
        if is_link(link):
            if own not in upstream(graph, str(link[0])):
                found.append((taker, graph[taker].get("class_type", "")))
        else:
            waiting += [further for further, _ in takers(graph, taker)]
    return found


def takers(graph: Graph, source: str) -> Iterator[tuple[str, int]]:
    """Yield (id, output) of every wire out of a node."""
    for id_, node in graph.items():
        for value in node.get("inputs", {}).values():
            if is_link(value) and str(value[0]) == source:
                yield str(id_), value[1]


def upstream(graph: Graph, node_id: str, without: Collection[str] = ()) -> set[str]:
    """Return a node and everything before it, without going through some nodes."""
    seen, waiting = set(), [node_id]
    while waiting:
        id_ = waiting.pop()
        if id_ not in seen and id_ in graph and id_ not in without:
            seen.add(id_)
            waiting += [str(value[0]) for value in graph[id_].get("inputs", {}).values() if is_link(value)]
    return seen
