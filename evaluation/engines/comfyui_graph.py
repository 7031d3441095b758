"""A task as a graph in ComfyUI's API format: built from the pack's nodes, or a user's own with placeholders."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...model_patches.errors import TroupeError
from ...rehearsal.sizes import VISION
from ..tasks import Task, TaskSubject

Value = str | int | float | bool
Graph = dict[str, dict[str, Any]]  # node id -> class_type and inputs

REHEARSAL = "rehearsal"  # as checkpoint: Load Rehearsal Models
LOADING = {"checkpoint": "", "adapter": "mip_adapter", "clip_vision": "auto", "framing": "auto", "layout": "none"}
PHOTO_SIDE = "photo_side"  # a square of so many pixels for photos of different sizes that go through one batch
SIDE = 224  # of the image encoders that adapters were published with
SAMPLING = {"width": 1024, "height": 1024, "steps": 30, "cfg": 5.0, "sampler": "euler", "scheduler": "normal"}
SMALL = {"width": 128, "height": 128, "steps": 20, "cfg": 5.0, "sampler": "euler", "scheduler": "simple"}
ATTENTION = {
    "weight": 0.65,
    "merge": "auto",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "box_strength": 1.0,
    "box_end_percent": 1.0,
    "box_feather": 0.05,
    "sharpness": 1.0,
    "background": 1.0,
}
NO_REFERENCES = {"weight": 0.0, "merge": "auto"}  # of the merge "none"
WORKFLOW, COUNT = "workflow", "{subjects}"  # a method's own workflow; in its name the number of subjects
BEFORE = {"boxes", PHOTO_SIDE, WORKFLOW}  # settings that have done their work before the graph is made
KNOWN = {"negative", *LOADING, *SAMPLING, *ATTENTION}
PHOTO_INPUTS = ("image", "same_subject_2", "same_subject_3", "same_subject_4")
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


class GraphError(TroupeError):
    """An error about a task, a method or a template from which no graph can be made."""


def build_graph(task: Task, photos: Mapping[str, str], settings: Mapping[str, Value]) -> Graph:
    """Return the graph of a task from a checkpoint to Save Image, with Apply Image Attention between.

    photos: the task's photos -> their names for Load Image. settings: `checkpoint` (a file, or "rehearsal") and
    `adapter`, and if wanted the widgets of Load Subject Adapter, Place Subjects, Encode Subject References, Apply Image
    Attention and KSampler by the names in LOADING, SAMPLING and ATTENTION, and `negative`. The merge "none" leaves the
    references without effect. More photos of a subject than Add Subject has inputs for go through Image Batch.
    Raises:
        GraphError: an unknown setting, no checkpoint, or a subject without a photo.
    """
    settings = {name: value for name, value in settings.items() if name not in BEFORE}
    unknown = sorted(settings.keys() - KNOWN)
    if unknown or not settings.get("checkpoint"):
        found = f"the unknown setting '{unknown[0]}'" if unknown else "none"
        raise GraphError("a checkpoint and settings that exist", found, f"Known: {', '.join(sorted(KNOWN))}.")
    small = settings["checkpoint"] == REHEARSAL
    given: dict[str, Any] = {**LOADING, **(SMALL if small else SAMPLING), **ATTENTION, "negative": "", **settings}
    if given["merge"] == "none":
        given |= NO_REFERENCES
    graph = _loaders(given, small)
    cast = _cast(graph, task, photos, given)
    graph |= {
        "positive": _node("CLIPTextEncode", clip=["checkpoint", 1], text=task.prompt),
        "negative": _node("CLIPTextEncode", clip=["checkpoint", 1], text=given["negative"]),
        "encode": _node(
            "TroupeEncodeSubjects",
            adapter=["checkpoint", 4] if small else ["adapter", 0],
            cast=cast,
            framing=given["framing"],
            clip=["checkpoint", 1],
        ),
        "apply": _node(
            "TroupeApplyImageAttention",
            model=["checkpoint", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            references=["encode", 0],
            **{name: given[name] for name in ATTENTION},
        ),
        "latent": _node("EmptyLatentImage", width=given["width"], height=given["height"], batch_size=1),
        "sample": _node(
            "KSampler",
            model=["apply", 0],
            positive=["apply", 1],
            negative=["apply", 2],
            latent_image=["latent", 0],
            seed=task.seed,
            steps=given["steps"],
            cfg=given["cfg"],
            sampler_name=given["sampler"],
            scheduler=given["scheduler"],
            denoise=1.0,
        ),
        "decode": _node("VAEDecode", samples=["sample", 0], vae=["checkpoint", 2]),
        "save": _node("SaveImage", images=["decode", 0], filename_prefix=f"troupe_evaluation/{task.key}"),
    }
    return graph


def workflow_of(settings: Mapping[str, Value], subjects: int) -> Path | None:
    """Return the file of a method's workflow for a number of subjects; None: the method has none."""
    name = str(settings.get(WORKFLOW, ""))
    return Path(name.replace(COUNT, str(subjects))) if name else None


