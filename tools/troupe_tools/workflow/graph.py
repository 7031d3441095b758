"""A workflow in the front end's save format (version 0.4), read as a graph: what feeds an input, what a widget says."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import RunError
from ..pack import WORKFLOWS
from .virtual import GETTERS, PASSING, PRIMITIVE, SETTERS
from .wires import ANY, tidy

LITERALS = {
    "PrimitiveString": "value",
    "PrimitiveStringMultiline": "value",
    "PrimitiveInt": "value",
    "PrimitiveFloat": "value",
}
SEEDS = ("seed", "noise_seed")
CONTROLS = ("fixed", "increment", "decrement", "randomize")  # the extra widget after a seed
ACTIVE, MUTED, BYPASSED = 0, 2, 4
ANY_TYPE = (ANY, "", 0, None)  # a socket that takes everything, as the front end and packs save it


@dataclass(frozen=True, eq=False)
class Node:
    """One node of a saved workflow; `raw` is its entry in the file."""

    raw: dict[str, Any] = field(repr=False)

    @property
    def id(self) -> Any:
        """Its id in the file."""
        return self.raw["id"]

    @property
    def type(self) -> str:
        """The node class's id."""
        return self.raw["type"]

    @property
    def mode(self) -> int:
        """ACTIVE, MUTED or BYPASSED."""
        return self.raw.get("mode", ACTIVE)

    @property
    def label(self) -> str:
        """What the user sees, for messages."""
        return f"'{self.raw.get('title') or self.type}' (node {self.id}, {self.type})"

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """Input slots by name."""
        return {slot["name"]: slot for slot in self.raw.get("inputs") or []}

    def widget_places(self) -> dict[str, Any]:
        """Return the position in `widgets_values` of every widget, in the order in which the front end saves them; {}
        where the file does not say, of an unknown class.
        """
        values = self.raw.get("widgets_values") or []
        if isinstance(values, dict):
            return {name: name for name in values}
        if self.type in (PRIMITIVE, *LITERALS):
            return {"value": 0} if values else {}
        listed = [slot["widget"]["name"] for slot in self.raw.get("inputs") or [] if "widget" in slot]
        places = _places(listed, values)
        # exports and pictures list only the widgets that are wired
        if not 0 <= len(values) - len(listed) <= sum(name in SEEDS for name in listed):
            places = _places(_orders().get(self.type, ()), values)
        return places


def _places(names: Iterable[str], values: list[Any]) -> dict[str, int]:
    """Positions of widgets, by their order: a seed may have one more value after it."""
    names = list(names)
    places: dict[str, int] = {}
    at, more = 0, len(values) > len(names)
    for name in names:
        places[name] = at
        at += (
            2
            if name in SEEDS
            and more
            and at + 1 < len(values)
            and (values[at + 1] in CONTROLS or isinstance(values[at + 1], bool))
            else 1
        )
    return places if at <= len(values) + 1 else {}


@functools.cache
def _orders() -> dict[str, tuple[str, ...]]:
    """Class -> its widgets in order, of every class that a shipped template has."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(WORKFLOWS.glob("*.json")):
        for raw in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            found[raw["type"]] = tuple(slot["widget"]["name"] for slot in raw.get("inputs") or [] if "widget" in slot)
    return found


class Graph:
    """Nodes and links of one workflow. It works on a copy: `workflow` holds what `write` has changed."""

    def __init__(self, workflow: dict[str, Any]):
        check_format(workflow)
        self.workflow = copy.deepcopy(workflow)
        tidy(self.workflow)
        self.nodes = {node["id"]: Node(node) for node in self.workflow["nodes"]}
        self.links = {link[0]: link for link in self.workflow["links"]}

    def of_type(self, *types: str) -> list[Node]:
        """Return active nodes of these classes, in the file's order."""
        return [node for node in self.nodes.values() if node.type in types and node.mode == ACTIVE]

    def source(self, node: Node, name: str) -> tuple[Node, int] | None:
        """Return the node and output slot that feed an input, seen through `way`; None if nothing does."""
        return self.way(node, name)[1]

    def way(self, node: Node, name: str) -> tuple[list[Node], tuple[Node, int] | None]:
        """Return the nodes that an input is seen through, nearest first (reroutes, Get and Set nodes, bypassed ones),
        and the node and output slot behind them.

        Raises RunError if the wires run in a circle.
        """
        onward = node.inputs.get(name)
        kind = (onward or {}).get("type")
        passed: list[Node] = []
        while (link := self.links.get((onward or {}).get("link"))) is not None:
            source, slot = self.nodes[link[1]], link[2]
            if source.type in GETTERS and source.mode != BYPASSED:
                passed.append(source)
                setter = self._setter(source)
                if setter is None:
                    return passed, None
                source = setter
            if source.type in (*PASSING, *SETTERS):
                onward = next(iter(source.raw.get("inputs") or []), None)
            elif source.mode == BYPASSED:
                onward = passed_on(source.raw, slot, kind)
                kind = (onward or {}).get("type")
            elif source.mode == MUTED:
                return passed, None
            else:
                return passed, (source, slot)
            passed.append(source)
            if len(passed) > 2 * len(self.nodes):
                raise RunError(f"The links into {node.label} form a loop. Open the workflow and remove one of them.")
        return passed, None

    def _setter(self, getter: Node) -> Node | None:
        """The Set node whose name a Get node says, on its own level of the workflow or on one above it."""
        level = str(getter.id).split(":")[:-1]
        fitting = [node for node in self.nodes.values() if node.type in SETTERS and said(node) == said(getter) != ""]
        levels = [(str(node.id).split(":")[:-1], node) for node in fitting]
        above = [(len(own), node) for own, node in levels if level[: len(own)] == own]
        return max(above, key=lambda found: found[0])[1] if above else None

    def value(self, node: Node, widget: str) -> Any:
        """Return the value of a widget, also if a primitive or a text node is linked into it.

        Raises RunError if that is only known at run time.
        """
        owner, place = self._owner(node, widget)
        return owner.raw["widgets_values"][place]

    def write(self, node: Node, widget: str, value: Any) -> None:
        """Change a widget, or the primitive that feeds it."""
        owner, place = self._owner(node, widget)
        owner.raw["widgets_values"][place] = value

    def _owner(self, node: Node, widget: str) -> tuple[Node, int]:
        linked = (node.inputs.get(widget) or {}).get("link") is not None
        fed = self.source(node, widget) if linked else None
        if linked and (fed is None or fed[0].type not in (PRIMITIVE, *LITERALS)):
            source = fed[0].label if fed else "a muted node"
            raise RunError(
                f"'{widget}' of {node.label} is linked from {source}, so its value is only known when "
                "ComfyUI runs. Run this workflow in ComfyUI, or type a value."
            )
        owner, name = (fed[0], "value") if fed else (node, widget)
        place = owner.widget_places().get(name)
        values = owner.raw.get("widgets_values") or []
        if place is None or isinstance(values, list) and place >= len(values):
            raise RunError(
                f"{owner.label} has no saved value for '{name}'. Open the workflow in a current ComfyUI and "
                "save it again."
            )
        return owner, place


