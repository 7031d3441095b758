"""All that an adapter of gated layers brings into the UNet: the net that turns objects into tokens, and one fuser for
each transformer block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .fuser import GatedFuser, published_heads


class GatedLayers(nn.Module):
    """`net` (a position net or GroundingNet), `fusers` in the order of the spec's blocks, and `mask_conv`, the part of
    the UNet's first convolution that reads Subject-Diffusion's mask channel (1 -> C, 3x3, no bias), or None.

    Arguments:
        net: makes the object tokens.
        widths: C of each fuser; each has the number of heads of a published one.
        object_dim: D, size of the object tokens.
        mask_width: channels of `mask_conv`, None for no such convolution.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(
        self,
        net: nn.Module,
        widths: Sequence[int],
        object_dim: int,
        mask_width: int | None = None,
        operations: Any = nn,
    ):
        super().__init__()
        self.net = net
        self.fusers = nn.ModuleList(
            GatedFuser(width, object_dim, published_heads(width, object_dim), operations) for width in widths
        )
        self.mask_conv = None if mask_width is None else operations.Conv2d(1, mask_width, 3, padding=1, bias=False)