def read_template(path: Path) -> Graph:
    """Return a workflow in API format with placeholders in its widgets, such as "${prompt}".

    Raises:
        GraphError: the file cannot be read, or is no workflow in API format.
    """
    remedy = "Save the workflow with 'Export (API)' in ComfyUI, and write the placeholders into that file."
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GraphError("a workflow in API format", f"{path}: {error}", remedy) from error
    nodes = list(graph.values()) if isinstance(graph, dict) else []
    if not nodes or not all(isinstance(node, dict) and "class_type" in node and "inputs" in node for node in nodes):
        raise GraphError("a workflow in API format", f"{path}, which is in another format", remedy)
    return graph


def fill_template(template: Graph, task: Task, photos: Mapping[str, str], settings: Mapping[str, Value]) -> Graph:
    """Return a template with the values of a task in the places of its placeholders.

    `prompt`, `seed`, `key` (the task's), `boxes` (for Place Subjects); for subject 1, 2, ... `name_1`, `photo_1` and of
    further photos `photo_1_2`, ..., or `photos_1`, a wire to a batch of all of them; every setting by its name. A
    widget that is nothing but a placeholder gets a value of its type.
    Raises:
        GraphError: a placeholder has no value, or there is none for the seed, the prompt, a photo, a box or a setting
            of the method, without which different tasks would have one picture.
    """
    values: dict[str, Any] = {**settings, "prompt": task.prompt, "seed": task.seed, "key": task.key}
    values["boxes"] = _boxes(task)
    used, batches = placeholders(template), Graph()
    needed = {"prompt", "seed", *task.method.settings} - BEFORE | {"boxes" for subject in task.subjects if subject.box}
    for i, subject in enumerate(task.subjects, 1):
        values[f"name_{i}"] = subject.name
        if batch_name(i) in used:
            values[batch_name(i)] = _batch(batches, f"troupe_{batch_name(i)}", [photos[one] for one in subject.photos])
            continue
        for n, photo in enumerate(subject.photos, 1):
            name = f"photo_{i}" if n == 1 else f"photo_{i}_{n}"
            values[name] = photos[photo]
            needed.add(name)
    graph: Graph = _filled(template, values) | batches
    wrong = sorted(used - values.keys()) or sorted(needed - used)
    if wrong:
        raise GraphError(
            f"a template for {len(task.subjects)} subjects",
            f"{'no value for' if used - values.keys() else 'no'} ${{{wrong[0]}}}",
            "Use one template for each number of subjects and photos.",
        )
    return graph


def placeholders(part: Any) -> set[str]:
    """Return the names of all placeholders in a template or a part of it."""
    if isinstance(part, dict):
        part = list(part.values())
    if isinstance(part, list):
        return set().union(*map(placeholders, part))
    return set(PLACEHOLDER.findall(part)) if isinstance(part, str) else set()


def batched(task: Task, template: Graph | None) -> list[TaskSubject]:
    """Return the subjects of a task whose photos go through one batch, and so have to be of one size."""
    if template is None:
        return [subject for subject in task.subjects if len(subject.photos) > len(PHOTO_INPUTS)]
    used = placeholders(template)
    return [subject for i, subject in enumerate(task.subjects, 1) if batch_name(i) in used]


