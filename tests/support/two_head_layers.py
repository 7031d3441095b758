"""Attention layers with two heads, and what their gradients are compared with."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from support import tiny_diffusers as tiny
from support import tiny_training as small


def interpolated(image, side):
    """A reference [40, 40, 3] as the image encoder reads it, [1, 3, side, side] float64."""
    picture = torch.nn.functional.interpolate(
        image.permute(2, 0, 1)[None], size=(side, side), mode="bicubic", antialias=True, align_corners=False
    )
    picture = (picture.clamp(0, 1) * 255).round() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    return ((picture - mean) / std).double()


def two_heads():
    """Text embeddings of size 128, with which the "plus" projection has two heads."""
    torch.manual_seed(5)
    unet = UNet2DConditionModel.from_config(tiny.unet().config, cross_attention_dim=128)
    return small.base(unet.eval().requires_grad_(False), texts=small.texts(128))
