"""The gated self-attention layer of GLIGEN (arXiv 2301.07093) and Subject-Diffusion (arXiv 2307.11410), with the
published tensor names.

Letters as in attention/gated.py; D channels of an object token before the layer.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..attention.gated import ObjectTokens, gated_residual, gated_self_attention
from .leaf_parameter import LeafParameter
from .projections import MisshapenTensor, StateDict, shape_of

SD1_CONTEXT, SD1_HEADS, FUSER_HEAD_WIDTH = 768, 8, 64
SLICE = 256  # positions


def published_heads(width: int, context_dim: int) -> int:
    """Return the number of heads of a published fuser, which no tensor shows: 8 in SD 1 models (context 768), heads of
    64 channels in all others.
    """
    return SD1_HEADS if context_dim == SD1_CONTEXT else width // FUSER_HEAD_WIDTH


class FuserAttention(nn.Module):
    """`to_q`, `to_k`, `to_v` (no bias) and `to_out.0`.

    Arguments:
        width: C, channels of the visual tokens.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, width: int, operations: Any = nn):
        super().__init__()
        self.to_q = operations.Linear(width, width, bias=False)
        self.to_k = operations.Linear(width, width, bias=False)
        self.to_v = operations.Linear(width, width, bias=False)
        self.to_out = nn.ModuleList([operations.Linear(width, width)])


class GatedGELU(nn.Module):
    """`proj`: C -> 2 * inner, the first half times the exact GELU of the second.

    Arguments:
        width: C.
        inner: size of the result.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, width: int, inner: int, operations: Any = nn):
        super().__init__()
        self.proj = operations.Linear(width, inner * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., C] to [..., inner]."""
        value, gate = self.proj(x).chunk(2, -1)
        return value * nn.functional.gelu(gate)


class FuserFeedForward(nn.Module):
    """GEGLU to 4C and back; `net.1` is the published dropout, which does nothing here.

    Arguments:
        width: C.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, width: int, operations: Any = nn):
        super().__init__()
        self.net = nn.Sequential(
            GatedGELU(width, width * 4, operations), nn.Identity(), operations.Linear(width * 4, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., C] to [..., C]."""
        return self.net(x)


class GatedFuser(nn.Module):
    """One layer: `project` the objects once a run, then apply to the visual tokens in every step.

    `x = x + scale tanh(alpha_attn) SelfAttn(LN1([x; linear(objects)]))[:N]`, then `x = x + scale tanh(alpha_dense)
    FF(LN2(x))`.

    Arguments:
        width: C, channels of the visual tokens.
        context_dim: D, size of the object tokens.
        heads: of the self-attention; C is a multiple of it.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, width: int, context_dim: int, heads: int, operations: Any = nn):
        super().__init__()
        self.width, self.context_dim, self.heads = width, context_dim, heads
        self.linear = operations.Linear(context_dim, width)
        self.attn = FuserAttention(width, operations)
        self.ff = FuserFeedForward(width, operations)
        self.norm1 = operations.LayerNorm(width)
        self.norm2 = operations.LayerNorm(width)
        self.alpha_attn = LeafParameter()
        self.alpha_dense = LeafParameter()

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, int]:
        """Return the constructor arguments, read from `linear.weight` [C, D]; heads as published.

        Raises KeyError, MisshapenTensor.
        """
        width, context_dim = shape_of(state, "linear.weight", 2)
        unit = SD1_HEADS if context_dim == SD1_CONTEXT else FUSER_HEAD_WIDTH
        if width % unit:
            raise MisshapenTensor("linear.weight", f"rows in a multiple of {unit}", (width, context_dim))
        return {"width": width, "context_dim": context_dim, "heads": published_heads(width, context_dim)}

    def project(self, objects: torch.Tensor) -> ObjectTokens:
        """Project object tokens [G, M, D] to their keys and values in this layer; also return the gates, as numbers
        (one read from the device each) unless they are trained.

        LayerNorm is per token, so normalising objects and visual tokens apart is exact. Nothing here depends on the
        timestep.
        """
        normed = self.norm1(self.linear(objects))
        attention, dense = (_gate(alpha.weight) for alpha in (self.alpha_attn, self.alpha_dense))
        return ObjectTokens(self.attn.to_k(normed), self.attn.to_v(normed), attention, dense)

    def forward(self, x: torch.Tensor, objects: ObjectTokens, scale: float | torch.Tensor = 1.0) -> torch.Tensor:
        """Map visual tokens [B, N, C] to [B, N, C].

        What x is where scale or both gates are 0. objects: from `project`, in any dtype; scale: see `gated_residual`.
        """
        x = gated_residual(x, lambda y: self._attend(y, objects), objects.attention_gate, scale)
        if x.device.type == "cpu" and x.shape[1] > SLICE:  # the 8C values of each position stay in its cache
            return torch.cat([self._feed(part, objects, scale) for part in x.split(SLICE, 1)], 1)
        return self._feed(x, objects, scale)

    def _feed(self, x: torch.Tensor, objects: ObjectTokens, scale: float | torch.Tensor) -> torch.Tensor:
        return gated_residual(x, lambda y: self.ff(self.norm2(y)), objects.dense_gate, scale)

    def _attend(self, x: torch.Tensor, objects: ObjectTokens) -> torch.Tensor:
        normed, attn = self.norm1(x), self.attn
        objects = replace(objects, keys=objects.keys.to(x), values=objects.values.to(x))
        return attn.to_out[0](
            gated_self_attention(attn.to_q(normed), attn.to_k(normed), attn.to_v(normed), objects, self.heads)
        )


def _gate(alpha: torch.Tensor) -> float | torch.Tensor:
    """`tanh` of a trained scalar; a tensor only where it gets a gradient."""
    return alpha.tanh() if alpha.requires_grad and torch.is_grad_enabled() else math.tanh(float(alpha))
