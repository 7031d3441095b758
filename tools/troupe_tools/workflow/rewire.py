"""Changing a saved workflow's graph: nodes put in and taken out, with every link known at both of its ends."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from ..pack import WORKFLOWS
from .graph import Node
from .wires import tidy
from .workflow_files import read_workflow

Origin = tuple[Any, int]  # node id, output slot
RECORD = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
PATTERN = "4_two_subjects"  # the template whose nodes new ones are copied from


SET_MASK = "ConditioningSetMask"
CORE: dict[str, dict[str, Any]] = {  # classes of ComfyUI itself that the template does not have
    SET_MASK: {
        "type": SET_MASK,
        "size": [315, 102],
        "flags": {},
        "inputs": [
            {"name": "conditioning", "type": "CONDITIONING"},
            {"name": "mask", "type": "MASK"},
            {"name": "strength", "type": "FLOAT", "widget": {"name": "strength"}},
            {"name": "set_cond_area", "type": "COMBO", "widget": {"name": "set_cond_area"}},
        ],
        "outputs": [{"name": "CONDITIONING", "type": "CONDITIONING"}],
        "properties": {"Node name for S&R": SET_MASK, "cnr_id": "comfy-core", "ver": "0.3.64"},
        "widgets_values": [1.0, "default"],
    },
}


class Wiring:
    """A workflow in the save format whose links are changed in place."""

    def __init__(self, workflow: dict[str, Any]):
        self.workflow = workflow
        self._records = {link["id"]: link for link in workflow["links"] if isinstance(link, dict)}
        tidy(workflow)
        self._patterns = CORE | {raw["type"]: raw for raw in read_workflow(WORKFLOWS / f"{PATTERN}.json")["nodes"]}
        state = workflow.get("state") or {}
        self._last_node = max(
            [
                int(workflow.get("last_node_id") or 0),
                int(state.get("lastNodeId") or 0),
                *(raw["id"] for raw in workflow["nodes"] if isinstance(raw["id"], int)),
            ]
        )
        self._last_link = max(
            [
                int(workflow.get("last_link_id") or 0),
                int(state.get("lastLinkId") or 0),
                *(link[0] for link in workflow["links"]),
            ]
        )

    def saved(self) -> dict[str, Any]:
        """Return the workflow as the file had it: its links are records again where they were."""
        links = self.workflow["links"]
        if self._records:
            links = [{**self._records.get(link[0], {}), **dict(zip(RECORD, link, strict=True))} for link in links]
            self.workflow["state"] = {
                **(self.workflow.get("state") or {}),
                "lastNodeId": self._last_node,
                "lastLinkId": self._last_link,
            }
        return {**self.workflow, "links": links}

    def has(self, id_: Any) -> bool:
        """Return whether the workflow has a node of this id."""
        return any(raw["id"] == id_ for raw in self.workflow["nodes"])

    def node(self, id_: Any) -> dict[str, Any]:
        """Return a node's entry. Raises KeyError if there is none."""
        for raw in self.workflow["nodes"]:
            if raw["id"] == id_:
                return raw
        raise KeyError(id_)

    def origin(self, id_: Any, name: str) -> Origin | None:
        """Return what is wired into an input."""
        link = self._link((Node(self.node(id_)).inputs.get(name) or {}).get("link"))
        return (link[1], link[2]) if link else None

    def takers(self, id_: Any, slot: int | None = None) -> list[tuple[Any, int]]:
        """Return (node id, input slot) of everything that an output feeds, or all outputs of the node."""
        return [(link[3], link[4]) for link in self.workflow["links"] if link[1] == id_ and slot in (None, link[2])]

    def add(self, kind: str, title: str, values: dict[str, Any] | str, pos: tuple[float, float]) -> dict[str, Any]:
        """Add a node of a class in the template or CORE and return it: nothing wired, the pattern's widget values but
        for `values` (or a note's text).
        """
        raw = copy.deepcopy(self._patterns[kind])
        self._last_node += 1
        raw.update(id=self._last_node, title=title, pos=list(pos), order=len(self.workflow["nodes"]), mode=0)
        raw["properties"].pop("models", None)
        # what IPAdapter did not get from Use Everywhere, these nodes shall not get
        raw["properties"]["rejects_ue_links"] = True
        for slot in raw["inputs"]:
            slot["link"] = None
        for slot in raw["outputs"]:
            slot["links"] = None
        if isinstance(values, str):
            raw["widgets_values"] = [values]
        else:
            places = Node(raw).widget_places()
            for name, value in values.items():
                raw["widgets_values"][places[name]] = value
        self.workflow["nodes"].append(raw)
        self.workflow["last_node_id"] = self._last_node
        return raw

    def connect(self, source: Origin, target: dict[str, Any], name: str) -> None:
        """Wire an output into a node's input by name."""
        into = [slot["name"] for slot in target["inputs"]].index(name)
        self._wire(source, target["id"], into)

    def hand_over(self, old: Origin, new: Origin | None) -> None:
        """Rewire everything that `old` feeds to `new`, or disconnect it if that is None."""
        self._broadcast(old, new)
        for target, into in self.takers(*old):
            self._cut(target, into)
            if new is not None:
                self._wire(new, target, into)

    def _broadcast(self, old: Origin, new: Origin | None) -> None:
        """Let Use Everywhere's list, where the file has one, say the new source."""
        listed = (self.workflow.get("extra") or {}).get("ue_links") or []
        for link in [
            link
            for link in listed
            if (str(link.get("upstream")), link.get("upstream_slot", 0)) == (str(old[0]), old[1])
        ]:
            if new is None:
                listed.remove(link)
            else:
                link["upstream"], link["upstream_slot"] = str(new[0]), new[1]

    def take_out(self, ids: Iterable[Any]) -> None:
        """Remove nodes with all links to and from them."""
        ids = set(ids)
        for link in [link for link in self.workflow["links"] if {link[1], link[3]} & ids]:
            self._cut(link[3], link[4])
        self.workflow["nodes"][:] = [raw for raw in self.workflow["nodes"] if raw["id"] not in ids]
        listed = (self.workflow.get("extra") or {}).get("ue_links") or []
        listed[:] = [
            link
            for link in listed
            if not {str(link.get(end)) for end in ("upstream", "downstream", "controller")} & set(map(str, ids))
        ]

    def _wire(self, source: Origin, target: Any, into: int) -> None:
        self._last_link += 1
        output, slot = self.node(source[0])["outputs"][source[1]], self.node(target)["inputs"][into]
        kind = output["type"] if output["type"] != "*" else slot["type"]
        self.workflow["links"].append([self._last_link, source[0], source[1], target, into, kind])
        output["links"] = [*(output.get("links") or []), self._last_link]
        slot["link"] = self._last_link
        self.workflow["last_link_id"] = self._last_link

    def _cut(self, target: Any, into: int) -> None:
        """Take out the link at an input."""
        slot = self.node(target)["inputs"][into]
        link = self._link(slot["link"])
        slot["link"] = None
        if link is not None:
            output = self.node(link[1])["outputs"][link[2]]
            output["links"] = [id_ for id_ in output.get("links") or [] if id_ != link[0]] or None
            self.workflow["links"].remove(link)

    def _link(self, id_: Any) -> list[Any] | None:
        return next((link for link in self.workflow["links"] if link[0] == id_), None) if id_ is not None else None
