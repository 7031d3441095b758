"""The frozen models of a training: UNet, text encoders, image encoder, and what turns pictures to latents and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKL,  # pyright: ignore[reportPrivateImportUsage] - public names
    DDPMScheduler,  # pyright: ignore[reportPrivateImportUsage]
    EulerDiscreteScheduler,  # pyright: ignore[reportPrivateImportUsage]
    UNet2DConditionModel,  # pyright: ignore[reportPrivateImportUsage]
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from ...model_patches.bases import PIXELS_PER_CELL, SD2_BASE
from ...model_patches.errors import CheckpointError
from ...model_patches.hosts.diffusers.encoders import ClipImages, ClipTexts
from ...rehearsal import codec
from ...rehearsal.engine import load, nets
from ...rehearsal.files import FOLDER

Pixels = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Base:
    """The models that an adapter is trained for; all frozen, in evaluation mode.

    noise: the schedule that the base was trained with; encode: pixels [b, 3, H, W] in -1..1 -> latents [b, c, h, w] as
    the UNet reads them; decode: the inverse; cell: pixels of a latent cell's side.
    """

    unet: UNet2DConditionModel
    texts: ClipTexts
    images: ClipImages | None
    noise: DDPMScheduler
    encode: Pixels
    decode: Pixels
    modules: tuple[torch.nn.Module, ...]
    cell: int = PIXELS_PER_CELL

    @property
    def context(self) -> int:
        """Size of the text embeddings."""
        return self.unet.config["cross_attention_dim"]

    def sampler(self) -> EulerDiscreteScheduler:
        """Return a scheduler for validation sheets."""
        config: Any = self.noise.config
        return cast(EulerDiscreteScheduler, EulerDiscreteScheduler.from_config(config, timestep_spacing="trailing"))

    def to(
        self,
        device: torch.device,
        dtype: torch.dtype,
        trained: Collection[torch.nn.Module] = (),
        modules: Sequence[torch.nn.Module] | None = None,
    ) -> None:
        """Move models, None for all, to a device, in a dtype; what is trained, and what encodes pictures, stays
        float32.
        """
        for module in self.modules if modules is None else modules:
            module.to(device)
            if dtype != torch.float32 and module not in trained and not isinstance(module, AutoencoderKL):
                module.to(dtype)


def load_base(kind: str, folder: str, image_encoder: str) -> Base:
    """Load the models of `[base]` from local files, float32, on the CPU.

    Raises:
        CheckpointError: a folder lacks a model.
    """
    if kind == "rehearsal":
        return rehearsal_base(Path(folder) if folder else FOLDER)
    return diffusers_base(Path(folder), Path(image_encoder) if image_encoder else None)


def rehearsal_base(folder: Path = FOLDER) -> Base:
    """Load the rehearsal world's models."""
    unet, texts, images = load.load_unet(folder), load.load_texts(folder), load.load_image_encoder(folder)
    return Base(
        unet,
        ClipTexts.sd15(texts),
        ClipImages(images),
        DDPMScheduler(**nets.BETAS),
        codec.encode,
        codec.decode,
        (unet, texts, images),
    )


def diffusers_base(folder: Path, image_encoder: Path | None = None) -> Base:
    """Load a folder in diffusers' layout; SD1.5, SD2.x or SDXL by its text encoders."""
    unet = _part(folder, "unet", UNet2DConditionModel)
    first = _part(folder, "text_encoder", CLIPTextModel)
    texts, modules = ClipTexts.sd15(first), [unet, first]
    if (folder / "text_encoder_2").is_dir():
        second = _part(folder, "text_encoder_2", CLIPTextModelWithProjection)
        texts = ClipTexts.sdxl(first, second)
        modules.append(second)
    elif unet.config["cross_attention_dim"] == SD2_BASE.width:
        texts = ClipTexts.sd2(first)
    vae = _part(folder, "vae", AutoencoderKL)
    modules.append(vae)
    images = None
    if image_encoder is not None:
        vision = _part(image_encoder.parent, image_encoder.name, CLIPVisionModelWithProjection)
        images = ClipImages(vision)
        modules.append(vision)
    cell = 2 ** (len(vae.config["block_out_channels"]) - 1)
    noise = _part(folder, "scheduler", DDPMScheduler, ("scheduler_config.json",))
    return Base(unet, texts, images, noise, *pixel_functions(vae), tuple(modules), cell)


def pixel_functions(vae: Any) -> tuple[Pixels, Pixels]:
    """Return `encode` and `decode`, see `Base`, of a VAE as diffusers has it."""
    factor, shift = vae.config["scaling_factor"], vae.config.get("shift_factor") or 0.0

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return (vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode() - shift) * factor

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return vae.decode(latents.to(vae.device, vae.dtype) / factor + shift).sample

    return encode, decode


def _part(folder: Path, name: str, kind: Any, files: tuple[str, ...] = ("config.json",)) -> Any:
    """One model of a folder, frozen. Raises CheckpointError."""
    path = folder / name
    do = "Give the folder of a model in diffusers' layout, downloaded beforehand: nothing is downloaded here."
    if not all((path / file).is_file() for file in files):
        raise CheckpointError(f"{' and '.join(files)} in {path}", "none", do)
    try:
        found = kind.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"a {kind.__name__} in {path}", str(error).splitlines()[0], do) from error
    return found.eval().requires_grad_(False) if isinstance(found, torch.nn.Module) else found
