"""A diffusers UNet by the names that published files use: its transformer blocks, and tensors in the place of its own."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock

from ...checkpoints.unet_names import ldm_name, resblocks
from ...errors import MismatchError


def transformer_blocks(unet: UNet2DConditionModel) -> dict[str, BasicTransformerBlock]:
    """Every transformer block by its path in an LDM UNet, as 'input_blocks.1.1.transformer_blocks.0'."""
    found = {name: module for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock)}
    depth = resblocks(found)
    return {ldm_name(name, depth): block for name, block in found.items()}


@contextmanager
def base_weights(unet: UNet2DConditionModel, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The UNet with whole tensors (see `Weights.unet`, LDM names) in the places of its own while it is open; afterwards it has its own again.

    Raises:
        MismatchError: the UNet has no tensor of such a name or shape.
    """
    own = dict(unet.named_parameters())
    depth = resblocks(own)
    places = {ldm_name(name, depth): parameter for name, parameter in own.items()}
    for name, tensor in weights.items():
        here = list(places[name].shape) if name in places else "no such tensor"
        if here != list(tensor.shape):
            do = "Use the base model that the adapter was trained on."
            raise MismatchError(f"a UNet with '{name}' {list(tensor.shape)}, which the adapter brings", f"{here}", do)
    before = {name: places[name].data for name in weights}
    try:
        for name, tensor in weights.items():
            places[name].data = tensor.to(places[name])
        yield
    finally:
        for name, tensor in before.items():
            places[name].data = tensor
