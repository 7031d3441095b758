"""Sizes of the rehearsal models: SD1.5 in small. Plain numbers, for the code that builds them."""

from __future__ import annotations

import json
from pathlib import Path

from .codec import CHANNELS

CONTEXT = 128  # hidden size of the text encoder, and what cross-attention reads
WIDTHS = (64, 128, 192)  # of the UNet's levels
HEAD = 32  # width of one attention head in the UNet
TEXT = {
    "hidden_size": CONTEXT,
    "intermediate_size": 4 * CONTEXT,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": CONTEXT,
    "layer_norm_eps": 1e-5,
}
VISION_FILE = Path(__file__).parent / "image_encoder.json"  # ComfyUI builds an image encoder from such a file only
VISION = {
    name: value for name, value in json.loads(VISION_FILE.read_text(encoding="utf-8")).items() if name != "model_type"
}
TOKENS = 4  # image tokens of a reference
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
}

__all__ = ["BETAS", "CHANNELS", "CONTEXT", "HEAD", "TEXT", "TOKENS", "VISION", "VISION_FILE", "WIDTHS"]
