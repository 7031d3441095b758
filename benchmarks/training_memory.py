"""Computes the table of docs/training.md: trained weights and memory of each recipe on published sizes.

usage: python benchmarks/training_memory.py

The models are built without numbers (PyTorch's meta device), so no weights are needed and nothing is measured.
"""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
PAGE = ROOT / "docs" / "training.md"
MARKS = ("<!-- memory: computed by benchmarks/training_memory.py -->\n", "<!-- end of memory -->\n")
HEAD = (
    "| recipe | base | trained, million weights | AdamW, GB | 8-bit AdamW, GB | frozen part, GB |\n"
    "| --- | --- | --- | --- | --- | --- |\n"
)
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BIGG = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VISION = {  # image encoder -> sizes
    "vit_l": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "vit_h": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16},
}
PATCH = {"vit_l": 14, "vit_h": 14}
PROJECTION = {"vit_l": 768, "vit_h": 1024}
ROWS = (  # recipe, base, image encoder, options
    ("ip_adapter", "SD1.5", "vit_h", {}),
    ("mip_adapter", "SD1.5", "vit_h", {}),
    ("umm_diffusion", "SD1.5", "vit_l", {}),
    ("fastcomposer", "SD1.5", "vit_l", {}),
    ("mm_diff", "SD1.5", "vit_l", {}),
    ("subject_diffusion", "SD1.5", "vit_h", {}),
    ("subject_diffusion", "SD2", "vit_h", {}),
    ("ip_adapter", "SDXL", "vit_h", {"projection": "Resampler", "tokens": 16}),
    ("mip_adapter", "SDXL", "vit_h", {"projection": "Resampler", "tokens": 16}),
    ("mm_diff", "SDXL", "vit_l", {}),
)


def models(base: str, encoder: str) -> Any:
    """Return a `Base` with the published sizes and no weight data, in bfloat16 (the VAE in float32)."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )
    from troupe.model_patches.hosts.diffusers.encoders import ClipImages, ClipTexts
    from troupe.training.model.base import Base

    with torch.device("meta"):
        unet = UNet2DConditionModel(**{"SD1.5": SD15, "SD2": SD2, "SDXL": SDXL}[base])
        first = CLIPTextModel(CLIPTextConfig(**(CLIP_H if base == "SD2" else CLIP_L)))
        texts, others = ClipTexts.sd2(first) if base == "SD2" else ClipTexts.sd15(first), [first]
        if base == "SDXL":
            second = CLIPTextModelWithProjection(CLIPTextConfig(**BIGG, projection_dim=1280))
            texts, others = ClipTexts.sdxl(first, second), [first, second]
        size = {**VISION[encoder], "patch_size": PATCH[encoder], "projection_dim": PROJECTION[encoder]}
        vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**size))
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    frozen = [unet, *others, vision]
    for module in frozen:
        module.eval().requires_grad_(False).to(torch.bfloat16)
    vae.eval().requires_grad_(False)  # stays float32
    nothing: Any = lambda pixels: pixels  # noqa: E731 - is not called
    return Base(unet, texts, ClipImages(vision), DDPMScheduler(), nothing, nothing, (*frozen, vae))


def row(recipe: str, base: str, encoder: str, options: dict[str, Any]) -> str:
    """Return one row of the table."""
    import torch
    from troupe.training.config.schema import TrainingConfig
    from troupe.training.memory import memory_of
    from troupe.training.model.features import Features
    from troupe.training.recipes.recipe import PassSettings
    from troupe.training.recipes.registry import RECIPES

    found = models(base, encoder)
    hollow = recipe in ("ip_adapter", "mip_adapter", "mm_diff", "subject_diffusion")  # large, or copies of the UNet
    with torch.device("meta") if hollow else nullcontext():
        trainee = RECIPES[recipe].build(found, Features(found), PassSettings(), RECIPES[recipe].Options(**options))
    for module in trainee.modules_of_base():
        module.float()
    plain, small = (
        memory_of(trainee, found.modules, TrainingConfig(optimizer=name)) for name in ("adamw", "adamw8bit")
    )
    what = f"`{recipe}`" + (" (plus)" if options.get("projection") == "Resampler" else "")
    return (
        f"| {what} | {base} | {plain.weights / 4e6:.1f} | {plain.total / 1e9:.1f} | {small.total / 1e9:.1f} | "
        f"{plain.frozen / 1e9:.1f} |\n"
    )


def table() -> str:
    """Return the whole table as Markdown."""
    return HEAD + "".join(row(*each) for each in ROWS)


def main() -> None:
    """Write the table into the page."""
    from troupe_tools.pack import load_pack

    load_pack()
    begin, end = MARKS
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(f"{begin}.*?{end}", lambda _: begin + table() + end, text, flags=re.S), encoding="utf-8")


if __name__ == "__main__":
    main()