def photo_side(settings: Mapping[str, Value]) -> int:
    """Return the side in pixels of the squares in which photos of different sizes are joined: the setting, or the size
    of the image encoder. Raises GraphError for a setting that is no number of pixels.
    """
    side = settings.get(PHOTO_SIDE, VISION["image_size"] if settings.get("checkpoint") == REHEARSAL else SIDE)
    if type(side) is not int or side < 1:
        raise GraphError(f"a number of pixels as '{PHOTO_SIDE}'", f"{side!r}", f"Write for example {SIDE}.")
    return side


def batch_name(number: int) -> str:
    """Return the placeholder for all photos of a subject, counted from 1."""
    return f"photos_{number}"


def _filled(part: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(part, dict):
        return {name: _filled(value, values) for name, value in part.items()}
    if isinstance(part, list):
        return [_filled(value, values) for value in part]
    if not isinstance(part, str):
        return part
    whole = PLACEHOLDER.fullmatch(part)
    if whole:
        return values.get(whole[1], part)
    return PLACEHOLDER.sub(lambda match: str(values.get(match[1], match[0])), part)


def _loaders(given: Mapping[str, Any], small: bool) -> Graph:
    if small:
        shown = {"subject_1": "cat", "subject_2": "robot", "subject_3": "bird"}  # its own pictures are not used
        return {"checkpoint": _node("TroupeRehearsal", adapter=given["adapter"], **shown)}
    return {
        "checkpoint": _node("CheckpointLoaderSimple", ckpt_name=given["checkpoint"]),
        "adapter": _node("TroupeLoadAdapter", adapter_name=given["adapter"], clip_vision_name=given["clip_vision"]),
    }


def _cast(graph: Graph, task: Task, photos: Mapping[str, str], given: Mapping[str, Any]) -> list[Any] | None:
    """Add the subjects to a graph, and return the wire of the whole cast."""
    cast: list[Any] | None = None
    for i, subject in enumerate(task.subjects, 1):
        if not subject.photos:
            raise GraphError(f"a photo of '{subject.name}'", "none", "Change the suite.")
        inputs: dict[str, Any] = {"name": subject.name, "weight": 1.0, "start_percent": 0.0, "end_percent": 1.0}
        names = [photos[photo] for photo in subject.photos]
        if len(names) > len(PHOTO_INPUTS):
            inputs[PHOTO_INPUTS[0]] = _batch(graph, f"photo_{i}", names)
        else:
            wires = [_loaded(graph, f"photo_{i}_{n}", name) for n, name in enumerate(names, 1)]
            inputs |= dict(zip(PHOTO_INPUTS, wires, strict=False))
        graph[f"subject_{i}"] = _node("TroupeAddSubject", **inputs, **({"cast": cast} if cast else {}))
        cast = [f"subject_{i}", 0]
    if not any(subject.box for subject in task.subjects) and given["layout"] == "none":
        return cast
    size = {"width": given["width"], "height": given["height"]}
    graph["place"] = _node("TroupePlaceSubjects", cast=cast, boxes=_boxes(task), layout=given["layout"], **size)
    return ["place", 0]


def _batch(graph: Graph, name: str, photos: Sequence[str]) -> list[Any]:
    """Add photos of one size to a graph, and return the wire of a batch of them. Image Batch joins two at a time."""
    wire = _loaded(graph, f"{name}_1", photos[0])
    for n, photo in enumerate(photos[1:], 2):
        graph[f"{name}_to_{n}"] = _node("ImageBatch", image1=wire, image2=_loaded(graph, f"{name}_{n}", photo))
        wire = [f"{name}_to_{n}", 0]
    return wire


def _loaded(graph: Graph, name: str, photo: str) -> list[Any]:
    graph[name] = _node("LoadImage", image=photo)
    return [name, 0]


def _boxes(task: Task) -> str:
    named = (subject.box and dict(zip("xywh", subject.box, strict=True)) for subject in task.subjects)
    return json.dumps(list(named))


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
