"""From the settings to scorers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...model_patches.hosts.diffusers.encoders import ClipImages
from ...model_patches.scores.colours import ColourPictures
from ...model_patches.scores.scoring import ClipPictures
from ...rehearsal.engine.load import load_image_encoder
from ...rehearsal.engine.recogniser import load_recogniser
from ...rehearsal.files import CLIP, DINO, FOLDER
from ...training.config.setting import setting
from ...training.data.models import ClipFeatures, GroundingDino
from ..suites.rehearsal import NAME as REHEARSAL
from ..suites.suite import SuiteError
from .detectors import Detector, GroundingDetector, OncePerPicture, RehearsalDetector
from .features import DinoFeatures, EncoderFeatures, PictureFeatures, PilClip
from .scores import FoundQuality, KnownTruth, ObjectRelevance, PlacedSubjects, PromptLikeness, Scorer, WholePicture

REHEARSAL_CLIP, REHEARSAL_DINO = "rehearsal CLIP", "rehearsal DINOv2"  # for the report
CLIP_B32 = "openai/clip-vit-base-patch32"
PRESETS: Mapping[str, Mapping[str, str]] = {  # models by the names of those who published figures with them
    "none": {},
    "rehearsal": {"clip": REHEARSAL, "dinov2": REHEARSAL, "colours": "yes", "detector": REHEARSAL},
    "dreambooth": {"clip": CLIP_B32, "dino": "facebook/dino-vits16"},
    "mip_adapter": {"clip": CLIP_B32, "dino": "facebook/dino-vits16"},  # its CLIP-T is clip_t_times_2_5
    "dreambench++": {"clip": CLIP_B32, "dino": "facebook/dino-vits8", "dinov2": "facebook/dinov2-small"},
    "xverse": {
        "clip": CLIP_B32,
        "dino": "facebook/dino-vits16",
        "detector": "IDEA-Research/grounding-dino-tiny",
    },
}


CUT_DOWN = {"dreambench++"}  # presets whose CLIP reads pictures as transformers cuts them, see `pixels.Reading`


@dataclass(frozen=True)
class ScoreSettings:
    """Models that count: `[scores]`. Each is a folder in transformers' layout, a name on the Hugging Face hub,
    "rehearsal" for the small ones that come with the pack (clip, dinov2, detector), or "" for what the preset says.
    "off" turns one off.
    """

    preset: str = setting("rehearsal", choices=tuple(PRESETS))
    # CLIP-I, CLIP-T and object quality; rehearsal: CLIP-I by its image encoder, the others by its CLIP
    clip: str = ""
    dino: str = ""  # DINO; ViT-S/16 in most papers
    dinov2: str = ""  # DINOv2, with the subject collapse rate
    colours: str = setting("", choices=("", "yes", "off"))  # likeness of colours, without a model
    detector: str = ""  # finds the subjects by name: Grounding DINO
    # model of ip_sim and subjects_right, "": the last one; the others have columns of their own, such as ip_sim_clip
    compare: str = setting("", choices=("", "clip", "dino", "dinov2"))
    device: str = "cpu"


def model_names(settings: ScoreSettings) -> dict[str, str]:
    """Return the model of each part, without those that are off."""
    preset = PRESETS[settings.preset]
    parts = ("clip", "dino", "dinov2", "colours", "detector")
    names = {part: getattr(settings, part) or preset.get(part, "") for part in parts}
    return {part: name for part, name in names.items() if name not in ("", "off")}


def make_scorers(
    settings: ScoreSettings, suite: str, folder: Path, noised: bool = False, upright: bool = True
) -> list[Scorer]:
    """Load the models and return the scorers.

    suite: its name; folder: the photos' paths are relative to it; noised: whether a method is painted with noise, for
    the object relevance score; upright: whether whole photos are turned as their EXIF data say.

    Raises:
        SuiteError: no score is chosen, or a detector without a model that compares what it finds.
        TroupeError: a model is missing or of another kind.
    """
    names = model_names(settings)
    down, device = settings.preset in CUT_DOWN, settings.device
    features = {part: _features(part, name, device, down) for part, name in names.items() if part != "detector"}
    clip = _clip_with_texts(features.get("clip"), device)
    scorers: list[Scorer] = []
    for part, one in features.items():
        column = "clip_i" if part == "clip" else part
        scorers.append(WholePicture(column, one, folder, part == "clip", part == "dinov2", upright))
        if part == "clip" and clip is not None and clip is not one:
            scorers.append(PromptLikeness(clip))
    if "detector" in names:
        detector = OncePerPicture(_detector(names["detector"], settings.device))
        compared = settings.compare or next((part for part in ("dinov2", "dino", "clip") if part in features), "")
        if compared not in features:
            raise SuiteError(
                "a model that compares what the detector finds", "none", "Name a clip, dino or dinov2 in [scores]."
            )
        scorers.append(PlacedSubjects(detector, features[compared], folder))
        others = [part for part in features if part != compared]
        scorers += [PlacedSubjects(detector, features[part], folder, f"_{part}") for part in others]
        if clip is not None:
            scorers.append(FoundQuality(detector, clip))
        if noised:
            scorers.append(ObjectRelevance(detector))
    if suite == REHEARSAL:
        scorers.append(KnownTruth(load_recogniser()))
    if not scorers:
        raise SuiteError("a score", "no model in [scores]", "Choose a preset, or name a clip or dino.")
    return scorers


def _features(part: str, name: str, device: str, cut_down: bool) -> PictureFeatures:
    if part == "colours":
        return EncoderFeatures(ColourPictures())
    if part != "clip":
        if (part, name) == ("dinov2", REHEARSAL):
            return DinoFeatures.load(str(FOLDER / DINO), device, REHEARSAL_DINO)
        return DinoFeatures.load(name, device)
    if name == REHEARSAL:
        return EncoderFeatures(ClipPictures(ClipImages(load_image_encoder()), "rehearsal image encoder"))
    return PilClip.load(name, device, cut_down)


def _clip_with_texts(features: PictureFeatures | None, device: str) -> ClipFeatures | None:
    """The CLIP that counts CLIP-T and object quality: the same as for CLIP-I, but the rehearsal world's image encoder
    has no text side.
    """
    if features is None or isinstance(features, ClipFeatures):
        return features
    found = PilClip.load(str(FOLDER / CLIP), device)
    found.name = REHEARSAL_CLIP
    return found


def _detector(name: str, device: str) -> Detector:
    if name == REHEARSAL:
        return RehearsalDetector(load_recogniser())
    return GroundingDetector(GroundingDino.load(name, device), name)
