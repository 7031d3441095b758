"""What a recipe is, and what all recipes share: the diffusion loss of a batch.

Letters: B pictures of a pass, M subjects of a picture at most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ...model_patches.adapter import Adapter
from ...model_patches.hosts.diffusers.encoders import Prompt
from ...model_patches.hosts.diffusers.sampling import join_prompts
from ...model_patches.prompt.token_positions import TokenPosition
from ..examples.draws import Draw
from ..examples.example import Example
from ..model.base import Base
from ..model.captions import token_positions
from ..model.features import Features
from ..model.noise import Noised, noised

Losses = dict[str, torch.Tensor]


@dataclass(frozen=True)
class PassSettings:
    """Settings of every pass. total: pictures of a step over all processes; noisier, min_snr: see `TrainingConfig`."""

    total: int = 1
    noisier: float = 0.0
    min_snr: float = 0.0


@dataclass(frozen=True, eq=False)
class Batch:
    """A pass's pictures with their frozen features, on the UNet's device.

    examples: B; noised: B; prompts: of each picture's caption, "" where it is dropped, or none (see `Trainee.prompts`);
    sizes: [B, 6] original height and width, crop, size (SDXL); extra: what the recipe adds.
    """

    examples: tuple[Example, ...]
    noised: Noised
    prompts: tuple[Prompt, ...]
    sizes: torch.Tensor
    extra: Any = None


@dataclass(frozen=True, eq=False)
class Exported:
    """An adapter file: tensors in the published layout, and texts beside them."""

    state: dict[str, torch.Tensor]
    metadata: dict[str, str]


class Trainee(nn.Module, ABC):
    """An adapter in training. Its registered modules are the adapter; parameters that need gradients are trained.

    weights: factor of each loss; in_prompt: whether every subject must be found among its caption's tokens, see
        `token_positions`; needs_subjects: whether pictures without subjects are left out; needs_boxes: whether every
        subject needs a mask or a box.

    Arguments:
        base: the frozen base model; features: of the frozen encoders; settings: of a training pass.
    """

    weights: Mapping[str, float] = {"diffusion": 1.0}
    in_prompt = False
    needs_subjects = True
    needs_boxes = False

    def __init__(self, base: Base, features: Features, settings: PassSettings):
        super().__init__()
        self.base, self.features, self.settings = base, features, settings

    def prepare(self, draws: Sequence[Draw]) -> Batch:
        """Return the frozen features of drawn pictures."""
        examples, settings = [draw.example for draw in draws], self.settings
        clean = self.features.latents(examples)
        noisy = noised(self.base.noise, clean, draws, settings.total, settings.noisier, settings.min_snr)
        prompts = self.prompts(draws)
        sizes = torch.tensor([[*e.original, *e.crop, *e.pixels.shape[1:]] for e in examples], device=clean.device)
        batch = Batch(tuple(examples), noisy, tuple(prompts), sizes)
        return Batch(batch.examples, noisy, batch.prompts, sizes, self.add(draws))

    @abstractmethod
    def captions(self, draws: Sequence[Draw]) -> list[str]:
        """Return each picture's caption, "" where it is dropped; none if the text encoder is trained, whose states are
        not frozen features.
        """

    @abstractmethod
    def add(self, draws: Sequence[Draw]) -> Any:
        """Return what the recipe needs beside latents and texts."""

    @abstractmethod
    def context(self, batch: Batch) -> torch.Tensor:
        """Return text states for the UNet, [B, L, D], and set what acts inside the UNet. Gradients are wanted."""

    @abstractmethod
    def export(self) -> Exported:
        """Return the adapter in the published layout, float32, on the CPU."""

    @abstractmethod
    def adapter(self) -> Adapter:
        """Return a copy of the adapter, as the loader makes it of `export`."""

    def prompts(self, draws: Sequence[Draw]) -> Sequence[Prompt]:
        """Return the frozen text states of each picture's caption; none for a recipe that changes a text encoder."""
        return self.features.prompts(self.captions(draws))

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Return SDXL's pooled texts, [B, E], after `context`."""
        return torch.cat([prompt.pooled for prompt in batch.prompts if prompt.pooled is not None])

    def token_positions(self, caption: str, names: Sequence[str]) -> Sequence[TokenPosition]:
        """Return each subject's position among the tokens of the first text encoder. Raises SubjectError."""
        return token_positions(self.base.texts, caption, names)

    def modules_of_base(self) -> tuple[nn.Module, ...]:
        """Return the base's models of which any weight is trained."""
        return ()

    def finish(self) -> None:
        """Take what acts in training off the UNet's layers, so that it can be sampled with."""

    def more_losses(self, batch: Batch) -> Losses:
        """Return losses beside the diffusion loss, [B] each."""
        return {}

    def pixel_weights(self, batch: Batch) -> torch.Tensor | None:
        """Return [B, 1, h, w], how much each latent cell counts in the diffusion loss; None for all alike."""
        return None

    def forward(self, batch: Batch) -> Losses:
        """Return each picture's losses, [B] float32, by name."""
        prediction = self.predict(batch)
        error = (prediction.float() - batch.noised.target).square()
        cells = self.pixel_weights(batch)
        each = error.mean((1, 2, 3)) if cells is None else _weighted_mean(error, cells)
        return {"diffusion": batch.noised.weights * each, **self.more_losses(batch)}

    def predict(self, batch: Batch) -> torch.Tensor:
        """Return the UNet's prediction for a batch, [B, c, h, w]."""
        unet, noisy = self.base.unet, batch.noised
        context = self.context(batch)
        return unet(
            noisy.latents.to(unet.dtype),
            noisy.timesteps,
            encoder_hidden_states=context.to(unet.device, unet.dtype),
            added_cond_kwargs=self._sizes(batch),
        ).sample

    def _sizes(self, batch: Batch) -> dict[str, torch.Tensor] | None:
        """SDXL's pooled texts and sizes."""
        unet = self.base.unet
        if unet.config["addition_embed_type"] != "text_time":
            return None
        return {
            "text_embeds": self.pooled(batch).to(unet.device, unet.dtype),
            "time_ids": batch.sizes.to(unet.device, unet.dtype),
        }


class Recipe(Protocol):
    """A way to train: a module with these names, listed in registry.py."""

    @property
    def Options(self) -> type:
        """Dataclass of `[recipe]`; in a module, a class."""
        ...

    @property
    def uses_every_parameter(self) -> bool:
        """Whether every pass has gradients for every trained parameter; in a module, a constant."""
        ...

    def build(self, base: Base, features: Features, settings: PassSettings, options: Any) -> Trainee:
        """Return the adapter to train. Raises TroupeError if base, image encoder or options do not fit."""
        ...


def joined(prompts: Sequence[Prompt]) -> torch.Tensor:
    """Join the text states of plain prompts, [B, L, D]."""
    return join_prompts([prompt.embeds for prompt in prompts], 1)


def _weighted_mean(error: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    return (error * cells).sum((1, 2, 3)) / (cells.sum((1, 2, 3)) * error.shape[1])
