"""How long photos take through a full-size image encoder, here and in the other pack's Apply nodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bases import base, randomise
from contenders import Contenders
from measure import timed

ENCODER = "CLIP ViT-H of full size, a plain adapter of 4 tokens; the names are not encoded"
REPEATS = 3


def encoding_seconds(
    photos: Sequence[int], dtype: torch.dtype, folder: Path, rival: Path | None
) -> dict[str, dict[str, float]]:
    """Return the median encoding time in seconds, by pack and number of photos.

    The thin SD1.5 serves as the model, which is only patched here and never sampled.
    """
    from troupe.model_patches.hosts.comfyui.apply import encode_references
    from troupe.model_patches.subjects import Cast, make_subject

    vision = full_encoder()
    contenders = Contenders(base("sd15-thin", dtype), dtype, folder, rival)
    adapter = contenders.image_adapter(4, text_gain=False)

    def ours(images: list[torch.Tensor]) -> None:
        cast = Cast()
        for image in images:
            cast = cast.add(make_subject(f"subject {len(cast.subjects)}", [image], number=len(cast.subjects) + 1))
        encode_references(adapter, cast, clip_vision=vision)

    def theirs(images: list[torch.Tensor]) -> None:
        model, weights = contenders.patcher, contenders.rival_adapter(4)
        for image in images:
            model, _ = (
                contenders.rival_pack()
                .IPAdapterAdvanced()
                .apply_ipadapter(model, weights, image=image, clip_vision=vision, weight=0.65, weight_type="linear")
            )

    found: dict[str, dict[str, float]] = {}
    for who, encode in {"troupe": ours, **({"ipadapter-plus": theirs} if rival else {})}.items():
        encode([torch.rand(1, 256, 256, 3)])
        found[who] = {
            str(n): median(
                timed(lambda n=n, encode=encode: encode([torch.rand(1, 256, 256, 3) for _ in range(n)]))
                for _ in range(REPEATS)
            )
            for n in photos
        }
    return found


def full_encoder() -> Any:
    """Return a CLIP_VISION of the host with its own ViT-H configuration and random weights."""
    import comfy.clip_vision

    found = comfy.clip_vision.ClipVisionModel(
        str(Path(comfy.clip_vision.__file__).parent / "clip_vision_config_h.json")
    )
    randomise(found.model)
    return found
