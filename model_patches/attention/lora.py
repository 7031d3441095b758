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
) -> torch.Tensor:
    """Return `W c + LoRA_image(c)`; W is the layer's weight without the adapter's text LoRA, which may be merged into
    it: `project(c) - merged * LoRA_text(c) + LoRA_image(c)`. What else was merged stays in.

    Arguments:
        project: the layer's `to_k` or `to_v` as it is; tokens: c, [..., S, D].
        image, text: low-rank pairs, [..., D] -> [..., C], called with float32 tokens.
        merged: strength with which the text LoRA is in `project`; at 0 it was not merged, and `text` is not called.
    Returns:
        [..., S, C] in the dtype of `project`, its corrections made in float32.
    """
    base, exact = project(tokens), tokens.float()
    plain = base.float() - merged * text(exact) if merged else base.float()
    return (plain + image(exact)).to(base.dtype)
