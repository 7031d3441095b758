"""Scores of one painted picture. Each scorer gives one or more columns of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from ...model_patches.encoding.framing import frame
from ...model_patches.scores.likeness import clip_i, clip_t, clip_t_times_2_5, likeness_matrix
from ...model_patches.scores.regions import SubjectRegion, crop, filled
from ...model_patches.scores.scoring import Looks, score_pictures
from ...model_patches.subjects import Box
from ...rehearsal.engine.recogniser import Recogniser
from ...rehearsal.engine.trials import judge
from ...rehearsal.engine.verdict import LETTERS
from ...training.data.models import ClipFeatures
from ...training.data.pictures import PictureFault, open_picture, pixels_of
from ...training.data.pictures import crop as crop_of
from ...training.data.quality import object_quality
from ..suites.rehearsal import trial_of
from ..suites.suite import Case
from ..tasks import Task
from .detectors import Detector
from .features import Photos, PictureFeatures, as_tensor, encoder_of

COLLAPSE = (0.4, 0.5, 0.6)  # thresholds of the subject collapse rate, arXiv 2603.26078
NOT_LIKE_ANY = 0.2  # likeness below which a crop shows none of the subjects: Score Subjects' default
PROMPT_COLUMNS = ("clip_t", "clip_t_times_2_5")
Values = Mapping[str, float | str | None]  # of each column; None where it cannot be counted


@dataclass(frozen=True, eq=False)
class Painted:
    """A picture to score: its task, its case, itself as RGB. others: files of the other methods' pictures of this case
    and seed, by method.
    """

    task: Task
    case: Case
    picture: Image.Image
    others: Mapping[str, Path] = field(default_factory=dict)


class Scorer(Protocol):
    """Maker of columns."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names."""
        ...

    @property
    def model(self) -> str:
        """The models that count them, with commas, for the report."""
        ...

    def __call__(self, painted: Painted) -> Values:
        """Return a value for each column. Raises PictureFault for a reference photo that does not open."""
        ...


class WholePicture:
    """Cosines of the whole picture with the references: the mean over each subject's photos, then over the subjects.

    column: clip_i, dino, dinov2 or colours; features: the encoder; folder: of the references. With `texts`, CLIP-T as
    the raw cosine and as MIP-Adapter counts it, 2.5 times that. With `collapse`, the subject collapse rate at each of
    COLLAPSE: the share of subjects whose cosine is below it. upright: of the photos, see `Photos`.
    """

    def __init__(
        self,
        column: str,
        features: PictureFeatures,
        folder: Path,
        texts: bool = False,
        collapse: bool = False,
        upright: bool = True,
    ):
        self.column, self.features, self.photos = column, features, Photos(features, folder, upright)
        self.texts = features if texts and isinstance(features, ClipFeatures) else None
        self.thresholds, self.model = COLLAPSE if collapse else (), features.name
        more = PROMPT_COLUMNS if self.texts else ()
        self.columns = (column, *more, *(collapse_column(one) for one in self.thresholds))

    def __call__(self, painted: Painted) -> Values:
        """See Scorer."""
        vector = self.features.pictures([painted.picture])
        references = [self.photos.vectors(photos) for photos in painted.case.references]
        values: dict[str, float | str | None] = {self.column: clip_i(vector, references).item()}
        if self.texts is not None:
            values |= prompt_likeness(vector, self.texts, painted.task.prompt)
        each = likeness_matrix(vector, references)[0]
        return values | {collapse_column(one): collapse_rate(each, one) for one in self.thresholds}


class PromptLikeness:
    """CLIP-T alone, for a CLIP that does not count CLIP-I. clip: the model."""

    columns = PROMPT_COLUMNS

    def __init__(self, clip: ClipFeatures):
        self.clip, self.model = clip, clip.name

    def __call__(self, painted: Painted) -> Values:
        """See Scorer."""
        return prompt_likeness(self.clip.pictures([painted.picture]), self.clip, painted.task.prompt)


