"""Thumbnail of the rehearsal template that puts subjects into the prompt: its references, and both pictures."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageDraw

from ..pack import hide_broken_torchaudio, load_pack
from ..workflow.graph import Graph, Node
from ..workflow.sampling_nodes import source
from .rehearsal_thumbnails import cast_behind, draw_labelled, encoded, image_of
from .thumbnail_style import DIM, INK, MARGIN, OURS, PAPER, SCALE, SIZE, font

LAYERED = ("TroupeApplyGated", "TroupeApplyImageAttention")
FUSED = 0  # output of Encode Prompt with Subjects; the other one is the prompt alone


def paint_with_and_without(workflow: dict[str, Any]) -> tuple[Any, dict[bool, torch.Tensor]]:
    """Paint on the embedded engine with the shipped files: (the cast, {with references: [1, 128, 128, 3] in 0..1})."""
    hide_broken_torchaudio()
    load_pack()
    from troupe.model_patches.binding.settings import GatedSettings, ImageAttentionSettings, mixing_for
    from troupe.model_patches.hosts.diffusers.prompt import encode_prompt
    from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, sample
    from troupe.model_patches.hosts.diffusers.weights import text_encoder_weights
    from troupe.rehearsal import codec
    from troupe.rehearsal.engine.paint import load_rehearsal, scheduler
    from troupe.rehearsal.files import OFFERED

    graph = Graph(workflow)
    [load], [node] = (graph.of_type(kind) for kind in ("TroupeRehearsal", "TroupeEncodePrompt"))
    models = load_rehearsal(in_prompt=True)
    key = OFFERED[graph.value(load, "adapter")]
    cast = cast_behind(graph, source(graph, node, "references")[0])[1]
    text, start = graph.value(node, "text"), graph.value(node, "fuse_start_percent")
    samplers, own = graph.of_type("KSampler"), graph.of_type("TroupeApplyWeights")
    for_unet, for_texts = ([graph.value(node, name) for node in own] for name in ("strength_model", "strength_clip"))
    adapter = models.adapters[key]
    with text_encoder_weights(models.texts, adapter.weights, *for_texts):
        references = encoded(models, key, cast)
        fused, plain = encode_prompt(models.texts, references, text, start)
        negatives = [models.texts.encode_prompt(graph.value(_text_of(graph, sampler), "text")) for sampler in samplers]
    weights = [(adapter, strength) for strength in for_unet]
    widgets = ("strength", "end_percent", "decay_percent", "use_bbox", "in_crops")
    layers: list[Any] = [
        (references, GatedSettings(*(graph.value(apply, name) for name in widgets)))
        for apply in graph.of_type("TroupeApplyGated")
    ]
    for apply in graph.of_type("TroupeApplyImageAttention"):
        merge, sharpness = graph.value(apply, "merge"), graph.value(apply, "sharpness")
        settings = ImageAttentionSettings(graph.value(apply, "weight"), mixing_for(references, merge, sharpness))
        layers.append((references, settings))
    found = {}
    for sampler, negative in zip(samplers, negatives, strict=True):
        size = source(graph, sampler, "latent_image")[0]
        sampling = SamplingSettings(
            *(graph.value(size, name) for name in ("width", "height")),
            graph.value(sampler, "steps"),
            float(graph.value(sampler, "cfg")),
            graph.value(sampler, "seed"),
        )
        with_them = _behind_apply(graph, sampler, "positive")[1] == FUSED
        positive, applied = (fused, layers) if with_them else (plain, [])
        latent = sample(models.unet, scheduler(), positive, negative, sampling, applied, weights=weights)
        found[with_them] = (codec.decode(latent) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    return cast, found


def _behind_apply(graph: Graph, node: Node, name: str) -> tuple[Node, int]:
    """The node and output that an input comes from, through a node that applies the references to layers."""
    before, output = source(graph, node, name)
    return source(graph, before, name) if before.type in LAYERED else (before, output)


def _text_of(graph: Graph, sampler: Node) -> Node:
    return _behind_apply(graph, sampler, "negative")[0]


def prompt_thumbnail(workflow: dict[str, Any], title: str) -> Image.Image:
    """Draw an 800x600 picture: the references, and the pictures with and without them."""
    cast, painted = paint_with_and_without(workflow)
    canvas = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN * SCALE, 20 * SCALE), title, INK, font(34))
    for i, subject in enumerate(cast.subjects):
        picture = image_of(subject.photos[0].image[None])
        draw_labelled(canvas, draw, picture, (MARGIN, 86 + 190 * i, 146), f"reference: {subject.name}")
    draw_labelled(canvas, draw, image_of(painted[True]), (MARGIN + 162, 86, 280), "with the references", OURS)
    draw_labelled(canvas, draw, image_of(painted[False]), (MARGIN + 460, 86, 280), "without, same seed")
    boxed = any(subject.box for subject in cast.subjects)
    foot = f"photos as words of the prompt{' and in boxes' if boxed else ''}; nothing to download, seconds on a CPU"
    draw.text((MARGIN * SCALE, (SIZE[1] - 34) * SCALE), foot, DIM, font(16))
    return canvas.resize(SIZE, Image.Resampling.LANCZOS)
