"""Any saved workflow as one flat graph: the front end's save format with its subgraphs laid open, and API prompts."""
from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from graph import Node, RunError

INSIDE, OUTSIDE = -10, -20  # ids of a subgraph's own input and output side in its links
ANY = "*"
Link = list[Any]  # id, source node, slot, target node, slot, type
Origin = tuple[Any, int]  # node id, output slot


def flatten(content: Any) -> dict[str, Any]:
    """The workflow in the save format (version 0.4) with every node on its own level, for graph.Graph.

    A node inside a subgraph gets the id 'outer:inner'. Raises RunError where the file is no workflow.
    """
    if isinstance(content, dict) and isinstance(content.get("prompt"), dict):  # as it is posted to the host
        content = content["prompt"]
    if not isinstance(content, dict):
        raise _no_workflow("something else")
    if isinstance(content.get("nodes"), list) and isinstance(content.get("links"), list):
        return _laid_open(content)
    if content and all(isinstance(node, dict) and "class_type" in node for node in content.values()):
        return _from_prompt(content)
    raise _no_workflow("something else, or a file that is cut off")


def is_wire(value: Any) -> bool:
    """Whether an input of an API prompt is a link: [node id, output slot]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and isinstance(value[1], int) and not isinstance(value[1], bool)


def _no_workflow(found: str) -> RunError:
    return RunError(f"Expected a ComfyUI workflow (saved, or exported for the API), found {found}. Save it again with Workflow > Save and give that file.")


def _from_prompt(prompt: dict[str, Any]) -> dict[str, Any]:
    """An API prompt in the save format, marked 'api'; its inputs have names and no types."""
    nodes, links = [], []
    for id_, entry in prompt.items():
        slots, values = [], []
        for name, value in (entry.get("inputs") or {}).items():
            if is_wire(value) and str(value[0]) in prompt:
                links.append([len(links) + 1, str(value[0]), value[1], id_, len(slots), ANY])
                slots.append({"name": name, "type": ANY, "link": len(links)})
            else:
                slots.append({"name": name, "type": ANY, "widget": {"name": name}, "link": None})
                values.append(value)
        title = (entry.get("_meta") or {}).get("title")
        nodes.append({"id": id_, "type": entry["class_type"], "mode": 0, "title": title, "inputs": slots, "outputs": None, "properties": {}, "widgets_values": values})
    return {"nodes": nodes, "links": links, "api": True}


@dataclass(eq=False)
class Level:
    """The nodes and links of one graph: the file's own, or a subgraph's for one node that stands for it; inputs: names of the subgraph's."""

    nodes: list[dict[str, Any]]
    links: list[Link]
    prefix: str = ""
    parent: Level | None = None
    stands_for: Node | None = None
    inputs: tuple[str, ...] = ()
    inner: dict[Any, Level] = field(default_factory=dict)

    def name(self, id_: Any) -> Any:
        """A node's id in the flat graph."""
        return f"{self.prefix}{id_}" if self.prefix else id_

    def wired(self, slot: int) -> Any:
        """The outer link at one of the subgraph's inputs, or None. The node that stands for it lists only some of them, so they go by name."""
        name = self.inputs[slot] if slot < len(self.inputs) else None
        return (self.stands_for.inputs.get(name) or {}).get("link")

    def origin(self, source: Any, slot: int) -> Origin | None:
        """The real node and slot behind a link's source, through the borders of subgraphs; None where nothing is wired there."""
        if source == INSIDE and self.parent is not None:
            wired = self.wired(slot)
            outer = next((link for link in self.parent.links if wired is not None and link[0] == wired), None)
            return self.parent.origin(outer[1], outer[2]) if outer else None
        if source in self.inner:
            below = self.inner[source]
            link = next((link for link in below.links if link[3] == OUTSIDE and link[4] == slot), None)
            return below.origin(link[1], link[2]) if link else None
        return self.name(source), slot


