"""The embedded engine: a job on diffusers' UNet with the pack's own attention, for machines without ComfyUI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import RunError
from ..pack import hide_broken_torchaudio, load_pack
from ..workflow.job_records import AppliedJob, ApplyJob, GatedJob, Job, SubjectJob
from .drawn_references import drawn_reference
from .random_faces import RANDOM_FACES, face_square, random_vectors
from .report import facts_of, to_image
from .result import Result, Say, StepsDone

hide_broken_torchaudio()
load_pack()

from troupe.model_patches.bases import PIXELS_PER_CELL  # noqa: E402
from troupe.model_patches.binding.settings import GatedSettings, ImageAttentionSettings, mixing_for  # noqa: E402
from troupe.model_patches.binding.two_strengths import Guidance  # noqa: E402
from troupe.model_patches.encoding.faces import Faces, prepare_faces  # noqa: E402
from troupe.model_patches.errors import TroupeError  # noqa: E402
from troupe.model_patches.hosts.diffusers.encoders import ClipImages, ClipTexts, Prompt, encode_references  # noqa: E402
from troupe.model_patches.hosts.diffusers.prompt import encode_prompt  # noqa: E402
from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, sample  # noqa: E402
from troupe.model_patches.hosts.diffusers.weights import text_encoder_weights  # noqa: E402
from troupe.model_patches.placement.placing import place_subjects  # noqa: E402
from troupe.model_patches.subjects import Cast, References, make_subject  # noqa: E402

# ComfyUI's name -> diffusers'
SAMPLERS = {"euler": "EulerDiscreteScheduler", "euler_ancestral": "EulerAncestralDiscreteScheduler"}
SCHEDULES: dict[str, dict[str, Any]] = {"normal": {}, "sgm_uniform": {"timestep_spacing": "trailing"}}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # of SD1.5, SD2 and SDXL


@dataclass(frozen=True, eq=False)
class Models:
    """The models of a job: a UNet, its text encoders, a VAE, and for each adapter name of the job the adapter and its
    image encoder (None: it reads no photos). random: whether all weights are; then faces are too, since no face
    analyser is here; scheduler: makes the diffusers scheduler for a job and a prediction type."""

    unet: Any
    texts: ClipTexts
    vae: Any
    adapters: Mapping[str, Any]
    images: Mapping[str, ClipImages | None]
    prediction: str = "epsilon"
    random: bool = False
    scheduler: Callable[[Job, str], Any] = lambda job, prediction: scheduler_for(job, prediction)


def run_embedded(job: Job, photos: Mapping[str, Path], models: Models, say: Say, progress: StepsDone) -> Result:
    """Run a job. photos: file name in the job -> picture file. Raises RunError."""
    check_size(job)
    lines: list[str] = []

    def warn(sentence: str) -> None:
        lines.append(sentence)
        say(sentence)

    try:
        with torch.no_grad():
            say("encoding references, names and prompts")
            weights = [(models.adapters[w.adapter], w) for w in job.weights]
            with ExitStack() as stack:
                for adapter, w in weights:
                    stack.enter_context(text_encoder_weights(models.texts, adapter.weights, w.strength_clip or 0.0))
                references = {apply.encoded: _encode(apply, job, photos, models, warn) for apply in job.encoded}
                positive, text_only = _positive(job, references, models.texts, warn)
                negative = models.texts.encode_prompt(job.negative)
            applied = [
                (references[apply.encoded], _settings(apply, references[apply.encoded])) for apply in job.applied
            ]
            say("sampling")
            torch.manual_seed(job.seed)  # of the noise that an ancestral sampler adds
            settings = SamplingSettings(job.width, job.height, job.steps, job.cfg, job.seed, job.batch)
            scheduler, more = models.scheduler(job, models.prediction), _guidance(job, text_only)
            with counted(list(references.values())) as layers:
                latent = sample(
                    models.unet,
                    scheduler,
                    positive,
                    negative,
                    settings,
                    applied,
                    lambda done, of, _: progress(done, of),
                    weights=[(adapter, w.strength_model) for adapter, w in weights],
                    warn=warn,
                    **more,
                )
            pictures = _decode(models.vae, latent)
    except TroupeError as error:
        raise RunError(str(error)) from error
    encoded = tuple(references.values())
    previews = tuple(to_image(preview) for found in encoded for preview in found.previews)
    reached = tuple(
        layers[id(found)] if layered(found) else int(job.words is not None) * found.adapter.spec.acts_in[0]
        for found in encoded
    )
    return Result(pictures, previews, tuple(map(facts_of, encoded)), reached, tuple(lines))


def layered(references: References) -> bool:
    """Return whether the adapter has layers in the UNet."""
    return references.adapter.layers is not None or references.adapter.gated is not None


def _positive(job: Job, references: Mapping[Any, References], texts: ClipTexts, warn: Say) -> tuple[Prompt, Prompt]:
    """The positive prompt, and the same without the subjects in it."""
    if job.words is None:
        prompt = texts.encode_prompt(job.prompt)
        return prompt, prompt
    if job.words.quirks != "clean":
        raise RunError(
            "'quirks' of Encode Prompt with Subjects is official, which only ComfyUI does. Set it to clean, "
            "or run this workflow in ComfyUI."
        )
    return encode_prompt(
        texts, references[job.words.encoded], job.prompt, job.words.start_percent, job.words.start_step, warn=warn
    )


def _guidance(job: Job, text_only: Prompt) -> dict[str, Any]:
    """What `sample` takes of Two-Strength Guider."""
    g = job.guidance
    if g is None:
        return {}
    return {
        "guidance": Guidance(g.method, g.second, g.second_end, g.start_percent, g.end_percent),
        "middle": text_only if g.text_only else None,
    }


def check_size(job: Job) -> None:
    """Raise RunError unless width and height are multiples of a latent cell's side."""
    if job.width % PIXELS_PER_CELL or job.height % PIXELS_PER_CELL or min(job.width, job.height) < 64:
        raise RunError(
            f"Expected a size in multiples of {PIXELS_PER_CELL} pixels, at least 64, found {job.width}x{job.height}. "
            "Give another --size."
        )


