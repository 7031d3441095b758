"""A workflow as a job for the embedded engine, read off the saved graph by walking back from its sampler."""

from __future__ import annotations

from typing import Any

from ..errors import RunError
from .graph import Graph, Node
from .job_records import (
    AppliedJob,
    AttentionJob,
    GatedJob,
    GuidanceJob,
    Job,
    PlaceJob,
    ReferenceJob,
    SubjectJob,
    WeightsJob,
    WordsJob,
)
from .sampling_nodes import ELSEWHERE, GUIDER, Sampling, feeding, find_sampling, source

QUICK, APPLY, GATED, WEIGHTS = (
    "TroupeQuickSubjects",
    "TroupeApplyImageAttention",
    "TroupeApplyGated",
    "TroupeApplyWeights",
)
WORDS, FACES = "TroupeEncodePrompt", "TroupeFaces"
RECORD = "TroupeRecordRelevance"  # hands the model on; the picture is the same
REHEARSAL = "TroupeRehearsal"
ENCODE, LOAD, ADD, PLACE = "TroupeEncodeSubjects", "TroupeLoadAdapter", "TroupeAddSubject", "TroupePlaceSubjects"
REFERENCE_SLOTS = range(5, 8)  # outputs of Load Rehearsal Models that are reference pictures
PHOTO_INPUTS = ("image", "same_subject_2", "same_subject_3", "same_subject_4")
PLACE_SIZE = {4: "width", 5: "height"}  # outputs of Place Subjects that hand on a widget of its own


def read_job(workflow: dict[str, Any]) -> Job:
    """Read the job of a workflow. Raises RunError for what the embedded engine cannot run, naming the node."""
    graph = Graph(workflow)
    at = find_sampling(graph)
    latent = _latent(graph, at.node)
    if graph.value(at.schedule, "denoise") != 1.0:
        raise RunError(f"{at.schedule.label} starts from a picture (denoise below 1). {ELSEWHERE}")
    checkpoint, applied, weights = _model_chain(graph, at.guided)
    prompts = [text_node(graph, at.guided, name) for name in ("positive", "negative")]
    if prompts[1].type == WORDS:
        raise RunError(f"{prompts[1].label} makes the negative prompt. {ELSEWHERE}")
    words = _words(graph, prompts[0]) if prompts[0].type == WORDS else None
    if not applied and words is None:
        raise RunError(
            f"There is no Troupe node on the model wire of {at.guided.label}. Wire the model through Apply "
            "Image Attention or Quick Subjects."
        )
    _check_clips(graph, prompts, weights)
    return Job(
        checkpoint=REHEARSAL if checkpoint.type == REHEARSAL else str(graph.value(checkpoint, "ckpt_name")),
        prompt=graph.value(prompts[0], "text"),
        negative=graph.value(prompts[1], "text"),
        width=graph.value(*size_widget(graph, latent, "width")),
        height=graph.value(*size_widget(graph, latent, "height")),
        batch=1 if latent.type == PLACE else graph.value(latent, "batch_size"),
        steps=graph.value(at.schedule, "steps"),
        cfg=float(graph.value(at.guided, "cfg")),
        seed=graph.value(*at.seed),
        sampler=graph.value(at.choice, "sampler_name"),
        scheduler=graph.value(at.schedule, "scheduler"),
        applied=applied,
        words=words,
        weights=weights,
        guidance=_guidance(graph, at, prompts[0]),
    )


def _latent(graph: Graph, sampler: Node) -> Node:
    """The Empty Latent Image that is sampled, or the Place Subjects whose own empty latent is."""
    place = source(graph, sampler, "latent_image")[0]
    return (
        place
        if place.type == PLACE and graph.source(place, "latent") is None
        else feeding(graph, sampler, "latent_image", "EmptyLatentImage")
    )


def text_node(graph: Graph, sampler: Node, name: str) -> Node:
    """Return the node that encodes the prompt behind a conditioning input (CLIPTextEncode or Encode Prompt with
    Subjects), seen through our own nodes. Raises RunError where there is another one.
    """
    node: Node = sampler
    for _ in graph.nodes:
        node, slot = source(graph, node, name)
        if node.type == "CLIPTextEncode" or (node.type == WORDS and slot == 0):
            return node
        if node.type not in (APPLY, GATED, QUICK):
            raise RunError(f"'{name}' of the sampler comes from {node.label}. {ELSEWHERE}")
        name = ("model", "positive", "negative", "middle")[slot]
    raise RunError(f"The '{name}' wires of the sampler form a loop.")


