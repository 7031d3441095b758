"""What a run leaves beside its picture: the references as the encoder saw them, and how far each subject reached.

Also the mark on a picture that is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

NOT_A_PICTURE = "NOT_A_PICTURE_random_weights.png"
NOISE = (
    "This picture is NOISE: the models have random weights. It only shows that every node ran (the plumbing), "
    "and says nothing about likeness."
)
FACE = ("NOT A PICTURE", "random weights: this only", "proves the plumbing")
SMALLEST = 512  # pixels; a smaller one is enlarged, so that the mark can be read


def facts_of(references: Any) -> dict[str, Any]:
    """Return the facts about References that do not depend on weights, as plain data."""
    spec = references.adapter.spec
    subjects = [
        {"name": s.name, "has": [*_what(s), *(["box"] if s.box else [])], "weight": s.weight}
        for s in references.subjects
    ]
    layers, places = spec.acts_in
    return {"adapter": spec.file, "kind": spec.describe(), "layers": layers, "places": places, "subjects": subjects}


def _what(subject: Any) -> list[str]:
    """What a subject brings: features for gated layers, or tokens."""
    count = len(next(iter(subject.words.values()))) if subject.words else 0
    words = [f"{count} word{'' if count == 1 else 's'} in the prompt"] if count else []
    if subject.features is not None:
        return [
            name
            for name, feature in (("phrase", subject.features.text), ("photo", subject.features.image))
            if feature is not None
        ] + words
    if subject.tokens is None:
        return words
    count = None if subject.name_tokens is None else len(subject.name_tokens)
    return [
        f"{len(subject.tokens)} image tokens",
        "no name tokens (no CLIP wired)" if count is None else f"{count} name token{'' if count == 1 else 's'}",
        *words,
    ]


def save_previews(references: Any, folder: Path, first: int = 1) -> list[Path]:
    """Write each photo as the encoder saw it, reference_<n>.png."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"reference_{i}.png" for i in range(first, first + len(references.previews))]
    for path, picture in zip(paths, references.previews, strict=True):
        to_image(picture).save(path)
    return paths


def to_image(picture: Any) -> Image.Image:
    """Convert a tensor [H, W, 3] in 0..1 to a picture."""
    return Image.fromarray((picture.detach().float().cpu().clamp(0, 1) * 255).round().numpy().astype(np.uint8))


def report_text(facts: list[dict[str, Any]], reached: list[int], lines: list[str], random: bool) -> str:
    """Return the report: for each Apply node its adapter and subjects.

    Arguments:
        facts: one entry an Apply node, from `facts_of`.
        reached: layers in which each of them acted, 0 if it did nothing.
        lines: what the run said besides.
    """
    text = [NOISE, ""] if random else []
    for fact, layers in zip(facts, reached, strict=True):
        text.append(f"{fact['adapter']}: {fact['kind']}; it acted in {layers} of {fact['layers']} {fact['places']}")
        for number, s in enumerate(fact["subjects"], 1):
            text.append(
                f"  subject {number} '{s['name']}': {layers} "
                f"{'layers' if 'layers' in fact['places'] else fact['places']}, {', '.join(s['has'])}, "
                f"weight {s['weight']:g}"
            )
    return "\n".join([*text, *([""] if lines else []), *lines]) + "\n"


def marked(picture: Image.Image) -> Image.Image:
    """Return the picture with NOT A PICTURE across its face."""
    factor = max(1, -(-SMALLEST // min(picture.size)))
    large = picture.convert("RGB").resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large, "RGBA")
    unit = min(large.size) / 512
    middle, top = large.width / 2, large.height / 2 - 90 * unit
    draw.rectangle((0, top, large.width, top + 180 * unit), (20, 20, 24, 225))
    for line, size, y in zip(FACE, (52, 28, 28), (52, 105, 142), strict=True):
        draw.text((middle, top + y * unit), line, (255, 210, 90), ImageFont.load_default(size * unit), anchor="mm")
    return large
