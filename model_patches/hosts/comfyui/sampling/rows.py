"""Which rows of a block's batch belong to which conditioning entry, also where another pack has repeated rows
(attention couple, tiles).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Rows = tuple[int, int]  # start, length


def rows_of_chunks(
    rows: int, batch: int, indices: Sequence[int], repeated: Sequence[int] | None = None
) -> tuple[Rows, ...] | None:
    """Return the rows of each chunk of a model call, in the call's order.

    Arguments:
        rows: of the block's query.
        batch: of the call's activations (chunks times pictures).
        indices: `cond_or_uncond`, one a chunk.
        repeated: the same after another pack repeated rows, where it says so; otherwise repeats of non-uncond chunks
            are assumed.
    Returns:
        (start, length) for each chunk, or None if the rows fit no pattern.
    """
    chunks = len(indices)
    each, rest = divmod(batch, chunks)
    if rest or rows % each:
        return None
    if rows == batch:
        copies = [1] * chunks
    elif repeated is not None:
        copies = [sum(r == i for r in repeated) // sum(j == i for j in indices) for i in indices]
    else:
        unconds = sum(i == 1 for i in indices)
        many, rest = divmod(rows // each - unconds, max(chunks - unconds, 1))
        if rest or chunks == unconds:
            return None
        copies = [1 if i == 1 else many for i in indices]
    if min(copies) < 1 or sum(copies) * each != rows:
        return None
    starts = [each * sum(copies[:i]) for i in range(chunks)]
    return tuple((start, each * n) for start, n in zip(starts, copies, strict=True))


def tiles_in(rows: int, expected: int) -> int:
    """Return how many times a model call holds the rows that the host made: packs that sample in tiles put several in
    one call, each with all chunks.
    """
    return 1 if rows % expected else rows // expected


def rows_from_options(rows: int, options: dict[str, Any], chunks: int) -> tuple[Rows, ...] | None:
    """Return the `rows_of_chunks` of the host's `extra_options`, for a call whose rows are that many chunks (the host's
    own, once for each tile).
    """
    indices = tuple(options["cond_or_uncond"])
    return rows_of_chunks(
        rows,
        options["activations_shape"][0],
        indices * (chunks // len(indices)),
        options.get("cond_or_uncond_hook_couple"),
    )
