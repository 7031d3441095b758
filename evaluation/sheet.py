"""The contact sheet: one row a case, its references and one picture a method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ..training.data.pictures import PictureFault, open_picture, write_whole
from .results import TableRow
from .suites.suite import Suite

SIDE, LINE, MARGIN = 128, 14, 4  # pixels: of a shown picture, of a text line, between pictures
PAPER, INK, FAULT = (255, 255, 255), (30, 30, 34), (200, 200, 205)
NOTE = ("subjects_right", "clip_i", "dino", "ip_sim")  # the first of these that there is is written below a picture


def contact_sheet(suite: Suite, rows: Sequence[TableRow], methods: Sequence[str], folder: Path, path: Path) -> None:
    """Draw the pictures in `rows` into a PNG file: a line for each case and seed.

    folder: of the results. A picture that is missing or does not open is grey.
    """
    lines = list(dict.fromkeys((row["case"], row["seed"]) for row in rows))
    found = {(row["case"], row["seed"], row["method"]): row for row in rows}
    cases = {case.name: case for case in suite.cases}
    step, height = SIDE + MARGIN, SIDE + 2 * LINE + MARGIN
    sheet = Image.new("RGB", ((len(methods) + 1) * step + MARGIN, LINE + len(lines) * height + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for j, title in enumerate(["references", *methods]):
        draw.text((MARGIN + j * step, MARGIN), _cut(draw, title), INK)
    for i, (name, seed) in enumerate(lines):
        top = LINE + 2 * MARGIN + i * height
        case = cases[name]
        draw.text((MARGIN, top), f"{case.prompt[:110]} (seed {seed})", INK)
        photos = [suite.painted_from / subject.photos[0] for subject in case.subjects]
        sheet.paste(_together(photos), (MARGIN, top + LINE))
        for j, method in enumerate(methods, 1):
            row = found.get((name, seed, method))
            left = MARGIN + j * step
            sheet.paste(_shown(None if row is None else folder / row["file"], SIDE), (left, top + LINE))
            if row is not None:
                draw.text((left, top + LINE + SIDE), _cut(draw, _note(row)), INK)
    write_whole(sheet, path)


def _note(row: TableRow) -> str:
    letters = row.get("truth_verdicts") or row.get("verdicts") or ""
    column = next((column for column in NOTE if row.get(column)), None)
    number = "" if column is None else f"{column} {float(row[column]):.2f}"
    return f"{letters} {number}".strip()


def _cut(draw: ImageDraw.ImageDraw, text: str) -> str:
    while text and draw.textlength(text) > SIDE:
        text = text[:-1]
    return text


def _shown(path: Path | None, side: int) -> Image.Image:
    square = Image.new("RGB", (side, side), FAULT)
    if path is None:
        return square
    try:
        picture = open_picture(path)
    except PictureFault:
        return square
    picture.thumbnail((side, side))
    square.paste((255, 255, 255), (0, 0, side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _together(photos: Sequence[Path]) -> Image.Image:
    """The first photo of each of up to nine subjects in one square."""
    count = next(n for n in (1, 2, 3) if len(photos) <= n * n or n == 3)
    side, square = SIDE // count, Image.new("RGB", (SIDE, SIDE), PAPER)
    for i, photo in enumerate(photos[: count * count]):
        square.paste(_shown(photo, side), (side * (i % count), side * (i // count)))
    return square
