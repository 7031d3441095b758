"""Faces for runs on random models: nobody looks for them, so that no face analyser is needed."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate

RANDOM_FACES = (
    "no face analyser is loaded for random models: the faces are RANDOM vectors, and the middle of each photo."
)
WIDTH, SIDE = 512, 224  # of a face's vector, and of its crop in pixels


def random_vectors(count: int, seed: int) -> torch.Tensor:
    """Return [count, 512] random directions of length 1."""
    vectors = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=-1, keepdim=True)


def face_square(photo: torch.Tensor) -> torch.Tensor:
    """Cut the middle square out of [H, W, 3] and resize it to [224, 224, 3]."""
    h, w = photo.shape[:2]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    pixels = photo[top : top + side, left : left + side].movedim(-1, 0).unsqueeze(0)
    return interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", antialias=True)[0].movedim(0, -1).clamp(0, 1)
