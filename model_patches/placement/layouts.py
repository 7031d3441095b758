"""Places for subjects that were given none."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..subjects import Box

MARGIN = 0.02  # of the picture's side: at its border and between two places
LAYOUTS = ("none", "row", "column", "grid", "thirds")


def fill(boxes: Sequence[Box | None], layout: str, aspect: float = 1.0) -> list[Box | None]:
    """Return the boxes of the cast: the given ones, and places of the layout for subjects without one.

    The layout has a place for each subject of the cast. Subjects without a box take, in their order, the places that
    the given boxes cover least; where several are equally free, each its own.

    Arguments:
        boxes: of every subject, None if it has none.
        layout: one of LAYOUTS; 'none' fills nothing.
        aspect: width of the picture by its height.
    """
    lacking = [i for i, box in enumerate(boxes) if box is None]
    if layout == "none" or not lacking:
        return list(boxes)
    slots = places(layout, len(boxes), aspect)
    given = [box for box in boxes if box is not None]
    freest = sorted(
        range(len(slots)),
        key=lambda j: (round(sum(box_overlap(slots[j], box) for box in given), 6), j not in lacking, j),
    )
    chosen = iter(sorted(freest[: len(lacking)]))
    return [slots[next(chosen)] if box is None else box for box in boxes]


def places(layout: str, count: int, aspect: float = 1.0) -> list[Box]:
    """Return the places of a layout, in the order of the subjects; none overlaps another.

    row: side by side, all of the height. column: below each other, all of the width.
    grid: rows and columns whose cells come nearest to squares; a last row that is not full is centred.
    thirds: three columns, a third of the width each, filled left, right, middle; up to three subjects are in the
    lower two thirds, so that the upper line of thirds passes their heads, more in as many rows as are needed over the
    whole height.
    """
    if layout == "row":
        return [_cell(i, count, 0, 1) for i in range(count)]
    if layout == "column":
        return [_cell(0, 1, i, count) for i in range(count)]
    if layout == "thirds":
        top, rows = (1 / 3, 1) if count <= 3 else (0.0, math.ceil(count / 3))
        return [_cell((0, 2, 1)[i % 3], 3, i // 3, rows, top) for i in range(count)]
    columns = grid_columns(count, aspect)
    rows, found = math.ceil(count / columns), []
    for i in range(count):
        row = i // columns
        spare = columns - min(columns, count - row * columns)  # empty cells of this row, half of them on its left
        found.append(_cell(i % columns + spare / 2, columns, row, rows))
    return found


def grid_columns(count: int, aspect: float) -> int:
    """Return the number of columns with which `count` places of a grid are nearest to squares; of two equally good
    numbers the larger.
    """

    def distortion(columns: int) -> float:
        return abs(math.log(aspect * math.ceil(count / columns) / columns))

    return min(range(count, 0, -1), key=lambda columns: round(distortion(columns), 6))


def box_overlap(a: Box, b: Box) -> float:
    """Return the area that two boxes share, 1 being the whole picture."""
    w = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    h = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    return max(w, 0.0) * max(h, 0.0)


def _cell(column: float, columns: int, row: float, rows: int, top: float = 0.0) -> Box:
    """One cell of a table that begins at `top` of the picture's height, MARGIN around and between its cells; 4
    decimals, as boxes are drawn.
    """
    x, w = _part(column, columns, 0.0)
    y, h = _part(row, rows, top)
    return Box(round(x, 4), round(y, 4), round(w, 4), round(h, 4))


def _part(index: float, count: int, start: float) -> tuple[float, float]:
    """Start and length of one of `count` parts of [start, 1]."""
    length = (1 - start - (count + 1) * MARGIN) / count
    return start + MARGIN + index * (length + MARGIN), length
