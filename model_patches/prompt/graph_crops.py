"""Whether a node of an API-format graph samples a part of the picture in a run of its own: a tile of an upscaler, a face, a crop that is pasted back."""
from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from .graph_text import is_link

Graph = Mapping[str, Any]
IN_PARTS = re.compile(r"UltimateSDUpscale|Detailer|Tiled?KSampler|KSamplerTiled", re.IGNORECASE)  # they cut and paste themselves
CUTS = re.compile(r"crop|(?<!vae)(?<!encode)(?<!decode)tile(?!d?_?(vae|encode|decode|diffusion))", re.IGNORECASE)
PASTES = re.compile(r"stitch|uncrop|composite|paste|untile|merge|assembl", re.IGNORECASE)
PICTURE = ("latent_image", "latent", "latents", "samples", "image", "images", "pixels")  # inputs that bring the picture, in the host's nodes and most packs'


def samples_a_part(graph: Graph | None, node_id: str) -> str:
    """'UltimateSDUpscale (node 12)': what makes the run of this node one of a part of the picture; '' where nothing does.

    graph: {node id: {"class_type", "inputs": {name: literal or [node id, output]}}}, or None; node_id: of the node that runs, also one that a node of
    the graph has put there ('12.0.3'). A cut alone makes no part: a photo that is cropped before it is used at all is a picture of its own, so what
    is sampled has to be pasted somewhere after.
    """
    graph = graph or {}
    own = next((id_ for id_ in (node_id, node_id.partition(".")[0]) if id_ in graph), None)
    if own is None:
        return ""
    if IN_PARTS.search(_kind(graph, own)):
        return f"{_kind(graph, own)} (node {own})"
    cut = next((id_ for id_ in _before(graph, own) if CUTS.search(_kind(graph, id_))), None)
    pasted = cut is not None and any(PASTES.search(_kind(graph, id_)) for id_ in _after(graph, own))
    return f"{_kind(graph, cut)} (node {cut})" if pasted else ""


def _kind(graph: Graph, id_: str) -> str:
    return str(graph[id_].get("class_type", ""))


def _before(graph: Graph, own: str) -> Iterator[str]:
    """The nodes that the picture comes through, nearest first."""
    waiting, seen = deque([own]), {own}
    while waiting:
        inputs = graph[waiting.popleft()].get("inputs", {})
        for source in (str(inputs[name][0]) for name in PICTURE if is_link(inputs.get(name))):
            if source in graph and source not in seen:
                seen.add(source)
                waiting.append(source)
                yield source


def _after(graph: Graph, own: str) -> Iterator[str]:
    """Everything that takes what a node makes, nearest first."""
    waiting, seen = deque([own]), {own}
    while waiting:
        here = waiting.popleft()
        takers = (str(id_) for id_, node in graph.items() if any(is_link(value) and str(value[0]) == here for value in node.get("inputs", {}).values()))
        for taker in takers:
            if taker not in seen:
                seen.add(taker)
                waiting.append(taker)
                yield taker
