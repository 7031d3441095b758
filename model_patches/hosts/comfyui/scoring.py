"""What Score Subjects calls: encoders of the host, then `model_patches.scores`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import MismatchError, SubjectError
from ...scores import colours
from ...scores.finding import Found, Wanted, regions_in
from ...scores.scoring import (
    ClipPictures,
    PictureEncoder,
    Scores,
    looks_of_cast,
    looks_of_references,
    score_pictures,
)
from ...subjects import Cast, References
from .loading.dino import CLIP_VISION, load_dino
from .loading.encoders import HostImageEncoder
from .sampling.record import RelevanceRecord

# (hidden, projection) size of a CLIP vision encoder of 224 pixels -> the host's name of the text encoder that was
# trained with it
TOWERS = {(1024, 768): "l", (1280, 1024): "h", (1664, 1280): "g"}
NO_TOWER = (
    "No CLIP-T: the text encoder that was trained with this CLIP vision encoder is not in the connected CLIP. ViT-L "
    "belongs to CLIP-L, ViT-H to the CLIP of SD2, ViT-bigG to CLIP-G of SDXL."
)
NO_PROJECTION = "No CLIP-T: this checkpoint's text encoder comes without its projection. Load a CLIP-L file with it."
ONLY_CLIP = "No CLIP-T: only CLIP has a text encoder. Set 'encoder' to clip_vision for it."
NO_PROMPT = "No CLIP-T: connect 'clip' and type the prompt into 'prompt'."
BROKEN = (
    "Not all values of picture {} are numbers: it counts as white there. A VAE in fp16 makes such pictures; start "
    "ComfyUI with --fp32-vae or --bf16-vae."
)
FIRST_PART = "CLIP-T reads the first 75 tokens of the prompt only."


@dataclass(frozen=True, eq=False)
class Given:
    """Inputs of Score Subjects; None where nothing is connected."""

    references: References | None = None
    cast: Cast | None = None
    record: RelevanceRecord | None = None
    clip_vision: Any = None
    clip: Any = None
    prompt: str = ""
    bounding_boxes: Any = None
    segs: Any = None
    masks: torch.Tensor | None = None


def score(
    pictures: torch.Tensor,
    given: Given,
    encoder: str = CLIP_VISION,
    threshold: float = 0.0,
    warn: Callable[[str], None] = lambda sentence: None,
) -> tuple[Scores, str]:
    """Return the scores of pictures [n, H, W, C], and why there is no CLIP-T ('' where there is).

    Raises:
        SubjectError: no subjects, or masks and boxes that cannot be read.
        MismatchError: no encoder.
        CheckpointError: the DINO is not there or damaged.
    """
    looking = picture_encoder(encoder, given.clip_vision, given.references)
    pictures = only_numbers(pictures, warn)
    cast, references = given.cast, given.references
    looks = (
        looks_of_cast(cast, looking)
        if cast is not None and cast.subjects
        else looks_of_references(references, looking)
        if references is not None and references.subjects
        else []
    )
    if not looks:
        do = "Connect 'references' of Encode Subject References, or 'cast' of Add Subject."
        raise SubjectError("subjects to compare the picture with", "none", do)
    subjects = cast.subjects if cast is not None and cast.subjects else references.subjects if references else ()
    run = None if given.record is None else given.record.run
    found = Found(run, given.record is not None, given.bounding_boxes, given.segs, given.masks)
    wanted = [Wanted(s.name, s.box, s.region) for s in subjects]
    regions = regions_in(wanted, found, len(pictures), (pictures.shape[2], pictures.shape[1]), warn)
    text, why = prompt_vector(given.clip, given.prompt, looking)
    if text is not None and why:
        warn(why)
    scores = score_pictures(pictures, looks, regions, looking, threshold, text)
    return scores, why if text is None else ""


def only_numbers(pictures: torch.Tensor, warn: Callable[[str], None]) -> torch.Tensor:
    """Return pictures [n, H, W, C] with white where a value is NaN or infinite, and warn of each such picture."""
    sound = pictures.isfinite()
    for number, fine in enumerate(sound.flatten(1).all(1).tolist(), 1):
        if not fine:
            warn(BROKEN.format(number))
    return pictures if sound.all() else pictures.where(sound, 1.0)


def picture_encoder(encoder: str, clip_vision: Any, references: References | None) -> PictureEncoder:
    """Return the colours or the chosen DINO, or the connected CLIP vision encoder, or the one that the references'
    adapter uses.

    Raises:
        MismatchError: none of these.
        CheckpointError: the DINO, or the adapter's encoder, is not there or damaged.
    """
    if encoder == colours.NAME:
        return colours.ColourPictures()
    if encoder != CLIP_VISION:
        return load_dino(encoder)
    vision: Any = clip_vision
    if vision is None and references is not None:
        vision = getattr(references.adapter, "clip_vision", lambda: None)()
    if vision is None:
        do = "Connect Load CLIP Vision to 'clip_vision', or set 'encoder' to colours or a DINO."
        raise MismatchError("an image encoder to compare with", "no CLIP vision encoder", do)
    return ClipPictures(HostImageEncoder(vision))


def prompt_vector(clip: Any, prompt: str, encoder: PictureEncoder) -> tuple[torch.Tensor | None, str]:
    """Return the prompt [E] by the text encoder that was trained with the image encoder, and what to say about it: why
    there is none, or that the prompt was cut.

    An encoder is matched by its sizes only; a projection that is the identity replaces one that the file left out.
    """
    if not isinstance(encoder, ClipPictures):
        return None, ONLY_CLIP if clip is not None else ""
    if clip is None or not prompt.strip():
        return None, NO_PROMPT
    images = encoder.images
    stream = TOWERS.get((images.hidden, images.pooled)) if images.size == 224 else None
    tower = None if stream is None else getattr(clip.cond_stage_model, f"clip_{stream}", None)
    if stream is None or tower is None:
        return None, NO_TOWER
    return text_vector(clip, prompt, stream, tower)


def text_vector(clip: Any, prompt: str, stream: str, tower: Any) -> tuple[torch.Tensor | None, str]:
    """Return the projected vector [E] of a prompt's first chunk by one text encoder of a CLIP, float32 on the CPU, and
    what to say about it.
    """
    projection = tower.transformer.text_projection.weight
    if projection.shape[0] == projection.shape[1] and torch.equal(
        projection.float(), torch.eye(len(projection), device=projection.device)
    ):
        return None, NO_PROJECTION
    chunks = clip.tokenize(prompt)[stream]
    clip.load_model()
    try:
        tower.set_clip_options({"projected_pooled": True})
        vector = tower.encode([[token for token, *_ in chunks[0]]])[1]
    finally:
        clip.cond_stage_model.reset_clip_options()
    return vector[0].float().cpu(), FIRST_PART if len(chunks) > 1 else ""