def size_widget(graph: Graph, node: Node, name: str) -> tuple[Node, str]:
    """Return the node and widget that set a picture's width or height, seen through the outputs of Place Subjects.

    Raises RunError where the links form a loop.
    """
    for _ in graph.nodes:
        found = graph.source(node, name)
        if found is None or found[0].type != PLACE or found[1] not in PLACE_SIZE:
            return node, name
        node, name = found[0], PLACE_SIZE[found[1]]
    raise RunError(f"The '{name}' wires form a loop.")


def cast_nodes(graph: Graph, encode: Node) -> list[Node]:
    """Return the chain of Add Subject and Place Subjects nodes behind an Encode node, first subject first.

    Raises RunError where another node is among them.
    """
    found: list[Node] = []
    here = source(graph, encode, "cast")[0]
    while True:
        if here.type not in (ADD, PLACE):
            raise RunError(f"The cast comes from {here.label}. {ELSEWHERE}")
        found.insert(0, here)
        before = source(graph, here, "cast") if here.type == PLACE else graph.source(here, "cast")
        if before is None:
            return found
        here = before[0]


def photo_nodes(graph: Graph, node: Node, names: tuple[str, ...] = PHOTO_INPUTS) -> list[Node]:
    """Return the LoadImage nodes behind these inputs; unwired ones and the pictures of Load Rehearsal Models are
    skipped. Raises RunError where a photo comes from another node.
    """
    wired = [found[0] for name in names if (found := graph.source(node, name)) and found[0].type != REHEARSAL]
    for photo in wired:
        if photo.type != "LoadImage":
            raise RunError(f"A photo of {node.label} comes from {photo.label}, not from Load Image. {ELSEWHERE}")
    return wired


def quick_numbers(graph: Graph, node: Node) -> list[int]:
    """Return which of Quick Subjects' four places have a photo."""
    return [n for n in (1, 2, 3, 4) if graph.source(node, f"image_{n}")]


def _model_chain(graph: Graph, guided: Node) -> tuple[Node, tuple[AppliedJob, ...], tuple[WeightsJob, ...]]:
    """The checkpoint, and the Apply nodes and Apply Adapter Weights nodes on the way to the sampler, in that order."""
    applied: list[AppliedJob] = []
    weights: list[WeightsJob] = []
    node = guided
    for _ in graph.nodes:
        node = source(graph, node, "model")[0]
        if node.type in ("CheckpointLoaderSimple", REHEARSAL):
            return node, tuple(applied), tuple(weights)
        if node.type == WEIGHTS:
            weights.insert(0, _weights(graph, node))
            continue
        if node.type == RECORD:
            continue
        read = {APPLY: _attention, GATED: _gated, QUICK: _quick}.get(node.type)
        if read is None:
            raise RunError(f"{node.label} is on the model wire. {ELSEWHERE}")
        applied.insert(0, read(graph, node))
    raise RunError("The model wires form a loop.")


def _weights(graph: Graph, node: Node) -> WeightsJob:
    load = feeding(graph, node, "adapter", LOAD, REHEARSAL)
    clip = float(graph.value(node, "strength_clip")) if graph.source(node, "clip") else None
    return WeightsJob(_adapter_name(graph, load), float(graph.value(node, "strength_model")), clip)


def _check_clips(graph: Graph, prompts: list[Node], weights: tuple[WeightsJob, ...]) -> None:
    """Raise RunError unless all prompts are encoded with the CLIP of the last Apply Adapter Weights."""
    for prompt in prompts:
        clip = source(graph, prompt, "clip")[0]
        if any(w.strength_clip is not None for w in weights) != (clip.type == WEIGHTS):
            raise RunError(
                f"{prompt.label} takes its CLIP from {clip.label}. Take both the model and the CLIP from "
                f"Apply Adapter Weights, or neither. {ELSEWHERE}"
            )


def _words(graph: Graph, node: Node) -> WordsJob:
    _refuse(graph, node, "places_of")
    percent, step = float(graph.value(node, "fuse_start_percent")), graph.value(node, "fuse_start_step")
    return WordsJob(*_encoded(graph, node), start_percent=percent, start_step=step, quirks=graph.value(node, "quirks"))


def _guidance(graph: Graph, at: Sampling, positive: Node) -> GuidanceJob | None:
    if at.guided.type != GUIDER:
        return None
    numbers = (float(graph.value(at.guided, name)) for name in ("second", "second_end", "start_percent", "end_percent"))
    middle = graph.source(at.guided, "middle")
    if middle is not None and (middle[0].id, middle[1]) != (positive.id, 1):
        raise RunError(
            f"'middle' of {at.guided.label} comes from {middle[0].label}, where the embedded engine knows "
            f"only 'text_only' of the positive prompt. {ELSEWHERE}"
        )
    return GuidanceJob(graph.value(at.guided, "method"), *numbers, text_only=middle is not None)


