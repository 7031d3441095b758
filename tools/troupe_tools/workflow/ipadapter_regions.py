"""What a photo of IPAdapter_plus acts with: its region in the picture, and the prompts, the sampler's and its region's
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import RunError
from .graph import ACTIVE, Graph, Node
from .ipadapter_nodes import Stacked, widget_values
from .node_layout import GAP, pair
from .rewire import SET_MASK, Origin, Wiring


def origin_of(wiring: Wiring, graph: Graph, node: Node, name: str) -> tuple[Any, int] | None:
    """Return what feeds an input: its own wire, else one that Use Everywhere makes."""
    found = None if wiring.origin(node.id, name) else graph.source(node, name)
    return (found[0].id, found[1]) if found else wiring.origin(node.id, name)


def region_of(wiring: Wiring, graph: Graph, one: Stacked) -> Origin | None:
    """Return what feeds a photo's mask in the picture."""
    return origin_of(wiring, graph, one.photo_node, one.mask)


def prompts_of(wiring: Wiring, graph: Graph, chain: Sequence[Stacked]) -> tuple[list[str], Origin | None]:
    """Return the texts of the positive prompts that are sampled with this row's model, and the CLIP that encodes them
    (else that of its regions).
    """
    last = chain[-1].node
    samplers = [
        node
        for node in graph.nodes.values()
        if node.mode == ACTIVE
        and "positive" in node.inputs
        and any(above.id == last.id for above in _above(graph, node, ("model", "guider")))
    ]
    ends = [
        found[0]
        for node in (*samplers, *(one.photo_node for one in chain))
        if (found := graph.source(node, "positive"))
    ]
    encoders = list(
        {node.id: node for end in ends for node in (end, *_above(graph, end)) if "clip" in node.inputs}.values()
    )
    clip = next(
        (
            origin
            for node in encoders
            if graph.source(node, "clip") and (origin := origin_of(wiring, graph, node, "clip"))
        ),
        None,
    )
    return [text for node in encoders if (text := _text(graph, node))], clip


def _above(graph: Graph, node: Node, names: Sequence[str] = ()) -> list[Node]:
    """Every active node that feeds inputs of these names, or by default all but those that bring a negative prompt or a
    model.
    """
    found: dict[Any, Node] = {}
    waiting = [node]
    while waiting:
        at = waiting.pop(0)
        for name in names or [name for name in at.inputs if name not in ("negative", "model", "clip")]:
            source = graph.source(at, name)
            if source and source[0].id not in found:
                found[source[0].id] = source[0]
                waiting.append(source[0])
    return list(found.values())


def own_prompt(graph: Graph, one: Stacked) -> str:
    """Return the text of the prompt that a photo's own node takes, or ''."""
    source = graph.source(one.photo_node, "positive")
    return _text(graph, source[0]) if source else ""


def _text(graph: Graph, node: Node) -> str:
    """What a text encoder encodes, or '' if that is only known at run time."""
    for name in ("text", "text_g"):
        try:
            if isinstance(text := graph.value(node, name), str):
                return text
        except RunError:
            continue
    return ""


def keep_prompts(wiring: Wiring, graph: Graph, region: Node, number: int) -> None:
    """Limit the prompts of a region by ComfyUI's own node, in the region's place; without a mask they are passed on as
    they are.
    """
    called = region.raw.get("title") or f"Region of subject {number}"
    mask = origin_of(wiring, graph, region, "mask")
    (x, y), height = pair(region.raw["pos"]), 0
    for slot, name in ((1, "positive"), (2, "negative")):
        prompt = origin_of(wiring, graph, region, name)
        if prompt is not None and mask is not None and wiring.takers(region.id, slot):
            limited = wiring.add(
                SET_MASK,
                f"{called}: {name}",
                {"strength": widget_values(graph, region)["prompt_weight"]},
                (x, y + height),
            )
            height += limited["size"][1] + GAP + 10
            wiring.connect(prompt, limited, "conditioning")
            wiring.connect(mask, limited, "mask")
            prompt = (limited["id"], 0)
        wiring.hand_over((region.id, slot), prompt)
