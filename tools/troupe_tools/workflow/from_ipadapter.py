"""A workflow's stacked IPAdapter_plus nodes rewritten as Troupe nodes that do the same, and a sentence for everything
that cannot be carried.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .graph import ACTIVE, Graph, Node, check_format, said
from .group_nodes import group_nodes
from .guess_names import Guess
from .ipadapter_nodes import (
    AGAIN,
    APPLIES,
    COMBINE,
    KEEP,
    PREPARE,
    REGIONAL,
    UNIFIED,
    NotCarried,
    Stacked,
    is_theirs,
    read,
    reason,
)
from .ipadapter_regions import keep_prompts, origin_of
from .node_layout import GAP, HEAD, lowest, show_group
from .replacement_nodes import TITLE, framing_of, write_chain
from .rewire import Wiring
from .virtual import GETTERS, PASSING, SETTERS, is_virtual
from .wires import with_broadcasts


@dataclass(frozen=True, eq=False)
class Rewritten:
    """A rewritten workflow. workflow: the new file; carried: how many photos with their settings; said: one line for
    each thing that is not as before.
    """

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
    top = first = lowest(wiring.workflow) + 2 * GAP + HEAD
    loaders: dict[tuple[str, str], dict[str, Any]] = {}
    numbers: dict[Any, int] = {}
    for chain in _chains(graph, stacked):
        top, guesses = write_chain(wiring, graph, chain, loaders, top)
        numbers.update({one.photo_node.id: number for number, one in enumerate(chain, 1)})
        remarks += [*_remarks(chain), *_names_wanted(chain, guesses)]
    photos = [one for row in stacked.values() for one in row]
    _take_out(wiring, graph, photos, numbers)
    if photos:
        show_group(wiring.workflow, TITLE, first)
    told = {one.prepared.id for one in photos if one.prepared is not None}
    remarks += _out_of_sight(workflow)
    left = [
        Node(raw)
        for raw in wiring.workflow["nodes"]
        if is_theirs(Node(raw)) and raw["type"] not in APPLIES and raw["id"] not in told
    ]
    remarks += [f"{node.label} stays: {_why_left(wiring, node)}." for node in left]
    return Rewritten(wiring.saved(), len(photos), tuple(dict.fromkeys(remarks)))


def _out_of_sight(workflow: dict[str, Any]) -> list[str]:
    """A sentence for each node that lies inside a subgraph or group node."""
    subgraphs = {graph.get("id"): graph for graph in (workflow.get("definitions") or {}).get("subgraphs") or []}
    folded = {**group_nodes(workflow), **subgraphs}
    used = {raw["type"] for graph in (workflow, *folded.values()) for raw in graph["nodes"]}
    return [
        f"{node.label} stays: it lies inside '{graph.get('name')}'; unpack that (right click > Unpack "
        "Subgraph, or Convert to nodes), save the workflow and rewrite it again."
        for kind, graph in folded.items()
        if kind in used
        for node in map(Node, graph["nodes"])
        if node.type in APPLIES
    ]


def _readable(graph: Graph) -> tuple[dict[Any, list[Stacked]], list[str]]:
    """The photos of each node that can be carried, by its id, and why others cannot."""
    found, said = {}, []
    for node in (node for node in graph.nodes.values() if node.type in APPLIES):
        try:
            found[node.id] = read(graph, node)
        except NotCarried as why:
            said.append(f"{node.label} stays: {why}. {why.advice}.")
    return found, said


def _chains(graph: Graph, stacked: dict[Any, list[Stacked]]) -> list[list[Stacked]]:
    """Nodes one after another on a MODEL wire that nothing else takes, with one adapter: each such row becomes one
    cast.
    """
    before = {id_: _previous(graph, photos[0], stacked) for id_, photos in stacked.items()}
    after = {previous: id_ for id_, previous in before.items() if previous is not None}
    chains = []
    for id_ in (id_ for id_, previous in before.items() if previous is None):
        chain = [*stacked[id_]]
        while chain[-1].node.id in after:
            chain += stacked[after[chain[-1].node.id]]
        chains.append(chain)
    return chains


def _previous(graph: Graph, one: Stacked, stacked: dict[Any, list[Stacked]]) -> Any:
    """The carried node straight before this one on the MODEL wire, with reroutes at most between, or None."""
    way, found = graph.way(one.node, "model")
    previous = (
        stacked[found[0].id][-1]
        if found and found[0].id in stacked and all(node.type in PASSING for node in way)
        else None
    )
    if previous is None or previous.choice != one.choice:
        return None
    alone = all(
        sum(link[1] == id_ for link in graph.links.values()) == 1
        for id_ in (previous.node.id, *(reroute.id for reroute in way))
    )
    return previous.node.id if alone else None


def _take_out(wiring: Wiring, graph: Graph, stacked: Sequence[Stacked], numbers: dict[Any, int]) -> None:
    """Remove the rewritten nodes, and what was there for them alone: loaders, parameters, reroutes, Prep Image nodes.

    numbers: of the subjects, by the id of the node that had the photo.
    """
    ways = {node.id for one in stacked for node in graph.way(one.node, "model")[0] if is_virtual(node.type)}
    spent = {id_ for one in stacked for id_ in one.spent}
    wiring.take_out(one.node.id for one in stacked)
    while idle := [id_ for id_ in (*spent, *ways) if wiring.has(id_) and _idle(wiring, Node(wiring.node(id_)))]:
        for id_ in idle:
            if wiring.node(id_)["type"] == UNIFIED:
                wiring.hand_over((id_, 0), origin_of(wiring, graph, Node(wiring.node(id_)), "model"))
            elif wiring.node(id_)["type"] == REGIONAL:
                keep_prompts(wiring, graph, Node(wiring.node(id_)), numbers[id_])
        wiring.take_out(idle)


def _idle(wiring: Wiring, node: Node) -> bool:
    """Whether nothing takes a node's output; of the Unified Loader, which hands the model on, its adapter; of a region,
    which hands prompts on, its parameters; of a Set node, whether no Get node has its name."""
    if node.type in SETTERS:
        levels = (
            wiring.workflow,
            *((wiring.workflow.get("definitions") or {}).get("subgraphs") or []),
            *group_nodes(wiring.workflow).values(),
        )
        return not wiring.takers(node.id) and not any(
            raw["type"] in GETTERS and said(Node(raw)) == said(node) for level in levels for raw in level["nodes"]
        )
    return not wiring.takers(node.id, {UNIFIED: 1, REGIONAL: 0}.get(node.type))


def _remarks(chain: Sequence[Stacked]) -> list[str]:
    """What is not exactly as before."""
    said = [f"{chain[0].node.label}: {chain[0].choice.remark}"] if chain[0].choice.remark else []
    said += [f"{one.photo_node.label}: {one.remark}" for one in chain if one.remark]
    if framing_of(chain) == "pad":
        said.append(
            f"{chain[0].node.label}: the borders that {PREPARE} made were black and are white now (framing: pad)."
        )
    said += [
        f"{one.photo_node.label}: its photo still goes through {one.prepared.label}, which crops or "
        "sharpens as Troupe does not."
        for one in chain
        if one.prepared is not None and one.framing != framing_of(chain)
    ]
    return said


def _names_wanted(chain: Sequence[Stacked], guesses: Sequence[Guess]) -> list[str]:
    """A sentence for each photo of several whose name could not be guessed."""
    return [
        f"{one.photo_node.label}: no name was found for its photo; before you switch to relevance, replace "
        f"'{guess.name}' in Add Subject with its "
        "word in your prompt."
        for one, guess in zip(chain, guesses, strict=True)
        if not guess.source and len(chain) > 1
    ]


def _why_left(wiring: Wiring, node: Node) -> str:
    """Why a node stays, and what to do about it, without the last full stop."""
    slot = 0 if node.type == REGIONAL else None
    takers = [Node(wiring.node(id_)) for id_, _ in wiring.takers(node.id, slot)]
    if node.type in (PREPARE, UNIFIED, "IPAdapterModelLoader", COMBINE, REGIONAL) and takers:
        return f"{takers[0].label} needs it"
    if node.mode != ACTIVE:
        return f"it is muted or bypassed. Activate it {AGAIN}, or delete it"
    if node.type in (COMBINE, REGIONAL):
        return f"{reason(node.type)}. Wire it {AGAIN}, or delete it"
    return f"{reason(node.type)}. {KEEP}"
