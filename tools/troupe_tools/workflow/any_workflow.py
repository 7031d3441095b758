"""Any saved workflow as one flat graph: the front end's save format with its subgraphs and group nodes laid open, and
API prompts.

comfy-cli reads workflows too, and converts them for the host (see on_comfyui.py); it needs the node list of a running
host and leaves Use Everywhere's broadcasts, group nodes and Set nodes to the browser, so what it is given here has none
of them any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import RunError
from .graph import BYPASSED, MUTED, Graph, Node, check_format, passed_on
from .group_nodes import give_values, group_nodes
from .virtual import PRIMITIVE, is_virtual
from .wires import ANY, INSIDE, OUTSIDE, Link, with_broadcasts

Origin = tuple[Any, int]  # node id, output slot


def flatten_workflow(content: Any) -> dict[str, Any]:
    """Return the workflow in the save format (version 0.4) with every node on its own level, for graph.Graph.

    A node inside a subgraph or group node gets the id 'outer:inner'. Raises RunError if the file is no workflow, or
    one from which nodes were lost.
    """
    if isinstance(content, dict) and isinstance(content.get("prompt"), dict):  # as it is posted to the host
        content = content["prompt"]
    if not isinstance(content, dict):
        raise _no_workflow("something else")
    if isinstance(content.get("nodes"), list) and isinstance(content.get("links"), list):
        try:
            return _laid_open(content)
        except RecursionError:
            raise RunError(
                "The links of the workflow form a loop through its subgraphs. Open the workflow and remove one of them."
            ) from None
    nodes = [node for node in content.values() if isinstance(node, dict) and ("class_type" in node or "inputs" in node)]
    if nodes and len(nodes) == len(content) and any("class_type" in node for node in nodes):
        return _from_prompt(content)
    raise _no_workflow("something else, or a file that is cut off")


def is_wire(value: Any) -> bool:
    """Return whether an input of an API prompt is a link: [node id, output slot]."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], (str, int))
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def _no_workflow(found: str) -> RunError:
    return RunError(
        f"Expected a ComfyUI workflow (saved, or exported for the API), found {found}. Save it again with "
        "Workflow > Save and give that file."
    )


def _from_prompt(prompt: dict[str, Any]) -> dict[str, Any]:
    """An API prompt in the save format, marked 'api'; its inputs have names and no types."""
    lost = [
        f"'{(entry.get('_meta') or {}).get('title') or 'a node without a title'}' (node {id_})"
        for id_, entry in prompt.items()
        if not entry.get("class_type")
    ]
    if lost:
        raise RunError(
            f"Expected a class_type for every node, found none for {', '.join(lost)}: its pack was missing "
            "when the file was exported. "
            "Install the pack, open the workflow in ComfyUI and export it again."
        )
    nodes, links = [], []
    for id_, entry in prompt.items():
        slots, values = [], []
        for name, value in (entry.get("inputs") or {}).items():
            if is_wire(value):
                known = str(value[0]) in prompt
                if known:
                    links.append([len(links) + 1, str(value[0]), value[1], id_, len(slots), ANY])
                slots.append({"name": name, "type": ANY, "link": len(links) if known else None})
            else:
                slots.append({"name": name, "type": ANY, "widget": {"name": name}, "link": None})
                values.append(value)
        title = (entry.get("_meta") or {}).get("title")
        nodes.append(
            {
                "id": id_,
                "type": entry["class_type"],
                "mode": 0,
                "title": title,
                "inputs": slots,
                "outputs": None,
                "properties": {},
                "widgets_values": values,
            }
        )
    return {"nodes": nodes, "links": links, "api": True}


@dataclass(eq=False)
class Level:
    """The nodes and links of one graph, and the subgraphs in it by the id of the node that represents each."""

    nodes: list[dict[str, Any]]
    links: list[Link]
    prefix: str = ""
    inner: dict[Any, SubgraphLevel] = field(default_factory=dict)

    def within(self) -> set[str]:
        """Return the classes of the subgraphs that this level lies in."""
        return set()

    def name(self, id_: Any) -> Any:
        """Return a node's id in the flat graph."""
        return f"{self.prefix}{id_}" if self.prefix else id_

    def origin(self, source: Any, slot: int, kind: Any) -> Origin | None:
        """Return the real node and slot behind a link's source, through the borders of subgraphs; None if nothing is
        wired there. kind: the type of the input that is fed.
        """
        if source in self.inner:
            below = self.inner[source]
            if below.stands_for.mode == BYPASSED:
                return self.outer((passed_on(below.stands_for.raw, slot, kind) or {}).get("link"), kind)
            link = next((link for link in below.links if link[3] == OUTSIDE and link[4] == slot), None)
            return below.origin(link[1], link[2], kind) if link else None
        return self.name(source), slot

    def outer(self, wired: Any, kind: Any) -> Origin | None:
        """Return the real node and slot behind one of this level's links by its id."""
        link = next((link for link in self.links if wired is not None and link[0] == wired), None)
        return self.origin(link[1], link[2], kind) if link else None


