"""A CLIP text encoder's tensors, in transformers' names."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .tensors import State, check_matrix, check_shapes

ROOT = "text_model."  # transformers 5 leaves it away
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
TOKENS, POSITIONS = f"{ROOT}embeddings.token_embedding.weight", f"{ROOT}embeddings.position_embedding.weight"


def text_weights(state: Mapping[str, torch.Tensor], width: int, file: str, kind: str) -> State:
    """Return a whole text encoder of that width, names from `text_model.` on; position ids and a projection are left
    out.

    Raises:
        CheckpointError: a tensor is missing, misshapen or unknown. kind: what the file is, for messages.
    """
    rooted = {
        name if name.startswith((ROOT, "text_projection")) else f"{ROOT}{name}": tensor
        for name, tensor in state.items()
    }
    found = {
        name: tensor for name, tensor in rooted.items() if name.startswith(ROOT) and not name.endswith("position_ids")
    }
    for name in (TOKENS, POSITIONS, f"{ROOT}encoder.layers.0.mlp.fc1.weight"):
        check_matrix(found, name, file)
    check_shapes(found, _layer_shapes(found, width), file, kind)
    return found


def _layer_shapes(found: Mapping[str, torch.Tensor], width: int) -> dict[str, tuple[int, ...]]:
    """The tensors that an encoder with these layers, this vocabulary and this inner width has."""
    # `check_shapes` reports a gap
    layers = len(
        {
            number
            for name in found
            if name.startswith(f"{ROOT}encoder.layers.") and (number := name.split(".")[3]).isdecimal()
        }
    )
    inner = found[f"{ROOT}encoder.layers.0.mlp.fc1.weight"].shape[0]
    shapes: dict[str, tuple[int, ...]] = {
        TOKENS: (found[TOKENS].shape[0], width),
        POSITIONS: (found[POSITIONS].shape[0], width),
    }
    linears = {name: (width, width) for name in LINEARS} | {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    for layer in range(layers):
        start = f"{ROOT}encoder.layers.{layer}."
        shapes |= {f"{start}{name}.weight": shape for name, shape in linears.items()} | {
            f"{start}{name}.bias": shape[:1] for name, shape in linears.items()
        }
        shapes |= {
            f"{start}{norm}.{leaf}": (width,) for norm in ("layer_norm1", "layer_norm2") for leaf in ("weight", "bias")
        }
    return shapes | {f"{ROOT}final_layer_norm.{leaf}": (width,) for leaf in ("weight", "bias")}
