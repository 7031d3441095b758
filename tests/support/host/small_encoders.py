"""Image encoders that are small enough to compute by hand."""

from __future__ import annotations

import torch

from support.host import tiny_models


class TinyVision:
    """Test node: a CLIP_VISION of the given widths."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP_VISION",), "make", "test"
    folder = ""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"hidden": ("INT", {}), "pooled": ("INT", {})}}

    def make(self, hidden, pooled):
        return (tiny_models.tiny_clip_vision(hidden=hidden, projection=pooled, tmp=f"{self.folder}/vision.json"),)


class Pixels:
    """Test node: a photo of one colour; 'nan', 'tiny' and 'alpha' are special."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": ("STRING", {})}}

    def make(self, kind):
        return (
            torch.full(
                (1, 1, 1, 3) if kind == "tiny" else (1, 24, 16, 4 if kind == "alpha" else 3),
                float("nan") if kind == "nan" else 0.5,
            ),
        )
