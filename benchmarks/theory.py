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
    """One layer, one row. Image attention q K^T and p V, 2 N S C operations each; names' attention 2 N L C; f one
    product of N C with C.

    Traffic: the query and Z_text read once (Z_text is the result that is added to), the result written once; keys and
    values read.
    """
    flops = 4 * positions * tokens * width + 2 * positions * names * width + (2 * positions * width if text_gain else 0)
    moved = 3 * positions * width + (2 * tokens + names) * width
    return Added(flops, moved * itemsize)


def gated_layer(positions: int, width: int, objects: int, itemsize: int) -> Added:
    """One gated layer, one row, its objects' keys and values made once a run: q, k, v and output 8 N C^2 operations,
    all positions looking at all and at M objects 4 N (N + M) C, the feed-forward part with its gate 24 N C^2.

    Traffic: each of its two halves reads the row and writes the result; keys and values of the objects read.
    """
    flops = 32 * positions * width**2 + 4 * positions * (positions + objects) * width
    return Added(flops, (4 * positions + 2 * objects) * width * itemsize)


def gated_weights(width: int, itemsize: int) -> int:
    """Bytes of one gated layer's weights, read once a step for all rows: 4 C^2 of the attention, 12 C^2 of the
    feed-forward part.
    """
    return 16 * width**2 * itemsize


def added(blocks: Sequence[Any], latent: Sequence[int], run: str, itemsize: int) -> Added:
    """All layers of a model for a run named as in contenders.py, of a kind in COUNTED."""
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
