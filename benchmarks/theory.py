"""What references must cost at the least: the arithmetic and the memory traffic that no arrangement of the work can
avoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from contenders import NAME_TOKENS

ROWS = 2  # positive and negative
COUNTED = ("relevance", "add", "gated")  # kinds of runs whose least cost is known here


@dataclass(frozen=True)
class Added:
    """Of one step: flops, floating point operations of all matrix products; bytes, read and written."""

    flops: int
    bytes: int


def layer(positions: int, width: int, tokens: int, names: int, text_gain: bool, itemsize: int) -> Added:
    """Return the least work of one layer for one row.

    Operations: 2 N S C each for q K^T and p V of image attention, 2 N L C for the names' attention, 2 N C for the gain.

    Traffic: the query and Z_text are read once (the result is added to Z_text), the result is written once, and keys
    and values are read.
    """
    flops = 4 * positions * tokens * width + 2 * positions * names * width + (2 * positions * width if text_gain else 0)
    moved = 3 * positions * width + (2 * tokens + names) * width
    return Added(flops, moved * itemsize)


def gated_layer(positions: int, width: int, objects: int, itemsize: int) -> Added:
    """Return the least work of one gated layer for one row, with the objects' keys and values computed once per run.
    Operations: 8 N C^2 for q, k, v and output, 4 N (N + M) C for the attention of N positions to themselves and M
    objects, 24 N C^2 for the feed-forward part with its gate.

    Traffic: each of the two halves reads the row and writes the result; the objects' keys and values are read.
    """
    flops = 32 * positions * width**2 + 4 * positions * (positions + objects) * width
    return Added(flops, (4 * positions + 2 * objects) * width * itemsize)


def gated_weights(width: int, itemsize: int) -> int:
    """Return the bytes of one gated layer's weights, which are read once per step for all rows: 4 C^2 weights in
    attention, 12 C^2 in the feed-forward part.
    """
    return 16 * width**2 * itemsize


def added(blocks: Sequence[Any], latent: Sequence[int], run: str, itemsize: int) -> Added:
    """Return the least work that a run adds to a step in all layers of a model. run: a name as in contenders.py, of a
    kind in COUNTED; latent: its shape, [..., H, W].
    """
    kind, sizes = run.split("+")[0].split(" ")
    subjects, *tokens = (int(n) for n in sizes.split("x"))
    flops = moved = 0
    for block in blocks:
        positions = prod(-(-side // 2**block.level) for side in latent[-2:])
        if kind == "gated":
            part = gated_layer(positions, block.width, subjects + 1, itemsize)  # the empty slots are all alike
            moved += gated_weights(block.width, itemsize)
        else:
            names = subjects * NAME_TOKENS if kind == "relevance" and subjects > 1 else 0
            part = layer(positions, block.width, subjects * tokens[0], names, True, itemsize)
        flops, moved = flops + ROWS * part.flops, moved + ROWS * part.bytes
    return Added(flops, moved)