def passed_on(raw: dict[str, Any], slot: int, kind: Any) -> dict[str, Any] | None:
    """Return the input slot that an output of a bypassed node hands on, by the front end's rule: that of the same
    number where the types fit, else the first of the type that is wanted, else the first that fits. None if no input
    does.

    raw: the saved node; slot: of the output; kind: the type of the input that is fed.
    """
    inputs, outputs = raw.get("inputs") or [], raw.get("outputs") or []
    out = outputs[slot].get("type") if slot < len(outputs) else kind
    if kind in ANY_TYPE:
        return inputs[slot] if slot < len(inputs) else next(iter(inputs), None)
    fitting = [can_be_wired(one.get("type"), out) and can_be_wired(one.get("type"), kind) for one in inputs]
    if slot < len(inputs) and fitting[slot]:
        return inputs[slot]
    exact = (one for one in inputs if one.get("type") == kind)
    return next(exact, next((one for one, fit in zip(inputs, fitting, strict=True) if fit), None))


def can_be_wired(one: Any, other: Any) -> bool:
    """Return whether sockets of these types can be wired: '*' takes all, and 'A,B' each that has one of them.

    A list of choices and a type that is not saved fit too.
    """
    if not isinstance(one, str) or not isinstance(other, str) or one in ANY_TYPE or other in ANY_TYPE:
        return True
    return bool({t.strip() for t in one.lower().split(",")} & {t.strip() for t in other.lower().split(",")})


def check_format(workflow: Any) -> None:
    """Raise RunError unless this is a saved workflow."""
    if (
        not isinstance(workflow, dict)
        or not isinstance(workflow.get("nodes"), list)
        or not isinstance(workflow.get("links"), list)
    ):
        api = isinstance(workflow, dict) and any(isinstance(v, dict) and "class_type" in v for v in workflow.values())
        found = "an API prompt (Export API)" if api else "something else"
        raise RunError(
            f"Expected a workflow as ComfyUI's Save writes it (with 'nodes' and 'links'), found {found}. "
            "Save the workflow with Workflow > Save and give that file."
        )
    for raw in workflow["nodes"]:
        if (
            not isinstance(raw, dict)
            or "id" not in raw
            or not isinstance(raw.get("type"), str)
            or None in (raw.get("inputs") or [])
        ):
            raise RunError(
                f"Expected nodes with an id and a type, found {str(raw)[:60]}. The file is damaged: save "
                "the workflow again with Workflow > Save."
            )


def said(node: Node) -> str:
    """Return the name that a Set or Get node shows."""
    return str(next(iter(values_of(node.raw)), ""))


def values_of(raw: dict[str, Any]) -> list[Any]:
    """Return the saved widget values of a node in order, also where the file has them by name."""
    values = raw.get("widgets_values") or []
    return list(values.values()) if isinstance(values, dict) else values


def active_upstream(graph: Graph, node: Node) -> Iterator[Node]:
    """Yield every active node that feeds this one, nearest first."""
    waiting, seen = [node], {node.id}
    while waiting:
        here = waiting.pop(0)
        for name in here.inputs:
            found = graph.source(here, name)
            if found and found[0].id not in seen:
                seen.add(found[0].id)
                waiting.append(found[0])
                yield found[0]
