"""The gated adapter's layers, all 16 of SD1.5 at a size: as published, and as they are computed here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from intervals import Interval, interval
from measure import timed
from torch.nn.functional import scaled_dot_product_attention

# (width, latent cells a position)
LAYERS = (
    (320, 1),
    (320, 1),
    (640, 2),
    (640, 2),
    (1280, 4),
    (1280, 4),
    (1280, 8),
    *((1280, 4),) * 3,
    *((640, 2),) * 3,
    *((320, 1),) * 3,
)
ROWS = 2  # negative and positive
SUBJECT_DIFFUSION, GLIGEN = 512, 60  # tokens of two subjects, 256 each, and of 30 text-image slots


def published(fuser: Any, x: torch.Tensor, objects: torch.Tensor) -> torch.Tensor:
    """Return the layer's output computed as in the papers: object tokens are projected in every step and appended to
    the visual ones, all tokens attend to all, and the outputs of the objects are discarded.

    x [B, N, C], objects [B, M, D] -> [B, N, C].
    """
    tokens = fuser.norm1(torch.cat((x, fuser.linear(objects)), 1))
    q, k, v = (
        part(tokens).unflatten(-1, (fuser.heads, -1)).transpose(1, 2)
        for part in (fuser.attn.to_q, fuser.attn.to_k, fuser.attn.to_v)
    )
    seen = fuser.attn.to_out[0](scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))[:, : x.shape[1]]
    x = x + torch.tanh(fuser.alpha_attn.weight) * seen
    return x + torch.tanh(fuser.alpha_dense.weight) * fuser.ff.net(fuser.norm2(x))


def layers(
    pixels: int, tokens: int, context: int, dtype: torch.dtype, device: torch.device, zeros: bool = False
) -> list[tuple[Any, torch.Tensor, torch.Tensor]]:
    """Return (fuser, visual tokens [ROWS, N, C], object tokens [ROWS, M, D]) of every gated layer of SD1.5 at a picture
    size, with random values. zeros: the object tokens of the negative row are 0, as in Subject-Diffusion.
    """
    from bases import randomise
    from troupe.model_patches.encoders.fuser import GatedFuser, published_heads

    found = []
    for width, down in LAYERS:
        fuser = GatedFuser(width, context, published_heads(width, context)).to(device, dtype).requires_grad_(False)
        randomise(fuser)
        fuser.linear.bias.data.normal_()
        for gate in (fuser.alpha_attn, fuser.alpha_dense):
            gate.weight.data.fill_(0.5)
        positions = math.ceil(pixels / 8 / down) ** 2
        objects = torch.randn(ROWS, tokens, context, device=device, dtype=dtype)
        if zeros:
            objects[0] = 0
        found.append((fuser, torch.randn(ROWS, positions, width, device=device, dtype=dtype), objects))
    return found


def speedup(
    pixels: int, tokens: int, pairs: int, dtype: torch.dtype, device: torch.device, context: int = 768
) -> dict[str, Any]:
    """Return the seconds that all layers take in both forms, and how many times faster ours is, as intervals. Both
    forms are timed in pairs, in alternating order.
    """
    zeros = tokens == SUBJECT_DIFFUSION
    work = layers(pixels, tokens, context, dtype, device, zeros)
    # once a run
    projected = [replace(fuser.project(objects), equal=(True, False) if zeros else ()) for fuser, _, objects in work]

    def ours() -> None:
        for (fuser, x, _), objects in zip(work, projected, strict=True):
            fuser(x, objects)

    def theirs() -> None:
        for fuser, x, objects in work:
            published(fuser, x, objects)

    found = alternately(ours, theirs, pairs)
    ratio: Interval = interval([b / a for a, b in found])
    return {
        "pixels": pixels,
        "tokens": tokens,
        "ours": interval([a for a, _ in found]).as_dict(),
        "published": interval([b for _, b in found]).as_dict(),
        "times": ratio.as_dict(),
    }


def alternately(a: Callable[[], None], b: Callable[[], None], pairs: int) -> Sequence[tuple[float, float]]:
    """Return the seconds of a and of b of each pair of calls, in alternating order, after one untimed call of each."""
    a()
    b()
    found = []
    for i in range(pairs):
        if i % 2:
            second, first = timed(b), timed(a)
        else:
            first, second = timed(a), timed(b)
        found.append((first, second))
    return found
