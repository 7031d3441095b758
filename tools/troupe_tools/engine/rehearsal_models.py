"""The rehearsal models as the models of a job, for the embedded engine."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from ..errors import RunError
from ..pack import hide_broken_torchaudio, load_pack
from ..workflow.job_records import Job
from .embedded import Models
from .rehearsing import SHOWN

hide_broken_torchaudio()
load_pack()

from troupe.model_patches.errors import CheckpointError  # noqa: E402
from troupe.rehearsal import codec  # noqa: E402
from troupe.rehearsal.engine.paint import load_rehearsal  # noqa: E402
from troupe.rehearsal.engine.paint import scheduler as rehearsal_scheduler  # noqa: E402
from troupe.rehearsal.files import OFFERED  # noqa: E402


class CodecVae:
    """The world's codec with the interface of a diffusers VAE, as far as the embedded engine uses it."""

    config = SimpleNamespace(scaling_factor=1.0)

    def parameters(self) -> Iterator[torch.Tensor]:
        """Yield a tensor on the device and in the dtype that it decodes in."""
        yield torch.zeros(1)

    def decode(self, latent: torch.Tensor) -> Any:
        """Return an object with the picture as `sample`, [b, 3, 8h, 8w] in -1..1."""
        return SimpleNamespace(sample=codec.decode(latent).clamp(-1, 1))


def rehearsal_models(job: Job) -> Models:
    """Return the models of Load Rehearsal Models. Raises RunError: a file is missing or damaged."""
    try:
        found = load_rehearsal(in_prompt=True)
    except CheckpointError as error:
        raise RunError(str(error)) from error
    adapters = {name: found.adapters[OFFERED[name]] for name in job.adapters}
    images = dict.fromkeys(adapters, found.images)
    return Models(found.unet, found.texts, CodecVae(), adapters, images, scheduler=_scheduler)


def enlarged(picture: Image.Image) -> Image.Image:
    """Return a picture as large as the templates show it, each pixel a square."""
    return picture.resize((SHOWN, SHOWN), Image.Resampling.NEAREST)


def _scheduler(job: Job, prediction: str) -> Any:
    if (job.sampler, job.scheduler) != ("euler", "simple"):
        raise RunError(
            "Without ComfyUI the rehearsal models are sampled with euler on simple, the workflow asks for "
            f"{job.sampler} on {job.scheduler}. Change the KSampler, or run it in ComfyUI."
        )
    return rehearsal_scheduler()
