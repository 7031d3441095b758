"""The base models that adapters are made for, known by the size of their text embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PIXELS_PER_CELL = 8  # along a side of a latent cell, in every base


@dataclass(frozen=True)
class BaseModel:
    """A base model, or several that adapters do not distinguish.

    name: in messages; width: size of its text embeddings; side: of its training pictures, in pixels; streams: ComfyUI's
    names of its text encoders, in the order in which their outputs are joined; clip_layer: the layer of its text
    encoders that the UNet reads, -1: the last; final_norm: whether their final LayerNorm follows that layer.
    """

    name: str
    width: int
    side: int
    streams: tuple[str, ...]
    clip_layer: int
    final_norm: bool


REHEARSAL_BASE = BaseModel("the rehearsal world", 128, 128, ("l",), -1, True)
SD15_BASE = BaseModel("SD1.5", 768, 512, ("l",), -1, True)
SD2_BASE = BaseModel("SD2.x", 1024, 640, ("h",), -2, True)  # between SD2-base's 512 and SD2's 768 pixels
SDXL_BASE = BaseModel("SDXL", 2048, 1024, ("l", "g"), -2, False)
# by width
BASES: Mapping[int, BaseModel] = {base.width: base for base in (REHEARSAL_BASE, SD15_BASE, SD2_BASE, SDXL_BASE)}


def base_name(width: int) -> str:
    """Return 'SDXL', or the size in words where no known base has it."""
    return BASES[width].name if width in BASES else f"a base model with text embeddings of size {width}"
