"""Subject tokens for image attention, refined by what the photo shows in detail: MM-Diff's SE-Refiner and the head
around it (arXiv 2403.15059).

Published tensor names, `operations` as in projections.py. Letters: n photos, T tokens of each, P patch tokens (CLS
among them where the encoder gives it), E their width, D width of the UNet's context.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from .projections import MisshapenTensor, PerceiverAttention, PerceiverFeedForward, StateDict, layers_in, shape_of

REFINER_HEAD_WIDTH = 256  # of the refiner's attention in the published file; no tensor shows it
FACE_WIDTH = 512  # of an ArcFace vector


class SERefiner(nn.Module):
    """A net whose queries gather detail from patch tokens through a few layers of IP-Adapter's perceiver attention,
    with a residual each.

    What the Resampler does with learned queries, here with given ones; `proj_in` reads the patches once for all layers.

    Arguments:
        dim: size of the queries.
        depth: number of layers.
        inner: heads times channels of a head.
        ff_inner: size within a feed-forward layer.
        embed_dim: E, size of a patch token.
        out_dim: size of the result.
        head_width: channels of a head.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        inner: int,
        ff_inner: int,
        embed_dim: int,
        out_dim: int,
        head_width: int = REFINER_HEAD_WIDTH,
        operations: Any = nn,
    ):
        super().__init__()
        self.proj_in = operations.Linear(embed_dim, dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    PerceiverAttention(dim, inner, head_width, operations),
                    PerceiverFeedForward(dim, ff_inner, operations),
                )
            )
            for _ in range(depth)
        )
        self.proj_out = operations.Linear(dim, out_dim)
        self.norm_out = operations.LayerNorm(out_dim)

    @classmethod
    def widths(cls, state: StateDict, head_width: int = REFINER_HEAD_WIDTH) -> dict[str, int]:
        """Return the constructor arguments, read from `proj_in.weight` [dim, E], `proj_out.weight` [out, dim] and the
        layers.

        Raises KeyError or MisshapenTensor.
        """
        (dim, embed_dim), to_q = shape_of(state, "proj_in.weight", 2), shape_of(state, "layers.0.0.to_q.weight", 2)
        if to_q[0] % head_width:
            raise MisshapenTensor("layers.0.0.to_q.weight", f"rows in a multiple of {head_width}", to_q)
        return {
            "dim": dim,
            "embed_dim": embed_dim,
            "out_dim": shape_of(state, "proj_out.weight", 2)[0],
            "head_width": head_width,
            "inner": to_q[0],
            "ff_inner": shape_of(state, "layers.0.1.1.weight", 2)[0],
            "depth": layers_in(state),
        }

    def forward(self, query: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """Map query [n, T, dim], dense [n, P, E] patch tokens to [n, T, out]."""
        dense = self.proj_in(dense)
        for layer in self.layers:
            attention, feed_forward = cast(nn.ModuleList, layer)
            query = query + attention(dense, query)
            query = query + feed_forward(query)
        return self.norm_out(self.proj_out(query))


class SubjectHead(nn.Module):
    """One vector for who it is and the patches for how it looks -> T context tokens: `x + refiner(x, patches)`, x an
    MLP of the vector.

    With ArcFace vectors (size 512) and the penultimate tokens of the untouched CLIP ViT-L/14, 257 with CLS, this is the
    published `face_embeds_proj` (T = 4). The paper's head for any object was not published. The same layers reading a
    CLS embedding instead, with the patches of the subject cut out on white, are our reconstruction of it from the
    paper's figure: no file or code confirms it.

    Arguments:
        vector_dim: V, size of the identity vector.
        hidden_dim: h of the MLP.
        tokens: T.
        context_dim: D, size of a token.
        refiner: constructor arguments of SERefiner.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(
        self,
        vector_dim: int,
        hidden_dim: int,
        tokens: int,
        context_dim: int,
        refiner: dict[str, int],
        operations: Any = nn,
    ):
        super().__init__()
        self.vector_dim, self.tokens, self.context_dim = vector_dim, tokens, context_dim
        self.proj = nn.Sequential(
            operations.Linear(vector_dim, hidden_dim), nn.GELU(), operations.Linear(hidden_dim, tokens * context_dim)
        )
        self.layer_norm = operations.LayerNorm(context_dim)
        self.refiner = SERefiner(**refiner, operations=operations)

    @classmethod
    def widths(cls, state: StateDict, head_width: int = REFINER_HEAD_WIDTH) -> dict[str, Any]:
        """Return the constructor arguments, read from `proj.0.weight` [h, V], `proj.2.weight` [T*D, h],
        `layer_norm.weight` [D] and the refiner's tensors.

        Raises KeyError or MisshapenTensor.
        """
        hidden_dim, vector_dim = shape_of(state, "proj.0.weight", 2)
        (context_dim,) = shape_of(state, "layer_norm.weight", 1)
        rows, columns = shape_of(state, "proj.2.weight", 2)
        if rows % context_dim:
            raise MisshapenTensor("proj.2.weight", f"rows in a multiple of {context_dim}", (rows, columns))
        try:
            refiner = SERefiner.widths(
                {
                    name.removeprefix("refiner."): tensor
                    for name, tensor in state.items()
                    if name.startswith("refiner.")
                },
                head_width,
            )
        except MisshapenTensor as problem:
            raise MisshapenTensor(f"refiner.{problem.name}", problem.expected, problem.shape) from None
        for name, width in (("proj_in", refiner["dim"]), ("proj_out", refiner["out_dim"])):
            if width != context_dim:
                raise MisshapenTensor(
                    f"refiner.{name}.weight", f"{context_dim} rows", tuple(state[f"refiner.{name}.weight"].shape)
                )
        return {
            "vector_dim": vector_dim,
            "hidden_dim": hidden_dim,
            "tokens": rows // context_dim,
            "context_dim": context_dim,
            "refiner": refiner,
        }

    @property
    def reads_faces(self) -> bool:
        """Whether the vector is a face's (ArcFace) and not a photo's CLS embedding."""
        return self.vector_dim == FACE_WIDTH

    def forward(self, vectors: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Map vectors [n, V] (ArcFace: of length 1) and hidden states [n, P, E] to [n, T, D]."""
        x = self.layer_norm(self.proj(vectors).view(-1, self.tokens, self.context_dim))
        return x + self.refiner(x, hidden)
