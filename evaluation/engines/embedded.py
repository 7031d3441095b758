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
from ...model_patches.hosts.diffusers.image_attention import ImageAttention
from ...model_patches.placement.layouts import LAYOUTS
from ...model_patches.placement.placing import place_subjects
from ...model_patches.subjects import Cast, make_subject
from ...rehearsal.engine.noised_text import noised_text
from ...rehearsal.engine.one_map import OneMap
from ...rehearsal.engine.paint import CFG, STEPS, Acting, Rehearsal, load_rehearsal, paint_cast
from ...rehearsal.files import ADAPTERS, EVERY_ADAPTER, PROMPT_ADAPTERS
from ...rehearsal.world import PIXELS
from ...training.config.setting import setting
from ...training.config.tables import ConfigError, checked, meant
from ...training.data.pictures import PictureFault, open_picture
from ..tasks import Method, Task, TaskSubject

NO_REFERENCES = "none"
EVERY, ONE = "every layer", "one layer"
BY_RELEVANCE, EVENLY = "relevance", "evenly"
GATED = "subject"  # the adapter with gated layers
ATTENDING = {*ADAPTERS, "mm"}  # adapters with image attention
OF_ATTENTION = ("merge", "sharpness", "map_from")


@dataclass(frozen=True)
class PaintSettings:
    """Settings of a method on this engine."""

    # umm, fastcomposer: in the prompt; subject: in the prompt and in gated layers, needs boxes or a layout; mm: in the
    # prompt and by image attention
    adapter: str = setting("mip", choices=tuple(EVERY_ADAPTER))
    merge: str = setting("relevance", choices=(NO_REFERENCES, *MERGES))  # none: the references are not used
    weight: float = setting(1.0, least=0.0)  # of image attention and gated layers
    sharpness: float = setting(1.0, above=0.0)
    boxes: bool = False  # use the subjects' boxes
    layout: str = setting("none", choices=LAYOUTS)  # boxes for subjects that have none
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


def acting_of(settings: PaintSettings) -> Acting:
    """Return how the references of a method act."""
    attends = settings.adapter in ATTENDING
    return Acting(
        settings.merge if attends else None,
        settings.sharpness,
        settings.weight,
        settings.adapter in PROMPT_ADAPTERS,
        settings.adapter == GATED,
        noised_text(settings.noise, settings.noise_by == BY_RELEVANCE)
        if settings.noise
        else OneMap
        if settings.map_from == ONE
        else ImageAttention,
    )


def _check_acting(name: str, settings: PaintSettings) -> None:
    """Raise ConfigError for settings that the adapter does not have."""
    used = settings.merge != NO_REFERENCES
    if settings.noise and (not used or settings.map_from == ONE or settings.adapter not in ATTENDING):
        raise ConfigError(
            f"references and every layer's map for the noise of '{name}'",
            f"adapter {settings.adapter}, merge {settings.merge}, map_from {settings.map_from}",
            'Set adapter = "mip" and merge = "relevance", for example.',
        )
    if settings.adapter not in ATTENDING:
        own = PaintSettings()
        foreign = OF_ATTENTION if settings.adapter == GATED else (*OF_ATTENTION, "weight")
        changed = [key for key in foreign if getattr(settings, key) != getattr(own, key)]
        changed = [key for key in changed if used or key != "merge"]  # without references, any adapter's weights act
        if changed:
            raise ConfigError(
                f"settings that the adapter {settings.adapter} has, for '{name}'",
                f"{changed[0]} = {getattr(settings, changed[0])}, of image attention",
                "Remove it, or choose another adapter.",
            )
    if settings.adapter == GATED and used and not settings.boxes and settings.layout == "none":
        raise ConfigError(
            f"boxes for the gated layers of '{name}'", "none", 'Set boxes = true, or layout = "row", for example.'
        )


class EmbeddedEngine:
    """Engine on the rehearsal models. folders: of each suite, by its name."""

    def __init__(self, folders: Mapping[str, Path], models: Rehearsal | None = None, name: str = "embedded"):
        self.name, self._folders, self._loaded = name, dict(folders), models

    @property
    def models(self) -> Rehearsal:
        """The models, loaded when they are first needed."""
        self._loaded = self._loaded or load_rehearsal(in_prompt=True)
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
            _check_acting(method.name, settings)

    def paint(self, task: Task) -> np.ndarray:
        """Paint a task, see `engine.Engine`.

        Raises:
            TroupeError: a setting is unknown, or a photo cannot be opened.
        """
        settings = settings_of(task.method)
        cast = None if settings.merge == NO_REFERENCES else self._cast(task, settings)
        acting, steps, cfg = acting_of(settings), settings.steps, settings.cfg
        picture = paint_cast(self.models, settings.adapter, task.prompt, task.seed, cast, acting, steps, cfg)
        return (picture.permute(1, 2, 0) * 255).round().byte().numpy()

    def _cast(self, task: Task, settings: PaintSettings) -> Cast:
        cast = Cast()
        for number, subject in enumerate(task.subjects, 1):
            cast = cast.add(make_subject(subject.name, [*self._photos(task.suite, subject)], number=number))
        boxes = [subject.box if settings.boxes else None for subject in task.subjects]
        if not (settings.boxes or settings.layout != "none"):
            return cast
        if None in boxes and settings.layout == "none":
            raise SubjectError(
                f"a box for each subject of '{task.case}'", "none", "Use a suite with boxes, or choose a layout."
            )
        entries = json.dumps([box and dict(zip("xywh", box, strict=True)) for box in boxes])
        return place_subjects(cast, PIXELS, PIXELS, entries, settings.layout)[0]

    def _photos(self, suite: str, subject: TaskSubject) -> list[torch.Tensor]:
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
