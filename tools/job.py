"""A workflow as a job for the embedded engine: one frozen record, read off the saved graph by walking back from its sampler."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graph import Graph, Node, RunError

SAMPLER, QUICK, APPLY, GATED = "KSampler", "TroupeQuickSubjects", "TroupeApplyImageAttention", "TroupeApplyGated"
ENCODE, LOAD, ADD, PLACE = "TroupeEncodeSubjects", "TroupeLoadAdapter", "TroupeAddSubject", "TroupePlaceSubjects"
PHOTO_INPUTS = ("image", "image_2", "image_3", "image_4")
PLACE_SIZE = {2: "width", 3: "height"}  # outputs of Place Subjects that hand on a widget of its own
ELSEWHERE = "The embedded engine cannot do that: run this workflow in ComfyUI."


@dataclass(frozen=True)
class SubjectJob:
    """One subject: its name, its photo files as LoadImage has them, weight 0..3 and its part of the run."""

    name: str
    photos: tuple[str, ...]
    weight: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0


@dataclass(frozen=True)
class PlaceJob:
    """One Place Subjects node: its widgets, and how many subjects of the cast came before it."""

    subjects: int
    boxes: str
    layout: str
    width: int
    height: int


@dataclass(frozen=True)
class ApplyJob:
    """One Apply node (or Quick Subjects) with what feeds it, the subjects and what places them."""

    adapter: str
    clip_vision: str
    framing: str
    named: bool
    subjects: tuple[SubjectJob, ...]
    places: tuple[PlaceJob, ...] = ()


@dataclass(frozen=True)
class AttentionJob(ApplyJob):
    """Apply Image Attention with its widgets."""

    weight: float = 0.65
    merge: str = "auto"
    start_percent: float = 0.0
    end_percent: float = 1.0
    box_strength: float = 1.0
    box_end_percent: float = 1.0
    box_feather: float = 0.05
    sharpness: float = 1.0
    background: float = 1.0


@dataclass(frozen=True)
class GatedJob(ApplyJob):
    """Apply Gated Adapter with its widgets."""

    strength: float = 1.0
    end_percent: float = 1.0
    decay_percent: float = 0.0
    use_bbox: str = "auto"


@dataclass(frozen=True)
class Job:
    """A whole run: checkpoint, prompts, size in pixels, sampling, and the Apply nodes from the checkpoint on."""

    checkpoint: str
    prompt: str
    negative: str
    width: int
    height: int
    batch: int
    steps: int
    cfg: float
    seed: int
    sampler: str
    scheduler: str
    applied: tuple[ApplyJob, ...]

    @property
    def subjects(self) -> tuple[SubjectJob, ...]:
        """The subjects of all Apply nodes, in order."""
        return tuple(subject for apply in self.applied for subject in apply.subjects)


def read_job(workflow: dict[str, Any]) -> Job:
    """The job of a workflow. Raises RunError for what the embedded engine cannot run, naming the node."""
    graph = Graph(workflow)
    sampler = find_sampler(graph)
    latent = _feeding(graph, sampler, "latent_image", "EmptyLatentImage")
    if graph.value(sampler, "denoise") != 1.0:
        raise RunError(f"{sampler.label} starts from a picture (denoise below 1). {ELSEWHERE}")
    checkpoint, applied = _model_chain(graph, sampler)
    if not applied:
        raise RunError(f"No Troupe node lies on the model wire of {sampler.label}. Wire the model through Apply Image Attention or Quick Subjects.")
    return Job(
        checkpoint=str(graph.value(checkpoint, "ckpt_name")),
        prompt=graph.value(text_node(graph, sampler, "positive"), "text"), negative=graph.value(text_node(graph, sampler, "negative"), "text"),
        width=graph.value(*size_widget(graph, latent, "width")), height=graph.value(*size_widget(graph, latent, "height")), batch=graph.value(latent, "batch_size"),
        steps=graph.value(sampler, "steps"), cfg=float(graph.value(sampler, "cfg")), seed=graph.value(sampler, "seed"),
        sampler=graph.value(sampler, "sampler_name"), scheduler=graph.value(sampler, "scheduler"), applied=applied,
    )


def find_sampler(graph: Graph) -> Node:
    """The one KSampler. Raises RunError where there is none or there are several."""
    found = graph.of_type(SAMPLER)
    if len(found) != 1:
        raise RunError(f"Expected one active KSampler in the workflow, found {len(found)}. Mute the others, or run it in ComfyUI.")
    return found[0]


def text_node(graph: Graph, sampler: Node, name: str) -> Node:
    """The CLIPTextEncode behind a conditioning input, seen through our own nodes."""
    node: Node = sampler
    for _ in graph.nodes:
        node, slot = _source(graph, node, name)
        if node.type == "CLIPTextEncode":
            return node
        if node.type not in (APPLY, GATED, QUICK):
            raise RunError(f"'{name}' of the sampler comes from {node.label}. {ELSEWHERE}")
        name = ("model", "positive", "negative", "middle")[slot]
    raise RunError(f"The '{name}' wires of the sampler run in a circle.")


def size_widget(graph: Graph, node: Node, name: str) -> tuple[Node, str]:
    """The node and widget that set a picture's width or height, seen through the outputs of Place Subjects."""
    for _ in graph.nodes:
        found = graph.source(node, name)
        if found is None or found[0].type != PLACE or found[1] not in PLACE_SIZE:
            return node, name
        node, name = found[0], PLACE_SIZE[found[1]]
    raise RunError(f"The '{name}' wires run in a circle.")


