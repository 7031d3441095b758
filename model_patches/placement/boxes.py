"""Boxes as they come in, drawn or wired, and the checks that make a Box of each.

Nothing here knows which subject a wired box will go to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..errors import SubjectError
from ..subjects import Box, called

SLACK = 0.01  # of the picture's side: how far a box may reach out of the picture and still be cut off at its edge
EDGE_ROUNDING = 0.0005  # a box this far beyond the picture is cut off without a warning
MIN_SIDE = 0.001  # of the picture's side
EXAMPLE = '[{"label": "red fox", "x": 0.1, "y": 0.2, "w": 0.3, "h": 0.5}, null]'
DRAW_AGAIN = "Draw the box again, or write null for a subject without a box."
OTHER_SIZE = "Set 'width' and 'height' to the size of the picture that the boxes were drawn on."
Size = tuple[float, float]  # width, height
Warn = Callable[[str], None]


@dataclass(frozen=True)
class FoundBox:
    """One box as it was found, unchecked.

    value: the text that was there, for messages; sides: (x, y, w, h) or with `corners` (x1, y1, x2, y2), each a number
    or not, or None if value is no box at all; picture: the (width, height) that the sides are measured in, (1, 1) for
    parts of the picture; label: the word that came with it.
    """

    value: Any
    sides: tuple[Any, ...] | None
    label: Any = ""
    picture: Size = (1.0, 1.0)
    corners: bool = False


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_text(text: str) -> list[FoundBox | None]:
    """Read the node's `boxes`: a JSON list of {"label", "x", "y", "w", "h"} in 0..1, or null. An empty text is an empty
    list.

    Raises:
        SubjectError: no JSON, or no list.
    """
    expected, remedy = f"'boxes' to be a JSON list such as {EXAMPLE}", "Draw the boxes again, or write [] for none."
    if not isinstance(text, str):
        raise SubjectError(expected, as_json(text), remedy)
    try:
        value = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        place = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise SubjectError(expected, f"text that is not JSON{place}: {as_json(text)}", remedy) from None
    if not isinstance(value, list):
        raise SubjectError(expected, as_json(text), remedy)
    return [None if item is None else _normalised(item) for item in value]


def fault_in(text: str) -> str | None:
    """Return what is wrong with `boxes`, as far as is known without the cast, or None."""
    try:
        for i, found in enumerate(read_text(text)):
            if found is not None:
                checked(found, called(i + 1, found.label if isinstance(found.label, str) else ""))
    except SubjectError as error:
        return str(error)
    return None


def read_wired(value: Any, size: Size, warn: Warn = lambda sentence: None) -> list[FoundBox | None]:
    """Read the boxes of another node, for a picture of `size` (width, height).

    Arguments:
        value: core BOUNDING_BOX {x, y, width, height} in pixels, `metadata.desc` its label; BBOX (x, y, w, h) in
            pixels; our own {x, y, w, h} in 0..1; lists of these; lists of such lists, one for each picture of a batch,
            of which the first is taken; SEGS (shape, segments).
    Raises:
        SubjectError: none of these.
    """
    value = _plain(value)
    if is_segs(value):
        (h, w), segments = value[0][:2], value[1]
        return [
            FoundBox(s.bbox, _four(s.bbox), getattr(s, "label", None) or "", (w, h), corners=True) for s in segments
        ]
    if value is None:
        return []
    if isinstance(value, dict) or _is_numbers(value):
        return [_wired_box(value, size)]
    if not isinstance(value, (list, tuple)):
        kinds = "'bounding_boxes' to be boxes (BOUNDING_BOX, BOUNDING_BOXES, BBOX or SEGS)"
        raise SubjectError(
            kinds, as_json(value), "Connect the output of a node that draws or detects boxes, or disconnect it."
        )
    pictures = [item for item in map(_plain, value) if _is_list_of_boxes(item)]
    if pictures and len(pictures) == len(value):
        if len(pictures) > 1:
            warn(f"'bounding_boxes' has boxes for {len(pictures)} pictures; the boxes of the first are used.")
        value = pictures[0]
    return [None if item is None else _wired_box(_plain(item), size) for item in value]


def _normalised(item: Any) -> FoundBox:
    if not isinstance(item, dict) or not {"x", "y", "w", "h"} <= item.keys():
        return FoundBox(item, None)
    return FoundBox(item, tuple(item[k] for k in "xywh"), "" if item.get("label") is None else item["label"])


def _wired_box(item: Any, size: Size) -> FoundBox:
    if isinstance(item, dict) and {"x", "y", "width", "height"} <= item.keys():
        metadata = item.get("metadata")
        label = (metadata.get("desc") if isinstance(metadata, dict) else None) or item.get("label") or ""
        return FoundBox(item, tuple(item[k] for k in ("x", "y", "width", "height")), label, size)
    return _normalised(item) if isinstance(item, dict) else FoundBox(item, _four(item), picture=size)


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _four(value: Any) -> tuple[Any, ...] | None:
    value = _plain(value)
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) and len(value) == 4 else None


def _is_numbers(value: Any) -> bool:
    """Whether a sequence is one box rather than several: there are bare numbers in it, and nothing that could
    be a box.
    """
    items = [_plain(v) for v in value] if isinstance(value, (list, tuple)) else []
    return any(isinstance(v, (Real, str)) for v in items) and not any(isinstance(v, (list, tuple, dict)) for v in items)


def _is_list_of_boxes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not _is_numbers(value)


def is_segs(value: Any) -> bool:
    """Return whether a value is Impact Pack's SEGS: ((height, width), [SEG, ...]), a SEG having `bbox` (x1, y1, x2, y2)
    and `label`.
    """
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not isinstance(value[1], (list, tuple)):
        return False
    shape = _plain(value[0])
    return (
        isinstance(shape, (list, tuple))
        and 2 <= len(shape) <= 3
        and all(map(_is_number, shape))
        and all(hasattr(s, "bbox") for s in value[1])
    )


# ---- checking --------------------------------------------------------------------------------------------------------


def checked(found: FoundBox, who: str, warn: Warn = lambda sentence: None) -> Box:
    """Return the box of the subject that messages call `who`. What reaches out of the picture by at most SLACK is cut
    off, with a warning.

    Raises:
        SubjectError: not four finite numbers, outside of the picture, or without a width or height.
    """
    its = f"the box of {who}"
    if found.sides is None:
        raise SubjectError(f'a box {{"x", "y", "w", "h"}} or null for {who}', as_json(found.value), DRAW_AGAIN)
    if not isinstance(found.label, str):
        raise SubjectError(f"the label of {its} to be text", as_json(found.label), DRAW_AGAIN)
    if not all(map(_is_number, found.sides)):
        raise SubjectError(f"{its} to be four numbers", as_json(found.value), DRAW_AGAIN)
    if not all(map(_fits_float, found.sides)):
        raise SubjectError(f"{its} to be four finite numbers", as_json(found.value), DRAW_AGAIN)
    left, top, right, bottom = map(float, found.sides)
    right, bottom = (right, bottom) if found.corners else (left + right, top + bottom)
    width, height = found.picture
    pixels = found.picture != (1.0, 1.0)
    words = f"x {left:.6g} to {right:.6g}, y {top:.6g} to {bottom:.6g}" + (" pixels" if pixels else "")
    if right <= left or bottom <= top:
        raise SubjectError(f"{its} to have a width and a height", words, DRAW_AGAIN)
    edges = left / width, top / height, right / width, bottom / height
    out = max(-min(edges), max(edges) - 1)
    if out > SLACK + 1e-9:
        inside = f"in the picture of {width:g}x{height:g}" if pixels else "in the picture, from 0 to 1"
        raise SubjectError(f"{its} to lie {inside}", words, OTHER_SIZE if pixels else DRAW_AGAIN)
    if out > EDGE_ROUNDING:
        warn(f"The box of {who} extends beyond the picture ({words}) and is cropped to it.")
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in edges)
    if min(right - left, bottom - top) < MIN_SIDE:
        raise SubjectError(
            f"{its} to have at least {MIN_SIDE:.1%} of the picture's width and height", words, DRAW_AGAIN
        )
    return Box(left, top, right - left, bottom - top)


def as_json(value: Any) -> str:
    """Return a value for a message, as JSON on one short line."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(value) if isinstance(value, Sequence) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _fits_float(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
