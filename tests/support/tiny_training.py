"""Micro models, pictures and settings for trainings: seconds on a CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch.nn.functional import avg_pool2d, interpolate
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from troupe.model_patches.hosts.diffusers.encoders import EOS, ClipImages, ClipTexts
from troupe.training.config.reading import as_tables
from troupe.training.config.schema import Config, DataConfig, OutputConfig, TrainingConfig
from troupe.training.examples.draws import Draw, Draws
from troupe.training.examples.folder import FolderSet
from troupe.training.loop import Loop
from troupe.training.model.base import Base
from troupe.training.model.features import Features
from troupe.training.recipes.recipe import PassSettings, Trainee
from troupe.training.recipes.registry import RECIPES
from troupe.training.run import make_accelerator

from . import tiny_diffusers as tiny
from . import tiny_gated_unets as gated

SIDE = 64  # pixels
MM_DIFF = {"hidden": 8, "depth": 2, "rank": 2, "text_rank": 3, "tokens": 3}  # sizes that micro models leave open
NAMES = (("cat", "red robot"), ("dog",), ("bird", "small cat", "mug"), ("robot", "car"))


def texts(width: int = tiny.CONTEXT) -> ClipTexts:
    """A text encoder of two layers with CLIP's vocabulary."""
    return ClipTexts.sd15(text_model(width))


def text_model(width: int = tiny.CONTEXT, layers: int = 2) -> CLIPTextModel:
    """A text encoder with CLIP's vocabulary."""
    torch.manual_seed(3)
    sizes = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
    model = CLIPTextModel(CLIPTextConfig(vocab_size=49408, eos_token_id=EOS, projection_dim=width, **sizes))
    return model.requires_grad_(False)


def images(projection: int = tiny.EMBED, width: int = 32) -> ClipImages:
    """An image encoder of two layers."""
    torch.manual_seed(4)
    sizes = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = CLIPVisionModelWithProjection(
        CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=projection, **sizes)
    )
    return ClipImages(model.requires_grad_(False))


def base(unet: UNet2DConditionModel | None = None, prediction: str = "epsilon", **encoders) -> Base:
    """SD1.5 in micro; latents are four averages of a picture's colours."""
    unet = tiny.unet() if unet is None else unet
    found_texts, found_images = encoders.get("texts") or texts(), encoders.get("images") or images()
    noise = DDPMScheduler(**tiny.SCHEDULE, prediction_type=prediction)
    modules = (unet, *(tower.model for tower in found_texts.towers), found_images._model)
    return Base(unet, found_texts, found_images, noise, _encode, _decode, modules)


def _encode(pixels: torch.Tensor) -> torch.Tensor:
    small = avg_pool2d(pixels, 8)
    return torch.cat((small, small.mean(1, keepdim=True)), 1)


def _decode(latents: torch.Tensor) -> torch.Tensor:
    return interpolate(latents[:, :3].float(), scale_factor=8.0)


def vae() -> AutoencoderKL:
    """A VAE of Stable Diffusion's levels."""
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.5,
    )


def trainee(recipe: str, models: Base | None = None, total: int = 1, cache: bool = False, **options) -> Trainee:
    """A recipe's adapter on micro models, the same at each call."""
    models = base_for(recipe) if models is None else models
    torch.manual_seed(0)
    module = RECIPES[recipe]
    return module.build(models, Features(models, cache), PassSettings(total), module.Options(**options))


def changed(trainee: Trainee) -> Trainee:
    """The trainee with weights that no training began with: every parameter changes something."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in trainee.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return trainee


def write_set(folder: Path, names: Sequence[Sequence[str]] = NAMES, masks: bool = True) -> Path:
    """A training set of random pictures: two blocks of colour for each subject's reference and place."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, lines = np.random.default_rng(0), []
    for i, each in enumerate(names):
        picture = chance.integers(0, 255, (4, 6, 3), np.uint8).repeat(16, 0).repeat(16, 1)
        subjects = []
        for j, name in enumerate(each):
            look = chance.integers(0, 255, (2, 2, 3), np.uint8).repeat(20, 0).repeat(20, 1)
            Image.fromarray(look).save(folder / f"r{i}_{j}.png")
            row, column = divmod(j, 3)  # the square in the middle has three beside each other
            box = [0.2 + 0.2 * column, 0.3 + 0.35 * row, 0.2, 0.4 - 0.05 * row]
            subject = {"name": name, "references": [f"r{i}_{j}.png"], "box": box}
            if masks:
                mask = np.zeros((64, 96), np.uint8)
                mask[8 + 34 * row : 40 + 34 * row, 20 + 20 * column : 36 + 20 * column] = 255
                Image.fromarray(mask).save(folder / f"m{i}_{j}.png")
                subject["mask"] = f"m{i}_{j}.png"
            subjects.append(subject)
        Image.fromarray(picture).save(folder / f"p{i}.png")
        caption = f"a photo of a {' and a '.join(each)} outside"
        lines.append({"file_name": f"p{i}.png", "text": caption, "subjects": subjects})
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def draws(folder: Path, count: int, most: int = 4, seed: int = 0) -> list[Draw]:
    """The first draws of a training set."""
    every = Draws(FolderSet(folder, SIDE, most), seed)
    return [every[n] for n in range(count)]