def scheduler_for(job: Job, prediction: str = "epsilon") -> Any:
    """Return the diffusers scheduler that takes the steps of the job's sampler. Raises RunError for one that has none
    here.
    """
    import diffusers

    if job.sampler not in SAMPLERS or job.scheduler not in SCHEDULES:
        known = f"{' or '.join(SAMPLERS)} on {' or '.join(SCHEDULES)}"
        raise RunError(
            f"The embedded engine samples with {known}, the workflow asks for {job.sampler} on "
            f"{job.scheduler}. Change the KSampler, or run it in ComfyUI."
        )
    return getattr(diffusers, SAMPLERS[job.sampler])(**BETAS, prediction_type=prediction, **SCHEDULES[job.scheduler])


def read_photo(path: Path) -> torch.Tensor:
    """Read a picture file as ComfyUI's Load Image gives it: [1, H, W, 3] float 0..1, turned upright.

    Raises RunError if it is none.
    """
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), dtype=np.float32)
    except OSError as error:
        raise RunError(f"{path} is no picture that can be read ({error}). Give a JPEG, PNG or WebP file.") from None
    return torch.from_numpy(pixels.copy())[None] / 255


@contextmanager
def counted(references: list[References]) -> Iterator[Counter]:
    """Count, by id of the References, the layers whose image keys or objects are used while the context is open."""
    seen: dict[int, set[int]] = {}
    hooks = []
    for found in filter(layered, references):
        adapter = found.adapter
        image = (
            [getattr(layer, "to_k_ip", None) or layer.to_k_lora_image for layer in adapter.layers.layers]
            if adapter.layers is not None
            else []
        )
        asked = image if adapter.gated is None else [fuser.linear for fuser in adapter.gated.fusers]
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
        pictures = [*(read_photo(photos[name]) for name in subject.photos), *map(drawn_reference, subject.drawn)]
        numbers = {"weight": subject.weight, "start_percent": subject.start_percent, "end_percent": subject.end_percent}
        cast = cast.add(
            make_subject(
                subject.name, pictures, number=number, faces=_faces(subject, pictures, number, models, warn), **numbers
            )
        )
        cast = _placed(cast, apply, warn)
    return encode_references(
        models.adapters[apply.adapter],
        cast,
        models.images[apply.adapter],
        models.texts if apply.named else None,
        apply.framing,
        [job.prompt],
        warn,
    )


def _faces(subject: SubjectJob, pictures: list[torch.Tensor], number: int, models: Models, warn: Say) -> Faces | None:
    """The faces of a subject's photos: there is no face analyser here, so only random ones.

    Raises RunError for real models.
    """
    if not subject.faces:
        return None
    if not models.random:
        raise RunError(
            f"The faces of '{subject.name}' are to be found by an analyser, and the embedded engine has "
            "none. Run this workflow in ComfyUI with the analyser's pack."
        )
    warn(RANDOM_FACES)
    return prepare_faces(
        list(pictures),
        embeds=random_vectors(len(pictures), number),
        crops=torch.stack([face_square(picture[0]) for picture in pictures]),
    )


def _placed(cast: Cast, apply: ApplyJob, warn: Say) -> Cast:
    """The cast with the boxes of the Place Subjects nodes that follow its last subject."""
    for place in apply.places:
        if place.subjects == len(cast.subjects):
            cast = place_subjects(cast, place.width, place.height, place.boxes, place.layout, warn=warn)[0]
    return cast


def _settings(apply: AppliedJob, references: References) -> ImageAttentionSettings | GatedSettings:
    if isinstance(apply, GatedJob):
        return GatedSettings(apply.strength, apply.end_percent, apply.decay_percent, apply.use_bbox)
    mixing = mixing_for(references, apply.merge, apply.sharpness, apply.background)
    return ImageAttentionSettings(
        apply.weight,
        mixing,
        apply.start_percent,
        apply.end_percent,
        apply.box_strength,
        apply.box_end_percent,
        apply.box_feather,
    )


def _decode(vae: Any, latent: torch.Tensor) -> tuple[Image.Image, ...]:
    """[n, 4, h, w] -> n pictures; one at a time, as the decoder is what needs most memory."""
    weight = next(vae.parameters())
    scaled = (latent / vae.config.scaling_factor).to(weight)
    decoded = [vae.decode(one).sample[0].float().cpu() / 2 + 0.5 for one in scaled.split(1)]
    return tuple(to_image(torch.nan_to_num(one).movedim(0, -1)) for one in decoded)