def _laid_open(workflow: dict[str, Any]) -> dict[str, Any]:
    subgraphs = {graph.get("id"): graph for graph in (workflow.get("definitions") or {}).get("subgraphs") or []}
    top = Level(copy.deepcopy(workflow["nodes"]), [_link(link) for link in workflow["links"] if link])
    levels = [top]
    for level in levels:  # grows
        for raw in level.nodes:
            if raw["type"] in subgraphs:
                if level.prefix.count(":") > 20:
                    raise RunError(f"The subgraph '{subgraphs[raw['type']].get('name')}' holds itself. Open the workflow in ComfyUI and save it again.")
                level.inner[raw["id"]] = _below(level, Node(raw), copy.deepcopy(subgraphs[raw["type"]]))
                levels.append(level.inner[raw["id"]])
    nodes, links = [], []
    for level in levels:
        _take(level, nodes, links)
    _forget_broken(nodes, links)
    return {**{key: value for key, value in workflow.items() if key != "definitions"}, "nodes": nodes, "links": links}


def _below(level: Level, node: Node, graph: dict[str, Any]) -> Level:
    """A subgraph's level; its nodes are muted or bypassed where the node that stands for it is, and have the values of its widgets."""
    inputs = tuple(slot.get("name") for slot in graph.get("inputs") or [])
    below = Level(graph["nodes"], [_link(link) for link in graph.get("links") or []], f"{level.name(node.id)}:", level, node, inputs)
    for raw in below.nodes:
        raw["mode"] = node.mode or raw.get("mode", 0)
    by_id = {raw["id"]: Node(raw) for raw in below.nodes}
    shown: dict[int, list[tuple[Node, int]]] = {}  # slot of the subgraph -> inner nodes and the places of the values that it shows as a widget
    for _, source, slot, target, into, _ in below.links:
        widget = (by_id[target].raw["inputs"][into].get("widget") or {}).get("name") if source == INSIDE and target in by_id else None
        place = by_id[target].widget_places().get(widget) if widget else None
        if place is not None:
            shown.setdefault(slot, []).append((by_id[target], place))
    values = node.raw.get("widgets_values") or []
    for slot, value in zip(sorted(shown), values, strict=False) if len(values) == len(shown) else ():
        for inner, place in shown[slot]:
            if below.wired(slot) is None and place < len(inner.raw.get("widgets_values") or []):
                inner.raw["widgets_values"][place] = value
    return below


def _take(level: Level, nodes: list[dict[str, Any]], links: list[Link]) -> None:
    """Move a level's real nodes and links into the flat graph, with new link ids."""
    by_id = {raw["id"]: raw for raw in level.nodes if raw["id"] not in level.inner}
    for raw in by_id.values():
        for slot in raw.get("inputs") or []:
            slot["link"] = None
        for slot in raw.get("outputs") or []:
            slot["links"] = None  # nobody reads them in the flat graph
    for _, source, slot, target, into, kind in level.links:
        found = level.origin(source, slot) if target in by_id else None
        if found is not None and into < len(by_id[target].get("inputs") or []):
            links.append([len(links) + 1, *found, level.name(target), into, kind])
            by_id[target]["inputs"][into]["link"] = len(links)
    for raw in by_id.values():
        raw["id"] = level.name(raw["id"])
        nodes.append(raw)


def _forget_broken(nodes: list[dict[str, Any]], links: list[Link]) -> None:
    """Take out links whose source is not there."""
    ids = {raw["id"] for raw in nodes}
    broken = {link[0] for link in links if link[1] not in ids}
    links[:] = [link for link in links if link[0] not in broken]
    for slot in (slot for raw in nodes for slot in raw.get("inputs") or [] if slot["link"] in broken):
        slot["link"] = None


def _link(link: Any) -> Link:
    """A link as a list, also where the file has it as a record."""
    if isinstance(link, dict):
        return [link["id"], link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"], link.get("type", ANY)]
    return list(link)
