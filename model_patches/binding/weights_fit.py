"""Whether weights that an adapter brings for the base model fit it: decided, and said, the same in every host."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from ..adapter import LoraPair
from ..errors import MismatchError
from .checks import check_whole_weights

STREAM_LABELS = {"l": "CLIP-L", "g": "OpenCLIP bigG", "h": "OpenCLIP H"}  # ComfyUI's names of text encoders


def weights_act(strength: float, whole: Collection[str], widget: str = "") -> bool:
    """Return whether weights change the model: whole tensors at strength 1, low-rank changes at any but 0. If not, they
    need not fit. whole: names of the whole tensors; widget: the one that sets the strength, for the message.

    Raises MismatchError for whole tensors at another strength.
    """
    if whole:
        check_whole_weights(strength, widget)
    return bool(strength)


def misfit(weights: Mapping[str, torch.Tensor | LoraPair], shapes: Mapping[str, Sequence[int]]) -> str:
    """Return in words how a model's weights differ from those that an adapter brings, '' if all fit.

    shapes: of the model's own weights, by the names that the adapter has for them.
    """
    wanted = {name: _shape(weight) for name, weight in weights.items()}
    misfits = [name for name, shape in wanted.items() if name not in shapes or tuple(shapes[name]) != shape]
    if not misfits:
        return ""
    name = misfits[0]
    what = (
        f"'{name}' has the shape {list(shapes[name])} instead of {list(wanted[name])}"
        if name in shapes
        else f"there is no weight named '{name}'"
    )
    return f"where {len(misfits)} of {len(wanted)} tensors do not fit: {what}"


def check_text_encoders(needed: Collection[str], there: Collection[str], whose: str, remedy: str) -> None:
    """Raise MismatchError unless a base model has every text encoder for which an adapter has low-rank changes.

    needed, there: ComfyUI's names; whose: the adapter's name.
    """
    if not set(needed) <= set(there):
        wanted, have = _labels(needed), _labels(there)
        raise MismatchError(f"a CLIP with {wanted} for the LoRAs of {whose}", f"one with {have}", remedy)


def _labels(streams: Collection[str]) -> str:
    return " and ".join(label for name, label in STREAM_LABELS.items() if name in streams) or "another text encoder"


def _shape(weight: torch.Tensor | LoraPair) -> tuple[int, ...]:
    """Of the weight in the model."""
    return (weight.up.shape[0], weight.down.shape[1]) if isinstance(weight, LoraPair) else tuple(weight.shape)
