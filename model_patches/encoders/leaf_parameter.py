"""Tensors that the published modules hold beside their layers (gates, null features): here each is a leaf module of its
own, so that a host can move it like any layer."""

from __future__ import annotations

import torch
from torch import nn

LEAF_PREFIXES = ("null_", "alpha_")


class LeafParameter(nn.Module):
    """One learned tensor, `weight`; use it as `.weight.to(x)`."""

    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


def module_name(published: str) -> str:
    """Return the name a published tensor of a fuser, GroundingNet or PositionNet has in our modules: `fuser.alpha_attn`
    -> `fuser.alpha_attn.weight`.
    """
    return f"{published}.weight" if published.rpartition(".")[2].startswith(LEAF_PREFIXES) else published


def published_name(ours: str) -> str:
    """Return the published name of a tensor in our modules: `fuser.alpha_attn.weight` -> `fuser.alpha_attn`."""
    bare = ours.removesuffix(".weight")
    return bare if module_name(bare) == ours else ours
