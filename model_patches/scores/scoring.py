"""Score pictures: every subject's crop against every subject's references, with one pass of the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..encoding.framing import flatten_alpha, frame
from ..encoding.interfaces import ImageEncoder
from ..encoding.photos import prepare_photo
from ..errors import SubjectError
from ..subjects import Cast, Image, References
from .likeness import clip_i, clip_t, cosines, likeness_matrix, reference_likeness
from .regions import SubjectRegion, crop, filled, same_regions
from .verdicts import MISSING, RIGHT, Verdict, verdicts, with_further

CAST_TOO = "Connect 'cast' from Add Subject too: these references do not hold a photo for each subject."


class PictureEncoder(Protocol):
    """Maker of a vector of a picture: `size` of its square input, `name` for the report, `shares`: see `verdicts`."""

    size: int
    name: str
    shares: bool

    def vectors(self, pictures: torch.Tensor) -> torch.Tensor:
        """Encode pictures: [n, size, size, 3] in 0..1 -> [n, E] float32, n >= 1."""
        ...

    def whole(self, picture: torch.Tensor) -> torch.Tensor:
        """Prepare a picture [H, W, 3] of any size as published figures are counted with it: [size, size, 3]."""
        ...


class ClipPictures:
    """A CLIP vision encoder as a PictureEncoder: its projected vectors; whole pictures are centre crops.

    images: the encoder; name: for the report.
    """

    shares = False

    def __init__(self, images: ImageEncoder, name: str = "CLIP vision"):
        self.images, self.size, self.name = images, images.size, name

    def vectors(self, pictures: torch.Tensor) -> torch.Tensor:
        """See PictureEncoder."""
        return self.images.encode(pictures, "pooled", blank=False)

    def whole(self, picture: torch.Tensor) -> torch.Tensor:
        """See PictureEncoder."""
        return frame(picture, self.size, "center")


@dataclass(frozen=True, eq=False)
class Looks:
    """A subject's references: name, photos [S, S, 3] as crops are compared with, whole [S, S, 3] for CLIP-I."""

    name: str
    photos: tuple[torch.Tensor, ...]
    whole: tuple[torch.Tensor, ...]


def looks_of_cast(cast: Cast, encoder: PictureEncoder) -> list[Looks]:
    """Return the references in a cast: padded to a white square, cut out where there is a mask; whole ones as they
    are.
    """
    return [
        Looks(
            subject.name or f"subject {number}",
            tuple(prepare_photo(photo, encoder.size, "pad") for photo in subject.photos),
            tuple(encoder.whole(flatten_alpha(photo.image[None].float())[0]) for photo in subject.photos),
        )
        for number, subject in enumerate(cast.subjects, 1)
    ]


def looks_of_references(references: References, encoder: PictureEncoder) -> list[Looks]:
    """Return the references as the adapter's encoder saw them.

    Raises SubjectError where they hold no photos.
    """
    counts = references.photo_counts
    if not references.previews or sum(counts) != len(references.previews) or 0 in counts:
        found = f"{len(references.previews)} photos for {len(references.subjects)} subjects"
        raise SubjectError("references with a photo of each subject", found, CAST_TOO)
    pictures = iter([frame(picture.float(), encoder.size, "pad") for picture in references.previews])
    photos = [tuple(next(pictures) for _ in range(count)) for count in counts]
    return [Looks(s.name, own, own) for s, own in zip(references.subjects, photos, strict=True)]


@dataclass(frozen=True, eq=False)
class FurtherRegion:
    """A region that no subject has: the verdict on it (cloned or missing, see `verdicts.with_further`), its likeness
    with the m references, its crop [S, S, 3].
    """

    verdict: Verdict
    region: SubjectRegion
    likeness: tuple[float, ...]
    crop: torch.Tensor


