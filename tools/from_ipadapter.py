"""A workflow's stacked IPAdapter_plus nodes rewritten as Troupe nodes that do the same, and a sentence for everything that cannot be carried."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from graph import Graph, Node, check_format, said, values_of
from group_nodes import group_nodes
from ipadapter_nodes import APPLIES, PREPARE, UNIFIED, Choice, NotCarried, Stacked, read, reason, theirs
from job import ADD, APPLY, ENCODE, LOAD
from pack import load_pack
from rewire import Wiring
from virtual import GETTERS, PASSING, SETTERS, is_virtual
from wires import with_broadcasts

MOST = 2.0  # of Apply Image Attention's weight
GAP, HEAD = 40, 80  # pixels between nodes; of a group's title
NOTE = """These nodes replace {n} IPAdapter node{s} and do the same, as closely as possible: every photo acts on the whole picture at its own strength (merge: add).

To give each photo to its own subject:
1. in 'name' of each Add Subject, type the word for that subject in your prompt,
2. wire the checkpoint's CLIP into 'clip' of Encode Subject References,
3. set 'merge' of Apply Image Attention to relevance.
Two subjects need two different words. Weights of 0.5 to 0.65 then work better than higher ones."""


@dataclass(frozen=True, eq=False)
class Rewritten:
    """workflow: the new file; carried: how many nodes Troupe's stand for now; said: one sentence for each thing that is not as before."""

    workflow: dict[str, Any]
    carried: int
    said: tuple[str, ...]


def from_ipadapter(workflow: dict[str, Any]) -> Rewritten:
    """Rewrite what can be rewritten; everything else in the file stays as it is. Raises RunError for an API prompt.

    Nodes inside subgraphs and group nodes stay, with a sentence.
    """
    check_format(workflow)
    graph = Graph(with_broadcasts(workflow))
    stacked, remarks = _readable(graph)
    wiring = Wiring(copy.deepcopy(workflow))
    top = _lowest(wiring.workflow) + 2 * GAP + HEAD
    loaders: dict[tuple[str, str], dict[str, Any]] = {}
    for chain in _chains(graph, stacked):
        top = _write_chain(wiring, graph, chain, loaders, top)
        remarks += _remarks(chain)
    _take_out(wiring, graph, list(stacked.values()))
    told = {one.prepared.id for one in stacked.values() if one.prepared is not None}
    remarks += _out_of_sight(workflow)
    left = [Node(raw) for raw in wiring.workflow["nodes"] if theirs(Node(raw)) and raw["type"] not in APPLIES and raw["id"] not in told]
    remarks += [f"{node.label} stays: {_why_left(wiring, node)}." for node in left]
    return Rewritten(wiring.saved(), len(stacked), tuple(dict.fromkeys(remarks)))


def _out_of_sight(workflow: dict[str, Any]) -> list[str]:
    """A sentence for each node that lies inside a subgraph or group node."""
    subgraphs = {graph.get("id"): graph for graph in (workflow.get("definitions") or {}).get("subgraphs") or []}
    folded = {**group_nodes(workflow), **subgraphs}
    used = {raw["type"] for graph in (workflow, *folded.values()) for raw in graph["nodes"]}
    return [f"{node.label} stays: it lies inside '{graph.get('name')}'; unpack that (right click > Unpack Subgraph, or Convert to nodes), save the workflow and rewrite it again."
            for kind, graph in folded.items() if kind in used for node in map(Node, graph["nodes"]) if node.type in APPLIES]


def _readable(graph: Graph) -> tuple[dict[Any, Stacked], list[str]]:
    """The nodes that can be carried by id, and why others cannot."""
    found, said = {}, []
    for node in (node for node in graph.nodes.values() if node.type in APPLIES):
        try:
            found[node.id] = read(graph, node)
        except NotCarried as why:
            said.append(f"{node.label} stays: {why}.")
    return found, said


def _chains(graph: Graph, stacked: dict[Any, Stacked]) -> list[list[Stacked]]:
    """Nodes one after another on a MODEL wire that nothing else takes, with one adapter: each such row becomes one cast."""
    before = {id_: _previous(graph, one, stacked) for id_, one in stacked.items()}
    after = {previous: id_ for id_, previous in before.items() if previous is not None}
    chains = []
    for id_ in (id_ for id_, previous in before.items() if previous is None):
        chain = [stacked[id_]]
        while chain[-1].node.id in after:
            chain.append(stacked[after[chain[-1].node.id]])
        chains.append(chain)
    return chains


