"""A diffusers UNet by the names that published files use."""

from __future__ import annotations

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from ...checkpoints.unet_names import ldm_name, resblocks


def transformer_blocks(unet: UNet2DConditionModel) -> dict[str, BasicTransformerBlock]:
    """Return every transformer block by its path in an LDM UNet, as 'input_blocks.1.1.transformer_blocks.0'."""
    found = {name: module for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock)}
    depth = resblocks(found)
    return {ldm_name(name, depth): block for name, block in found.items()}
