"""What the nodes of the pack IPAdapter_plus say: which of them Troupe's can replace, with their settings, and why not
for the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RunError
from .graph import ACTIVE, Graph, Node, active_upstream, values_of
from .virtual import is_virtual

SIMPLE, ADVANCED, PREPARE = "IPAdapter", "IPAdapterAdvanced", "PrepImageForClipVision"
BEFORE_2024 = "IPAdapterApply"  # what the pack had until March 2024, and no version since
FROM_PARAMS, COMBINE, REGIONAL = "IPAdapterFromParams", "IPAdapterCombineParams", "IPAdapterRegionalConditioning"
APPLIES = (SIMPLE, ADVANCED, BEFORE_2024, FROM_PARAMS)
UNIFIED, MODEL_LOADER, VISION_LOADER = "IPAdapterUnifiedLoader", "IPAdapterModelLoader", "CLIPVisionLoader"
CHECKPOINTS = ("CheckpointLoaderSimple", "CheckpointLoader", "unCLIPCheckpointLoader")
ORDER = {  # widgets as they are saved
    SIMPLE: ("weight", "start_at", "end_at", "weight_type"),
    ADVANCED: ("weight", "weight_type", "combine_embeds", "start_at", "end_at", "embeds_scaling"),
    BEFORE_2024: ("weight", "noise", "weight_type", "start_at", "end_at", "unfold_batch"),
    FROM_PARAMS: ("combine_embeds", "embeds_scaling"),
    REGIONAL: ("image_weight", "prompt_weight", "weight_type", "start_at", "end_at"),
    PREPARE: ("interpolation", "crop_position", "sharpening"),
    UNIFIED: ("preset",),
    MODEL_LOADER: ("ipadapter_file",),
    VISION_LOADER: ("clip_name",),
}
DEFAULTS = {
    "combine_embeds": "concat",
    "start_at": 0.0,
    "end_at": 1.0,
    "embeds_scaling": "V only",
    "crop_position": "center",
    "sharpening": 0.0,
    "noise": 0.0,
    "unfold_batch": False,
    "weight": 1.0,
    "image_weight": 1.0,
    "prompt_weight": 1.0,
}
# weight types that scale each layer's output alike
PLAIN = {SIMPLE: ("standard", "linear"), ADVANCED: ("linear",), BEFORE_2024: ("original",), REGIONAL: ("linear",)}
PRESETS = {  # how a preset begins: file for SD1.5, file for SDXL
    "light": ("ip-adapter_sd15_light.safetensors", None),
    "standard": ("ip-adapter_sd15.safetensors", "ip-adapter_sdxl_vit-h.safetensors"),
    "vit-g": ("ip-adapter_sd15_vit-G.safetensors", "ip-adapter_sdxl.safetensors"),
    "plus (": ("ip-adapter-plus_sd15.safetensors", "ip-adapter-plus_sdxl_vit-h.safetensors"),
    "plus face": ("ip-adapter-plus-face_sd15.safetensors", "ip-adapter-plus-face_sdxl_vit-h.safetensors"),
    "full face": ("ip-adapter-full-face_sd15.safetensors", None),
}
XL = re.compile(r"xl|illustrious|noob|pony|animagine", re.IGNORECASE)
SD15 = re.compile(r"sd[-_ ]?1|v1-5|1[._-]5", re.IGNORECASE)
BATCHES = re.compile("Batch|Images|Video|Folder|Sequence|List")  # classes that hand on several pictures
KEEP = "Keep IPAdapter_plus for it: both packs can patch the same MODEL"
AGAIN = "and convert the old workflow again"
REASONS = {  # how a class begins -> why it stays
    "IPAdapterFaceID": "it uses InsightFace, which Apply Image Attention does not support",
    "IPAAdapterFaceID": "it uses InsightFace",
    "IPAdapterUnifiedLoaderFaceID": "it loads a FaceID model",
    "IPAdapterInsightFaceLoader": "it loads InsightFace",
    "IPAdapterUnifiedLoaderCommunity": "it loads a model for composition or Kolors",
    "IPAdapterTiled": "it cuts the photo into tiles",
    "IPAdapterBatch": "it uses another photo for every picture of a batch",
    "IPAdapterStyleComposition": "it uses different photos for style and composition",
    "IPAdapterPrecise": "it works on single layers (style, composition)",
    "IPAdapterMS": "it has a weight for every layer",
    "IPAdapterClipVisionEnhancer": "it enhances the encoder's input by tiles",
    "IPAdapterEmbeds": "it works from saved embeds instead of photos",
    "IPAdapterNoise": "it makes a negative image",
    "IPAdapterWeights": "it makes weights over frames",
    "IPAdapterEncoder": "it encodes a photo for nodes that combine embeds",
    "IPAdapterCombineEmbeds": "it combines embeds instead of photos",
    REGIONAL: "its photo does not reach an IPAdapter From Params node that can be converted",
    COMBINE: "its photos do not reach an IPAdapter From Params node",
}


class NotCarried(Exception):
    """Why a node cannot be carried; `str(error)` is a part of a sentence, `advice` a sentence without its full stop."""

    def __init__(self, why: str, advice: str = KEEP):
        super().__init__(why)
        self.advice = advice


@dataclass(frozen=True)
class Choice:
    """An adapter: the value of Load Subject Adapter, the encoder's ('auto' where the preset chose it), or what feeds
    clip_vision; a remark or ''.
    """

    adapter: str
    vision: str
    wired: tuple[Any, int] | None = None
    remark: str = ""


@dataclass(frozen=True, eq=False)
class Stacked:
    """One photo whose nodes Troupe's can replace. framing: center, or pad for a photo with borders; spent: nodes that
    it alone may have needed.

    node: the one on the MODEL wire; photo_node: the one that has the photo, with its mask in the input `mask`; the same
    node unless the photo comes as parameters. framing is '' if Prep Image For ClipVision does what Troupe does not;
    remark: what may differ, or ''.
    """

    node: Node
    photo_node: Node
    mask: str
    choice: Choice
    weight: float
    start: float
    end: float
    framing: str
    prepared: Node | None
    spent: tuple[Any, ...]
    remark: str = ""


def is_theirs(node: Node) -> bool:
    """Return whether a node is of that pack."""
    return node.type.startswith(("IPAdapter", "IPAAdapter")) or node.type == PREPARE


def reason(kind: str) -> str:
    """Return why a class without a replacement stays."""
    return next(
        (why for start, why in REASONS.items() if kind.startswith(start)), "Troupe has nothing that does the same"
    )


def read(graph: Graph, node: Node) -> list[Stacked]:
    """Read the photos of one of APPLIES, with their settings. Raises NotCarried."""
    if node.mode != ACTIVE:
        raise NotCarried("it is muted or bypassed", f"Activate it {AGAIN}, or delete it")
    said = widget_values(graph, node)
    if said["embeds_scaling"] != "V only":
        raise NotCarried(
            f"its embeds_scaling is '{said['embeds_scaling']}'; Troupe scales V only", f"Set it to 'V only' {AGAIN}"
        )
    if (node.inputs.get("image_negative") or {}).get("link") is not None:
        raise NotCarried("it has a negative image", f"Unplug it {AGAIN}, or keep IPAdapter_plus for it")
    if node.type != FROM_PARAMS:
        return [_read_photo(graph, node, node, "attn_mask", said, ())]
    regions, joints = _regions(graph, node)
    if not regions:
        raise NotCarried("no photo reaches it", "Delete it, or wire its photos")
    found = []
    for region in regions:
        try:
            settings = widget_values(graph, region)
            given = {**settings, "weight": settings["image_weight"], "combine_embeds": said["combine_embeds"]}
            found.append(_read_photo(graph, node, region, "mask", given, (*joints, region.id)))
        except NotCarried as why:
            raise NotCarried(f"of {region.label}, which feeds it, {why}", why.advice) from None
    return found


def _regions(graph: Graph, node: Node) -> tuple[list[Node], list[Any]]:
    """The nodes whose photos reach a From Params node, in order, and the ids of what joins them. Raises NotCarried."""
    regions, joints = [], []
    waiting = [(node, "ipadapter_params")]
    while waiting:
        at, name = waiting.pop(0)
        source, passed = _source(graph, at, name)
        joints += passed
        if source is None:
            continue
        if source.type == REGIONAL:
            regions.append(source)
        elif source.type == COMBINE and source.id not in joints:
            joints.append(source.id)
            waiting = [(source, slot) for slot in source.inputs if slot.startswith("params_")] + waiting
        else:
            raise NotCarried(f"its parameters come from {source.label}")
    return regions, joints


def _read_photo(graph: Graph, node: Node, at: Node, mask: str, said: dict[str, Any], joints: Sequence[Any]) -> Stacked:
    """One photo. at: the node that has it; said: its settings by name; joints: ids of nodes that were there for it.

    Raises NotCarried.
    """
    kind = said["weight_type"]
    if kind not in PLAIN[at.type] and not (at.type == BEFORE_2024 and kind == "linear" and said["weight"] == 1):
        how = (
            "scales keys too; Troupe scales what comes out"
            if at.type == BEFORE_2024
            else "weighs the layers differently; Troupe weighs all alike"
        )
        raise NotCarried(
            f"its weight_type is '{kind}', which {how}",
            f"Set it to '{PLAIN[at.type][0]}' {AGAIN}, or keep IPAdapter_plus for it",
        )
    if said["noise"] or said["unfold_batch"]:
        raise NotCarried(
            "it has noise in its negative image"
            if said["noise"]
            else "it uses another photo for every picture of a batch (unfold_batch)"
        )
    weight, start, end = (_number(said[name], name) for name in ("weight", "start_at", "end_at"))
    if weight < 0:
        raise NotCarried(f"its weight is {weight:g}; Troupe's weights begin at 0")
    if start >= end:
        raise NotCarried(f"its range from {start:g} to {end:g} is empty", "Delete it: it does nothing")
    photo, passed = _source(graph, at, "image")
    if photo is None:
        raise NotCarried("no image is wired into it", f"Wire one {AGAIN}")
    prepared = photo if photo.type == PREPARE else None
    framing = "center"
    if prepared is not None:
        photo = (_source(graph, prepared, "image"))[0]
        how = widget_values(graph, prepared)
        framing = how["crop_position"] if how["crop_position"] in ("center", "pad") and not how["sharpening"] else ""
    remark = "" if photo is None or photo.type == "LoadImage" else _of_a_batch(graph, photo, said["combine_embeds"])
    choice, spent = _choice(graph, node)
    spent = (*spent, *passed, *joints, *([prepared.id] if prepared and framing else []))
    return Stacked(node, at, mask, choice, weight, start, end, framing, prepared, spent, remark)


def widget_values(graph: Graph, node: Node) -> dict[str, Any]:
    """Return the widget values by name, with the pack's defaults where an older file has none.

    Raises NotCarried where one comes over a wire that is not a literal's.
    """
    values = node.raw.get("widgets_values") or []
    named = {
        **DEFAULTS,
        "weight_type": PLAIN.get(node.type, ("",))[0],
        **(values if isinstance(values, dict) else dict(zip(ORDER[node.type], values, strict=False))),
    }
    for name in ORDER[node.type]:
        if (node.inputs.get(name) or {}).get("link") is not None:
            try:
                named[name] = graph.value(node, name)
            except RunError:
                raise NotCarried(f"its '{name}' comes over a wire", f"Unplug it, type the value in {AGAIN}") from None
    return named


def _of_a_batch(graph: Graph, photo: Node, combined: str) -> str:
    """A remark about a picture that may be a batch: Troupe averages several photos of one subject.

    Raises NotCarried where that is something else.
    """
    if combined == "average":
        return ""
    batch = combined != "concat" or any(BATCHES.search(node.type) for node in (photo, *active_upstream(graph, photo)))
    if batch:
        raise NotCarried(
            f"its combine_embeds is '{combined}' and its image may be a batch; Troupe averages several "
            "photos of one subject",
            f"Set it to 'average' {AGAIN}, or give each photo an IPAdapter node of its own",
        )
    return (
        f"If the image from {photo.label} is a batch, its photos are averaged now; before, they were put side by side."
    )


def _number(value: Any, name: str) -> float:
    if not isinstance(value, (int, float)):
        raise NotCarried(f"its '{name}' is no number")
    return float(value)


def _source(graph: Graph, node: Node, name: str) -> tuple[Node | None, list[Any]]:
    """The node behind an input, and the ids of the virtual nodes on the way."""
    passed, found = graph.way(node, name)
    return (found[0] if found else None), [one.id for one in passed if is_virtual(one.type)]


def _choice(graph: Graph, node: Node) -> tuple[Choice, list[Any]]:
    """The adapter file and encoder behind a node, and the ids of nodes that were there for them."""
    loader, passed = _source(graph, node, "ipadapter")
    vision, more = _source(graph, node, "clip_vision")
    if loader is None or loader.type not in (UNIFIED, MODEL_LOADER):
        raise NotCarried(f"its adapter comes from {loader.label if loader else 'nowhere'}")
    spent = [loader.id, *passed]
    file, remark = (
        _preset(graph, loader) if loader.type == UNIFIED else (str(widget_values(graph, loader)["ipadapter_file"]), "")
    )
    if re.search("faceid|portrait|kolors", file, re.IGNORECASE):
        raise NotCarried(f"its adapter {file} reads faces with InsightFace, or is for Kolors")
    if vision is not None and vision.type == VISION_LOADER:
        return Choice(file, str(widget_values(graph, vision)["clip_name"]), remark=remark), [*spent, vision.id, *more]
    if vision is not None:
        return Choice(file, "none", _origin(graph, node, "clip_vision"), remark), spent
    if loader.type == MODEL_LOADER:
        raise NotCarried("no CLIP vision encoder is wired into it", f"Wire one {AGAIN}")
    return Choice(file, "auto", remark=remark), spent


def _origin(graph: Graph, node: Node, name: str) -> tuple[Any, int] | None:
    found = graph.source(node, name)
    return (found[0].id, found[1]) if found else None


def _preset(graph: Graph, loader: Node) -> tuple[str, str]:
    """The file that a preset means, and a remark where the base model had to be guessed."""
    preset = str(widget_values(graph, loader).get("preset", ""))
    files = next((files for start, files in PRESETS.items() if preset.lower().startswith(start)), None)
    if files is None:
        raise NotCarried(f"its preset '{preset}' is not one that Troupe knows")
    if files[1] is None:
        return files[0], ""
    is_xl, because = _base(graph, loader)
    base = "SDXL" if is_xl else "SD1.5"
    return (
        files[is_xl],
        f"The preset '{preset}' was taken as {files[is_xl]}, for {base}, since {because}; choose another "
        "file in Load Subject Adapter if that is wrong.",
    )


def _base(graph: Graph, loader: Node) -> tuple[bool, str]:
    """Whether the model is SDXL, and why that is thought: by the checkpoint's name, else by the picture's size."""
    for node in active_upstream(graph, loader):
        name = str(next(iter(values_of(node.raw)), "")) if node.type in CHECKPOINTS else ""
        if XL.search(name) or SD15.search(name):
            return bool(XL.search(name)), f"the checkpoint is called {name}"
    sides = max(_latent_sides(graph), default=0)
    return (
        sides == 0 or sides >= 768,
        f"the picture is {sides} pixels wide" if sides else "nothing in the file says which it is",
    )


def _latent_sides(graph: Graph) -> Iterator[int]:
    for node in graph.of_type("EmptyLatentImage", "EmptySDXLLatentImage"):
        values = values_of(node.raw)
        yield from (value for value in values[:1] if isinstance(value, int))
