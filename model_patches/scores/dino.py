"""Pictures as DINO and DINOv2 read them."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate

RESIZED, SIZE = 256, 224  # pixels: of the shorter side, and of the centre crop
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB


def centre_crop(picture: torch.Tensor) -> torch.Tensor:
    """Return a picture [H, W, 3] as papers give it to DINO, [224, 224, 3]: shorter side to 256 (bicubic, antialias),
    then the middle.
    """
    h, w = picture.shape[:2]
    short = min(h, w)
    h, w = (RESIZED if side == short else int(RESIZED * side / short) for side in (h, w))
    pixels = interpolate(picture.movedim(-1, 0)[None].float(), (h, w), mode="bicubic", antialias=True).clamp(0, 1)
    top, left = round((h - SIZE) / 2), round((w - SIZE) / 2)
    return pixels[0, :, top : top + SIZE, left : left + SIZE].movedim(0, -1)


def dino_pixels(pictures: torch.Tensor) -> torch.Tensor:
    """Return pictures [n, S, S, 3] in 0..1 as the network reads them, [n, 3, S, S]."""
    mean, std = (pictures.new_tensor(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pictures - mean) / std).movedim(-1, 1)
