"""Thumbnails of the rehearsal templates: what their workflow paints with the models that come with the pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw

from ..pack import hide_broken_torchaudio, load_pack
from ..workflow.graph import Graph, Node
from ..workflow.sampling_nodes import source
from .thumbnail_style import DIM, INK, MARGIN, OURS, PAPER, SCALE, SIZE, font

GAP = 12


@dataclass(frozen=True, eq=False)
class PaintedMerge:
    """One sampler's picture and relevance maps. name: of its merge, with boxes where the cast has some."""

    name: str
    picture: Image.Image
    maps: Image.Image


def paint_rehearsal(workflow: dict[str, Any]) -> tuple[list[tuple[str, Image.Image]], list[PaintedMerge]]:
    """Paint on the embedded engine with the shipped files: (name and reference picture of each subject, what each
    sampler paints).
    """
    hide_broken_torchaudio()
    load_pack()
    from troupe.model_patches.relevance.maps import RecordedRun
    from troupe.model_patches.relevance.pictures import draw_maps
    from troupe.rehearsal.engine.paint import load_rehearsal, paint
    from troupe.rehearsal.files import OFFERED

    graph = Graph(workflow)
    [load] = graph.of_type("TroupeRehearsal")
    models, key = load_rehearsal(), OFFERED[graph.value(load, "adapter")]
    painted: list[PaintedMerge] = []
    subjects: Sequence[Any] = ()
    for preview in graph.of_type("TroupePreviewRelevance"):
        record, sampler = (_source(graph, preview, name) for name in ("record", "latent"))
        apply = _source(graph, record, "model")
        boxed, cast = cast_of(graph, apply)
        subjects = cast.subjects
        prompt, maps = graph.value(_source(graph, apply, "positive"), "text"), []
        settings = {name: graph.value(apply, name) for name in ("merge", "weight", "sharpness")}
        made = paint(
            models,
            prompt,
            graph.value(sampler, "seed"),
            encoded(models, key, cast),
            **settings,
            record=maps,
            steps=graph.value(sampler, "steps"),
            cfg=float(graph.value(sampler, "cfg")),
        )
        drawn = draw_maps(RecordedRun("all", tuple(maps)), made.shape[-2:], made.movedim(1, -1))
        painted.append(
            PaintedMerge(
                settings["merge"] + (" with boxes" if boxed else ""), image_of(made.movedim(1, -1)), image_of(drawn)
            )
        )
    return [(subject.name, image_of(subject.photos[0].image[None])) for subject in subjects], painted


