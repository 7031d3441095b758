"""SD1.5 and SDXL checkpoints (one file, as people have them) into diffusers' modules, without asking a network for
their configuration.

The conversion is diffusers' own `from_single_file`; it wants a folder with the configuration of each part, and these
published numbers are written for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage] - a public name
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ..errors import RunError
from ..pack import load_pack

load_pack()

from troupe.model_patches.checkpoints.files import read_state  # noqa: E402
from troupe.model_patches.errors import TroupeError  # noqa: E402
from troupe.model_patches.hosts.diffusers.encoders import ClipTexts  # noqa: E402

Configuration = Mapping[str, Any]
DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
UNET = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "act_fn": "silu"}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [128, 256, 512, 512],
    "norm_num_groups": 32,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
V_PREDICTION = "v_pred"  # an empty tensor of this name marks NoobAI's v-prediction files


@dataclass(frozen=True)
class BaseFamily:
    """Configuration of each part: UNet, VAE, and the text encoders in order (folder of diffusers' layout ->
    configuration).
    """

    unet: Configuration
    vae: Configuration
    texts: Mapping[str, Configuration]


SDXL = BaseFamily(
    {
        **UNET,
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN],
        "up_block_types": [CROSS_UP, CROSS_UP, UP],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    {**VAE, "sample_size": 1024, "scaling_factor": 0.13025},
    {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
)
SD15 = BaseFamily(
    {
        **UNET,
        "sample_size": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
        "up_block_types": [UP, CROSS_UP, CROSS_UP, CROSS_UP],
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    {**VAE, "sample_size": 512, "scaling_factor": 0.18215},
    {"text_encoder": CLIP_L},
)
FAMILIES = {"SDXL": SDXL, "SD1.5": SD15}


@dataclass(frozen=True, eq=False)
class PaintingModel:
    """A loaded checkpoint; prediction: 'epsilon' or 'v_prediction'."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    texts: ClipTexts
    prediction: str


def load_base(path: Path, family: BaseFamily, device: str, dtype: torch.dtype) -> PaintingModel:
    """Load a checkpoint file in the original (single file) layout. Raises RunError if it is not of this family."""
    try:
        state = read_state(path)
    except TroupeError as error:
        raise RunError(str(error)) from error
    prediction = "v_prediction" if V_PREDICTION in state else "epsilon"
    with TemporaryDirectory(prefix="troupe_config_") as folder:
        _write_configuration(family, Path(folder))
        try:
            unet = UNet2DConditionModel.from_single_file(state, config=folder, subfolder="unet", torch_dtype=dtype)
            # SDXL's overflows in half precision
            vae = AutoencoderKL.from_single_file(state, config=folder, subfolder="vae", torch_dtype=torch.float32)
            texts = [_text(state, folder, name, dtype).to(device) for name in family.texts]
        except Exception as error:  # whatever a foreign file makes diffusers raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise RunError(
                f"diffusers cannot read {path.name} as the base model that the adapter is for: {reason}. "
                "Choose a checkpoint of that family."
            ) from error
    return PaintingModel(
        unet.to(device).eval(),  # pyright: ignore[reportArgumentType] - diffusers' wrapper of `to` loses self
        vae.to(device).eval(),  # pyright: ignore[reportArgumentType] - the same
        ClipTexts.sdxl(*texts) if len(texts) == 2 else ClipTexts.sd15(*texts),
        prediction,
    )


def _text(state: dict[str, torch.Tensor], folder: str, name: str, dtype: torch.dtype) -> Any:
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    kind = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
    return create_diffusers_clip_model_from_ldm(
        kind, dict(state), subfolder=name, config=folder, torch_dtype=dtype, local_files_only=True
    )


def _write_configuration(family: BaseFamily, folder: Path) -> None:
    """diffusers' folder layout with a config.json in each part."""
    parts = {
        "unet": {"_class_name": "UNet2DConditionModel", **family.unet},
        "vae": {"_class_name": "AutoencoderKL", **family.vae},
    }
    parts |= {
        name: {
            "model_type": "clip_text_model",
            "vocab_size": 49408,
            "max_position_embeddings": 77,
            "eos_token_id": 49407,
            **config,
        }
        for name, config in family.texts.items()
    }
    for name, config in parts.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
