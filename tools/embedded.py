"""The embedded engine: a job on diffusers' UNet with the pack's own attention, for machines without ComfyUI."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from graph import RunError
from job import ApplyJob, GatedJob, Job
from pack import hide_broken_torchaudio, load_pack
from PIL import Image, ImageOps
from report import facts_of, to_image
from result import Progress, Result, Say

hide_broken_torchaudio()
load_pack()

from troupe.model_patches.errors import TroupeError  # noqa: E402
from troupe.model_patches.hosts.diffusers.encoders import ClipImages, ClipTexts, encode_references  # noqa: E402
from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, sample  # noqa: E402
from troupe.model_patches.placing import place_subjects  # noqa: E402
from troupe.model_patches.settings import GatedSettings, ImageAttentionSettings, mixing_for  # noqa: E402
from troupe.model_patches.subjects import Cast, References, make_subject  # noqa: E402

SAMPLERS = {"euler": "EulerDiscreteScheduler", "euler_ancestral": "EulerAncestralDiscreteScheduler"}  # ComfyUI's name -> diffusers'
SCHEDULES: dict[str, dict[str, Any]] = {"normal": {}, "sgm_uniform": {"timestep_spacing": "trailing"}}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # of SD1.5, SD2 and SDXL
SIDE = 8  # pixels a latent cell; sizes are multiples of it


@dataclass(frozen=True, eq=False)
class Models:
    """What a job runs on: a UNet, its text encoders, a VAE, and for each adapter name of the job the adapter and its image encoder (None: it reads no photos)."""

    unet: Any
    texts: ClipTexts
    vae: Any
    adapters: Mapping[str, Any]
    images: Mapping[str, ClipImages | None]
    prediction: str = "epsilon"


def run_embedded(job: Job, photos: Mapping[str, Path], models: Models, say: Say, progress: Progress) -> Result:
    """Run a job. photos: file name in the job -> picture file. Raises RunError."""
    check_size(job)
    lines: list[str] = []

    def warn(sentence: str) -> None:
        lines.append(sentence)
        say(sentence)

    try:
        with torch.no_grad():
            say("encoding references, names and prompts")
            references = [_encode(apply, job, photos, models, warn) for apply in job.applied]
            applied = [(found, _settings(apply, found)) for apply, found in zip(job.applied, references, strict=True)]
            prompts = [models.texts.encode_prompt(text) for text in (job.prompt, job.negative)]
            say("sampling")
            torch.manual_seed(job.seed)  # of the noise that an ancestral sampler adds
            settings = SamplingSettings(job.width, job.height, job.steps, job.cfg, job.seed, job.batch)
            with counted(references) as layers:
                latent = sample(models.unet, scheduler_for(job, models.prediction), *prompts, settings, applied, lambda done, of, _: progress(done, of))
            pictures = _decode(models.vae, latent)
    except TroupeError as error:
        raise RunError(str(error)) from error
    previews = tuple(to_image(preview) for found in references for preview in found.previews)
    return Result(pictures, previews, tuple(facts_of(found) for found in references), tuple(layers[id(found)] for found in references), tuple(lines))


def check_size(job: Job) -> None:
    """Raise RunError unless width and height are multiples of a latent cell's side."""
    if job.width % SIDE or job.height % SIDE or min(job.width, job.height) < 64:
        raise RunError(f"Expected a size in multiples of {SIDE} pixels, at least 64, found {job.width}x{job.height}. Give another --size.")


def scheduler_for(job: Job, prediction: str = "epsilon") -> Any:
    """diffusers' scheduler that takes the steps of the job's sampler. Raises RunError for one that has none here."""
    import diffusers

    if job.sampler not in SAMPLERS or job.scheduler not in SCHEDULES:
        known = f"{' or '.join(SAMPLERS)} on {' or '.join(SCHEDULES)}"
        raise RunError(f"The embedded engine samples with {known}, the workflow asks for {job.sampler} on {job.scheduler}. Change the KSampler, or run it in ComfyUI.")
    return getattr(diffusers, SAMPLERS[job.sampler])(**BETAS, prediction_type=prediction, **SCHEDULES[job.scheduler])


def read_photo(path: Path) -> torch.Tensor:
    """A picture file as ComfyUI's Load Image gives it: [1, H, W, 3] float 0..1, turned upright. Raises RunError where it is none."""
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), dtype=np.float32)
    except OSError as error:
        raise RunError(f"{path} is no picture that can be read ({error}). Give a JPEG, PNG or WebP file.") from None
    return torch.from_numpy(pixels.copy())[None] / 255


@contextmanager
def counted(references: list[References]) -> Iterator[Counter]:
    """Counts, by id of the References, the layers whose image keys or objects are really asked for while it is open."""
    seen: dict[int, set[int]] = {}
    hooks = []
    for found in references:
        adapter = found.adapter
        asked = [layer.to_k_ip for layer in adapter.layers.layers] if adapter.gated is None else [fuser.linear for fuser in adapter.gated.fusers]
        for j, module in enumerate(asked):
            mine = seen.setdefault(id(found), set())
            hooks.append(module.register_forward_hook(lambda *_, mine=mine, j=j: mine.add(j)))
    layers: Counter = Counter()
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()
        layers.update({key: len(numbers) for key, numbers in seen.items()})


def _encode(apply: ApplyJob, job: Job, photos: Mapping[str, Path], models: Models, warn: Say) -> References:
    cast = _placed(Cast(), apply, warn)
    for number, subject in enumerate(apply.subjects, 1):
        pictures = [read_photo(photos[name]) for name in subject.photos]
        cast = cast.add(make_subject(subject.name, pictures, number=number, weight=subject.weight, start_percent=subject.start_percent, end_percent=subject.end_percent))
        cast = _placed(cast, apply, warn)
    return encode_references(models.adapters[apply.adapter], cast, models.images[apply.adapter], models.texts if apply.named else None, apply.framing, [job.prompt], warn)


def _placed(cast: Cast, apply: ApplyJob, warn: Say) -> Cast:
    """The cast with the boxes of the Place Subjects nodes that stand behind its last subject."""
    for place in apply.places:
        if place.subjects == len(cast.subjects):
            cast = place_subjects(cast, place.width, place.height, place.boxes, place.layout, warn=warn)[0]
    return cast


def _settings(apply: ApplyJob, references: References) -> ImageAttentionSettings | GatedSettings:
    if isinstance(apply, GatedJob):
        return GatedSettings(apply.strength, apply.end_percent, apply.decay_percent, apply.use_bbox)
    mixing = mixing_for(references, apply.merge, apply.sharpness, apply.background)
    return ImageAttentionSettings(apply.weight, mixing, apply.start_percent, apply.end_percent, apply.box_strength, apply.box_end_percent, apply.box_feather)


def _decode(vae: Any, latent: torch.Tensor) -> tuple[Image.Image, ...]:
    """[n, 4, h, w] -> n pictures; one at a time, as the decoder is what needs most memory."""
    weight = next(vae.parameters())
    scaled = (latent / vae.config.scaling_factor).to(weight)
    decoded = [vae.decode(one).sample[0].float().cpu() / 2 + 0.5 for one in scaled.split(1)]
    return tuple(to_image(torch.nan_to_num(one).movedim(0, -1)) for one in decoded)
