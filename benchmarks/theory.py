"""What relevance attention must cost at the least: the arithmetic and the memory traffic that no arrangement of the work can avoid."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from contenders import NAME_TOKENS

ROWS = 2  # positive and negative


@dataclass(frozen=True)
class Added:
    """Of one step: flops, floating point operations of all matrix products; bytes, read and written."""

    flops: int
    bytes: int


def layer(positions: int, width: int, tokens: int, names: int, text_gain: bool, itemsize: int) -> Added:
    """One layer, one row. Image attention q K^T and p V, 2 N S C operations each; names' attention 2 N L C; f one product of N C with C.

    Traffic: the query and Z_text read once (Z_text is the result that is added to), the result written once; keys and values read.
    """
    flops = 4 * positions * tokens * width + 2 * positions * names * width + (2 * positions * width if text_gain else 0)
    moved = 3 * positions * width + (2 * tokens + names) * width
    return Added(flops, moved * itemsize)


def added(blocks: Sequence[Any], latent: Sequence[int], run: str, itemsize: int) -> Added:
    """All layers of a model for a run named as in contenders.py."""
    subjects, tokens = (int(n) for n in run.split(" ")[1].split("+")[0].split("x"))
    parts = []
    for block in blocks:
        positions = prod(-(-side // 2**block.level) for side in latent[-2:])
        parts.append(layer(positions, block.width, subjects * tokens, subjects * NAME_TOKENS if subjects > 1 else 0, True, itemsize))
    return Added(ROWS * sum(p.flops for p in parts), ROWS * sum(p.bytes for p in parts))