def forget_accelerate() -> None:
    """Let the next Accelerator of this process choose its own settings."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    PartialState._reset_state()


@cache
def _sd15_encoders() -> tuple[ClipTexts, ClipImages]:
    return texts(768), images(768)


def sdxl_base() -> Base:
    """SDXL with all of its 70 transformer blocks and both text encoders, each as narrow as can be."""
    torch.manual_seed(7)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
        up_block_types=(*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
    )
    sizes = {"vocab_size": 49408, "eos_token_id": EOS, "intermediate_size": 32, "num_attention_heads": 2}
    first = CLIPTextModel(CLIPTextConfig(hidden_size=12, num_hidden_layers=3, projection_dim=12, **sizes))
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=20, num_hidden_layers=2, projection_dim=12, hidden_act="gelu", **sizes)
    )
    found_texts = ClipTexts.sdxl(first.requires_grad_(False), second.requires_grad_(False))
    return base(unet.eval().requires_grad_(False), texts=found_texts)


def narrow_sd15_base() -> Base:
    """SD1.5 with all of its 16 transformer blocks and one text encoder, each as narrow as can be."""
    torch.manual_seed(8)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16, 16),
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=12,
    )
    return base(unet.eval().requires_grad_(False), texts=texts(12))


def base_for(recipe: str) -> Base:
    """Micro models that a recipe can be trained on: of SD1.5's widths and levels if its files are for SD1.5 alone, of
    SD1.5's blocks if they are for known blocks.
    """
    if recipe == "mm_diff":
        return narrow_sd15_base()
    if recipe == "subject_diffusion":
        return sd2_base()
    if recipe not in ("umm_diffusion", "fastcomposer"):
        return base()
    torch.manual_seed(6)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 32, 64),
        norm_num_groups=8,  # of one value each, which 32 groups would have at the lowest level, all is lost
        cross_attention_dim=768,
        attention_head_dim=2,
    )
    found_texts, found_images = _sd15_encoders()
    return base(unet.eval().requires_grad_(False), texts=found_texts, images=found_images)


def sd2_base() -> Base:
    """SD2 in micro, with a text encoder of three layers of which two are read."""
    return base(gated.unet("sd2"), texts=ClipTexts.sd2(text_model(layers=3)), images=images(40))


def no_drops(recipe: str) -> dict[str, float]:
    """Options of a recipe with which nothing is left to chance."""
    options = (field.name for field in fields(RECIPES[recipe].Options))
    return {name: 0.0 for name in options if name.startswith("drop_") or name == "masked"}


def loop_for(
    pictures: Path,
    output: Path,
    recipe: str = "mip_adapter",
    options: dict[str, Any] | None = None,
    cache: bool = False,
    workers: int = 0,
    **training: Any,
) -> Loop:
    """A loop on micro models; training: of TrainingConfig and OutputConfig."""
    own = {field.name: training.pop(field.name) for field in fields(OutputConfig) if field.name in training}
    training = {"batch": 2, "lr": 1e-2, **training}
    chosen = RECIPES[recipe].Options(**(options or {}))
    config = Config(
        recipe,
        chosen,
        data=DataConfig(workers=workers),
        training=TrainingConfig(**training),
        output=OutputConfig(folder=str(output), **{"save_every": 1000, "log_every": 1, **own}),
    )
    forget_accelerate()
    total = config.training.batch * config.training.accumulation
    module = trainee(recipe, total=total, cache=cache, **(options or {}))
    draws = Draws(FolderSet(pictures, SIDE, 4), config.training.seed)
    return Loop(config, module, draws, as_tables(config), make_accelerator(config, cpu=True))


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    """A copy of the trainee's state."""
    return {name: value.clone() for name, value in loop.trainee.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two states are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
