"""A word that carries a subject: MM-Diff fuses photos into word embeddings, before the text encoder (arXiv 2403.15059);
FastComposer into its output, after it (arXiv 2305.10431).

Published tensor names, `operations` as in projections.py. Letters: B prompts, L tokens, d width of the text encoder, K
subject words in all of them, E width of an image embedding (CLIP's projected one, not normalised).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .mlp import MLP, MLPLayers
from .projections import MisshapenTensor, StateDict, shape_of


class WordFusion(MLPLayers):
    """MM-Diff's `mm_fuse_one` and `mm_fuse_two`: a word and a photo through one MLP, the word first, no residual."""

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, int]:
        """Return the constructor arguments, read from `fc1.weight` [hidden, 2 d] and `fc2.weight` [d, hidden].

        Raises KeyError or MisshapenTensor.
        """
        widths = super().widths(state)
        if widths["in_dim"] != 2 * widths["out_dim"]:
            raise MisshapenTensor(
                "fc1.weight",
                f"{2 * widths['out_dim']} columns, for a word and a photo",
                tuple(state["fc1.weight"].shape),
            )
        return widths

    def forward(self, words: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
        """Fuse words [..., d], photos [..., d] (from PhotoToWords) to fused words [..., d]."""
        return self.through(torch.cat((words, photos), -1))


class PhotoToWords(nn.Module):
    """MM-Diff's `obj_embeds_proj`: a photo's embedding in the word space of each of SDXL's text encoders, or of CLIP-L
    alone.

    Arguments:
        embed_dim: E, size of the photo's embedding.
        hidden_dim: of the first Linear.
        one_dim: d1, size of CLIP-L's words.
        two_dim: d2, size of OpenCLIP-bigG's words; 0 for a base model without it.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, one_dim: int, two_dim: int = 0, operations: Any = nn):
        super().__init__()
        self.layernorm = operations.LayerNorm(embed_dim)
        self.fc = operations.Linear(embed_dim, hidden_dim)
        self.proj_1 = operations.Linear(hidden_dim, one_dim)
        self.proj_2 = operations.Linear(hidden_dim, two_dim) if two_dim else None

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, int]:
        """Return the constructor arguments, read from `fc.weight` [hidden, E], `proj_1.weight` [d1, hidden] and, where
        it is there, `proj_2.weight` [d2, hidden].
        """
        hidden_dim, embed_dim = shape_of(state, "fc.weight", 2)
        return {
            "embed_dim": embed_dim,
            "hidden_dim": hidden_dim,
            "one_dim": shape_of(state, "proj_1.weight", 2)[0],
            "two_dim": shape_of(state, "proj_2.weight", 2)[0] if "proj_2.weight" in state else 0,
        }

    def forward(self, embeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map [..., E] to [..., d1] for CLIP-L and, where there is one, [..., d2] for OpenCLIP-bigG."""
        h = nn.functional.gelu(self.fc(self.layernorm(embeds)))
        return (self.proj_1(h),) if self.proj_2 is None else (self.proj_1(h), self.proj_2(h))


class Postfuse(nn.Module):
    """FastComposer's `postfuse_module`: `LN(M2(M1([t, o]) + t))`, M2 with a residual of its own.

    Arguments:
        dim: d, size of a word.
        embed_dim: E, size of a photo's embedding.
        hidden_dim: within M1.
        hidden2_dim: within M2.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, dim: int, embed_dim: int, hidden_dim: int, hidden2_dim: int, operations: Any = nn):
        super().__init__()
        self.mlp1 = MLP(dim + embed_dim, dim, hidden_dim, operations=operations)
        self.mlp2 = MLP(dim, dim, hidden2_dim, residual=True, operations=operations)
        self.layer_norm = operations.LayerNorm(dim)

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, int]:
        """Return the constructor arguments, read from `mlp1.fc1.weight` [hidden, d + E], `mlp2.fc1.weight` [hidden2,
        d].

        Raises KeyError or MisshapenTensor.
        """
        hidden_dim, both = shape_of(state, "mlp1.fc1.weight", 2)
        hidden2_dim, dim = shape_of(state, "mlp2.fc1.weight", 2)
        if both <= dim:
            raise MisshapenTensor(
                "mlp1.fc1.weight", f"more than {dim} columns, for a word and a photo", (hidden_dim, both)
            )
        return {"dim": dim, "embed_dim": both - dim, "hidden_dim": hidden_dim, "hidden2_dim": hidden2_dim}

    def forward(self, words: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
        """Fuse words [..., d], the text encoder's output with its final norm, with photos [..., E]: [..., d]."""
        return self.layer_norm(self.mlp2(self.mlp1(torch.cat((words, photos), -1)) + words))
