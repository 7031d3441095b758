"""Whether a node of an API-format graph samples a part of the picture in a run of its own: a tile of an upscaler, a
face, a crop that is pasted back.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from .graph_text import is_link
from .graph_wires import Graph, takers, upstream

IN_PARTS = re.compile(  # they cut and paste themselves, or tell the node that samples to
    r"UltimateSDUpscale|Detailer(?!Hook)|SEGSUpscaler|BNK_TiledKSampler|PixelTiledKSampleUpscalerProvider|Tiled "
    r"Upscaler Script|Mikey Sampler Tiled",
    re.IGNORECASE,
)
PASTES = re.compile(
    r"stitch|uncrop|paste|composite|overlay|restore|blend|untile|_assy|assembl|tilesfrombatch|(merge|combine).*tile|tile.*(merge|combine)",
    re.IGNORECASE,
)
# they show two pictures, and paste none into the other
SIDE_BY_SIDE = ("ImageStitch", "ImageConcanate", "ImageConcatMulti")
TILES = re.compile(r"tile|_assy", re.IGNORECASE)
# unless they paste
CUTS = re.compile(
    r"crop|bounded image|(split|divide|select).*tile|image.?tile|tile.*(split|divide|list)|ForInpaint$", re.IGNORECASE
)
WHOLE_PICTURE = re.compile(r"vae.?(en|de)code", re.IGNORECASE)  # a VAE works in tiles on the whole picture
NO_PICTURES = (
    "model",
    "clip",
    "vae",
    "positive",
    "negative",
    "conditioning",
    "middle",
    "mask",
    "control_net",
    "clip_vision",
    "references",
    "cast",
    "adapter",
    "guider",
    "noise",
    "sampler",
    "sigmas",
    "seed",
)  # inputs that bring no picture to be sampled
HOW = ("script", "upscaler")  # inputs that tell a sampler how it works


def samples_a_part(graph: Graph | None, node_id: str) -> str:
    """Return which node makes this node's run sample a part of the picture, such as 'UltimateSDUpscale (node 12)', or
    ''.

    graph: {node id: {"class_type", "inputs": {name: literal or [node id, output]}}}, or None; node_id: of the node that
    runs, also one that another has put there ('12.0.3'). A cut alone makes no part: a photo that is cropped before it
    is used at all is a picture of its own. What is sampled has to
    be pasted back: tiles to tiles, or together with what was cut or with what the cutting node gives for that.
    """
    graph = graph or {}
    root, last = node_id.partition(".")[0], node_id.rpartition(".")[2]
    for own in (id_ for id_ in dict.fromkeys((node_id, root)) if id_ in graph):
        sources = (
            str(value[0]) for name, value in graph[own].get("inputs", {}).items() if name in HOW and is_link(value)
        )
        parts = next((id_ for id_ in (own, *sources) if id_ in graph and IN_PARTS.search(_class_of(graph, id_))), None)
        if parts:
            return _called(graph, parts)
    # a loop repeats the nodes of its body under their own ids
    own = next((id_ for id_ in (node_id, last, root) if id_ in graph), None)
    cut, slot = next(_cuts(graph, own), (None, 0)) if own else (None, 0)
    return _called(graph, cut) if own is not None and cut is not None and _pasted_back(graph, own, cut, slot) else ""


def _cuts(graph: Graph, own: str) -> Iterator[tuple[str, int]]:
    """The cutting nodes that the picture comes through, nearest first, each with the output that it comes from; nothing
    before a node that pastes.
    """
    waiting, seen = deque([own]), {own}
    while waiting:
        inputs = graph[waiting.popleft()].get("inputs", {})
        for name, value in inputs.items():
            source = str(value[0]) if is_link(value) and name not in NO_PICTURES else None
            if source is None or source not in graph or source in seen:
                continue
            seen.add(source)
            kind = _class_of(graph, source)
            if PASTES.search(kind) and kind not in SIDE_BY_SIDE:
                continue
            if CUTS.search(kind) and not WHOLE_PICTURE.search(kind):
                yield source, value[1]
            waiting.append(source)


def _pasted_back(graph: Graph, own: str, cut: str, slot: int) -> bool:
    """Whether a node after `own` pastes: one of its other inputs comes from before the cut, or from an output of the
    cutting node that is not the picture's.
    """
    before = upstream(graph, cut) - {cut}
    for paste in _consumers(graph, own):
        kind = _class_of(graph, paste)
        if not PASTES.search(kind) or kind in SIDE_BY_SIDE:
            continue
        if TILES.search(kind) and TILES.search(_class_of(graph, cut)):
            return True
        for source, output in (
            (str(value[0]), value[1]) for value in graph[paste].get("inputs", {}).values() if is_link(value)
        ):
            if source == cut and output != slot:
                return True
            if upstream(graph, source, (own, cut)) & before:
                return True
    return False


def _consumers(graph: Graph, own: str) -> Iterator[str]:
    """Everything that takes what a node makes, nearest first."""
    waiting, seen = deque([own]), {own}
    while waiting:
        for taker, _ in takers(graph, waiting.popleft()):
            if taker not in seen:
                seen.add(taker)
                waiting.append(taker)
                yield taker


def _class_of(graph: Graph, id_: str) -> str:
    return str(graph[id_].get("class_type", ""))


def _called(graph: Graph, id_: str) -> str:
    return f"{_class_of(graph, id_)} (node {id_})"