@dataclass(eq=False, kw_only=True)
class SubgraphLevel(Level):
    """A subgraph's level for one node that represents it on level `parent`; inputs: names of the subgraph's."""

    parent: Level
    stands_for: Node
    inputs: tuple[str | None, ...]
    group: bool

    def within(self) -> set[str]:
        """Return the classes of the subgraphs that this level lies in, its own among them."""
        return {self.stands_for.type, *self.parent.within()}

    def wired(self, slot: int) -> Any:
        """Return the outer link at one of the subgraph's inputs, or None.

        The node that represents it lists only some of them, so they go by name.
        """
        name = self.inputs[slot] if slot < len(self.inputs) else None
        outer = self.stands_for.inputs
        # a group's names depend on widgets that the file does not list; its sockets' order does not
        if name not in outer and self.group:
            sockets = [one for one in self.stands_for.raw.get("inputs") or [] if "widget" not in one]
            return sockets[slot].get("link") if slot < len(sockets) else None
        return (outer.get(name) or {}).get("link") if name is not None else None

    def origin(self, source: Any, slot: int, kind: Any) -> Origin | None:
        """Return the same as a level does, and through the subgraph's own inputs to what is wired into the node that
        represents it.
        """
        if source == INSIDE:
            return self.parent.outer(self.wired(slot), kind)
        return super().origin(source, slot, kind)


def _laid_open(workflow: dict[str, Any]) -> dict[str, Any]:
    check_format(workflow)
    subgraphs = {
        **group_nodes(workflow),
        **{graph.get("id"): graph for graph in (workflow.get("definitions") or {}).get("subgraphs") or []},
    }
    workflow = with_broadcasts(workflow)
    top = Level(workflow["nodes"], workflow["links"])
    levels: list[Level] = [top]
    for level in levels:  # grows
        for raw in level.nodes:
            if raw["type"] in subgraphs:
                if raw["type"] in level.within():
                    raise RunError(
                        f"The subgraph '{subgraphs[raw['type']].get('name')}' contains itself. Open the "
                        "workflow in ComfyUI and save it again."
                    )
                level.inner[raw["id"]] = _below(level, Node(raw), subgraphs[raw["type"]])
                levels.append(level.inner[raw["id"]])
    nodes, links = [], []
    for level in levels:
        _take(level, nodes, links)
    return {
        **{key: value for key, value in workflow.items() if key != "definitions"},
        "nodes": nodes,
        "links": links,
        "version": 0.4,
    }


def _below(level: Level, node: Node, graph: dict[str, Any]) -> SubgraphLevel:
    """A subgraph's level; its nodes are muted or bypassed where the node that represents it is, and have the values of
    its widgets.
    """
    graph = with_broadcasts(graph)
    inputs = tuple(slot.get("name") for slot in graph.get("inputs") or [])
    below = SubgraphLevel(
        graph["nodes"],
        graph["links"],
        f"{level.name(node.id)}:",
        parent=level,
        stands_for=node,
        inputs=inputs,
        group=bool(graph.get("group")),
    )
    for raw in below.nodes:
        raw["mode"] = node.mode or raw.get("mode", 0)
    if graph.get("group"):
        give_values(below.nodes, node.raw.get("widgets_values"))
        return below
    by_id = {raw["id"]: Node(raw) for raw in below.nodes}
    # slot of the subgraph -> inner nodes and the places of the values that it shows as a widget
    shown: dict[int, list[tuple[Node, int]]] = {}
    for _, source, slot, target, into, _ in below.links:
        widget = (
            (by_id[target].raw["inputs"][into].get("widget") or {}).get("name")
            if source == INSIDE and target in by_id
            else None
        )
        place = by_id[target].widget_places().get(widget) if widget else None
        if place is not None:
            shown.setdefault(slot, []).append((by_id[target], place))
    for slot, value in _shown_values(node, inputs, sorted(shown)):
        if level.outer(below.wired(slot), ANY) is None:
            for inner, place in shown.get(slot, ()):
                values = inner.raw.get("widgets_values") or []
                if isinstance(values, dict) or place < len(values):
                    inner.raw["widgets_values"][place] = value
    return below


