"""CLIP vision encoder files: recognised by the widths in their headers, whatever their names; read in either published
layout.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple, TypeVar, cast

import torch

from ..errors import CheckpointError
from .files import read_shapes
from .tensors import AGAIN, State, check_numbers

WIDTH_TENSORS = (  # hidden states, pooled projection, which axis of the latter is the pooled width
    ("vision_model.embeddings.class_embedding", "visual_projection.weight", 0),  # transformers
    ("visual.class_embedding", "visual.proj", 1),  # open_clip
)
POSITION_TENSORS = (
    "vision_model.embeddings.position_embedding.weight",
    "visual.positional_embedding",
)  # in the same order
OPEN_CLIP = "visual."  # before the vision tower's names in open_clip's files
OPEN_CLIP_NAMES = {  # open_clip -> transformers
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
}
PROJECTION_MATRICES, IN_PROJ = ("proj", "visual_projection.weight"), ("in_proj_weight", "in_proj_bias")
OPEN_CLIP_BLOCKS, CLIP_LAYERS = "transformer.resblocks.", "vision_model.encoder.layers."
IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

T = TypeVar("T")


class EncoderWidths(NamedTuple):
    """The widths of a CLIP vision encoder: its hidden states and its pooled, projected embedding."""

    hidden: int
    pooled: int


def encoder_widths(path: str | os.PathLike) -> EncoderWidths | None:
    """Return the widths of an encoder file, in the transformers or the open_clip layout; None if it is neither, or
    gone.
    """
    try:
        return _read_widths(os.fspath(path), os.stat(path).st_mtime_ns)[0]
    except OSError:
        return None


def _itself(entry: object) -> str | os.PathLike:
    return cast("str | os.PathLike", entry)  # who gives no `path_of` gives paths


def best_encoder(
    paths: Iterable[T],
    fits: Callable[[EncoderWidths], bool],
    path_of: Callable[[T], str | os.PathLike | None] = _itself,
) -> T | None:
    """Return the first of these whose encoder fits; one for smaller pictures before one for larger: adapters were
    trained with the 224 pixel encoders, and OpenAI's ViT-L/14 has the same widths at 336. path_of: the file of an
    entry, None for none.
    """
    found: list[tuple[int, T]] = []
    for entry in paths:
        path = path_of(entry)
        try:
            widths, positions = _read_widths(os.fspath(path), os.stat(path).st_mtime_ns) if path else (None, 0)
        except OSError:
            continue
        if widths and fits(widths):
            found.append((positions, entry))
    return min(found, key=lambda pair: pair[0])[1] if found else None


@lru_cache(maxsize=256)
def _read_widths(path: str, modified: int) -> tuple[EncoderWidths | None, int]:
    """Widths of an encoder file, and its positions (patches and CLS), 0 if they cannot be read."""
    shapes = read_shapes(path)
    for (hidden, pooled, axis), table in zip(WIDTH_TENSORS, POSITION_TENSORS, strict=True):
        if len(shapes.get(hidden, ())) == 1 and len(shapes.get(pooled, ())) == 2:
            return EncoderWidths(shapes[hidden][0], shapes[pooled][axis]), next(iter(shapes.get(table, ())), 0)
    return None, 0


def with_transformers_names(state: Mapping[str, torch.Tensor], prefix: str = OPEN_CLIP) -> dict[str, torch.Tensor]:
    """Return the vision tower of an open_clip state dict under transformers' names; what is not of the tower is left
    out. Works on parts of one.

    prefix: before the tower's names. A state dict without a name of the tower comes back as it is.
    """
    tower = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    converted: dict[str, torch.Tensor] = {}
    for name, value in tower.items():
        if name == "proj":
            converted["visual_projection.weight"] = value.T.contiguous()
        elif name in OPEN_CLIP_NAMES:
            converted[OPEN_CLIP_NAMES[name]] = value
        elif name.startswith(OPEN_CLIP_BLOCKS):
            number, _, rest = name.removeprefix(OPEN_CLIP_BLOCKS).partition(".")
            converted |= {f"{CLIP_LAYERS}{number}.{there}": part for there, part in _in_block(rest, value).items()}
    return converted or dict(state)


def overlay(state: Mapping[str, torch.Tensor], file: str) -> State:
    """Return the retrained part of a CLIP vision encoder, in either layout, by transformers' names; {} for no tensors.

    Raises:
        CheckpointError: there are tensors, but none of such an encoder, or one of a form or with numbers that none has,
            or the same weight in both layouts.
    """
    for name, tensor in state.items():
        _check_form(name.removeprefix(OPEN_CLIP), tensor, f"'{name}' of '{file}'")
    prefix = OPEN_CLIP if any(name.startswith(OPEN_CLIP) for name in state) else ""
    named = with_transformers_names(state, prefix)
    found = {
        name: tensor
        for name, tensor in named.items()
        if name.startswith(("vision_model.", "visual_projection.")) and not name.endswith("position_ids")
    }
    if state and not found:
        raise CheckpointError(
            f"blocks of a CLIP vision encoder in '{file}'", f"tensors such as '{next(iter(state))}'", AGAIN
        )
    origins: dict[str, str] = {}  # the file's own names are the ones to tell
    for name, tensor in state.items():
        for target in found.keys() & with_transformers_names({name: tensor}, prefix).keys():
            if origins.setdefault(target, name) != name:
                raise CheckpointError(f"one layout in '{file}'", f"both '{origins[target]}' and '{name}'", AGAIN)
            check_numbers(tensor, name, file)
    return found


def _check_form(name: str, tensor: torch.Tensor, where: str) -> None:
    """Raise CheckpointError for a projection that is no matrix, and for an attention of open_clip that does not part in
    three.
    """
    if name in PROJECTION_MATRICES and tensor.ndim != 2:
        raise CheckpointError(f"{where} to be a matrix", f"the shape {list(tensor.shape)}", AGAIN)
    if name.endswith(IN_PROJ) and (not tensor.ndim or not len(tensor) or len(tensor) % 3):
        raise CheckpointError(
            f"{where} to have rows for queries, keys and values", f"the shape {list(tensor.shape)}", AGAIN
        )


def _in_block(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """One tensor of a block; query, key and value are one in open_clip and three in transformers. {} for what a plain
    tower has not.
    """
    module, _, leaf = name.rpartition(".")
    if module == "attn" and leaf in IN_PROJ:
        return {
            f"self_attn.{which}_proj.{leaf.removeprefix('in_proj_')}": part.contiguous()
            for which, part in zip("qkv", value.chunk(3), strict=True)
        }
    return {f"{IN_BLOCK[module]}.{leaf}": value} if module in IN_BLOCK else {}
