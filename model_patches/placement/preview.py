"""A picture of where the subjects are: coloured boxes with number and name."""

from __future__ import annotations

from io import BytesIO
from typing import Any, cast

import torch
from PIL import ImageFont
from torch.nn.functional import interpolate
from torchvision.utils import draw_bounding_boxes

from ..subjects import Cast, Image
from .palette import colour_of, ink_on

PREVIEW_LONGEST, PREVIEW_SHORTEST = 1024, 512  # pixels of the preview's longer side
GREY = 48
FONT_SIZES = range(28, 13, -2)
WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msgothic.ttc", "DejaVuSans.ttf", "arial.ttf")
LABEL_MARGIN = 4  # pixels around a label's text
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def draw_cast(cast: Cast, width: int, height: int, background: Image | None = None) -> torch.Tensor:
    """Draw the boxes of a cast on grey, or on `background` [n, H, W, C] stretched to the picture. Returns [1, h, w, 3],
    float 0..1, with the proportions of width and height and a longer side between 512 and 1024 pixels. Subjects without
    a box are not in it.
    """
    scale = min(max(width, height, PREVIEW_SHORTEST), PREVIEW_LONGEST) / max(width, height)
    w, h = max(round(width * scale), 1), max(round(height * scale), 1)
    picture = torch.full((3, h, w), GREY, dtype=torch.uint8) if background is None else _stretched(background, w, h)
    places = {
        i: (round(b.x * (w - 1)), round(b.y * (h - 1)), round((b.x + b.w) * (w - 1)), round((b.y + b.h) * (h - 1)))
        for i, s in enumerate(cast.subjects)
        if (b := s.box) is not None
    }
    # large ones first, so that small ones stay visible
    order = sorted(places, key=lambda i: (places[i][0] - places[i][2]) * (places[i][3] - places[i][1]))
    if order:
        corners = torch.tensor([places[i] for i in order])
        colours: list[str | tuple[int, int, int]] = [colour_of(i) for i in order]
        picture = draw_bounding_boxes(
            picture, corners, colors=colours, width=max(2, max(w, h) // 256), fill=background is None
        )
    taken: list[Rectangle] = []
    for i in sorted(places):
        label_on(picture, places[i], i, cast.subjects[i].name, taken)
    return picture.permute(1, 2, 0)[None].float() / 255


def _stretched(background: Image, w: int, h: int) -> torch.Tensor:
    """The first picture as uint8 [3, h, w]."""
    image = background[:1, ..., :3].detach().float().cpu().movedim(-1, 1)
    image = interpolate(image.nan_to_num(0.0).clamp(0, 1), (h, w), mode="bilinear", antialias=True)
    return (image.expand(-1, 3, -1, -1)[0] * 255).round().to(torch.uint8)


def label_on(picture: torch.Tensor, place: Rectangle, index: int, name: str, taken: list[Rectangle]) -> None:
    """Write number and name at the box's corner, moved to where they stay in the picture and hide no label of `taken`,
    which grows by this one.
    """
    w = picture.shape[2]
    text, font = fitting(
        f"{index + 1}", name.replace("\\", ""), min(max(place[2] - place[0], w // 6), w) - 2 * LABEL_MARGIN
    )
    write_label(picture, place, text, font, colour_of(index), taken)


def write_label(
    picture: torch.Tensor,
    place: Rectangle,
    text: str,
    font: ImageFont.FreeTypeFont,
    colour: str,
    taken: list[Rectangle],
) -> None:
    """Write a text on a patch of a colour '#rrggbb' at the box's corner; see `label_on`."""
    h, w = picture.shape[1:]
    left, top, right, bottom = (round(v) for v in font.getbbox(text))
    width, height = right - left + 2 * LABEL_MARGIN, bottom - top + 2 * LABEL_MARGIN
    x, y = max(min(place[0], w - width), 0), max(min(place[1], h - height), 0)
    rows = [y, *range(y, h - height, height), *range(y, -1, -height)]
    y = next((row for row in rows if not any(_meet((x, row, x + width, row + height), other) for other in taken)), y)
    taken.append((x, y, x + width, y + height))
    label = picture[:, y : y + height, x : x + width]
    label[:] = torch.tensor(list(bytes.fromhex(colour[1:])), dtype=torch.uint8)[:, None, None]
    # torchvision writes 2 pixels inside of a box, here of a dot in the label's colour
    at = torch.tensor([[LABEL_MARGIN - left - 2, LABEL_MARGIN - top - 2] * 2])
    label[:] = draw_bounding_boxes(
        label, at, [text], colors=colour, label_colors=ink_on(colour), font=_file(font), font_size=round(font.size)
    )


def fitting(number: str, name: str, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return 'number name' in the largest font that fits the width in pixels, the name shortened where none does.

    The number is always whole. Control characters, which some text layouts refuse to draw, become spaces.
    """
    name = "".join(letter if letter.isprintable() else " " for letter in name).strip()
    whole, sizes = f"{number} {name}".strip(), iter(FONT_SIZES)
    font = _font(next(sizes), name)
    while font.getlength(whole) > width:
        if (size := next(sizes, None)) is None:
            break
        font = _font(size, name)
    else:
        return whole, font
    for length in range(len(name) - 1, 0, -1):
        if font.getlength(text := f"{number} {name[:length].rstrip()}...") <= width:
            return text, font
    return number, font


def _font(size: int, text: str) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which knows ASCII; for other letters the first of WIDE_FONTS that the machine has."""
    for file in () if text.isascii() else WIDE_FONTS:
        try:
            return ImageFont.truetype(file, size)
        except OSError:
            continue
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))  # with a size it is one


def _file(font: ImageFont.FreeTypeFont) -> Any:
    """What torchvision opens a font by: a name, or the bytes of Pillow's own."""
    return font.path if isinstance(font.path, str) else BytesIO(font.font_bytes)


def _meet(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