def cast_nodes(graph: Graph, encode: Node) -> list[Node]:
    """The chain of Add Subject and Place Subjects nodes behind an Encode node, first subject first."""
    found: list[Node] = []
    here = _source(graph, encode, "cast")[0]
    while True:
        if here.type not in (ADD, PLACE):
            raise RunError(f"The cast comes from {here.label}. {ELSEWHERE}")
        found.insert(0, here)
        before = _source(graph, here, "cast") if here.type == PLACE else graph.source(here, "cast")
        if before is None:
            return found
        here = before[0]


def photo_nodes(graph: Graph, node: Node, names: tuple[str, ...] = PHOTO_INPUTS) -> list[Node]:
    """The LoadImage nodes behind these inputs; unwired ones are skipped."""
    wired = [found[0] for name in names if (found := graph.source(node, name))]
    for photo in wired:
        if photo.type != "LoadImage":
            raise RunError(f"A photo of {node.label} comes from {photo.label}, not from Load Image. {ELSEWHERE}")
    return wired


def quick_numbers(graph: Graph, node: Node) -> list[int]:
    """Which of Quick Subjects' four places have a photo."""
    return [n for n in (1, 2, 3, 4) if graph.source(node, f"image_{n}")]


def _model_chain(graph: Graph, sampler: Node) -> tuple[Node, tuple[ApplyJob, ...]]:
    """The checkpoint and the Apply nodes on the way to the sampler, in that order."""
    applied: list[ApplyJob] = []
    node = sampler
    for _ in graph.nodes:
        node = _source(graph, node, "model")[0]
        if node.type == "CheckpointLoaderSimple":
            return node, tuple(applied)
        read = {APPLY: _attention, GATED: _gated, QUICK: _quick}.get(node.type)
        if read is None:
            raise RunError(f"{node.label} lies on the model wire. {ELSEWHERE}")
        applied.insert(0, read(graph, node))
    raise RunError("The model wires run in a circle.")


def _attention(graph: Graph, node: Node) -> AttentionJob:
    numbers = ("weight", "start_percent", "end_percent", "box_strength", "box_end_percent", "box_feather", "sharpness", "background")
    return AttentionJob(*_encoded(graph, node), merge=graph.value(node, "merge"), **{name: float(graph.value(node, name)) for name in numbers})


def _gated(graph: Graph, node: Node) -> GatedJob:
    numbers = ("strength", "end_percent", "decay_percent")
    return GatedJob(*_encoded(graph, node), use_bbox=graph.value(node, "use_bbox"), **{name: float(graph.value(node, name)) for name in numbers})


def _encoded(graph: Graph, node: Node) -> tuple[Any, ...]:
    """The fields that every ApplyJob has, from the Encode node before an Apply node."""
    encode = _feeding(graph, node, "references", ENCODE)
    load = _feeding(graph, encode, "adapter", LOAD)
    _refuse(graph, encode, "clip_vision")
    chain = cast_nodes(graph, encode)
    subjects = tuple(_subject(graph, one) for one in chain if one.type == ADD)
    places = tuple(_place(graph, one, sum(before.type == ADD for before in chain[:i])) for i, one in enumerate(chain) if one.type == PLACE)
    return graph.value(load, "adapter_name"), graph.value(load, "clip_vision_name"), graph.value(encode, "framing"), graph.source(encode, "clip") is not None, subjects, places


def _place(graph: Graph, node: Node, subjects: int) -> PlaceJob:
    for name in ("bounding_boxes", "background", "latent"):
        _refuse(graph, node, name)
    size = [graph.value(*size_widget(graph, node, name)) for name in ("width", "height")]
    return PlaceJob(subjects, graph.value(node, "boxes"), graph.value(node, "layout"), *size)


def _subject(graph: Graph, node: Node) -> SubjectJob:
    for name in ("mask", "region", "faces"):
        _refuse(graph, node, name)
    photos = tuple(str(graph.value(photo, "image")) for photo in photo_nodes(graph, node))
    return SubjectJob(graph.value(node, "name"), photos, *(float(graph.value(node, name)) for name in ("weight", "start_percent", "end_percent")))


def _quick(graph: Graph, node: Node) -> AttentionJob:
    _refuse(graph, node, "clip_vision")
    photos = {n: tuple(str(graph.value(p, "image")) for p in photo_nodes(graph, node, (f"image_{n}",))) for n in quick_numbers(graph, node)}
    subjects = tuple(SubjectJob(graph.value(node, f"name_{n}"), files) for n, files in photos.items())
    return AttentionJob(graph.value(node, "adapter_name"), "auto", "auto", True, subjects, weight=float(graph.value(node, "weight")))


def _source(graph: Graph, node: Node, name: str) -> tuple[Node, int]:
    found = graph.source(node, name)
    if found is None:
        raise RunError(f"Nothing is wired into '{name}' of {node.label}. Wire it and save the workflow.")
    return found


def _feeding(graph: Graph, node: Node, name: str, kind: str) -> Node:
    found = _source(graph, node, name)[0]
    if found.type != kind:
        raise RunError(f"'{name}' of {node.label} comes from {found.label}, where the embedded engine knows only {kind}. Run this workflow in ComfyUI.")
    return found


def _refuse(graph: Graph, node: Node, name: str) -> None:
    if graph.source(node, name) is not None:
        raise RunError(f"'{name}' of {node.label} is wired. {ELSEWHERE}")