def _previous(graph: Graph, one: Stacked, stacked: dict[Any, Stacked]) -> Any:
    """The carried node straight before this one on the MODEL wire, with reroutes at most between, or None."""
    way, found = graph.way(one.node, "model")
    previous = stacked.get(found[0].id) if found and all(node.type in PASSING for node in way) else None
    if previous is None or previous.choice != one.choice:
        return None
    alone = all(sum(link[1] == id_ for link in graph.links.values()) == 1 for id_ in (previous.node.id, *(reroute.id for reroute in way)))
    return previous.node.id if alone else None


# ---- the new nodes -----------------------------------------------------------------------------------------------------------------------

def _write_chain(wiring: Wiring, graph: Graph, chain: Sequence[Stacked], loaders: dict[tuple[str, str], dict[str, Any]], top: float) -> float:
    """Put in the nodes of one cast, in a group of their own below everything else; returns where the next group may begin."""
    left = _leftmost(wiring.workflow)
    nodes: list[dict[str, Any]] = []
    x = left

    def put(kind: str, title: str, values: dict[str, Any] | str, y: float = 0) -> dict[str, Any]:
        nodes.append(wiring.add(kind, title, values, (x, top + y)))
        return nodes[-1]

    choice, framing = chain[0].choice, _framing(chain)
    loader = loaders.get((choice.adapter, choice.vision))
    if loader is None:
        loader = loaders[choice.adapter, choice.vision] = put(LOAD, "Load Subject Adapter", {"adapter_name": choice.adapter, "clip_vision_name": choice.vision})
        _record_models(wiring.workflow, loader, choice)
    note = put("Note", "From IPAdapter to Troupe", NOTE.format(n=len(chain), s="s" if len(chain) > 1 else ""), loader["size"][1] + HEAD)
    note["size"] = [loader["size"][0], 260]
    x += loader["size"][0] + GAP
    strength = min(max(one.weight for one in chain), MOST)
    cast = None
    for number, one in enumerate(chain, 1):
        photo, mask = _photo(wiring, graph, one, framing), _origin(wiring, graph, one.node, "attn_mask")
        weight = round(one.weight / strength, 4) if strength else 1.0
        subject = put(ADD, f"Subject {number}{_file_of(wiring, photo)}", {"name": "", "weight": weight, "start_percent": one.start, "end_percent": one.end})
        wiring.connect(photo, subject, "image")
        if mask is not None:
            wiring.connect(mask, subject, "region")
        if cast is not None:
            wiring.connect((cast["id"], 0), subject, "cast")
        cast = subject
        x += subject["size"][0] + GAP
    encode = put(ENCODE, "Encode Subject References", {"framing": framing})
    wiring.connect((loader["id"], 0), encode, "adapter")
    wiring.connect((cast["id"], 0), encode, "cast")
    if choice.wired is not None:
        wiring.connect(choice.wired, encode, "clip_vision")
    x += encode["size"][0] + GAP
    apply = put(APPLY, "Apply Image Attention", {"weight": strength, "merge": "add"})
    wiring.connect((encode["id"], 0), apply, "references")
    model = _origin(wiring, graph, chain[0].node, "model")
    wiring.hand_over((chain[-1].node.id, 0), (apply["id"], 0))
    if model is not None:
        wiring.connect(model, apply, "model")
    return _group(wiring.workflow, nodes)


def _origin(wiring: Wiring, graph: Graph, node: Node, name: str) -> tuple[Any, int] | None:
    """What feeds an input: its own wire, else one that Use Everywhere makes."""
    found = None if wiring.origin(node.id, name) else graph.source(node, name)
    return (found[0].id, found[1]) if found else wiring.origin(node.id, name)


def _photo(wiring: Wiring, graph: Graph, one: Stacked, framing: str) -> tuple[Any, int]:
    """What feeds the photo, seen through a Prep Image For ClipVision where the new nodes frame alike."""
    before = _origin(wiring, graph, one.prepared, "image") if one.prepared is not None and one.framing == framing else None
    return before or _origin(wiring, graph, one.node, "image")


def _framing(chain: Sequence[Stacked]) -> str:
    """pad where every photo got borders, else center, which leaves square pictures as they are."""
    return "pad" if all(one.framing == "pad" for one in chain) else "center"


def _file_of(wiring: Wiring, photo: tuple[Any, int]) -> str:
    raw = wiring.node(photo[0])
    values = values_of(raw)
    return f" ({PurePosixPath(str(values[0])).name})" if raw["type"] == "LoadImage" and values else ""


