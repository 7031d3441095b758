"""What Quick Subjects remembers between executions, so that another weight or prompt does not read and encode
everything again.

The host caches the outputs of nodes; a node that does four nodes' work has to keep the work of the first three by
itself. It is kept as long as the CLIP that it was made for: a checkpoint that the host lets go takes it along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ...relevance.pictures import draw_maps
from ...subjects import Cast, References, make_subject
from .apply import encode_references
from .loading.adapters import AUTO, HostAdapter, fingerprint, load_adapter
from .messages import is_watched, show
from .sampling.record import RelevanceRecord, record_relevance


@dataclass(frozen=True, eq=False)
class Remembered:
    """The last adapter and references made for one CLIP, what they were made from, and what was said while making them.
    adapter_file: its fingerprint and the encoder's choice.
    """

    adapter_file: tuple[str, str]
    adapter: HostAdapter
    made_from: tuple[Any, ...]
    references: References
    said: tuple[str, ...]


_last: WeakKeyDictionary[Any, Remembered] = WeakKeyDictionary()


def quick_references(
    clip: Any,
    adapter_name: str,
    subjects: Sequence[tuple[Any, str]],
    clip_vision: Any,
    warn: Callable[[str], None],
    clip_vision_name: str = AUTO,
) -> References:
    """Return the references of (IMAGE, name) pairs for an adapter file: load, add, encode, as the three nodes do, or
    what is remembered of it.
    """
    file, last = (fingerprint(adapter_name), clip_vision_name), _last.get(clip)
    adapter = (
        last.adapter if last is not None and last.adapter_file == file else load_adapter(adapter_name, clip_vision_name)
    )
    encoder = adapter.clip_vision() if clip_vision is None else clip_vision  # another object when its file has changed
    made_from = (encoder, *(part for pair in subjects for part in pair))
    if last is not None and last.adapter_file == file and _same(last.made_from, made_from):
        for sentence in last.said:
            warn(sentence)
        return last.references
    cast, said = Cast(), []
    for image, name in subjects:
        cast = cast.add(make_subject(name, [image], number=len(cast.subjects) + 1))

    def note(sentence: str) -> None:
        said.append(sentence)
        warn(sentence)

    references = encode_references(adapter, cast, clip=clip, clip_vision=clip_vision, warn=note)
    _last[clip] = Remembered(file, adapter, made_from, references, tuple(said))
    return references


def _same(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Whether two inputs are the same objects (pictures, encoders) and equal texts."""
    return len(before) == len(now) and all(
        a is b or (isinstance(a, str) and a == b) for a, b in zip(before, now, strict=True)
    )


def with_relevance_shown(model: Any, node_id: str | None) -> Any:
    """Return a clone of the MODEL that shows the relevance maps on a node after every run, if a browser waits
    for them.
    """

    def finished(record: RelevanceRecord, latent: torch.Tensor) -> None:
        if node_id is not None and is_watched(node_id):
            show(node_id, draw_maps(record.run, (latent.shape[-2], latent.shape[-1])))

    return record_relevance(model, "all", finished)[0]