def _attention(graph: Graph, node: Node) -> AttentionJob:
    numbers = (
        "weight",
        "start_percent",
        "end_percent",
        "box_strength",
        "box_end_percent",
        "box_feather",
        "sharpness",
        "background",
    )
    return AttentionJob(
        *_encoded(graph, node),
        merge=graph.value(node, "merge"),
        **{name: float(graph.value(node, name)) for name in numbers},
    )


def _gated(graph: Graph, node: Node) -> GatedJob:
    numbers = ("strength", "end_percent", "decay_percent")
    return GatedJob(
        *_encoded(graph, node),
        use_bbox=graph.value(node, "use_bbox"),
        **{name: float(graph.value(node, name)) for name in numbers},
    )


def _encoded(graph: Graph, node: Node) -> tuple[Any, ...]:
    """The fields that every ApplyJob has, from the Encode node before an Apply node or Encode Prompt."""
    encode = feeding(graph, node, "references", ENCODE)
    load = feeding(graph, encode, "adapter", LOAD, REHEARSAL)
    _refuse(graph, encode, "clip_vision")
    chain = cast_nodes(graph, encode)
    subjects = tuple(_subject(graph, one) for one in chain if one.type == ADD)
    places = tuple(
        _place(graph, one, sum(before.type == ADD for before in chain[:i]))
        for i, one in enumerate(chain)
        if one.type == PLACE
    )
    return (
        _adapter_name(graph, load),
        "auto" if load.type == REHEARSAL else graph.value(load, "clip_vision_name"),
        graph.value(encode, "framing"),
        graph.source(encode, "clip") is not None,
        subjects,
        places,
    )


def _adapter_name(graph: Graph, load: Node) -> str:
    return str(graph.value(load, "adapter" if load.type == REHEARSAL else "adapter_name"))


def _reference(graph: Graph, node: Node, name: str) -> tuple[ReferenceJob, ...]:
    """The picture that Load Rehearsal Models gives to an input, () if another node does."""
    found = graph.source(node, name)
    if found is None or found[0].type != REHEARSAL or found[1] not in REFERENCE_SLOTS:
        return ()
    kinds = tuple(str(graph.value(found[0], f"subject_{n}")) for n in range(1, len(REFERENCE_SLOTS) + 1))
    return (ReferenceJob(kinds, REFERENCE_SLOTS.index(found[1])),)


def _place(graph: Graph, node: Node, subjects: int) -> PlaceJob:
    for name in ("bounding_boxes", "background", "latent"):
        _refuse(graph, node, name)
    size = [graph.value(*size_widget(graph, node, name)) for name in ("width", "height")]
    return PlaceJob(subjects, graph.value(node, "boxes"), graph.value(node, "layout"), *size)


def _subject(graph: Graph, node: Node) -> SubjectJob:
    for name in ("mask", "region"):
        _refuse(graph, node, name)
    loaders, faces = photo_nodes(graph, node), graph.source(node, "faces")
    if faces is not None and (
        faces[0].type != FACES
        or [photo.id for photo in photo_nodes(graph, faces[0])] != [photo.id for photo in loaders]
    ):
        raise RunError(f"The faces of {node.label} are not those of its own photos from Prepare Faces. {ELSEWHERE}")
    numbers = (float(graph.value(node, name)) for name in ("weight", "start_percent", "end_percent"))
    return SubjectJob(
        graph.value(node, "name"),
        tuple(str(graph.value(photo, "image")) for photo in loaders),
        *numbers,
        faces=faces is not None,
        drawn=tuple(one for name in PHOTO_INPUTS for one in _reference(graph, node, name)),
    )


def _quick(graph: Graph, node: Node) -> AttentionJob:
    _refuse(graph, node, "clip_vision")
    photos = {
        n: tuple(str(graph.value(p, "image")) for p in photo_nodes(graph, node, (f"image_{n}",)))
        for n in quick_numbers(graph, node)
    }
    subjects = tuple(SubjectJob(graph.value(node, f"name_{n}"), files) for n, files in photos.items())
    return AttentionJob(
        graph.value(node, "adapter_name"), "auto", "auto", True, subjects, weight=float(graph.value(node, "weight"))
    )


def _refuse(graph: Graph, node: Node, name: str) -> None:
    if graph.source(node, name) is not None:
        raise RunError(f"'{name}' of {node.label} is wired. {ELSEWHERE}")
