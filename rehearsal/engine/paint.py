"""Paint with the rehearsal models on the embedded engine: prompt, references and seed to pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler

from ...model_patches.adapter import Adapter
from ...model_patches.attention.merges import Mixing
from ...model_patches.binding.settings import GatedSettings, ImageAttentionSettings
from ...model_patches.errors import CheckpointError
from ...model_patches.hosts.diffusers.encoders import ClipImages, ClipTexts, encode_references, load_adapter
from ...model_patches.hosts.diffusers.image_attention import ImageAttention
from ...model_patches.hosts.diffusers.prompt import encode_prompt
from ...model_patches.hosts.diffusers.sampling import SamplingSettings, sample
from ...model_patches.hosts.diffusers.weights import text_encoder_weights
from ...model_patches.relevance.maps import AppliedMaps
from ...model_patches.subjects import Cast, References, make_subject
from .. import codec, files
from ..world import PIXELS
from . import load, nets

STEPS, CFG = 20, 5.0
SCHEDULE = {key: value for key, value in nets.BETAS.items() if key != "num_train_timesteps"}


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """The models of the rehearsal world. adapters: by the keys of `files.ADAPTERS`, as far as their files are there,
    and of `files.PROMPT_ADAPTERS`, if they were asked for.
    """

    unet: Any
    texts: ClipTexts
    images: ClipImages | None = None
    adapters: dict[str, Any] = field(default_factory=dict)


def load_rehearsal(folder: Path | None = None, unfinished: bool = False, in_prompt: bool = False) -> Rehearsal:
    """Load the models in a folder, else the shipped ones.

    unfinished: leave out image encoder and adapters that are not there, as while they are trained; in_prompt: load the
    adapters that put subjects into the prompt too.
    Raises:
        CheckpointError: a file is missing or damaged.
    """
    folder = files.FOLDER if folder is None else folder
    images = (
        None if unfinished and not (folder / files.IMAGES).exists() else ClipImages(load.load_image_encoder(folder))
    )
    adapters = {
        kind: _adapter(folder / name)
        for kind, name in (files.EVERY_ADAPTER if in_prompt else files.ADAPTERS).items()
        if not unfinished or (folder / name).exists()
    }
    return Rehearsal(load.load_unet(folder), ClipTexts.sd15(load.load_texts(folder)), images, adapters)


def _adapter(path: Path) -> Adapter:
    try:
        return load_adapter(path)
    except CheckpointError as error:
        raise CheckpointError(error.expected, error.found, files.AGAIN) from error


def encode(
    models: Rehearsal,
    adapter: str,
    pictures: Sequence[torch.Tensor],
    names: Sequence[str],
    weights: Sequence[float] | None = None,
) -> References:
    """Encode the references of subjects. pictures: [1, H, W, 3] 0..1 each; names: as in the prompt."""
    cast = Cast()
    for number, (picture, name) in enumerate(zip(pictures, names, strict=True), 1):
        cast = cast.add(
            make_subject(name, [picture], number=number, weight=1.0 if weights is None else weights[number - 1])
        )
    return encode_references(models.adapters[adapter], cast, models.images, models.texts)


def scheduler() -> EulerDiscreteScheduler:
    """Return ComfyUI's euler on the schedule `simple`."""
    return EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing")


def paint(
    models: Rehearsal,
    prompt: str,
    seed: int,
    references: References | None = None,
    merge: str = "relevance",
    weight: float = 1.0,
    sharpness: float = 1.0,
    batch: int = 1,
    steps: int = STEPS,
    cfg: float = CFG,
    record: list[AppliedMaps] | None = None,
    attention: type[ImageAttention] = ImageAttention,
    **widgets: Any,
) -> torch.Tensor:
    """Paint pictures [batch, 3, 128, 128] in 0..1. record: gets the relevance maps; attention: another image attention;
    widgets: more of ImageAttentionSettings.
    """
    applied = (
        []
        if references is None
        else [(references, ImageAttentionSettings(weight, Mixing(merge, sharpness), **widgets))]
    )
    positive, negative = models.texts.encode_prompt(prompt), models.texts.encode_prompt("")
    latent = sample(
        models.unet,
        scheduler(),
        positive,
        negative,
        SamplingSettings(PIXELS, PIXELS, steps, cfg, seed, batch),
        applied,
        record=record,
        attention=attention,
    )
    return (codec.decode(latent) / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Acting:
    """The way in which references act.

    merge: of image attention, None for none; weight: of image attention and gated layers; in_prompt: they are put into
    the prompt; gated: into gated layers, in their boxes; attention: another image attention.
    """

    merge: str | None = None
    sharpness: float = 1.0
    weight: float = 1.0
    in_prompt: bool = False
    gated: bool = False
    attention: type[ImageAttention] = ImageAttention


def paint_cast(
    models: Rehearsal,
    adapter: str,
    prompt: str,
    seed: int,
    cast: Cast | None,
    acting: Acting,
    steps: int = STEPS,
    cfg: float = CFG,
) -> torch.Tensor:
    """Paint a cast with any adapter, [3, 128, 128] in 0..1. adapter: of `Rehearsal.adapters`; its own weights for UNet
    and text encoder are used even without a cast.
    """
    applied: list[tuple[References, Any]] = []
    chosen = models.adapters[adapter]
    with text_encoder_weights(models.texts, chosen.weights):
        positive, negative = models.texts.encode_prompt(prompt), models.texts.encode_prompt("")
        if cast is not None:
            references = encode_references(chosen, cast, models.images, models.texts)
            if acting.in_prompt:
                positive, _ = encode_prompt(models.texts, references, prompt)
            if acting.merge is not None:
                settings = ImageAttentionSettings(acting.weight, Mixing(acting.merge, acting.sharpness))
                applied = [(references, settings)]
            if acting.gated:
                applied = [(references, GatedSettings(acting.weight))]
    more: dict[str, Any] = {}
    if chosen.weights.unet or chosen.weights.unet_lora:
        more["weights"] = [(chosen, 1.0)]
    sampling = SamplingSettings(PIXELS, PIXELS, steps, cfg, seed)
    latent = sample(models.unet, scheduler(), positive, negative, sampling, applied, attention=acting.attention, **more)
    return (codec.decode(latent)[0] / 2 + 0.5).clamp(0, 1)