def _record_models(workflow: dict[str, Any], loader: dict[str, Any], choice: Choice) -> None:
    """Links of the files, where they are known, as the front end reads them: on the node and at the file's top."""
    load_pack()
    from troupe.model_patches.checkpoints.catalogue import ENCODERS, published

    adapter = published(choice.adapter)
    encoder = next((e.file for e in ENCODERS if adapter and e.name == adapter.encoder), None) if choice.vision == "auto" else None
    models = [{"name": f.name, "url": f.link, "directory": f.folder} for f in (adapter, encoder) if f and f.name.endswith(".safetensors")]
    if models:
        loader["properties"]["models"] = models
        workflow["models"] = [*(workflow.get("models") or []), *(m for m in models if m not in (workflow.get("models") or []))]


# ---- the old ones ------------------------------------------------------------------------------------------------------------------------

def _take_out(wiring: Wiring, graph: Graph, stacked: Sequence[Stacked]) -> None:
    """Remove the rewritten nodes, and what was there for them alone: loaders, reroutes, Prep Image nodes."""
    ways = {node.id for one in stacked for node in graph.way(one.node, "model")[0] if is_virtual(node.type)}
    spent = {id_ for one in stacked for id_ in one.spent}
    wiring.take_out(one.node.id for one in stacked)
    while idle := [id_ for id_ in (*spent, *ways) if wiring.node(id_) is not None and _idle(wiring, Node(wiring.node(id_)))]:
        for id_ in idle:
            if wiring.node(id_)["type"] == UNIFIED:
                wiring.hand_over((id_, 0), _origin(wiring, graph, Node(wiring.node(id_)), "model"))
        wiring.take_out(idle)


def _idle(wiring: Wiring, node: Node) -> bool:
    """Whether nothing takes a node's output; of the Unified Loader, which hands the model on, its adapter; of a Set node, whether no Get node has its name."""
    if node.type in SETTERS:
        levels = (wiring.workflow, *((wiring.workflow.get("definitions") or {}).get("subgraphs") or []), *group_nodes(wiring.workflow).values())
        return not wiring.takers(node.id) and not any(raw["type"] in GETTERS and said(Node(raw)) == said(node) for level in levels for raw in level["nodes"])
    return not wiring.takers(node.id, 1 if node.type == UNIFIED else None)


def _remarks(chain: Sequence[Stacked]) -> list[str]:
    """What is not exactly as before."""
    said = [f"{chain[0].node.label}: {chain[0].choice.remark}"] if chain[0].choice.remark else []
    said += [f"{one.node.label}: {one.remark}" for one in chain if one.remark]
    if _framing(chain) == "pad":
        said.append(f"{chain[0].node.label}: the borders that {PREPARE} made were black and are white now (framing: pad).")
    said += [f"{one.node.label}: its photo still goes through {one.prepared.label}, which crops or sharpens as Troupe does not."
             for one in chain if one.prepared is not None and one.framing != _framing(chain)]
    return said


def _why_left(wiring: Wiring, node: Node) -> str:
    takers = [Node(wiring.node(id_)) for id_, _ in wiring.takers(node.id)]
    if node.type in (PREPARE, UNIFIED, "IPAdapterModelLoader") and takers:
        return f"{takers[0].label} needs it"
    return reason(node.type)


# ---- the layout --------------------------------------------------------------------------------------------------------------------------

def _group(workflow: dict[str, Any], nodes: Sequence[dict[str, Any]]) -> float:
    """A group box round the nodes; returns the y below it."""
    boxes = [(*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1]) for node in nodes]
    x, y = min(b[0] for b in boxes) - GAP / 2, min(b[1] for b in boxes) - HEAD
    right, bottom = max(b[2] for b in boxes) + GAP / 2, max(b[3] for b in boxes) + GAP / 2
    groups = workflow["groups"] = workflow.get("groups") or []
    number = max((group.get("id") or 0 for group in groups), default=0) + 1
    groups.append({"id": number, "title": "Subjects, as IPAdapter had them", "bounding": [x, y, right - x, bottom - y], "color": "#3f789e", "font_size": 24, "flags": {}})
    return bottom + HEAD + GAP


def _lowest(workflow: dict[str, Any]) -> float:
    nodes = [_pair(raw["pos"])[1] + _pair(raw.get("size") or [0, 0])[1] for raw in workflow["nodes"] if raw.get("pos")]
    return max([*nodes, *(group["bounding"][1] + group["bounding"][3] for group in workflow.get("groups") or [] if group.get("bounding"))], default=0)


def _leftmost(workflow: dict[str, Any]) -> float:
    return min((_pair(raw["pos"])[0] for raw in workflow["nodes"] if raw.get("pos")), default=0)


def _pair(value: Any) -> tuple[float, float]:
    """A position or size, which older files have as {'0': x, '1': y}."""
    return (value["0"], value["1"]) if isinstance(value, dict) else (value[0], value[1])
