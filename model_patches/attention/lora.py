"""Keys and values of image tokens through a UNet layer's own projections and a low-rank pair (MM-Diff, arXiv
2403.15059).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Projection = Callable[[torch.Tensor], torch.Tensor]


def image_projection(
    project: Projection,
    tokens: torch.Tensor,
    image: Projection,
    text: Projection,
    merged: float = 1.0,
    scale: float = 1.0,
) -> torch.Tensor:
    """Return `W c + scale * LoRA_image(c)`; W is the layer's weight without the adapter's text LoRA, which may be
    merged into it: `project(c) - merged * LoRA_text(c) + scale * LoRA_image(c)`. What else was merged stays in.

    Arguments:
        project: the layer's `to_k` or `to_v` as it is; tokens: c, [..., S, D].
        image, text: low-rank pairs, [..., D] -> [..., C], called with float32 tokens.
        merged: strength with which the text LoRA is in `project`, 0 if it was not merged.
        scale: of the image LoRA (published: 1). A pair with factor 0 is not called.
    Returns:
        [..., S, C] in the dtype of `project`, its corrections made in float32.
    """
    base = project(tokens)
    corrections = [factor * pair(tokens.float()) for pair, factor in ((text, -merged), (image, scale)) if factor]
    return sum(corrections, base.float()).to(base.dtype) if corrections else base