def _shown_values(node: Node, inputs: Sequence[Any], shown: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """(slot of the subgraph, value) of the widgets on the node that represents it.

    Files that say which widget is whose (`proxyWidgets`: node id and name, "-1" for an input of the subgraph) are taken
    at their word; in others the values are in the order of the slots.
    """
    values, proxies = node.raw.get("widgets_values") or [], (node.raw.get("properties") or {}).get("proxyWidgets") or []
    proxies = json.loads(proxies) if isinstance(proxies, str) else proxies
    if isinstance(values, dict):
        yield from ((slot, values[name]) for slot, name in enumerate(inputs) if name in values)
    elif any(str(id_) == "-1" for id_, *_ in proxies):
        yield from (
            (inputs.index(name), value)
            for (id_, name, *_), value in zip(proxies, values, strict=False)
            if str(id_) == "-1" and name in inputs and value is not None
        )
    elif len(values) == len(shown):
        yield from zip(shown, values, strict=True)


def _take(level: Level, nodes: list[dict[str, Any]], links: list[Link]) -> None:
    """Move a level's real nodes and links into the flat graph, with new link ids.

    What an input says is wired into it counts, as in the front end.
    """
    by_link = {link[0]: link for link in level.links}
    for raw in (raw for raw in level.nodes if raw["id"] not in level.inner):
        for into, slot in enumerate(raw.get("inputs") or []):
            link = by_link.get(slot.get("link"))
            found = level.origin(link[1], link[2], slot.get("type", ANY)) if link else None
            slot["link"] = len(links) + 1 if found else None
            if link and found:
                links.append([len(links) + 1, *found, level.name(raw["id"]), into, link[5] if len(link) > 5 else ANY])
        for slot in raw.get("outputs") or []:
            slot["links"] = None  # nobody reads them in the flat graph
    for raw in (raw for raw in level.nodes if raw["id"] not in level.inner):
        raw["id"] = level.name(raw["id"])
        nodes.append(raw)


# ---- for the host ----------------------------------------------------------------------------------------------------


def for_the_host(workflow: dict[str, Any]) -> dict[str, Any]:
    """Return a flat workflow without what exists only in the browser: every wire begins at the node that is behind it,
    and inactive nodes are gone.

    Primitives stay, whose values comfy-cli fills in.
    """
    graph = Graph(workflow)
    acting = [
        node
        for node in graph.nodes.values()
        if node.mode not in (MUTED, BYPASSED) and (node.type == PRIMITIVE or not is_virtual(node.type))
    ]
    links: list[Link] = []
    for node in acting:
        for into, slot in enumerate(node.raw.get("inputs") or []):
            found = graph.source(node, slot["name"]) if slot.get("link") is not None else None
            slot["link"] = None
            if found:
                links.append([len(links) + 1, found[0].id, found[1], node.id, into, slot.get("type", ANY)])
    by_target = {(link[3], link[4]): link for link in links}
    for node in acting:
        for into, slot in enumerate(node.raw.get("inputs") or []):
            slot["link"] = by_target[node.id, into][0] if (node.id, into) in by_target else None
        for at, slot in enumerate(node.raw.get("outputs") or []):
            slot["links"] = [link[0] for link in links if (link[1], link[2]) == (node.id, at)]
    return {**graph.workflow, "nodes": [node.raw for node in acting], "links": links}


def as_prompt(workflow: dict[str, Any]) -> dict[str, Any]:
    """Return the API prompt that `flatten_workflow` was given, with the values that the graph has now."""
    graph, prompt = Graph(workflow), {}
    for node in (node for node in graph.nodes.values() if not node.mode):
        wired = {name: graph.source(node, name) for name, slot in node.inputs.items() if slot.get("link") is not None}
        values = {name: graph.value(node, name) for name in node.widget_places() if name not in wired}
        inputs = {**values, **{name: [str(found[0].id), found[1]] for name, found in wired.items() if found}}
        prompt[str(node.id)] = {
            "class_type": node.type,
            "inputs": {name: inputs[name] for name in node.inputs if name in inputs},
        }
    return prompt
