"""The rehearsal models as diffusers and transformers classes: SD1.5 in small."""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..sizes import BETAS, CHANNELS, CONTEXT, HEAD, TEXT, TOKENS, VISION, WIDTHS

__all__ = ["BETAS", "CONTEXT", "HEAD", "TEXT", "TOKENS", "VISION", "WIDTHS", "image_encoder", "text_encoder", "unet"]


def unet() -> UNet2DConditionModel:
    """Build the UNet: three levels, one residual block each; attention in the upper two and in the middle."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        cross_attention_dim=CONTEXT,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        attention_head_dim=tuple(width // HEAD for width in WIDTHS),
        norm_num_groups=32,
        use_linear_projection=False,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def text_encoder(vocabulary: int) -> CLIPTextModel:
    """Build SD1.5's text encoder in small, with `vocabulary` rows in its embedding table."""
    return CLIPTextModel(CLIPTextConfig(vocab_size=vocabulary, bos_token_id=0, eos_token_id=vocabulary - 1, **TEXT))


def image_encoder() -> CLIPVisionModelWithProjection:
    """Build a CLIP vision transformer in small: 64 x 64 pixels, patches of 8."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))
