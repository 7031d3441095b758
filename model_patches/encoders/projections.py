"""Image projections of the IP-Adapter family: CLIP vision output -> image tokens (IP-Adapter, arXiv 2308.06721).

Every class takes `operations`, a namespace with `Linear` and `LayerNorm` (torch.nn, or the host's casting layers), and
reads its widths from a state dict in the published layout through `widths`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

StateDict = dict[str, torch.Tensor]
RESAMPLER_HEAD_WIDTH = 64  # of the Resampler's attention in every published file


class MisshapenTensor(ValueError):
    """A tensor from which no width can be read. name: the tensor's; expected: what its shape should be, in words;
    shape: what it is.
    """

    def __init__(self, name: str, expected: str, shape: tuple[int, ...]):
        self.name, self.expected, self.shape = name, expected, shape
        super().__init__(f"{name}: expected {expected}, found {list(shape)}")


def shape_of(state: StateDict, name: str, axes: int) -> tuple[int, ...]:
    """Return the shape of a tensor that must have that many axes, none of them empty.

    Raises KeyError (no such tensor) or MisshapenTensor.
    """
    shape = tuple(state[name].shape)
    if len(shape) != axes or 0 in shape:
        raise MisshapenTensor(name, f"{axes} axes", shape)
    return shape


def layers_in(names: Iterable[str]) -> int:
    """Return how many layers `layers.{i}.…` there are, numbered from 0.

    Raises KeyError with a tensor of the first that is missing.
    """
    numbers = {name.split(".")[1] for name in names if name.startswith("layers.")}
    numbers = {number for number in numbers if number.isdecimal()}
    for i in range(len(numbers)):
        if str(i) not in numbers:
            raise KeyError(f"layers.{i}.0.to_q.weight")
    return len(numbers)


class ImageProj(nn.Module):
    """Pooled image embedding -> T tokens: one Linear, reshape, LayerNorm.

    Arguments:
        embed_dim: E, size of the pooled embedding.
        context_dim: D, size of a token.
        tokens: T.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, embed_dim: int, context_dim: int, tokens: int, operations: Any = nn):
        super().__init__()
        self.tokens, self.context_dim = tokens, context_dim
        self.proj = operations.Linear(embed_dim, tokens * context_dim)
        self.norm = operations.LayerNorm(context_dim)

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, int]:
        """Return the constructor arguments, read from `proj.weight` [T*D, E] and `norm.weight` [D]."""
        out, embed_dim = shape_of(state, "proj.weight", 2)
        (context_dim,) = shape_of(state, "norm.weight", 1)
        return {"embed_dim": embed_dim, "context_dim": context_dim, "tokens": max(1, out // context_dim)}

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        """Map [n, E] pooled embeddings to [n, T, D]."""
        return self.norm(self.proj(embeds).view(-1, self.tokens, self.context_dim))


class FaceMLP(nn.Module):
    """The full-face projection: every token of the penultimate layer through a two-layer MLP.

    Arguments:
        embed_dim: E, size of a hidden state.
        context_dim: D, size of a token.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, embed_dim: int, context_dim: int, operations: Any = nn):
        super().__init__()
        self.proj = nn.Sequential(
            operations.Linear(embed_dim, embed_dim),
            nn.GELU(),
            operations.Linear(embed_dim, context_dim),
            operations.LayerNorm(context_dim),
        )

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, int]:
        """Return the constructor arguments, read from `proj.2.weight` [D, E]."""
        context_dim, embed_dim = shape_of(state, "proj.2.weight", 2)
        return {"embed_dim": embed_dim, "context_dim": context_dim}

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [n, P, E] penultimate hidden states (CLS first) to [n, P, D]."""
        return self.proj(hidden)


class Latents(nn.Module):
    """The Resampler's learned queries, a leaf of its own so that a host can move it like any layer.

    Arguments:
        tokens: T, the number of queries.
        dim: d, their size.
    """

    def __init__(self, tokens: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, tokens, dim))


class PerceiverAttention(nn.Module):
    """Attention of latents to image tokens and to themselves; heads of RESAMPLER_HEAD_WIDTH unless given, no biases.

    Arguments:
        dim: d, size of latents and image tokens.
        inner: heads times channels of a head.
        head_width: channels of a head.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, dim: int, inner: int, head_width: int, operations: Any):
        super().__init__()
        self.heads, self.head_width = inner // head_width, head_width
        self.norm1 = operations.LayerNorm(dim)
        self.norm2 = operations.LayerNorm(dim)
        self.to_q = operations.Linear(dim, inner, bias=False)
        self.to_kv = operations.Linear(dim, inner * 2, bias=False)
        self.to_out = operations.Linear(inner, dim, bias=False)

    def forward(self, x: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Map x [n, P, d], latents [n, T, d] to [n, T, d]."""
        n, t, _ = latents.shape
        x, latents = self.norm1(x), self.norm2(latents)
        keys, values = self.to_kv(torch.cat((x, latents), 1)).chunk(2, -1)
        q, k, v = (
            y.view(n, -1, self.heads, self.head_width).transpose(1, 2) for y in (self.to_q(latents), keys, values)
        )
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(1, 2).reshape(n, t, -1))


