"""Gated layers of a training batch, in which every picture has objects of its own.

The layers are where the embedded engine puts them, in its places and with its objects and masks; only keys and values
of a batch are not kept, since the weights change with every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from ...model_patches.attention.gated import ObjectTokens
from ...model_patches.binding.layer_tokens import COND
from ...model_patches.binding.object_tokens import Group, mask_channel, object_tokens
from ...model_patches.encoders.fuser import GatedFuser
from ...model_patches.encoders.gated import GatedLayers
from ...model_patches.hosts.diffusers.gated import GLIGEN_KEY, FuserOfBlock, GatedAdapter
from ...model_patches.hosts.diffusers.unet_blocks import transformer_blocks
from ...model_patches.subjects import References

BLOCK_KEY = "cross_attention_kwargs"  # of a transformer block


class BatchGated:
    """The objects of the present batch on a UNet; in the places of the layers it replaces a `GatedAdapter`.

    roles, scale: as a `GatedAdapter` has them in a call in which every row has the subjects.

    gated: the layers in training, with their net.
    """

    roles = (COND,)
    scale = 1.0

    def __init__(self, gated: GatedLayers):
        self.gated = gated
        self._tokens: torch.Tensor | None = None  # B, M, D
        self._masks: torch.Tensor | None = None  # B, 1, h, w

    def install(self, unet: UNet2DConditionModel, paths: Sequence[str]) -> None:
        """Put a fuser into every transformer block, for good, and the mask on the first convolution; without a batch
        they are inactive.
        """
        blocks = transformer_blocks(unet)
        for index, (path, fuser) in enumerate(zip(paths, self.gated.fusers, strict=True)):
            fuser_of_block = FuserOfBlock(None, cast(GatedAdapter, self), index, cast(GatedFuser, fuser))
            blocks[path].add_module("fuser", fuser_of_block)
            blocks[path].register_forward_pre_hook(self._announce, with_kwargs=True)
        unet.conv_in.register_forward_hook(self._add_mask)

    def begin(self, pictures: Sequence[References], masked: Sequence[bool], size: tuple[int, int]) -> None:
        """Take the batch's pictures, [h, w] of their latents; masked: which ones have a mask channel other than 0.

        Gradients reach the net, the layers and the mask's convolution.
        """
        device = next(self.gated.parameters()).device
        everyone = [(1.0,) * len(references.subjects) for references in pictures]
        with torch.autocast(device.type, enabled=False):  # in half precision the boxes would lose two digits
            tokens = [
                object_tokens(self.gated, references, Group(COND, weights), "on", device)
                for references, weights in zip(pictures, everyone, strict=True)
            ]
        masks = [
            mask_channel(references, weights, size) if on else torch.zeros(1, *size)
            for references, weights, on in zip(pictures, everyone, masked, strict=True)
        ]
        self._tokens, self._masks = torch.cat(tokens), torch.stack(masks).to(device)

    def end(self) -> None:
        """Forget the batch."""
        self._tokens = self._masks = None

    @property
    def active(self) -> bool:
        """Whether there is a batch."""
        return self._tokens is not None

    def objects(self, index: int) -> ObjectTokens:
        """Return the keys and values of one layer, [B, M, C]. Raises ValueError outside of a pass."""
        if self._tokens is None:
            raise ValueError("gated layers: expected the objects of a batch, found none")
        return cast(GatedFuser, self.gated.fusers[index]).project(self._tokens)

    def _announce(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Makes a block call its fuser."""
        if not self.active:
            return None
        bound = signature(block.forward).bind(*args, **kwargs)  # by position under gradient checkpointing
        given = bound.arguments.get(BLOCK_KEY) or {}
        bound.arguments[BLOCK_KEY] = {**given, GLIGEN_KEY: {"objs": None}}
        return bound.args, bound.kwargs

    def _add_mask(self, conv: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if self._masks is None or self.gated.mask_conv is None:
            return None
        return output + self.gated.mask_conv(self._masks.to(output))
