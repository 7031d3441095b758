"""A saved workflow's links in one form: lists with both of their ends, whether the file has lists, records, dead ends or broadcasts."""
from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from virtual import EVERYWHERE, PROMPTS_EVERYWHERE, is_virtual

INSIDE, OUTSIDE = -10, -20  # ids of a subgraph's own input and output side in its links
ANY = "*"
Link = list[Any]  # id, source node, slot, target node, slot, type


def tidy(graph: dict[str, Any]) -> None:
    """Bring the links of one level into one form, in place: those that do not end at a node of the file are gone, and its input is free.

    graph: a saved workflow, or one of its subgraphs, with 'nodes' and 'links'.
    """
    ids = {INSIDE, OUTSIDE, *(raw["id"] for raw in graph["nodes"])}
    links = [as_list(link) for link in graph.get("links") or [] if link]
    graph["links"] = [link for link in links if link[1] in ids and link[3] in ids]
    known = {link[0] for link in graph["links"]}
    for slot in (slot for raw in graph["nodes"] for slot in raw.get("inputs") or []):
        if slot.get("link") not in known:
            slot["link"] = None


def as_list(link: Any) -> Link:
    """A link as a list, also where the file has it as a record."""
    if isinstance(link, dict):
        return [link["id"], link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"], link.get("type", ANY)]
    return list(link)


def wire_broadcasts(graph: dict[str, Any]) -> None:
    """Add the wires of Use Everywhere's nodes to one level, in place: those that the file lists, or, in a file without a list, those to every free input of the type."""
    listed = (graph.get("extra") or {}).get("ue_links")
    nodes = {str(raw["id"]): raw for raw in graph["nodes"]}
    for source, slot, target, into, kind in _free(graph) if listed is None else _listed(listed):
        inputs = (nodes.get(str(target)) or {}).get("inputs") or []
        if str(source) in nodes and into < len(inputs) and inputs[into].get("link") is None:
            inputs[into]["link"] = _new_link(graph, nodes[str(source)]["id"], slot, nodes[str(target)]["id"], into, kind)


def with_broadcasts(workflow: dict[str, Any]) -> dict[str, Any]:
    """A copy of a saved workflow with its links in one form and those of Use Everywhere's nodes on its own level."""
    changed = copy.deepcopy(workflow)
    tidy(changed)
    wire_broadcasts(changed)
    return changed


def _listed(links: list[Any]) -> Iterator[Link]:
    for link in links:
        yield [link.get("upstream"), link.get("upstream_slot", 0), link.get("downstream"), link.get("downstream_slot", 0), link.get("type", ANY)]


def _free(graph: dict[str, Any]) -> Iterator[Link]:
    """Wires from what the broadcasting nodes take to every free socket of its type; a prompt goes to the sockets called positive or negative."""
    links = {link[0]: link for link in graph["links"]}
    for raw in (raw for raw in graph["nodes"] if raw["type"] in (*EVERYWHERE, PROMPTS_EVERYWHERE) and not raw.get("mode")):
        for slot in raw.get("inputs") or []:
            link = links.get(slot.get("link"))
            if link is None:
                continue
            name = slot.get("name") if raw["type"] == PROMPTS_EVERYWHERE else None
            for target in (target for target in graph["nodes"] if not is_virtual(target["type"])):
                for into, socket in enumerate(target.get("inputs") or []):
                    if socket.get("link") is None and "widget" not in socket and socket.get("type") == link[5] and name in (None, socket.get("name")):
                        yield [link[1], link[2], target["id"], into, link[5]]


def _new_link(graph: dict[str, Any], source: Any, slot: int, target: Any, into: int, kind: Any) -> int:
    """Add a link; returns its id."""
    number = max((link[0] for link in graph["links"]), default=0) + 1
    graph["links"].append([number, source, slot, target, into, kind])
    return number
