"""Group nodes, the front end's older way to fold nodes into one, written as the subgraphs that took their place."""

from __future__ import annotations

import copy
from typing import Any

from .wires import INSIDE, OUTSIDE

PREFIXES = ("workflow/", "workflow>")  # how the class of a group node begins, in files before and since 2024


def group_nodes(workflow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every group of the workflow (`extra.groupNodes`) as the definition of a subgraph, by the class of the
    nodes that represent it.
    """
    groups = (workflow.get("extra") or {}).get("groupNodes") or {}
    found = {
        name: _as_subgraph(name, group)
        for name, group in groups.items()
        if isinstance(group, dict) and isinstance(group.get("nodes"), list)
    }
    return {f"{prefix}{name}": group for prefix in PREFIXES for name, group in found.items()}


def _as_subgraph(name: str, group: dict[str, Any]) -> dict[str, Any]:
    """One group: its nodes keep their place in it as their id, inputs without a link inside and outputs that the group
    shows are its own.
    """
    nodes = [
        {**raw, "id": place, "mode": raw.get("mode") or 0} for place, raw in enumerate(copy.deepcopy(group["nodes"]))
    ]
    inner = [link for link in group.get("links") or [] if link and {link[0], link[2]} <= set(range(len(nodes)))]
    links: list[list[Any]] = [[n, *link[:4], link[5] if len(link) > 5 else "*"] for n, link in enumerate(inner, 1)]
    taken, given = {(link[3], link[4]) for link in links}, {(link[1], link[2]) for link in links}
    inputs, outputs = [], []
    for raw in nodes:
        for into, slot in enumerate(raw.get("inputs") or []):
            if (raw["id"], into) not in taken and _shown(group, raw["id"], "input", slot.get("name"), True):
                links.append([len(links) + 1, INSIDE, len(inputs), raw["id"], into, slot.get("type", "*")])
                inputs.append({"name": _name(group, raw, slot, inputs), "type": slot.get("type", "*")})
    shown = {(_place(entry[0]), entry[1]) for entry in group.get("external") or []}
    for raw in nodes:
        for at, slot in enumerate(raw.get("outputs") or []):
            if _shown(group, raw["id"], "output", at, (raw["id"], at) not in given or (raw["id"], at) in shown):
                links.append([len(links) + 1, raw["id"], at, OUTSIDE, len(outputs), slot.get("type", "*")])
                outputs.append({"name": slot.get("name"), "type": slot.get("type", "*")})
    for link in links:
        slots = nodes[link[3]].get("inputs") or [] if link[3] != OUTSIDE else []
        if link[4] < len(slots):
            slots[link[4]]["link"] = link[0]
    return {"name": name, "nodes": nodes, "links": links, "inputs": inputs, "outputs": outputs, "group": True}


def give_values(nodes: list[dict[str, Any]], values: Any) -> None:
    """Give the nodes of a group the values that the node that represents it has saved, one node's after another's; left
    alone where their number differs.
    """
    own = [raw.get("widgets_values") or [] for raw in nodes]
    if (
        not isinstance(values, list)
        or not all(isinstance(of_one, list) for of_one in own)
        or len(values) != sum(map(len, own))
    ):
        return
    at = 0
    for raw, of_one in zip(nodes, own, strict=True):
        raw["widgets_values"] = values[at : at + len(of_one)]
        at += len(of_one)


def _place(node: Any) -> Any:
    """A node's place in its group, also where an older file has the whole node."""
    return node.get("index") if isinstance(node, dict) else node


def _shown(group: dict[str, Any], place: int, side: str, key: Any, usual: bool) -> bool:
    """Whether the group shows an input or output, which its author can say for each."""
    said = _said(group, place, side, key).get("visible")
    return usual if said is None else bool(said)


def _name(group: dict[str, Any], raw: dict[str, Any], slot: dict[str, Any], before: list[dict[str, Any]]) -> str:
    """An input's name on the node that represents the group: its own, its label or the author's, with the inner node's
    title where another has it already.
    """
    own = str(slot.get("name"))
    taken = {one["name"] for one in before}
    name = str(_said(group, raw["id"], "input", own).get("name") or slot.get("label") or own)
    if name not in taken:
        return name
    title = raw.get("title") or raw["type"]
    name, number = f"{title} {own}", 2
    while name in taken:
        name, number = f"{title} {number} {own}", number + 1
    return name


def _said(group: dict[str, Any], place: int, side: str, key: Any) -> dict[str, Any]:
    config = (group.get("config") or {}).get(str(place)) or {}
    return (config.get(side) or {}).get(str(key)) or {}
