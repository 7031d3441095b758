"""MIP-Adapter's object quality score, and the filter that keeps the pictures with the highest ones.

S = S_single + S_pair. S_single is the mean over a picture's subjects of cos(CLIP text(name), CLIP image(crop)); S_pair
is minus the mean over ordered pairs of different subjects of cos(CLIP image(crop), CLIP image(other crop)). A subject's
part is q = cos(text, image) - mean over the others of cos(image, other image); the mean of q over a picture is S.

What the paper leaves open, and what is done here: the CLIP model is not named (the command takes OpenAI's ViT-L/14);
whether crops keep their background is not said (they do; `cut_outs` puts subjects on white); with one subject there are
no pairs and S_pair is 0, so that S of pictures with different numbers of subjects should not be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from .journal import UNFILTERED, RecordOutcome, read_journal
from .models import ClipFeatures
from .pictures import PictureFault, crop, cut_out, open_picture, read_mask
from .records import METADATA, DatasetError, PictureRecord, read_records, write_records

JOURNAL = "journal_quality"
Scorer = Callable[[Sequence[Sequence[Image.Image]], Sequence[Sequence[str]]], list[list[float]]]


def object_quality(texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return each subject's part of a picture's score, [n].

    texts, images: [n, d], CLIP's projected embeddings of the subjects' names and crops, of any length.
    """
    texts, images = (torch.nn.functional.normalize(one.double(), dim=-1) for one in (texts, images))
    single = (texts * images).sum(-1)
    n = len(images)
    if n == 1:
        return single
    pairs = images @ images.T
    return single - (pairs.sum(-1) - pairs.diagonal()) / (n - 1)


