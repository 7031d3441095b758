"""CLIP vision encoder files, told by the widths in their headers, whatever they are called."""
from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple

from .files import read_shapes

LAYOUTS = (  # hidden states, pooled projection, which axis of the latter is the pooled width
    ("vision_model.embeddings.class_embedding", "visual_projection.weight", 0),  # transformers
    ("visual.class_embedding", "visual.proj", 1),  # open_clip
)


class EncoderWidths(NamedTuple):
    """Of a CLIP vision encoder: its hidden states and its pooled, projected embedding."""

    hidden: int
    pooled: int


def encoder_widths(path: str | os.PathLike) -> EncoderWidths | None:
    """Widths of an encoder file, in the transformers or the open_clip layout; None where it is neither, or gone."""
    try:
        return _widths(os.fspath(path), os.stat(path).st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=256)
def _widths(path: str, modified: int) -> EncoderWidths | None:
    shapes = read_shapes(path)
    for hidden, pooled, axis in LAYOUTS:
        if len(shapes.get(hidden, ())) == 1 and len(shapes.get(pooled, ())) == 2:
            return EncoderWidths(shapes[hidden][0], shapes[pooled][axis])
    return None
