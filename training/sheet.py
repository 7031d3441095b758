"""The validation sheet: training captions painted without, with and with exchanged references, on the embedded engine.

It is painted as users paint: the adapter in its published layout, encoded and sampled by `hosts.diffusers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..model_patches.adapter import Adapter, GatedSpec, ImageAttentionSpec, PromptSpec
from ..model_patches.binding.settings import GatedSettings, ImageAttentionSettings, mixing_for
from ..model_patches.encoding.framing import bounding_box, flatten_alpha
from ..model_patches.hosts.diffusers.encoders import encode_references
from ..model_patches.hosts.diffusers.prompt import encode_prompt
from ..model_patches.hosts.diffusers.sampling import SamplingSettings, sample
from ..model_patches.hosts.diffusers.weights import text_encoder_weights
from ..model_patches.subjects import Box, Cast, Photo, References, Subject
from .config.schema import SheetConfig
from .data.pictures import write_whole
from .examples.example import Example
from .model.base import Base
from .model.captions import plain, unmarked
from .recipes.recipe import Trainee

COLUMNS = ("training picture", "references", "without", "with", "exchanged")
NO_OTHER = "no other reference"  # in the last column of a set with one subject
LEAST, LINE, MARGIN = 128, 18, 4  # pixels: side of a shown picture, height of a text line, distance
PAPER, INK = (255, 255, 255), (30, 30, 34)


def paint_sheet(trainee: Trainee, examples: Sequence[Example], settings: SheetConfig, size: int, path: Path) -> Path:
    """Paint one row for each picture into a PNG file. size: S, side of the painted pictures in pixels.

    Exchanged: each subject gets the next one's reference; a lone subject that of another row. With one row of one
    subject there is none, and the sheet says so.
    """
    trainee.finish()
    adapter, rows = trainee.adapter(), []
    for i, example in enumerate(examples):
        cast = cast_of(example)
        given = [None, cast]
        if len(examples) > 1 or len(cast.subjects) > 1:
            given.append(swapped_references(example, examples[(i + 1) % len(examples)]))
        if adapter.spec.has(GatedSpec):
            given = [each if each is None else boxed_as(example, each) for each in given]
        painted = [paint(trainee.base, adapter, example.caption, each, settings, size) for each in given]
        rows.append([(example.pixels.permute(1, 2, 0) + 1) / 2, _photos(cast, size), *painted])
    write_whole(_drawn(rows, [example.caption for example in examples]), path)
    return path


def paint(
    base: Base, adapter: Adapter, caption: str, cast: Cast | None, settings: SheetConfig, size: int
) -> torch.Tensor:
    """Paint one picture, [S, S, 3] in 0..1, with the adapter's weights of the base. cast: None for none."""
    applied: list[tuple[References, Any]] = []
    with text_encoder_weights(base.texts, adapter.weights):
        positive, negative = base.texts.encode_prompt(plain(caption)), base.texts.encode_prompt("")
        if cast is not None:
            references = encode_references(adapter, cast, base.images, base.texts)
            if adapter.spec.has(PromptSpec):
                positive, _ = encode_prompt(base.texts, references, unmarked(caption), settings.start_percent)
            if adapter.spec.has(ImageAttentionSpec):
                applied = [(references, ImageAttentionSettings(settings.weight, mixing_for(references, "auto")))]
            if adapter.spec.has(GatedSpec):
                applied = [(references, GatedSettings(settings.weight, use_bbox="on"))]
    weights = [(adapter, 1.0)] if adapter.weights.unet or adapter.weights.unet_lora else []
    latent = sample(
        base.unet,
        base.sampler(),
        positive,
        negative,
        SamplingSettings(size, size, settings.steps, settings.cfg, settings.seed),
        applied,
        weights=weights,
    )
    with torch.no_grad():
        return (base.decode(latent)[0].float().cpu().permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)


def cast_of(example: Example) -> Cast:
    """Return a picture's subjects as an artist would give them; the picture itself for one without subjects."""
    if not example.subjects:
        return Cast((Subject("picture", (Photo((example.pixels.permute(1, 2, 0) + 1) / 2),)),))
    return Cast(tuple(Subject(subject.name, (subject.photo,)) for subject in example.subjects))


def swapped_references(example: Example, other: Example) -> Cast:
    """Return the cast with each subject's photo from the next one; a lone subject's from the other picture."""
    cast = cast_of(example)
    donors = cast.subjects if len(cast.subjects) > 1 else (*cast.subjects, *cast_of(other).subjects[:1])
    each = zip(cast.subjects, donors[1:] + donors[:1], strict=False)
    return Cast(tuple(replace(subject, photos=donor.photos) for subject, donor in each))


def boxed_as(example: Example, cast: Cast) -> Cast:
    """Return the cast with each subject in the box of its mask in the picture; at weight 0 if it is outside, without a
    box if it has no mask.
    """
    masks = [subject.mask for subject in example.subjects] or [None] * len(cast.subjects)
    each = zip(cast.subjects, masks, strict=True)
    return Cast(tuple(subject if mask is None else _boxed(subject, mask) for subject, mask in each))


def _boxed(subject: Subject, mask: torch.Tensor) -> Subject:
    found, (h, w) = bounding_box(mask), mask.shape
    if found is None:
        return replace(subject, weight=0.0)
    top, left, bottom, right = found
    return replace(subject, box=Box(left / w, top / h, (right - left) / w, (bottom - top) / h))


def _photos(cast: Cast, size: int) -> torch.Tensor:
    """The first photo of each of up to four subjects in a square, [S, S, 3]."""
    count = 1 if len(cast.subjects) == 1 else 2
    side, square = size // count, np.full((size, size, 3), 255, np.uint8)
    for i, subject in enumerate(cast.subjects[: count * count]):
        photo = _to_image(flatten_alpha(subject.photos[0].image[None])[0])
        photo.thumbnail((side, side))
        top, left = side * (i // count), side * (i % count)
        square[top : top + photo.height, left : left + photo.width] = np.asarray(photo)
    return torch.from_numpy(square).float() / 255


def _drawn(rows: Sequence[Sequence[torch.Tensor]], captions: Sequence[str]) -> Image.Image:
    side = max(rows[0][2].shape[0], LEAST)
    step, height = side + MARGIN, side + LINE + MARGIN
    sheet = Image.new("RGB", (len(COLUMNS) * step + MARGIN, LINE + len(rows) * height + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for j, title in enumerate(COLUMNS):
        draw.text((MARGIN + j * step, MARGIN), title, INK)
    for i, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        top = LINE + MARGIN + i * height
        draw.text((MARGIN, top), caption[:side], INK)
        for j, picture in enumerate(row):
            shown = _to_image(picture).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(shown, (MARGIN + j * step, top + LINE))
        if len(row) < len(COLUMNS):
            draw.text((MARGIN + len(row) * step, top + LINE + side // 2), NO_OTHER, INK)
    return sheet


def _to_image(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().numpy())
