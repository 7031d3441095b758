"""The embedded engine on the rehearsal models: paints in this process, on a CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...model_patches.attention.merges import MERGES
from ...model_patches.errors import SubjectError
from ...model_patches.hosts.diffusers.encoders import encode_references
from ...model_patches.hosts.diffusers.image_attention import ImageAttention
from ...model_patches.placement.placing import place_subjects
from ...model_patches.subjects import Cast, make_subject
from ...rehearsal.engine.noised_text import noised_text
from ...rehearsal.engine.one_map import OneMap
from ...rehearsal.engine.paint import CFG, STEPS, Rehearsal, load_rehearsal, paint
from ...rehearsal.world import PIXELS
from ...training.config.setting import setting
from ...training.config.tables import ConfigError, checked, meant
from ...training.data.pictures import PictureFault, open_picture
from ..tasks import Method, Subject, Task

NO_REFERENCES = "none"
EVERY, ONE = "every layer", "one layer"
BY_RELEVANCE, EVENLY = "relevance", "evenly"


@dataclass(frozen=True)
class PaintSettings:
    """Settings of a method on this engine."""

    adapter: str = setting("mip", choices=("mip", "ip"))
    merge: str = setting("relevance", choices=(NO_REFERENCES, *MERGES))  # none: the references are not used
    weight: float = setting(1.0, least=0.0)
    sharpness: float = setting(1.0, above=0.0)
    boxes: bool = False  # use the subjects' boxes
    map_from: str = setting(EVERY, choices=(EVERY, ONE))  # one layer: as Conceptrol (arXiv 2503.06568)
    noise: float = setting(0.0, least=0.0)  # on text attention, for the object relevance score
    noise_by: str = setting(BY_RELEVANCE, choices=(BY_RELEVANCE, EVENLY))  # of the first subject's name
    beside: str = ""  # the method without noise that this one is compared with
    steps: int = setting(STEPS, least=1)
    cfg: float = setting(CFG, least=0.0)


def settings_of(method: Method) -> PaintSettings:
    """Return a method's settings. Raises ConfigError for one that is unknown or out of range."""
    where = f"the method '{method.name}'"
    values = {
        key: checked({"methods": PaintSettings}, "methods", key, value, where) for key, value in method.settings.items()
    }
    return PaintSettings(**values)


def attention_of(settings: PaintSettings) -> type[ImageAttention]:
    """Return the image attention that a method asks for."""
    if settings.noise:
        return noised_text(settings.noise, settings.noise_by == BY_RELEVANCE)
    return OneMap if settings.map_from == ONE else ImageAttention


class EmbeddedEngine:
    """Engine on the rehearsal models. folders: of each suite, by its name."""

    def __init__(self, folders: Mapping[str, Path], models: Rehearsal | None = None, name: str = "embedded"):
        self.name, self._folders, self._loaded = name, dict(folders), models

    @property
    def models(self) -> Rehearsal:
        """The models, loaded when they are first needed."""
        self._loaded = self._loaded or load_rehearsal()
        return self._loaded

    def check(self, methods: Sequence[Method]) -> None:
        """Raise ConfigError for a method that this engine cannot paint, or whose `beside` is no other method."""
        names = [method.name for method in methods]
        for method in methods:
            settings = settings_of(method)
            if settings.noise and (settings.beside not in names or settings.beside == method.name):
                raise ConfigError(
                    f"another method as 'beside' of '{method.name}'",
                    f"'{settings.beside}'",
                    meant(settings.beside, names),
                )
            if settings.noise and (settings.merge == NO_REFERENCES or settings.map_from == ONE):
                raise ConfigError(
                    f"references and every layer's map for the noise of '{method.name}'",
                    f"merge {settings.merge}, map_from {settings.map_from}",
                    'Set merge = "relevance", for example.',
                )

    def paint(self, task: Task) -> np.ndarray:
        """Paint a task, see `engine.Engine`.

        Raises:
            TroupeError: a setting is unknown, or a photo cannot be opened.
        """
        settings, references = settings_of(task.method), None
        if settings.merge != NO_REFERENCES:
            cast = self._cast(task, settings.boxes)
            references = encode_references(
                self.models.adapters[settings.adapter], cast, self.models.images, self.models.texts
            )
        picture = paint(
            self.models,
            task.prompt,
            task.seed,
            references,
            settings.merge,
            settings.weight,
            settings.sharpness,
            steps=settings.steps,
            cfg=settings.cfg,
            attention=attention_of(settings),
        )
        return (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()

    def _cast(self, task: Task, boxed: bool) -> Cast:
        cast = Cast()
        for number, subject in enumerate(task.subjects, 1):
            cast = cast.add(make_subject(subject.name, [*self._photos(task.suite, subject)], number=number))
        boxes = [subject.box for subject in task.subjects]
        if not boxed:
            return cast
        if None in boxes:
            raise SubjectError(
                f"a box for each subject of '{task.case}'", "none", "Use a suite with boxes, or set boxes = false."
            )
        entries = [dict(zip("xywh", box, strict=True)) for box in boxes if box is not None]
        return place_subjects(cast, PIXELS, PIXELS, json.dumps(entries), "none")[0]

    def _photos(self, suite: str, subject: Subject) -> list[torch.Tensor]:
        found = []
        for photo in subject.photos:
            try:
                picture = open_picture(self._folders[suite] / photo)
            except PictureFault as fault:
                raise SubjectError(
                    f"a picture {photo} of '{subject.name}'", fault.reason, "Download it again."
                ) from fault
            found.append(torch.from_numpy(np.array(picture))[None].float() / 255)
        return found
