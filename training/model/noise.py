"""Noisy latents, what the UNet is to predict of them, and how much each picture counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler  # pyright: ignore[reportPrivateImportUsage] - a public name

from ..examples.draws import Draw


@dataclass(frozen=True, eq=False)
class Noised:
    """Noisy batch. latents, target: [B, c, h, w]; timesteps: [B]; weights: [B], of the pictures' losses."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    weights: torch.Tensor


def noised(
    schedule: DDPMScheduler,
    clean: torch.Tensor,
    draws: Sequence[Draw],
    total: int,
    noisier: float = 0.0,
    min_snr: float = 0.0,
) -> Noised:
    """Add noise of each draw to clean latents [B, c, h, w].

    Arguments:
        total: pictures of a step over all processes, over which timesteps are spread.
        noisier: see `TrainingConfig`; min_snr: gamma, or 0.
    """
    steps: int = schedule.config["num_train_timesteps"]
    noise = torch.stack([draw.noise(tuple(clean.shape[1:])) for draw in draws]).to(clean)
    spread = torch.tensor(
        [(draw.number % total + draw.chance("timestep").random()) / total for draw in draws], dtype=torch.float64
    )
    timesteps = (spread ** (1 / (1 + noisier)) * steps).long().clamp(max=steps - 1)
    signal = schedule.alphas_cumprod[timesteps].to(clean).view(-1, 1, 1, 1)
    kind = schedule.config["prediction_type"]
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = signal.sqrt() * noise - (1 - signal).sqrt() * clean
    else:
        target = clean
    weights = clean.new_ones(len(draws))
    if min_snr:
        snr = (signal / (1 - signal)).flatten()
        divisor = {"epsilon": snr, "v_prediction": snr + 1}.get(kind, torch.ones_like(snr))
        weights = snr.clamp(max=min_snr) / divisor
    latents = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    return Noised(latents, timesteps.to(clean.device), target, weights)
