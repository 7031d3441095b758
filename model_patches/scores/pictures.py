"""The matrix of likeness as a picture: a row for each subject's crop and each further region, a column for each
subject's reference, in the subjects' colours.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import interpolate

from ..placement.palette import colour_of
from ..placement.preview import fitting, label_on, write_label
from .scoring import PictureScore, Scores
from .verdicts import MISSING

SMALLEST, LARGEST, SIDE = 64, 160, 1024  # pixels: of a cell, and about of the picture
NO_SUBJECT = "nobody"  # verdict on a further region that shows none of the subjects
DARK, CELL_GAP = 24, 2  # where nothing is alike; pixels between cells


def draw_matrices(scores: Scores) -> torch.Tensor:
    """Return the matrix of each picture, [n, h, w, 3] float 0..1.

    The first row has the references, the first column the crops with their verdicts; further regions come after the
    subjects, and pictures with fewer of them have empty rows. The other cells have the likeness, the more alike the
    brighter, in the colour of the reference.
    """
    rows = len(scores.names) + max(len(picture.further) for picture in scores.pictures)
    matrices = torch.stack([_matrix(scores, picture, rows) for picture in scores.pictures])
    return matrices.permute(0, 2, 3, 1).float() / 255


def _matrix(scores: Scores, picture: PictureScore, rows: int) -> torch.Tensor:
    count = len(scores.names)
    cell = min(max(SIDE // (count + 1), SMALLEST), LARGEST)
    h, w = ((cells + 1) * (cell + CELL_GAP) - CELL_GAP for cells in (rows, count))
    sheet = torch.full((3, h, w), 255, dtype=torch.uint8)

    def room(row: int, column: int) -> torch.Tensor:
        y, x = row * (cell + CELL_GAP), column * (cell + CELL_GAP)
        return sheet[:, y : y + cell, x : x + cell]

    room(0, 0)[:] = DARK
    whole = (0, 0, cell, cell)
    for i, (name, photo) in enumerate(zip(scores.names, scores.photos, strict=True)):
        region = room(0, i + 1)
        region[:] = _scaled(photo, cell)
        label_on(region, whole, i, name, [])
    subjects = zip(picture.verdicts, picture.crops, picture.likeness.tolist(), strict=True)
    further = ((one.verdict, one.crop, one.likeness) for one in picture.further)
    for i, (verdict, crop, likeness) in enumerate((*subjects, *further)):
        region = room(i + 1, 0)
        region[:] = DARK if crop is None else _scaled(crop, cell)
        label_on(region, whole, i, NO_SUBJECT if i >= count and verdict.word == MISSING else verdict.word, [])
        for j, value in enumerate(likeness):
            region = room(i + 1, j + 1)
            shown = 0.0 if math.isnan(value) or verdict.word == MISSING else min(max(value, 0.0), 1.0)
            colour = torch.tensor(list(bytes.fromhex(colour_of(j)[1:]))).float()
            region[:] = torch.lerp(torch.full((3,), float(DARK)), colour, shown).round().to(torch.uint8)[:, None, None]
            if not math.isnan(value):
                owner = j in verdict.owners
                text, font = fitting(f"{value:.2f}", "", cell)
                write_label(
                    region, whole, text, font, colour_of(j) if owner else f"#{DARK:02x}{DARK:02x}{DARK:02x}", []
                )
    return sheet


def _scaled(photo: torch.Tensor, side: int) -> torch.Tensor:
    """A picture [S, S, 3] in 0..1 as uint8 [3, side, side]."""
    image = interpolate(photo.movedim(-1, 0)[None].float(), (side, side), mode="bilinear", antialias=True)[0]
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
