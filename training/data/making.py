"""From a picture to its record: open it, caption it, detect and segment what the caption names, choose, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ...model_patches.subjects import Box
from .journal import RecordOutcome
from .pictures import PictureFault, file_stem, open_picture, place_picture, write_mask
from .records import PictureRecord, SubjectRecord
from .selection import Note, Rules, Thing, best_caption, choose
from .sources import Source
from .words import candidate_words, english, template_caption


@dataclass(frozen=True)
class Detection:
    """A thing that a detector has found: the word it was asked for, its box in 0..1, its score in 0..1."""

    word: str
    box: Box
    score: float


class Captioner(Protocol):
    """Source of a caption for each picture."""

    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]: ...


class SubjectDetector(Protocol):
    """Source of the things that words name, for each picture those of its own words."""

    def __call__(self, pictures: Sequence[Image.Image], words: Sequence[Sequence[str]]) -> list[list[Detection]]: ...


class Segmenter(Protocol):
    """Source of a mask, [h, w] bool, for each box in one picture."""

    def __call__(self, picture: Image.Image, boxes: Sequence[Box]) -> list[np.ndarray]: ...


@dataclass
class Maker:
    """Maker of records in a folder. Its `__call__` is what `engine.work` calls for each batch.

    captioner: for pictures without a caption; without it those with annotations get a template ('a cat and a dog') and
    the others are dropped. detector, segmenter: for pictures without annotations. vocabulary: see
    `words.candidate_words`. The models may be functions that make them, so that each process makes its own.
    """

    folder: Path
    rules: Rules = field(default_factory=Rules)
    captioner: Callable[[], Captioner] | None = None
    detector: Callable[[], SubjectDetector] | None = None
    segmenter: Callable[[], Segmenter] | None = None
    vocabulary: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        english()
        self._made: dict[str, object] = {}

    def __call__(self, sources: Sequence[Source]) -> list[RecordOutcome]:
        """Return what became of each picture; one that is broken stops no other."""
        outcomes: dict[str, RecordOutcome] = {}
        opened: list[tuple[Source, Image.Image]] = []
        for source in sources:
            try:
                opened.append((source, _open(source)))
            except PictureFault as fault:
                outcomes[source.key] = RecordOutcome(source.key, None, (*source.notes, (fault.reason, fault.detail)))
        for source, picture in self._detected(self._captioned(opened)):
            outcomes[source.key] = self._outcome(source, picture)
        return [outcomes[source.key] for source in sources]

    def _model(self, name: str) -> object | None:
        factory = getattr(self, name)
        if factory is not None and name not in self._made:
            self._made[name] = factory()
        return self._made.get(name)

    def _captioned(self, opened: list[tuple[Source, Image.Image]]) -> list[tuple[Source, Image.Image]]:
        silent = [i for i, (source, _) in enumerate(opened) if not source.captions]
        captioner = self._model("captioner") if silent else None
        texts: dict[int, str] = {}
        if captioner is not None:
            written = captioner([opened[i][1] for i in silent])  # type: ignore[operator]
            texts = {i: text for i, text in zip(silent, written, strict=True) if text.strip()}
        return [
            (replace(source, captions=(texts[i],)) if i in texts else source, picture)
            for i, (source, picture) in enumerate(opened)
        ]

    def _detected(self, opened: list[tuple[Source, Image.Image]]) -> list[tuple[Source, Image.Image]]:
        """Things that several words name at one place keep the word with the highest score: see `choose`."""
        asked = [i for i, (source, _) in enumerate(opened) if source.things is None and source.captions]
        words = {i: candidate_words(opened[i][0].captions[0], self.vocabulary) for i in asked}
        asked = [i for i in asked if words[i]]
        detector = self._model("detector") if asked else None
        if detector is None:
            return opened
        found = detector([opened[i][1] for i in asked], [words[i] for i in asked])  # type: ignore[operator]
        things = {
            i: tuple(Thing((one.word,), one.box, None, one.score) for one in detections)
            for i, detections in zip(asked, found, strict=True)
        }
        return [
            (replace(source, things=things[i]) if i in things else source, picture)
            for i, (source, picture) in enumerate(opened)
        ]

    def _outcome(self, source: Source, picture: Image.Image) -> RecordOutcome:
        things, notes = source.things or (), list(source.notes)
        if source.things is None:
            notes.append(("no caption", source.key) if not source.captions else ("no word to look for", source.key))
        caption = best_caption(source.captions, things) if source.captions else _template(things)
        segment = source.things is not None and self.segmenter is not None and not any(thing.mask for thing in things)
        if segment and things:
            things, dropped = self._segmented(picture, things, caption)
            notes += dropped
        chosen, dropped = choose(things, caption, picture.size, self.rules)
        notes += dropped
        if len(chosen) < self.rules.least or not caption:
            return RecordOutcome(source.key, None, (*notes, ("picture with too few subjects", source.key)))
        if not source.captions:
            caption = template_caption([subject.name for subject in chosen])
        stem = file_stem(source.key)
        subjects = []
        for number, subject in enumerate(chosen):
            mask = None
            if subject.mask is not None:
                mask = self.folder / "masks" / f"{stem}_{number}.png"
                write_mask(subject.mask, mask)
            subjects.append(SubjectRecord(subject.name, subject.box, mask))
        path = place_picture(source.picture, picture, self.folder / "pictures" / stem)
        return RecordOutcome(source.key, PictureRecord(path, caption, tuple(subjects)), tuple(notes))

    def _segmented(
        self, picture: Image.Image, things: Sequence[Thing], caption: str
    ) -> tuple[tuple[Thing, ...], list[Note]]:
        """Segment only what would be chosen by its box; what a mask then drops makes room for no other."""
        chosen, notes = choose(things, caption, picture.size, self.rules)
        segmenter = self._model("segmenter")
        masks = segmenter(picture, [one.box for one in chosen]) if chosen else []  # type: ignore[operator]
        return tuple(Thing((one.name,), one.box, _Known(mask)) for one, mask in zip(chosen, masks, strict=True)), notes


@dataclass(frozen=True)
class _Known:
    mask: np.ndarray

    def __call__(self, size: tuple[int, int]) -> np.ndarray:
        if self.mask.shape != (size[1], size[0]):
            raise PictureFault("mask for another size", f"{self.mask.shape[1]}x{self.mask.shape[0]}")
        return self.mask


def _open(source: Source) -> Image.Image:
    picture = open_picture(source.picture, source.upright)
    if source.size is not None and source.size != picture.size:
        w, h = source.size
        raise PictureFault("picture of another size", f"{source.key} {picture.width}x{picture.height}, not {w}x{h}")
    return picture


def _template(things: Sequence[Thing]) -> str:
    """A caption that names every category once, so that `choose` may take any; the chosen ones make the real one."""
    names = list(dict.fromkeys(thing.category for thing in things))
    return template_caption(names) if names else ""