def prompt_likeness(vector: torch.Tensor, clip: ClipFeatures, prompt: str) -> dict[str, float | str | None]:
    """Return CLIP-T of a picture's vector [1, E] and a prompt, as the raw cosine and as MIP-Adapter counts it."""
    cosine = clip_t(vector, clip.texts([prompt]))
    return dict(zip(PROMPT_COLUMNS, (cosine.item(), clip_t_times_2_5(cosine).item()), strict=True))


def collapse_column(threshold: float) -> str:
    """Return the column of the subject collapse rate at a threshold."""
    return f"scr_{threshold:g}"


def collapse_rate(likeness: torch.Tensor, threshold: float) -> float:
    """Return the subject collapse rate of a picture, 0..1: the share of its subjects whose likeness, [m], is below the
    threshold.
    """
    return (likeness < threshold).double().mean().item()


class PlacedSubjects:
    """Scorer of the subjects that a detector finds.

    ip_sim: XVerseBench's, for each subject the largest cosine of its references with up to three found instances, cut
    out and padded to a square (with a white border of the same share as its references'), 0 where none is found; the
    mean over the subjects. subjects_right: the share of subjects with the verdict right, as Score Subjects gives it of
    the surest place, a box without its corners; verdicts: a letter for each (LETTERS). features: the encoder;
    folder: of the references; suffix: of the columns.
    """

    def __init__(self, detector: Detector, features: PictureFeatures, folder: Path, suffix: str = ""):
        self.detector, self.encoder, self.folder = detector, encoder_of(features), folder
        self.columns = (f"ip_sim{suffix}", f"subjects_right{suffix}", f"verdicts{suffix}")
        self.photos, self.model = Photos(features, folder), f"{detector.name}, {features.name}"
        self._looks: dict[tuple[str, ...], tuple[torch.Tensor, ...]] = {}

    def __call__(self, painted: Painted) -> Values:
        """See Scorer."""
        names = [subject.name for subject in painted.task.subjects]
        found = self.detector.regions(painted.picture, names)
        pixels = as_tensor(painted.picture)
        looks = [
            Looks(name, self._framed(photos), self._framed(photos))
            for name, photos in zip(names, painted.case.references, strict=True)
        ]
        likeness = [
            self._largest(pixels, regions, one, photos)
            for regions, one, photos in zip(found, looks, painted.case.references, strict=True)
        ]
        first = [_without_corners(regions[0]) if regions else None for regions in found]
        with torch.no_grad():
            score = score_pictures(pixels[None], looks, [first], self.encoder, NOT_LIKE_ANY).pictures[0]
        words = "".join(LETTERS[verdict.word] for verdict in score.verdicts)
        values = (sum(likeness) / len(likeness), score.right / len(score.verdicts), words)
        return dict(zip(self.columns, values, strict=True))

    def _largest(
        self, pixels: torch.Tensor, regions: Sequence[SubjectRegion], looks: Looks, photos: tuple[str, ...]
    ) -> float:
        """The largest cosine of a place with a subject's references; 0 without a place."""
        if not regions:
            return 0.0
        share = sum(map(filled, looks.photos)) / len(looks.photos)
        crops = torch.stack([crop(pixels, region, self.encoder.size, share) for region in regions])
        with torch.no_grad():
            vectors = self.encoder.vectors(crops).cpu()
        return likeness_matrix(vectors, [self.photos.vectors(photos)]).max().item()

    def _framed(self, photos: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
        """Each photo padded to the encoder's square, [S, S, 3]."""
        if photos not in self._looks:
            pictures = [as_tensor(open_picture(self.folder / photo)) for photo in photos]
            self._looks[photos] = tuple(frame(picture, self.encoder.size, "pad") for picture in pictures)
        return self._looks[photos]


def _without_corners(region: SubjectRegion) -> SubjectRegion:
    """Return a region as Score Subjects takes it from another pack's detector."""
    return replace(region, oval=region.mask is None)


class FoundQuality:
    """MIP-Adapter's object quality score S of a painted picture, over the crops that a detector finds for the names;
    none where a subject is not found.

    detector: finds the crops; clip: scores them.
    """

    columns = ("object_quality",)

    def __init__(self, detector: Detector, clip: ClipFeatures):
        self.detector, self.clip, self.model = detector, clip, f"{detector.name}, {clip.name}"

    def __call__(self, painted: Painted) -> Values:
        """See Scorer."""
        names = [subject.name for subject in painted.task.subjects]
        found = self.detector.regions(painted.picture, names)
        if not all(found):
            return {"object_quality": None}
        crops = [crop_of(painted.picture, regions[0].box) for regions in found]
        return {"object_quality": object_quality(self.clip.texts(names), self.clip.pictures(crops)).mean().item()}


class ObjectRelevance:
    """MIP-Adapter's object relevance score, for methods with `noise` on text attention: how much more the noise changes
    the picture inside the first subject's box than outside. The box is where a detector finds it without noise; none
    where it does not.
    """

    columns = ("object_relevance",)

    def __init__(self, detector: Detector):
        self.detector, self.model = detector, detector.name

    def __call__(self, painted: Painted) -> Values:
        """See Scorer."""
        settings = painted.task.method.settings
        if not settings.get("noise"):
            return {"object_relevance": None}
        name = str(settings.get("beside", ""))
        if name not in painted.others:
            raise PictureFault("not painted yet", f"the picture by '{name}'")
        plain = open_picture(painted.others[name])
        regions = self.detector.regions(plain, [subject.name for subject in painted.task.subjects])[0]
        if not regions:
            return {"object_relevance": None}
        return {"object_relevance": object_relevance(as_tensor(plain), as_tensor(painted.picture), regions[0].box)}


def object_relevance(plain: torch.Tensor, noised: torch.Tensor, box: Box) -> float | None:
    """Return the mean absolute difference of two pictures [H, W, 3] inside a box over that outside of it; None where
    one of these is empty or nothing outside differs.
    """
    difference = (plain.double() - noised.double()).abs().mean(-1)
    left, top, right, bottom = pixels_of(box, (difference.shape[1], difference.shape[0]))
    inside = torch.zeros_like(difference, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    if not inside.any() or inside.all() or not difference[~inside].any():
        return None
    return (difference[inside].mean() / difference[~inside].mean()).item()


class KnownTruth:
    """The truth about a picture of the rehearsal suite, as `rehearsal/engine/verdict.py` reads it.

    truth_right: share of subjects with the looks of their own reference; truth_exact: with exactly its two colours;
    truth_prompt: share of the prompt's subjects that are there, of their class and variant and with any looks (the
    background is not read); truth_verdicts, truth_by_colours: a letter for each subject, by the recogniser and by
    colours alone.
    """

    columns = ("truth_right", "truth_exact", "truth_prompt", "truth_verdicts", "truth_by_colours")
    model = "rehearsal recogniser"

    def __init__(self, recogniser: Recogniser):
        self.recogniser = recogniser

    def __call__(self, painted: Painted) -> Values:
        """See Scorer."""
        pixels = as_tensor(painted.picture).movedim(-1, 0)
        read = judge(self.recogniser, trial_of(painted.case.name), pixels)
        first, second = ("".join(LETTERS[word] for word in words) for words in (read.by_recogniser, read.by_colours))
        return {
            "truth_right": first.count("r") / len(first),
            "truth_exact": sum(read.exact) / len(read.exact),
            "truth_prompt": sum(read.followed) / len(read.followed),
            "truth_verdicts": first,
            "truth_by_colours": second,
        }


def columns_of(scorers: Sequence[Scorer]) -> list[str]:
    """Return the columns of all scorers, in their order."""
    return [column for scorer in scorers for column in scorer.columns]