class PerceiverFeedForward(nn.Sequential):
    """LayerNorm, Linear to 4d, GELU, Linear back; no biases in the Linears.

    Arguments:
        dim: d.
        inner: size between the two Linears.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, dim: int, inner: int, operations: Any):
        super().__init__(
            operations.LayerNorm(dim),
            operations.Linear(dim, inner, bias=False),
            nn.GELU(),
            operations.Linear(inner, dim, bias=False),
        )


class Resampler(nn.Module):
    """The "plus" projection: T learned queries gather the penultimate tokens through a few perceiver layers.

    Arguments:
        dim: d, size of the queries.
        depth: number of layers.
        inner: heads times channels of a head.
        tokens: T.
        embed_dim: E, size of a hidden state.
        context_dim: D, size of a token.
        ff_inner: size within a feed-forward layer.
        head_width: channels of a head.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        inner: int,
        tokens: int,
        embed_dim: int,
        context_dim: int,
        ff_inner: int,
        head_width: int = RESAMPLER_HEAD_WIDTH,
        operations: Any = nn,
    ):
        super().__init__()
        self.latents = Latents(tokens, dim)
        self.proj_in = operations.Linear(embed_dim, dim)
        self.proj_out = operations.Linear(dim, context_dim)
        self.norm_out = operations.LayerNorm(context_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    PerceiverAttention(dim, inner, head_width, operations),
                    PerceiverFeedForward(dim, ff_inner, operations),
                )
            )
            for _ in range(depth)
        )

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, int]:
        """Return the constructor arguments, read from the published names (`latents` [1, T, d], `proj_in.weight` [d,
        E], `proj_out.weight` [D, d], ...). Raises MisshapenTensor where the heads do not divide the queries.
        """
        _, tokens, dim = shape_of(state, "latents", 3)
        to_q = shape_of(state, "layers.0.0.to_q.weight", 2)
        if to_q[0] % RESAMPLER_HEAD_WIDTH:
            raise MisshapenTensor("layers.0.0.to_q.weight", f"rows in a multiple of {RESAMPLER_HEAD_WIDTH}", to_q)
        return {
            "dim": dim,
            "tokens": tokens,
            "embed_dim": shape_of(state, "proj_in.weight", 2)[1],
            "context_dim": shape_of(state, "proj_out.weight", 2)[0],
            "depth": layers_in(state),
            "inner": to_q[0],
            "ff_inner": shape_of(state, "layers.0.1.1.weight", 2)[0],
        }

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [n, P, E] penultimate hidden states (CLS first) to [n, T, D]."""
        x = self.proj_in(hidden)
        latents = self.latents.weight.to(x).expand(x.shape[0], -1, -1)
        for layer in self.layers:
            attention, feed_forward = cast(nn.ModuleList, layer)
            latents = attention(x, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(latents))


def resampler_module_name(published: str) -> str:
    """Return the name a published tensor has in our modules (`latents` lives in a leaf module here)."""
    return "latents.weight" if published == "latents" else published
