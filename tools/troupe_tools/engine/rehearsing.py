"""The first command on a machine without model files: a real picture from the small models that come with the pack, and
the same seed with every merge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..errors import RunError
from ..pack import hide_broken_torchaudio, load_pack

PROMPT, SEED, STEPS = "a cat and a robot on grass", 0, 20
SHOWN = 512  # pixels of the picture's side
COMPARED = ("uniform", "joint", "add", "relevance")
LABEL, MARGIN, INK, PAPER = 26, 12, (30, 30, 34), (255, 255, 255)
ABOUT = (
    "This is Troupe's rehearsal world: a small model trained on drawn pictures of 128x128 pixels (shown "
    "enlarged, each pixel a square). It shows every "
    "part at work, on subjects that were held out of training; benchmarks/CONFUSION.md counts how often "
    "each keeps its own look. It says nothing about how well "
    "the real models reproduce a photo."
)
ONLY_ITS_CAST = (
    "The rehearsal models only know their own drawn subjects and cannot use your photo. `python "
    "tools/run.py --list-missing` lists the model files that photos need, with links; "
    "without --photo the rehearsal runs."
)


@dataclass(frozen=True, eq=False)
class Rehearsed:
    """The result of a rehearsal: the picture, the comparison sheet, and sentences about them."""

    picture: Image.Image
    comparison: Image.Image
    lines: tuple[str, ...]


def rehearse(
    prompt: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Rehearsed:
    """Paint the prompt's cast with every merge of `COMPARED` at one seed.

    Raises RunError for a prompt that names nobody of the cast, or a shipped file that is damaged.
    """
    hide_broken_torchaudio()
    load_pack()
    from troupe.model_patches.errors import TroupeError
    from troupe.model_patches.relevance.maps import RecordedRun, report
    from troupe.rehearsal.cast import called_for, words
    from troupe.rehearsal.engine.paint import encode, load_rehearsal, paint
    from troupe.rehearsal.world import MOST, reference

    prompt, seed, steps = (
        PROMPT if prompt is None else prompt,
        SEED if seed is None else seed,
        STEPS if steps is None else steps,
    )
    cast = called_for(prompt)
    if not 1 <= len(cast) <= MOST:
        raise RunError(
            f"The rehearsal models paint one to {MOST} of their own cast, and '{prompt}' names {len(cast)}. "
            f'They know: {words()}. For example: "{PROMPT}".'
        )
    try:
        models = load_rehearsal()
        pictures = [torch.from_numpy(reference(figure).copy())[None].float() / 255 for figure in cast]
        references = encode(models, "mip", pictures, [figure.words for figure in cast])
        maps: list[Any] = []
        made = {}
        for number, merge in enumerate(COMPARED, 1):
            made[merge] = _image(
                paint(
                    models, prompt, seed, references, merge, steps=steps, record=maps if merge == "relevance" else None
                )
            )
            progress(number, len(COMPARED))
    except TroupeError as error:
        raise RunError(str(error)) from error
    run = RecordedRun("all", tuple(maps))
    sheet = _sheet(
        [(figure.words, _image(picture.movedim(-1, 1))) for figure, picture in zip(cast, pictures, strict=True)],
        made,
        _maps(run, made["relevance"]),
    )
    return Rehearsed(
        made["relevance"].resize((SHOWN, SHOWN), Image.Resampling.NEAREST),
        sheet,
        (ABOUT, f"prompt: {prompt}, seed: {seed}, steps: {steps}", "", report(run)),
    )


def check_options(photos: Sequence[Path], names: Sequence[str], size: tuple[int, int] | None) -> None:
    """Raise RunError for what only real models can do."""
    if photos:
        raise RunError(ONLY_ITS_CAST)
    if names:
        raise RunError("The rehearsal takes its names from the prompt: leave --name out, or change --prompt.")
    if size is not None:
        larger = "`python tools/run.py --list-missing` lists the files of larger models."
        raise RunError(
            f"The rehearsal models paint 128x128 pixels, shown at {SHOWN}x{SHOWN}: leave --size out. {larger}"
        )


def _image(picture: torch.Tensor) -> Image.Image:
    """[1, 3, h, w] in 0..1 -> picture."""
    return Image.fromarray((picture[0].permute(1, 2, 0) * 255).round().byte().numpy())


def _maps(run: Any, picture: Image.Image) -> list[Image.Image]:
    """One picture for each subject: its map over the painted picture."""
    from troupe.model_patches.relevance.pictures import GAP, draw_maps

    if not run.applied:
        return []
    count = len(run.applied[0].subjects)
    pixels = torch.from_numpy(np.asarray(picture).copy())[None].float() / 255
    drawn = (draw_maps(run, picture.size, pixels)[0] * 255).byte().numpy()
    height = (drawn.shape[0] - GAP * (count - 1)) // count
    return [Image.fromarray(drawn[i * (height + GAP) : i * (height + GAP) + height]) for i in range(count)]


def _sheet(
    references: list[tuple[str, Image.Image]], made: dict[str, Image.Image], maps: list[Image.Image]
) -> Image.Image:
    """References, the same seed with every merge, and which part each subject affected: three labelled rows."""
    side = 256
    rows = [
        [
            (f"reference: {name}", picture.resize((side, side), Image.Resampling.NEAREST))
            for name, picture in references
        ],
        [(f"merge {merge}", picture.resize((side, side), Image.Resampling.NEAREST)) for merge, picture in made.items()],
        [
            (f"relevance of {name}", picture.resize((2 * side, side)))
            for (name, _), picture in zip(references, maps, strict=bool(maps))
        ],
    ]
    width = max(sum(picture.width + MARGIN for _, picture in row) for row in rows) + MARGIN
    sheet = Image.new("RGB", (width, (side + LABEL + MARGIN) * sum(map(bool, rows)) + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    top = MARGIN
    for row in filter(None, rows):
        left = MARGIN
        for text, picture in row:
            draw.text((left, top), text, INK, font)
            sheet.paste(picture, (left, top + LABEL))
            left += picture.width + MARGIN
        top += side + LABEL + MARGIN
    return sheet
