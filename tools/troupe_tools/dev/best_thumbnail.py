"""Thumbnail of the template that keeps the best of a batch: its pictures, scored, with the best in a frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw

from ..pack import hide_broken_torchaudio, load_pack
from ..workflow.graph import Graph
from ..workflow.sampling_nodes import source
from .rehearsal_thumbnails import cast_of, draw_labelled, encoded, image_of
from .thumbnail_style import DIM, INK, MARGIN, OURS, PAPER, SCALE, SIZE, font

COLUMNS, SIDE, SPACE = 3, 150, 14  # pictures in a row, and pixels of one and between two


@dataclass(frozen=True, eq=False)
class Scored:
    """Result of a template with Score Subjects. pictures [n, h, w, 3] in 0..1; scores: a `scoring.Scores`; best: the
    number of the best picture.
    """

    pictures: torch.Tensor
    scores: Any
    best: int


def paint_scored(workflow: dict[str, Any]) -> Scored:
    """Paint and score on the embedded engine with the shipped files. The template scores by colours.

    Raises ValueError for another way of scoring.
    """
    hide_broken_torchaudio()
    load_pack()
    from troupe.model_patches.scores.choice import best
    from troupe.model_patches.scores.colours import NAME, ColourPictures
    from troupe.model_patches.scores.finding import Found, Wanted, regions_in
    from troupe.model_patches.scores.scoring import looks_of_cast, score_pictures
    from troupe.rehearsal.engine.paint import load_rehearsal, paint
    from troupe.rehearsal.files import OFFERED

    graph = Graph(workflow)
    [load], [node], [sampler] = (graph.of_type(t) for t in ("TroupeRehearsal", "TroupeScoreSubjects", "KSampler"))
    apply = source(graph, sampler, "model")[0]
    cast = cast_of(graph, apply)[1]
    models = load_rehearsal()
    pictures = paint(
        models,
        graph.value(source(graph, apply, "positive")[0], "text"),
        graph.value(sampler, "seed"),
        encoded(models, OFFERED[graph.value(load, "adapter")], cast),
        **{name: graph.value(apply, name) for name in ("merge", "weight", "sharpness", "box_feather")},
        batch=graph.value(source(graph, sampler, "latent_image")[0], "batch_size"),
        steps=graph.value(sampler, "steps"),
        cfg=float(graph.value(sampler, "cfg")),
    ).movedim(1, -1)
    if graph.value(node, "encoder") != NAME:
        raise ValueError(f"the thumbnail scores by {NAME} only")
    encoder = ColourPictures()
    regions = regions_in(
        [Wanted(s.name, s.box, s.region) for s in cast.subjects], Found(), len(pictures), tuple(pictures.shape[2:0:-1])
    )
    scores = score_pictures(pictures, looks_of_cast(cast, encoder), regions, encoder, graph.value(node, "threshold"))
    return Scored(pictures, scores, best([one.score for one in scores.pictures], 1)[0])


def best_thumbnail(workflow: dict[str, Any], title: str) -> Image.Image:
    """Draw an 800x600 picture: every picture with its score, the best one in a frame, and that one's matrix."""
    found = paint_scored(workflow)
    from troupe.model_patches.scores.pictures import draw_matrices  # the pack is loaded now

    canvas = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN * SCALE, 20 * SCALE), title, INK, font(34))
    for i, (picture, one) in enumerate(zip(found.pictures, found.scores.pictures, strict=True)):
        x, y = MARGIN + i % COLUMNS * (SIDE + SPACE), 90 + i // COLUMNS * (SIDE + 50)
        text = f"{one.right} of {len(one.verdicts)} right, {one.score:.2f}"
        draw_labelled(canvas, draw, image_of(picture[None]), (x, y, SIDE), text, OURS if i == found.best else None)
    x = MARGIN + COLUMNS * (SIDE + SPACE) + 14
    matrix = image_of(draw_matrices(found.scores)[found.best][None])
    draw_labelled(canvas, draw, matrix, (x, 90, SIZE[0] - MARGIN - x), "Score Subjects of the best")
    foot = "six pictures of one run; the one in the frame is kept"
    draw.text((MARGIN * SCALE, (SIZE[1] - 34) * SCALE), foot, DIM, font(16))
    return canvas.resize(SIZE, Image.Resampling.LANCZOS)
