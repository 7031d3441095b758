"""A workflow as a job for the embedded engine: one frozen record, read off the saved graph by walking back from its sampler."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graph import Graph, Node, RunError

SAMPLER, QUICK, APPLY, ENCODE, LOAD, ADD = "KSampler", "TroupeQuickSubjects", "TroupeApplyImageAttention", "TroupeEncodeSubjects", "TroupeLoadAdapter", "TroupeAddSubject"
PHOTO_INPUTS = ("image", "image_2", "image_3", "image_4")
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
class ApplyJob:
    """One Apply node (or Quick Subjects) with what feeds it; the last fields are the Apply node's widgets."""

    adapter: str
    clip_vision: str
    framing: str
    named: bool
    subjects: tuple[SubjectJob, ...]
    weight: float
    merge: str = "auto"
    start_percent: float = 0.0
    end_percent: float = 1.0
    sharpness: float = 1.0
    background: float = 1.0


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
        width=graph.value(latent, "width"), height=graph.value(latent, "height"), batch=graph.value(latent, "batch_size"),
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
        if node.type not in (APPLY, QUICK):
            raise RunError(f"'{name}' of the sampler comes from {node.label}. {ELSEWHERE}")
        name = ("model", "positive", "negative", "middle")[slot]
    raise RunError(f"The '{name}' wires of the sampler run in a circle.")


def cast_nodes(graph: Graph, encode: Node) -> list[Node]:
    """The chain of Add Subject nodes behind an Encode node, first subject first."""
    found: list[Node] = []
    here = _source(graph, encode, "cast")[0]
    while True:
        if here.type != ADD:
            raise RunError(f"The cast comes from {here.label}. {ELSEWHERE}")
        found.insert(0, here)
        before = graph.source(here, "cast")
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
        if node.type not in (APPLY, QUICK):
            raise RunError(f"{node.label} lies on the model wire. {ELSEWHERE}")
        applied.insert(0, _quick(graph, node) if node.type == QUICK else _apply(graph, node))
    raise RunError("The model wires run in a circle.")


def _apply(graph: Graph, node: Node) -> ApplyJob:
    encode = _feeding(graph, node, "references", ENCODE)
    load = _feeding(graph, encode, "adapter", LOAD)
    _refuse(graph, encode, "clip_vision")
    numbers = {name: float(graph.value(node, name)) for name in ("weight", "start_percent", "end_percent", "sharpness", "background")}
    return ApplyJob(graph.value(load, "adapter_name"), graph.value(load, "clip_vision_name"), graph.value(encode, "framing"), graph.source(encode, "clip") is not None,
                    tuple(_subject(graph, subject) for subject in cast_nodes(graph, encode)), merge=graph.value(node, "merge"), **numbers)


def _subject(graph: Graph, node: Node) -> SubjectJob:
    for name in ("mask", "region", "faces"):
        _refuse(graph, node, name)
    photos = tuple(str(graph.value(photo, "image")) for photo in photo_nodes(graph, node))
    return SubjectJob(graph.value(node, "name"), photos, *(float(graph.value(node, name)) for name in ("weight", "start_percent", "end_percent")))


def _quick(graph: Graph, node: Node) -> ApplyJob:
    _refuse(graph, node, "clip_vision")
    photos = {n: tuple(str(graph.value(p, "image")) for p in photo_nodes(graph, node, (f"image_{n}",))) for n in quick_numbers(graph, node)}
    subjects = tuple(SubjectJob(graph.value(node, f"name_{n}"), files) for n, files in photos.items())
    return ApplyJob(graph.value(node, "adapter_name"), "auto", "auto", True, subjects, float(graph.value(node, "weight")))


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