@dataclass(frozen=True, eq=False)
class PictureScore:
    """One picture's scores.

    verdicts, regions: of each of m subjects; likeness: [m, m] of crops with references, NaN in the rows of subjects
    without a region; crops: [S, S, 3] each, None without a region; clip_i: mean over the subjects; clip_t: raw cosine
    of picture and prompt, or None; further: what else was found in the picture.
    """

    verdicts: tuple[Verdict, ...]
    regions: tuple[SubjectRegion | None, ...]
    likeness: torch.Tensor
    crops: tuple[torch.Tensor | None, ...]
    clip_i: float
    clip_t: float | None = None
    further: tuple[FurtherRegion, ...] = ()

    @property
    def right(self) -> int:
        """How many subjects are right."""
        return sum(verdict.word == RIGHT for verdict in self.verdicts)

    @property
    def all_right(self) -> bool:
        """Whether every subject is right."""
        return self.right == len(self.verdicts)

    @property
    def score(self) -> float:
        """0..1: `(subjects that are right + mean likeness with the own references) / (subjects + 1)`, so that a picture
        with more subjects right is always the better one. Missing subjects have likeness 0.
        """
        own = self.likeness.diagonal().tolist()
        likeness = [
            0.0 if verdict.word == MISSING else min(max(value, 0.0), 1.0)
            for value, verdict in zip(own, self.verdicts, strict=True)
        ]
        return (self.right + sum(likeness) / len(likeness)) / (len(likeness) + 1)


@dataclass(frozen=True, eq=False)
class Scores:
    """Result of a batch: names of the subjects; references: [m, m], how alike they are; photos: one [S, S, 3] of each
    subject; encoder: its name; threshold: as given.
    """

    names: tuple[str, ...]
    references: torch.Tensor
    photos: tuple[torch.Tensor, ...]
    pictures: tuple[PictureScore, ...]
    encoder: str
    threshold: float


def score_pictures(
    pictures: Image,
    looks: Sequence[Looks],
    regions: Sequence[Sequence[SubjectRegion | None]],
    encoder: PictureEncoder,
    threshold: float,
    text: torch.Tensor | None = None,
) -> Scores:
    """Score a batch of pictures [n, H, W, C].

    Arguments:
        looks: of each of m subjects, m >= 1.
        regions: of every subject in each picture, then further ones, which are not None.
        threshold: likeness below which a crop shows none of the subjects.
        text: [E] the prompt by the encoder's own text tower, for CLIP-T, or None.
    """
    share = sum(filled(photo) for one in looks for photo in one.photos) / sum(len(one.photos) for one in looks)
    cut = [
        [None if region is None else crop(picture, region, encoder.size, share) for region in own]
        for picture, own in zip(pictures, regions, strict=True)
    ]
    whole = [encoder.whole(picture) for picture in flatten_alpha(pictures.float())]
    parts = [
        [photo for one in looks for photo in one.photos],
        [photo for one in looks for photo in one.whole],
        whole,
        [one for own in cut for one in own if one is not None],
    ]
    vectors = encoder.vectors(torch.stack([one.cpu() for part in parts for one in part])).split(list(map(len, parts)))
    photos = vectors[0].split([len(one.photos) for one in looks])
    references = reference_likeness(photos)
    means = clip_i(vectors[2], vectors[1].split([len(one.whole) for one in looks])).tolist()
    texts = [None] * len(whole) if text is None else clip_t(vectors[2], text.to(vectors[2])).tolist()
    counts = [sum(one is not None for one in own) for own in cut]
    scored = []
    for own, crops, found, mean, cosine in zip(regions, cut, vectors[3].split(counts), means, texts, strict=True):
        m, there = len(looks), [region is not None for region in own]
        likeness, beside = _spread(likeness_matrix(found, photos), there), _beside(found, there, m)
        same = same_regions(list(own[:m]))
        judged = verdicts(likeness[:m], references, there[:m], threshold, same, encoder.shares)
        judged, more = with_further(judged, likeness, beside, references, threshold, encoder.shares)
        further = [
            FurtherRegion(verdict, region, tuple(row), seen)
            for verdict, region, row, seen in zip(more, own[m:], likeness[m:].tolist(), crops[m:], strict=True)
            if region is not None and seen is not None
        ]
        subjects = tuple(judged), tuple(own[:m]), likeness[:m], tuple(crops[:m])
        scored.append(PictureScore(*subjects, mean, cosine, tuple(further)))
    names, first = tuple(one.name for one in looks), tuple(one.photos[0] for one in looks)
    return Scores(names, references, first, tuple(scored), encoder.name, threshold)


def _spread(rows: torch.Tensor, there: Sequence[bool]) -> torch.Tensor:
    """Rows of the regions that are there in a table of all, NaN for the others."""
    table = torch.full((len(there), rows.shape[1]), torch.nan)
    table[torch.tensor(there)] = rows.cpu()
    return table


def _beside(vectors: torch.Tensor, there: Sequence[bool], m: int) -> torch.Tensor:
    """[e, m]: cosine of the further crops with the subjects', of `vectors` of the regions that are there."""
    subjects = sum(there[:m])
    return _spread(cosines(vectors[:subjects], vectors[subjects:]), there[:m]).T
