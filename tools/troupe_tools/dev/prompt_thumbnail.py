"""Thumbnail of the rehearsal template that puts subjects into the prompt: its references, and both pictures."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageDraw

from ..pack import hide_broken_torchaudio, load_pack
from ..workflow.graph import Graph
from ..workflow.sampling_nodes import source
from .rehearsal_thumbnails import KEYS, cast_behind, encoded, image_of, show
from .thumbnail_style import DIM, INK, MARGIN, OURS, PAPER, SCALE, SIZE, font

FUSED = 0  # output of Encode Prompt with Subjects; the other one is the prompt alone


def paint_with_and_without(workflow: dict[str, Any]) -> tuple[Any, dict[bool, torch.Tensor]]:
    """Paint on the embedded engine with the shipped files: (the cast, {with references: [1, 128, 128, 3] in 0..1})."""
    hide_broken_torchaudio()
    load_pack()
    from troupe.model_patches.hosts.diffusers.prompt import encode_prompt
    from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, sample
    from troupe.rehearsal import codec
    from troupe.rehearsal.engine.paint import load_rehearsal, scheduler

    graph = Graph(workflow)
    [load], [node] = (graph.of_type(kind) for kind in ("TroupeRehearsal", "TroupeEncodePrompt"))
    models = load_rehearsal(in_prompt=True)
    key = KEYS[graph.value(load, "adapter")]
    cast = cast_behind(graph, source(graph, node, "references")[0])[1]
    text, start = graph.value(node, "text"), graph.value(node, "fuse_start_percent")
    fused, plain = encode_prompt(models.texts, encoded(models, key, cast), text, start)
    weights = [(models.adapters[key], graph.value(graph.of_type("TroupeApplyWeights")[0], "strength_model"))]
    found = {}
    for sampler in graph.of_type("KSampler"):
        size = source(graph, sampler, "latent_image")[0]
        settings = SamplingSettings(
            *(graph.value(size, name) for name in ("width", "height")),
            graph.value(sampler, "steps"),
            float(graph.value(sampler, "cfg")),
            graph.value(sampler, "seed"),
        )
        with_them = source(graph, sampler, "positive")[1] == FUSED
        negative = models.texts.encode_prompt(graph.value(source(graph, sampler, "negative")[0], "text"))
        positive = fused if with_them else plain
        latent = sample(models.unet, scheduler(), positive, negative, settings, weights=weights)
        found[with_them] = (codec.decode(latent) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    return cast, found


def prompt_thumbnail(workflow: dict[str, Any], title: str) -> Image.Image:
    """Draw an 800x600 picture: the references, and the pictures with and without them."""
    cast, painted = paint_with_and_without(workflow)
    canvas = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN * SCALE, 20 * SCALE), title, INK, font(34))
    for i, subject in enumerate(cast.subjects):
        picture = image_of(subject.photos[0].image[None])
        show(canvas, draw, picture, (MARGIN, 86 + 190 * i, 146), f"reference: {subject.name}")
    show(canvas, draw, image_of(painted[True]), (MARGIN + 162, 86, 280), "with the references", OURS)
    show(canvas, draw, image_of(painted[False]), (MARGIN + 460, 86, 280), "without, same seed")
    foot = "photos as words of the prompt; nothing to download, seconds on a CPU"
    draw.text((MARGIN * SCALE, (SIZE[1] - 34) * SCALE), foot, DIM, font(16))
    return canvas.resize(SIZE, Image.Resampling.LANCZOS)
