"""What the command line changes in a workflow: photos, names, prompt, size, steps, seed.

Both engines then read the same edited workflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from .graph import Graph, Node, active_upstream
from .job import ADD, PHOTO_INPUTS, PLACE, QUICK, photo_nodes, quick_numbers, size_widget, text_node
from .photos import PLACEHOLDER, SAMPLES, real_photos
from .sampling_nodes import find_sampling


@dataclass(frozen=True)
class Changes:
    """None and () leave things as the workflow has them; size is (width, height) in pixels."""

    photos: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    prompt: str | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Edited:
    """The changed workflow, and the photo behind every file name that its LoadImage nodes now hold."""

    workflow: dict[str, Any]
    photos: dict[str, Path]


@dataclass(frozen=True, eq=False)
class SubjectPlace:
    """The place of one subject in a workflow: the node and widget of its name, and its LoadImage nodes."""

    node: Node
    widget: str
    photos: tuple[Node, ...]


def edit(workflow: dict[str, Any], changes: Changes, folders: Sequence[Path] = ()) -> Edited:
    """Apply the changes. ComfyUI's example picture becomes the two sample photos in turn; other names are looked up in
    `folders`, then among the samples.

    Raises:
        RunError: more photos or names than subjects, or a photo that is not there.
    """
    graph = Graph(workflow)
    places = subject_places(graph)
    if not places:
        raise RunError("The workflow has no subject. Add a Quick Subjects or an Add Subject node with a photo.")
    _write_names(graph, places, changes.names)
    photos = _write_photos(graph, places, changes.photos, folders)
    if changes.prompt is not None:
        graph.write(text_node(graph, find_sampling(graph).guided, "positive"), "text", changes.prompt)
    if changes.steps is not None:
        graph.write(find_sampling(graph).schedule, "steps", changes.steps)
    if changes.seed is not None:
        graph.write(*find_sampling(graph).seed, changes.seed)
    if changes.size is not None:
        _write_size(graph, changes.size)
    return Edited(graph.workflow, photos)


def subject_places(graph: Graph) -> list[SubjectPlace]:
    """Return all subjects: the chain of Add Subject nodes first to last, and the used places of Quick Subjects."""
    adds = sorted(
        graph.of_type(ADD), key=lambda node: sum(before.type == ADD for before in active_upstream(graph, node))
    )
    places = [SubjectPlace(node, "name", tuple(photo_nodes(graph, node, PHOTO_INPUTS))) for node in adds]
    for node in graph.of_type(QUICK):
        places += [
            SubjectPlace(node, f"name_{n}", tuple(photo_nodes(graph, node, (f"image_{n}",))))
            for n in quick_numbers(graph, node)
        ]
    return places


def _write_names(graph: Graph, places: list[SubjectPlace], names: Sequence[str]) -> None:
    if len(names) > len(places):
        raise RunError(
            f"{len(names)} names were given for {len(places)} subjects in the workflow. Give at most "
            f"{len(places)}, or add a subject to the workflow."
        )
    for place, name in zip(places, names, strict=False):
        graph.write(place.node, place.widget, name)


def _write_photos(
    graph: Graph, places: list[SubjectPlace], given: Sequence[Path], folders: Sequence[Path]
) -> dict[str, Path]:
    """Give every LoadImage a file name of its own, the given photos first.

    Two subjects on one LoadImage share its photo.
    """
    loaders = list({node.id: node for place in places for node in place.photos}.values())
    if len(given) > len(loaders):
        raise RunError(
            f"{len(given)} photos were given for {len(loaders)} Load Image nodes of subjects. Give at most "
            f"{len(loaders)}, or add Load Image nodes to the workflow."
        )
    files: dict[str, Path] = {}
    for i, node in enumerate(loaders):
        present = str(graph.value(node, "image"))
        path = given[i] if i < len(given) else _present(present, folders, i)
        if not path.is_file():
            raise RunError(f"There is no photo at {path}. Give a picture file with --photo.")
        name = f"photo_{i + 1}{path.suffix.lower()}"
        graph.write(node, "image", name)
        files[name] = path
    return files


def _present(name: str, folders: Sequence[Path], number: int) -> Path:
    """The file behind a LoadImage's own value."""
    if name == PLACEHOLDER:
        real = real_photos()
        return real[number % len(real)]
    found = next((folder / name for folder in (*folders, SAMPLES) if (folder / name).is_file()), None)
    if found is None:
        raise RunError(
            f"The workflow's photo '{name}' is not in "
            f"{' or '.join(map(str, folders)) or 'any known input folder'}. Give it with --photo."
        )
    return found


def _write_size(graph: Graph, size: tuple[int, int]) -> None:
    """Into the latent node, or the Place Subjects node that it has its size from; other Place Subjects nodes lay out
    the same picture.
    """
    found = graph.source(find_sampling(graph).node, "latent_image")
    if found is None or not {"width", "height"} <= found[0].widget_places().keys():
        raise RunError(
            "The size of this picture is not set by a latent node with 'width' and 'height', so --size has "
            "nothing to change. Leave it out."
        )
    for widget, value in zip(("width", "height"), size, strict=True):
        for node in (found[0], *graph.of_type(PLACE)):
            graph.write(*size_widget(graph, node, widget), value)
