"""Pictures as published evaluations give them to a network: resized by PIL, in whole grey levels, then the middle.

Newer processors of transformers resize tensors instead, which differs by a grey level here and there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ...model_patches.scores.dino import IMAGENET_MEAN, IMAGENET_STD, RESIZED, SIZE


@dataclass(frozen=True)
class Reading:
    """The way from a picture to a network's input.

    resized: pixels of the shorter side; size: of the middle; mean, std: of red, green and blue; cut_down: where the
    border is an odd number of pixels, the middle begins at the half of it rounded down, as in transformers; otherwise
    rounded to an even number, as in torchvision.
    """

    resized: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    cut_down: bool = False


DINO_READING = Reading(RESIZED, SIZE, IMAGENET_MEAN, IMAGENET_STD)  # as DreamBooth's and MIP-Adapter's evaluations


def reading_of(processor: Any, cut_down: bool) -> Reading | None:
    """Return what the image processor in a CLIP's or DINOv2's folder asks for; None where it does something else."""
    try:
        sizes = int(processor.size["shortest_edge"]), int(processor.crop_size["height"])
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
        bicubic = int(processor.resample) == Image.Resampling.BICUBIC
        whole = (processor.do_resize, processor.do_center_crop, processor.do_rescale, processor.do_normalize)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    if not (bicubic and all(whole) and sizes[0] >= sizes[1] and len(mean) == len(std) == 3):
        return None
    return Reading(*sizes, mean, std, cut_down)


def read_picture(picture: Image.Image, reading: Reading) -> torch.Tensor:
    """Return an RGB picture as a network reads it, [3, size, size]."""
    from torchvision.transforms.v2 import functional

    w, h = picture.size
    short, long = min(w, h), int(reading.resized * max(w, h) / min(w, h))
    w, h = (reading.resized if side == short else long for side in (w, h))
    resized = picture if picture.size == (w, h) else picture.resize((w, h), Image.Resampling.BICUBIC)
    borders = (w - reading.size, h - reading.size)
    left, top = (border // 2 if reading.cut_down else round(border / 2) for border in borders)
    middle = resized.crop((left, top, left + reading.size, top + reading.size))
    return functional.normalize(functional.pil_to_tensor(middle).float() / 255, list(reading.mean), list(reading.std))


def read_pictures(pictures: Sequence[Image.Image], reading: Reading) -> torch.Tensor:
    """Return RGB pictures as a network reads them, [n, 3, size, size]."""
    return torch.stack([read_picture(picture, reading) for picture in pictures])