class ClipScorer:
    """CLIP model that scores many pictures at once.

    clip: the model.
    """

    def __init__(self, clip: ClipFeatures):
        self.clip = clip

    @classmethod
    def load(cls, name: str, device: str) -> ClipScorer:
        """Load a CLIP model by its folder or its name on the Hugging Face hub."""
        return cls(ClipFeatures.load(name, device))

    def __call__(self, crops: Sequence[Sequence[Image.Image]], names: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return each subject's part of its picture's score. crops, names: of each picture's subjects, at least one."""
        words = sorted({name for picture in names for name in picture})
        images = self.clip.pictures([one for picture in crops for one in picture])
        rows = dict(zip(words, self.clip.texts(words), strict=True))
        parts = images.split([len(picture) for picture in crops])
        return [
            object_quality(torch.stack([rows[name] for name in picture]), part).tolist()
            for picture, part in zip(names, parts, strict=True)
        ]


@dataclass(frozen=True)
class ScoredItem:
    """A record to score; its key changes if its picture, names, boxes or masks do."""

    folder: Path
    record: PictureRecord

    @property
    def key(self) -> str:
        """Hash of what is scored."""
        picture = self.record.picture.relative_to(self.folder).as_posix()
        subjects = [
            (one.name, one.box and [one.box.x, one.box.y, one.box.w, one.box.h], one.mask and one.mask.name)
            for one in self.record.subjects
        ]
        return f"{picture} {hashlib.sha256(json.dumps(subjects).encode()).hexdigest()[:10]}"


@dataclass
class Scoring:
    """Scorer of records; its `__call__` is what `engine.work` calls for each batch. scorer: makes the model."""

    scorer: Callable[[], Scorer]
    cut_outs: bool = False

    def __post_init__(self) -> None:
        self._scorer: Scorer | None = None

    def __call__(self, items: Sequence[ScoredItem]) -> list[RecordOutcome]:
        """Return an outcome for each record, with its subjects' scores as a note."""
        outcomes: dict[str, RecordOutcome] = {}
        ready: list[tuple[ScoredItem, list[Image.Image]]] = []
        for item in items:
            try:
                crops = self._crops(item.record)
            except PictureFault as fault:
                outcomes[item.key] = RecordOutcome(item.key, None, ((fault.reason, fault.detail),))
            else:
                ready.append((item, crops))
        if ready:
            self._scorer = self._scorer or self.scorer()
            names = [[subject.name for subject in item.record.subjects] for item, _ in ready]
            scores = self._scorer([crops for _, crops in ready], names)
            for (item, _), found in zip(ready, scores, strict=True):
                outcomes[item.key] = RecordOutcome(item.key, None, (("quality", json.dumps(found)),))
        return [outcomes[item.key] for item in items]

    def _crops(self, record: PictureRecord) -> list[Image.Image]:
        if not record.subjects:
            raise PictureFault("no subjects", record.picture.name)
        picture = open_picture(record.picture)
        if not self.cut_outs:
            return [crop(picture, subject.box) for subject in record.subjects]
        return [
            cut_out(picture, subject.box, None if subject.mask is None else read_mask(subject.mask, picture.size))
            for subject in record.subjects
        ]


def unfiltered_items(folder: Path) -> list[ScoredItem]:
    """Return a set's records as they were before any filter."""
    name = UNFILTERED if (folder / UNFILTERED).is_file() else METADATA
    return [ScoredItem(folder, record) for record in read_records(folder, name)]


def scored_records(folder: Path, items: Sequence[ScoredItem]) -> tuple[list[PictureRecord], list[PictureRecord], int]:
    """Return (records with their scores, records that cannot be scored, number of those still to be scored)."""
    entries = read_journal(folder, JOURNAL)
    scored, faulty, missing = [], [], 0
    for item in items:
        entry = entries.get(item.key)
        found = None if entry is None else dict(entry.notes).get("quality")
        if found is not None:
            parts = zip(item.record.subjects, json.loads(found), strict=True)
            subjects = tuple(replace(subject, quality=quality) for subject, quality in parts)
            scored.append(replace(item.record, subjects=subjects))
        elif entry is not None:
            faulty.append(item.record)
        else:
            missing += 1
    return scored, faulty, missing


def picture_quality(record: PictureRecord) -> float:
    """Return S of a picture whose subjects have all been scored."""
    found = [subject.quality for subject in record.subjects if subject.quality is not None]
    return sum(found) / len(found)


@dataclass(frozen=True)
class Filtered:
    """Result of the filter: records that are kept, the others, both best first, and those without a score.

    threshold: of S for all pictures, if there was one.
    """

    kept: list[PictureRecord]
    dropped: list[PictureRecord]
    faulty: list[PictureRecord]
    threshold: float | None


def filter_set(
    folder: Path,
    scored: Sequence[PictureRecord],
    faulty: Sequence[PictureRecord],
    threshold: float | None = None,
    keep: int | None = None,
) -> Filtered:
    """Keep the pictures with S above a threshold, or the `keep` best; with neither, all that have a score.

    S of pictures with different numbers of subjects cannot be compared, so the best of each number are kept, the same
    part of each. A threshold compares all.

    `metadata.jsonl` then has the kept ones, `unfiltered.jsonl` all of them with their scores, so that another threshold
    can be tried without scoring again.

    Raises:
        DatasetError: nothing would be kept. The set is then unchanged.
    """
    ordered = sorted(scored, key=picture_quality, reverse=True)
    if keep is not None:
        ordered = _by_place_among_its_like(ordered)
        kept = ordered[:keep]
    else:
        kept = ordered if threshold is None else [one for one in ordered if picture_quality(one) > threshold]
    if not kept:
        best = f"the best has {picture_quality(ordered[0]):.3f}" if ordered else "no picture has a score"
        raise DatasetError("a filter that keeps a picture", best, "Choose a lower threshold. The set is unchanged.")
    chosen = {id(one) for one in kept}
    write_records(folder, [*scored, *faulty], UNFILTERED)
    write_records(folder, [one for one in scored if id(one) in chosen])
    return Filtered(kept, [one for one in ordered if id(one) not in chosen], list(faulty), threshold)


def _by_place_among_its_like(ordered: Sequence[PictureRecord]) -> list[PictureRecord]:
    """Records, best first, in the order of their relative places among those with as many subjects."""
    counts = Counter(len(one.subjects) for one in ordered)
    before: Counter[int] = Counter()
    places = []
    for one in ordered:
        count = len(one.subjects)
        places.append((before[count] + 0.5) / counts[count])
        before[count] += 1
    return [ordered[i] for i in sorted(range(len(ordered)), key=places.__getitem__)]
