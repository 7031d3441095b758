"""The MLP of Subject-Diffusion's GroundingNet, which FastComposer and MM-Diff use too."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .projections import StateDict, shape_of


class MLPLayers(nn.Module):
    """The layers of an `MLP`, without a forward.

    Arguments:
        in_dim: size of the input.
        out_dim: size of the result.
        hidden_dim: size between the two Linears.
        residual: whether the input is added.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int, residual: bool = False, operations: Any = nn):
        super().__init__()
        self.residual = residual
        self.layernorm = operations.LayerNorm(in_dim)
        self.fc1 = operations.Linear(in_dim, hidden_dim)
        self.fc2 = operations.Linear(hidden_dim, out_dim)

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, int]:
        """Return the constructor arguments, read from `fc1.weight` [hidden, in] and `fc2.weight` [out, hidden]; whether
        there is a residual is not in the tensors.
        """
        hidden_dim, in_dim = shape_of(state, "fc1.weight", 2)
        return {"in_dim": in_dim, "out_dim": shape_of(state, "fc2.weight", 2)[0], "hidden_dim": hidden_dim}

    def through(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to [..., out]."""
        y = self.fc2(nn.functional.gelu(self.fc1(self.layernorm(x))))
        return x + y if self.residual else y


class MLP(MLPLayers):
    """LayerNorm, Linear, exact GELU, Linear; `residual` adds the input (then the widths in and out are equal)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to [..., out]."""
        return self.through(x)
