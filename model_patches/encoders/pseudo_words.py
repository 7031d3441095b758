"""UMM-Diffusion's text and image encoder: a photo becomes one or a few pseudo words among the words of a prompt (arXiv
2303.09319).

No code or weights were published. Only the MLP is trained; its depth, its widths, its activation and the number of
words are a file's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, pairwise
from typing import Any

import torch
from torch import nn

from .projections import MisshapenTensor, StateDict, shape_of

# exact GELU, slope 0.01
ACTIVATIONS = {
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
    "leaky_relu": nn.functional.leaky_relu,
    "silu": nn.functional.silu,
}


class PseudoWords(nn.Module):
    """A CLIP image embedding -> k word embeddings: Linears with an activation between them, not after the last.

    Arguments:
        layer_widths: of the input, of each hidden layer, and k * d of the output.
        tokens: k, words of a subject.
        activation: one of ACTIVATIONS.
        normalize: bring the embedding to length 1 first.
        input_norm: LayerNorm of the embedding.
        output_norm: width of a LayerNorm of the result, over each word (d) or over all of them (k * d), 0 for none.
        operations: `torch.nn`, or a host's module with the same classes.
    Raises:
        ValueError: another activation, or k does not divide the output.
    """

    def __init__(
        self,
        layer_widths: Sequence[int],
        tokens: int = 1,
        activation: str = "gelu",
        normalize: bool = False,
        input_norm: bool = False,
        output_norm: int = 0,
        operations: Any = nn,
    ):
        super().__init__()
        out = layer_widths[-1]
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, found {activation!r}")
        if tokens < 1 or out % tokens:
            raise ValueError(f"pseudo words: expected a number that divides the output width {out}, found {tokens}")
        if output_norm not in (0, out, out // tokens):
            raise ValueError(f"output norm: expected a width of {out // tokens} or {out}, found {output_norm}")
        self.tokens, self.activation, self.normalize = tokens, activation, normalize
        self.input_norm = operations.LayerNorm(layer_widths[0]) if input_norm else None
        self.layers = nn.ModuleList(operations.Linear(i, o) for i, o in pairwise(layer_widths))
        self.output_norm = operations.LayerNorm(output_norm) if output_norm else None
        self.norm_width = output_norm

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, Any]:
        """Return the constructor arguments, read from `layers.{i}.weight` [out, in], i from 0 without a gap, and the
        norms where they are; no tensor shows the others.

        Raises KeyError or MisshapenTensor.
        """
        shapes = [shape_of(state, "layers.0.weight", 2)]
        for i in count(1):
            if f"layers.{i}.weight" not in state:
                break
            shapes.append(shape_of(state, f"layers.{i}.weight", 2))
            if shapes[i][1] != shapes[i - 1][0]:
                raise MisshapenTensor(f"layers.{i}.weight", f"{shapes[i - 1][0]} columns", shapes[i])
        output_norm = shape_of(state, "output_norm.weight", 1)[0] if "output_norm.weight" in state else 0
        return {
            "layer_widths": (shapes[0][1], *(out for out, _ in shapes)),
            "input_norm": "input_norm.weight" in state,
            "output_norm": output_norm,
        }

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        """Map [n, E] to [n, k, d]."""
        x = nn.functional.normalize(embeds, dim=-1) if self.normalize else embeds
        x = x if self.input_norm is None else self.input_norm(x)
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else ACTIVATIONS[self.activation](x))
        if self.output_norm is not None:
            x = self.output_norm(x.unflatten(-1, (-1, self.norm_width))).flatten(-2)
        return x.unflatten(-1, (self.tokens, -1))
