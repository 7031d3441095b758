"""The shipped rehearsal files' models for diffusers."""

from __future__ import annotations

from pathlib import Path

from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from ..files import FOLDER, IMAGES, TEXTS, UNET, VOCABULARY, full_table, load_into, read
from . import nets


def load_unet(folder: Path = FOLDER) -> UNet2DConditionModel:
    """Load the UNet, float32."""
    return load_into(nets.unet(), read(UNET, folder), UNET)


def load_texts(folder: Path = FOLDER) -> CLIPTextModel:
    """Load the text encoder with CLIP's whole vocabulary, float32."""
    return load_into(nets.text_encoder(VOCABULARY), full_table(read(TEXTS, folder)), TEXTS)


def load_image_encoder(folder: Path = FOLDER) -> CLIPVisionModelWithProjection:
    """Load the image encoder, float32."""
    return load_into(nets.image_encoder(), read(IMAGES, folder), IMAGES)
