"""Low-rank pairs beside a layer's own weights, and those that make MM-Diff's image attention (arXiv 2403.15059).

Published tensor names, `operations` as in projections.py. Give float32 tokens: keys and values of image tokens are made
once a run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .projections import MisshapenTensor, StateDict, shape_of

PAIRS = ("to_k_lora", "to_v_lora", "to_k_lora_image", "to_v_lora_image")


class LowRank(nn.Module):
    """`(alpha / r) up(down(x))`, r the rank; alpha None: factor 1.

    Arguments:
        in_dim: size of the input.
        out_dim: size of the result.
        rank: r.
        alpha: scales the result by alpha / r; None for 1.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, alpha: float | None = None, operations: Any = nn):
        super().__init__()
        self.factor = 1.0 if alpha is None else alpha / rank
        self.down = operations.Linear(in_dim, rank, bias=False)
        self.up = operations.Linear(rank, out_dim, bias=False)

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, int]:
        """Return the constructor arguments, read from `down.weight` [r, in] and `up.weight` [out, r].

        Raises KeyError or MisshapenTensor.
        """
        (rank, in_dim), up = shape_of(state, "down.weight", 2), shape_of(state, "up.weight", 2)
        if up[1] != rank:
            raise MisshapenTensor("up.weight", f"{rank} columns", up)
        return {"in_dim": in_dim, "out_dim": up[0], "rank": rank}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to [..., out]."""
        y = self.up(self.down(x))
        return y if self.factor == 1 else y * self.factor


class ImagePairs(nn.Module):
    """The pairs of one cross-attention layer of the UNet: for image tokens, and for text.

    Arguments:
        context_dim: D, size of the text and image tokens.
        width: C, channels of the layer.
        rank: of the pairs for image tokens.
        text_rank: of the pairs for text.
        alpha: of all pairs, see `LowRank`.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(
        self, context_dim: int, width: int, rank: int, text_rank: int, alpha: float | None = None, operations: Any = nn
    ):
        super().__init__()
        self.to_k_lora, self.to_v_lora = (LowRank(context_dim, width, text_rank, alpha, operations) for _ in range(2))
        self.to_k_lora_image, self.to_v_lora_image = (
            LowRank(context_dim, width, rank, alpha, operations) for _ in range(2)
        )

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, int]:
        """Return the constructor arguments, read from `to_{k,v}_lora{,_image}.{down,up}.weight` of one layer, others
        ignored.

        Raises KeyError or MisshapenTensor.
        """
        pairs = {}
        for pair in PAIRS:
            try:
                pairs[pair] = LowRank.widths({name: state[f"{pair}.{name}"] for name in ("down.weight", "up.weight")})
            except MisshapenTensor as problem:
                raise MisshapenTensor(f"{pair}.{problem.name}", problem.expected, problem.shape) from None
        image, text = pairs["to_k_lora_image"], pairs["to_k_lora"]
        for pair, found in pairs.items():
            expected = {**image, "rank": (image if pair.endswith("image") else text)["rank"]}
            if found != expected:
                raise MisshapenTensor(
                    f"{pair}.down.weight",
                    f"a pair of {expected['in_dim']} -> {expected['rank']} -> {expected['out_dim']}",
                    (found["rank"], found["in_dim"]),
                )
        return {
            "context_dim": image["in_dim"],
            "width": image["out_dim"],
            "rank": image["rank"],
            "text_rank": text["rank"],
        }
