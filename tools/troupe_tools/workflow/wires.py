"""A saved workflow's links in one form: lists with both of their ends, whether the file has lists, records, dead ends
or broadcasts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from .virtual import EVERYWHERE, PROMPTS_EVERYWHERE, is_virtual

INSIDE, OUTSIDE = -10, -20  # ids of a subgraph's own input and output side in its links
ANY = "*"
Link = list[Any]  # id, source node, slot, target node, slot, type


def tidy(graph: dict[str, Any]) -> None:
    """Convert the links of one level to one form, in place, as the front end does when it loads them: a link is where
    an input names it.

    Links that no input names, or that come from a node that is not there, are gone, and their inputs and outputs are
    free.
    graph: a saved workflow, or one of its subgraphs, with 'nodes' and 'links'.
    """
    ids = {str(raw["id"]): raw["id"] for raw in graph["nodes"]}
    links = {
        link[0]: link
        for link in map(as_list, filter(None, graph.get("links") or []))
        if str(link[1]) in ids or link[1] == INSIDE
    }
    kept: dict[Any, Link] = {id_: link for id_, link in links.items() if link[3] == OUTSIDE}
    for raw in graph["nodes"]:
        for into, slot in enumerate(raw.get("inputs") or []):
            link = links.get(slot.get("link"))
            slot["link"] = link[0] if link else None
            if link:
                kept[link[0]] = [link[0], *link[1:3], raw["id"], into, *link[5:]]
    graph["links"] = [[link[0], ids.get(str(link[1]), link[1]), *link[2:]] for id_ in links if (link := kept.get(id_))]
    for slot in (slot for raw in graph["nodes"] for slot in raw.get("outputs") or []):
        if slot.get("links"):
            slot["links"] = [id_ for id_ in slot["links"] if id_ in kept] or None


def as_list(link: Any) -> Link:
    """Return a link as a list, also if the file has it as a record."""
    if isinstance(link, dict):
        link = [
            link["id"],
            link["origin_id"],
            link["origin_slot"],
            link["target_id"],
            link["target_slot"],
            link.get("type", ANY),
        ]
    return [*link[:2], int(link[2]), link[3], int(link[4]), *(link[5:6] or [ANY])]


def wire_broadcasts(graph: dict[str, Any]) -> None:
    """Add the wires of Use Everywhere's nodes to one level, in place: those that the file lists, or, in a file without
    a list, those to every free input of the type.
    """
    listed = (graph.get("extra") or {}).get("ue_links")
    nodes = {str(raw["id"]): raw for raw in graph["nodes"]}
    links = {link[0]: link for link in graph["links"]}
    for source, slot, target, into, kind in _free(graph) if listed is None else _listed(listed):
        origin = INSIDE if str(source) == str(INSIDE) else (nodes.get(str(source)) or {}).get("id")
        if origin is None:
            continue
        if str(target) == str(OUTSIDE):
            if not any(link[3] == OUTSIDE and link[4] == into for link in graph["links"]):
                _new_link(graph, origin, slot, OUTSIDE, into, kind)
            continue
        inputs = (nodes.get(str(target)) or {}).get("inputs") or []
        if into < len(inputs) and (
            inputs[into].get("link") is None or listed is not None and _idle(nodes, links.get(inputs[into]["link"]))
        ):
            inputs[into]["link"] = _new_link(graph, origin, slot, nodes[str(target)]["id"], into, kind)


def _idle(nodes: dict[str, dict[str, Any]], link: Link | None) -> bool:
    """Whether a wire comes from a muted or bypassed node, which Use Everywhere replaces."""
    return link is not None and bool((nodes.get(str(link[1])) or {}).get("mode"))


def with_broadcasts(workflow: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a saved workflow with its links in one form and those of Use Everywhere's nodes on its own
    level.
    """
    changed = copy.deepcopy(workflow)
    tidy(changed)
    wire_broadcasts(changed)
    return changed


def _listed(links: list[Any]) -> Iterator[Link]:
    for link in links:
        yield [
            link.get("upstream"),
            link.get("upstream_slot", 0),
            link.get("downstream"),
            link.get("downstream_slot", 0),
            link.get("type", ANY),
        ]


def _free(graph: dict[str, Any]) -> Iterator[Link]:
    """Wires from what the broadcasting nodes take to every free socket of its type; a prompt goes to the sockets called
    positive or negative.
    """
    links = {link[0]: link for link in graph["links"]}
    for raw in (
        raw for raw in graph["nodes"] if raw["type"] in (*EVERYWHERE, PROMPTS_EVERYWHERE) and not raw.get("mode")
    ):
        for slot in raw.get("inputs") or []:
            link = links.get(slot.get("link"))
            if link is None:
                continue
            name = slot.get("name") if raw["type"] == PROMPTS_EVERYWHERE else None
            for target in (
                target
                for target in graph["nodes"]
                if not is_virtual(target["type"]) and not (target.get("properties") or {}).get("rejects_ue_links")
            ):
                for into, socket in enumerate(target.get("inputs") or []):
                    if (
                        socket.get("link") is None
                        and "widget" not in socket
                        and socket.get("type") == link[5]
                        and name in (None, socket.get("name"))
                    ):
                        yield [link[1], link[2], target["id"], into, link[5]]


def _new_link(graph: dict[str, Any], source: Any, slot: int, target: Any, into: int, kind: Any) -> int:
    """Add a link; returns its id."""
    number = max((link[0] for link in graph["links"]), default=0) + 1
    graph["links"].append([number, source, slot, target, into, kind])
    return number