def rehearsal_thumbnail(workflow: dict[str, Any], title: str) -> Image.Image:
    """Draw an 800x600 picture: the title, the references, and the picture with its maps; for several samplers, all
    pictures in a row with their maps below.
    """
    references, painted = paint_rehearsal(workflow)
    canvas = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN * SCALE, 20 * SCALE), title, INK, font(34))
    if len(painted) == 1:
        for i, (name, picture) in enumerate(references):
            draw_labelled(canvas, draw, picture, (MARGIN, 86 + 190 * i, 146), f"reference: {name}")
        draw_labelled(canvas, draw, painted[0].picture, (MARGIN + 162, 86, 426), "the picture", OURS)
        maps = painted[0].maps
        draw_labelled(
            canvas,
            draw,
            maps.crop((maps.width // 2, 0, maps.width, maps.height)),
            (MARGIN + 604, 86, 140),
            "where each acted",
        )
        foot = "nothing to download, seconds on a CPU"
    elif len(painted) == 2:
        for i, (name, picture) in enumerate(references):
            draw_labelled(canvas, draw, picture, (MARGIN, 86 + 190 * i, 146), f"reference: {name}")
        for i, lane in enumerate(painted):
            left = MARGIN + 172 + 300 * i
            draw_labelled(canvas, draw, lane.picture, (left, 86, 288), lane.name, OURS)
            draw_labelled(canvas, draw, lane.maps, (left, 412, 144), "")
        foot = "one adapter, one seed, two ways to share the picture; below: where each name is relevant"
    else:
        side = (SIZE[0] - 2 * MARGIN - GAP * (len(painted) - 1)) // len(painted)
        for i, (name, picture) in enumerate(references):
            draw_labelled(canvas, draw, picture, (MARGIN + (side + GAP) * i, 82, 120), f"reference: {name}")
        for i, lane in enumerate(painted):
            draw_labelled(canvas, draw, lane.picture, (MARGIN + (side + GAP) * i, 240, side), lane.name, OURS)
            draw_labelled(canvas, draw, lane.maps, (MARGIN + (side + GAP) * i, 408, side), "")
        foot = "one seed, five ways to share the picture; below: where each name is relevant"
    draw.text((MARGIN * SCALE, (SIZE[1] - 34) * SCALE), foot, DIM, font(16))
    return canvas.resize(SIZE, Image.Resampling.LANCZOS)


def draw_labelled(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    picture: Image.Image,
    place: tuple[int, int, int],
    text: str,
    frame: Any = None,
) -> None:
    """Draw a picture `side` pixels wide at x, y, its text below it; every pixel of a small one is a square."""
    x, y, side = place
    height = round(side * picture.height / picture.width)
    enlarged = side * SCALE > picture.width  # reduced pictures are smooth
    canvas.paste(
        picture.resize(
            (side * SCALE, height * SCALE), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
        ),
        (x * SCALE, y * SCALE),
    )
    if frame is not None:
        draw.rectangle(
            [value * SCALE for value in (x - 2, y - 2, x + side + 1, y + height + 1)], outline=frame, width=2 * SCALE
        )
    draw.text((x * SCALE, (y + height + 4) * SCALE), text, INK, font(15))


def cast_of(graph: Graph, apply: Node) -> tuple[bool, Any]:
    """Return whether the subjects have boxes, and the cast that an Apply node's references were encoded from."""
    return cast_behind(graph, _source(graph, apply, "references"))


def cast_behind(graph: Graph, encode: Node) -> tuple[bool, Any]:
    """Return whether the subjects have boxes, and the cast that references were encoded from."""
    from troupe.model_patches.placement.placing import place_subjects
    from troupe.model_patches.subjects import Cast, make_subject
    from troupe.rehearsal.cast import called_for
    from troupe.rehearsal.world import reference

    node = _source(graph, encode, "cast")
    place = node if node.type == "TroupePlaceSubjects" else None
    node, subjects = _source(graph, node, "cast") if place else node, []
    while node is not None:
        subjects.insert(0, node)
        before = graph.source(node, "cast")
        node = before[0] if before else None
    [load] = graph.of_type("TroupeRehearsal")
    figures = called_for(", ".join(f"a {graph.value(load, f'subject_{n}')}" for n in (1, 2, 3)))
    cast = Cast()
    for number, subject in enumerate(subjects, 1):
        output = load.raw["outputs"][source(graph, subject, "image")[1]]["name"]
        figure = figures[int(output.removeprefix("image_")) - 1]
        picture = torch.from_numpy(reference(figure).copy())[None].float() / 255
        cast = cast.add(
            make_subject(graph.value(subject, "name"), [picture], number=number, weight=graph.value(subject, "weight"))
        )
    if place is None:
        return False, cast
    return True, place_subjects(cast, *(graph.value(place, name) for name in ("width", "height", "boxes", "layout")))[0]


def encoded(models: Any, key: str, cast: Any) -> Any:
    """Return the references of a cast for the adapter of a key."""
    from troupe.model_patches.hosts.diffusers.encoders import encode_references

    return encode_references(models.adapters[key], cast, models.images, models.texts)


def _source(graph: Graph, node: Node, name: str) -> Node:
    return source(graph, node, name)[0]


def image_of(picture: torch.Tensor) -> Image.Image:
    """Convert [1, h, w, 3] in 0..1 to a picture."""
    return Image.fromarray((picture[0] * 255).round().byte().numpy())
