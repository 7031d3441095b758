"""One guided prediction, and whose rows a model call has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ....attention.limits import WHOLE, Window
from ....binding.layer_tokens import COND
from .attention_patch import Options
from .blocks import Grid
from .conditioning import ConditioningChunk
from .run import Run

TEXTS = 16  # kinds of calls in tiles whose texts are remembered


@dataclass(frozen=True, eq=False)
class Call:
    """One guided prediction: the run, what each entry's rows get, how strong everything is now (the hook's own record),
    the latents' number and full size (h, w), the wrapper that another pack may have put around the model, and the
    entries' texts [1, T, D]."""

    run: Run
    table: dict[tuple[int, Any], ConditioningChunk]
    now: Any
    pictures: int
    size: Grid
    around: Any = None
    texts: Mapping[tuple[int, Any], torch.Tensor] = field(default_factory=dict)


def texts_of(conds: Sequence[Sequence[dict] | None]) -> dict[tuple[int, Any], torch.Tensor]:
    """Return the text [1, T, D] of each entry of a prediction, by (list index, uuid)."""
    found = {
        (index, entry["uuid"]): entry.get("model_conds", {}).get("c_crossattn")
        for index, entries in enumerate(conds)
        for entry in entries or ()
    }
    return {row: text.cond for row, text in found.items() if text is not None}


def whose(call: Call, options: Options, x: torch.Tensor, text: torch.Tensor | None) -> list[ConditioningChunk | None]:
    """Return what the rows of x get, one entry per chunk of the model call; empty if another pack changed the rows.

    Rows that are recognised by their number are not compared. In tiles a chunk alone can have as many rows as all of
    the host's, so there the texts are compared, once a run and kind of call.
    """
    indices, uuids = options["cond_or_uncond"], options["uuids"]
    if len(indices) != len(uuids):
        return []
    rows = list(zip(indices, uuids, strict=True))
    chunks = [call.table.get(row) for row in rows]
    if len(set(chunks)) == 1:
        return chunks
    if x.shape[0] % (call.pictures * len(chunks)):
        return []
    if (
        placed(chunks, call.size, x)
        or text is None
        or call.run.once(("texts", *rows, tuple(x.shape)), lambda: _texts_agree(call, rows, text), TEXTS)
    ):
        return chunks
    return []


def _texts_agree(call: Call, rows: Sequence[tuple[int, Any]], text: torch.Tensor) -> bool:
    """Whether the first picture of every chunk, in every tile, has the text of its entry; the host repeats texts of
    different lengths.
    """
    first = text[:: call.pictures]
    wanted = [call.texts.get(rows[i % len(rows)]) for i in range(len(first))]
    return all(
        entry is None or torch.equal(have[: entry.shape[1]], entry[0].to(have))
        for have, entry in zip(first, wanted, strict=True)
    )


def placed(chunks: Sequence[ConditioningChunk | None], size: Grid, x: torch.Tensor) -> bool:
    """Return whether the rows of x show the area that the host says, not tiles that another pack cut out of it."""
    return all(shown_size(chunk.area, size) == tuple(x.shape[-2:]) for chunk in chunks if chunk)


def with_subjects(chunks: Sequence[ConditioningChunk | None]) -> bool:
    """Return whether any rows of a model call have the subjects, not only the empty tokens of a negative prompt."""
    return any(chunk.role == COND for chunk in chunks if chunk)


def window_of(area: tuple[int, ...] | None, size: Grid) -> Window:
    """Convert a conditioning area (h, w, y, x in latent cells) to the part of the picture that its rows show."""
    if area is None:
        return WHOLE
    (h, w, y, x), (height, width) = area, size
    return y / height, x / width, min(y + h, height) / height, min(x + w, width) / width


def shown_size(area: tuple[int, ...] | None, size: Grid) -> Grid:
    """Return the size in latent cells (h, w) that an entry's rows show, as the host cuts them out."""
    return size if area is None else (min(area[0], size[0] - area[2]), min(area[1], size[1] - area[3]))
