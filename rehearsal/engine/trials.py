"""Trials of who is confused with whom: a cast of held-out individuals, a prompt and a seed, painted by one method and
judged.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ...model_patches.hosts.diffusers.image_attention import ImageAttention
from ...model_patches.placement.placing import place_subjects
from ...model_patches.subjects import Cast, make_subject
from ..world import PIXELS, TEST_LOOKS, Figure, Scene, boxes, place_figures, random_figures, reference
from .one_map import OneMap
from .paint import STEPS, Acting, Rehearsal, paint_cast
from .recogniser import Recogniser, recognise
from .verdict import exact, followed, sighting_of, verdicts, verdicts_by_colour

# subjects, and whether they are of one class
CASTS = {"two classes": (2, False), "one class": (2, True), "three subjects": (3, False)}

WITHOUT = "without references"  # what chance gets right
Box = tuple[float, float, float, float]  # x, y, w, h in 0..1


@dataclass(frozen=True)
class TrialMethod:
    """Way of using references. merge: in image attention, None for none; one_map: positions of every layer come from
    one layer's map (Conceptrol, arXiv 2503.06568); in_prompt: they are put into the prompt; gated: into gated
    layers;
    drawn: boxes are those of the drawing, since the method puts the subjects there, and not where the seed paints them.
    """

    merge: str | None
    sharpness: float = 1.0
    boxes: bool = False
    one_map: bool = False
    in_prompt: bool = False
    gated: bool = False
    drawn: bool = False


METHODS: Mapping[str, TrialMethod] = {
    WITHOUT: TrialMethod(None),
    "uniform": TrialMethod("uniform"),
    "joint": TrialMethod("joint"),
    "add": TrialMethod("add"),
    "paper": TrialMethod("paper"),
    "relevance": TrialMethod("relevance"),
    "relevance, sharpness 3": TrialMethod("relevance", 3.0),
    "relevance with boxes": TrialMethod("relevance", boxes=True),
    "add with boxes": TrialMethod("add", boxes=True),
    "one layer's map": TrialMethod("add", one_map=True),
}
IN_PROMPT = "in the prompt"
PROMPT_METHODS: Mapping[str, TrialMethod] = {WITHOUT: METHODS[WITHOUT], IN_PROMPT: TrialMethod(None, in_prompt=True)}
GATED = "in the prompt and gated layers, with boxes"
GATED_METHODS: Mapping[str, TrialMethod] = {
    WITHOUT: METHODS[WITHOUT],
    GATED: TrialMethod(None, boxes=True, in_prompt=True, gated=True, drawn=True),
}
JOINT, RELEVANCE = "joint, and in the prompt", "relevance, and in the prompt"
BOTH_METHODS: Mapping[str, TrialMethod] = {
    WITHOUT: METHODS[WITHOUT],
    JOINT: TrialMethod("joint", in_prompt=True),
    RELEVANCE: TrialMethod("relevance", in_prompt=True),
}
METHODS_OF: Mapping[str, Mapping[str, TrialMethod]] = {
    "mip": METHODS,
    "ip": METHODS,
    "umm": PROMPT_METHODS,
    "fastcomposer": PROMPT_METHODS,
    "subject": GATED_METHODS,
    "mm": BOTH_METHODS,
}
# whose pictures without references are counted: the first's are the base's
OWN_BASE = ("mip", "fastcomposer", "subject", "mm")


@dataclass(frozen=True)
class Trial:
    """One picture to paint: who (their colours all differ), where a drawing would have them, and the seed of
    the noise.
    """

    scene: Scene
    seed: int
    figures: tuple[Figure, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "figures", tuple(self.scene.subjects[i].figure for i in self.scene.mentioned))


def trial(cast: str, seed: int) -> Trial:
    """Make the trial of a number: the same for every method. cast: of CASTS."""
    chance = random.Random(f"{cast} {seed}")
    count, alike = CASTS[cast]
    while True:
        figures = random_figures(chance, count, alike, TEST_LOOKS)
        if len({colour for figure in figures for colour in (figure.look.body, figure.look.accent)}) == 2 * count:
            return Trial(place_figures(chance, figures), seed)


def cast_of(figures: tuple[Figure, ...], places: Sequence[Box] | None = None) -> Cast:
    """Return the figures as a Cast with their drawn references; places: x, y, w, h of each, 0..1."""
    cast = Cast()
    for number, figure in enumerate(figures, 1):
        picture = torch.from_numpy(reference(figure).copy())[None].float() / 255
        cast = cast.add(make_subject(figure.words, [picture], number=number))
    if places is None:
        return cast
    entries = [{"x": x, "y": y, "w": w, "h": h} for x, y, w, h in places]
    return place_subjects(cast, PIXELS, PIXELS, json.dumps(entries), "none")[0]


def places_drawn(one: Trial) -> list[Box]:
    """Return each figure's box in the drawing."""
    drawn = boxes(one.scene)
    return [drawn[i] for i in one.scene.mentioned]


def places_painted(models: Rehearsal, recogniser: Recogniser, one: Trial) -> list[Box]:
    """Return A box around each figure as this seed paints it without references, a latent cell wider on every side; the
    drawing's where it is not found.

    This is how an artist draws boxes: onto a first picture. What a drawing would look like is nothing that a seed
    knows.
    """
    found = recognise(recogniser, paint_trial(models, "mip", METHODS[WITHOUT], one)[None])[0]
    drawn = boxes(one.scene)
    return [
        drawn[i] if sighting is None else _around(sighting.mask)
        for i, sighting in zip(one.scene.mentioned, sighting_of(one.figures, found), strict=True)
    ]


def _around(mask: np.ndarray) -> Box:
    """x, y, w, h of a box in 0..1 around a mask [16, 16]."""
    (top, left), (bottom, right) = (
        (np.argwhere(mask).min(0) - 1).clip(0),
        (np.argwhere(mask).max(0) + 2).clip(None, len(mask)),
    )
    return left / len(mask), top / len(mask), (right - left) / len(mask), (bottom - top) / len(mask)


def paint_trial(
    models: Rehearsal,
    adapter: str,
    method: TrialMethod,
    one: Trial,
    weight: float = 1.0,
    steps: int = STEPS,
    places: Sequence[Box] | None = None,
) -> torch.Tensor:
    """Paint the picture of a trial, [3, 128, 128] in 0..1. adapter: of `Rehearsal.adapters`, its own weights for UNet
    and text encoder included;
    weight: of image attention and gated layers; places: a box for each figure, where the method works with boxes.
    """
    used = method.merge is not None or method.in_prompt
    cast = cast_of(one.figures, places if method.boxes else None) if used else None
    acting = Acting(
        method.merge,
        method.sharpness,
        weight,
        method.in_prompt,
        method.gated,
        OneMap if method.one_map else ImageAttention,
    )
    return paint_cast(models, adapter, one.scene.caption, one.seed, cast, acting, steps)


@dataclass(frozen=True)
class Judgement:
    """Of every subject of a trial: the verdict by the recogniser and by colours, whether both its colours are exactly
    its reference's, and whether the picture has one of its class and variant, as the prompt asks.
    """

    by_recogniser: list[str]
    by_colours: list[str]
    exact: list[bool]
    followed: list[bool]


def judge(recogniser: Recogniser, one: Trial, picture: torch.Tensor) -> Judgement:
    """Read a picture [3, 128, 128] in 0..1 of a trial."""
    found = recognise(recogniser, picture[None])[0]
    return Judgement(
        verdicts(one.figures, found),
        verdicts_by_colour(one.figures, found, picture),
        exact(one.figures, found),
        followed(one.figures, found),
    )
