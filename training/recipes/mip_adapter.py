"""MIP-Adapter (arXiv 2409.17920): several references a picture, merged by their names' relevance, with a text gain.

Published were two subjects in every picture, and a projection that is not trained further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...model_patches.attention.merges import Mixing
from ..config.setting import chance, setting
from ..examples.draws import Draw
from ..examples.example import ExampleSubject
from ..model.base import Base
from ..model.features import Features
from .ip_adapter import ImageAttentionTrainee
from .recipe import PassSettings, Trainee

MERGES = ("relevance", "uniform")

uses_every_parameter = True


@dataclass(frozen=True)
class Options:
    """`[recipe]` of mip_adapter. drop_text, drop_images and drop_both exclude each other."""

    start: str = ""  # an IP-Adapter or MIP-Adapter file that the training begins with, as published
    projection: str = setting("ImageProj", choices=("ImageProj", "Resampler"))  # without a start; Resampler is "plus"
    tokens: int = setting(4, least=1)  # image tokens of a reference, without a start
    train_projection: bool = False
    merge: str = setting("relevance", choices=MERGES)  # how subjects share a position in training
    text_gain: bool = True  # train text_to_weight; it begins with a gain of 1 everywhere
    drop_text: float = chance(0.05)  # part of the pictures whose caption is empty
    drop_images: float = chance(0.05)  # ... whose references are replaced by none
    drop_both: float = chance(0.05)
    drop_names: float = chance(0.0)  # ... whose names are replaced by the empty prompt, as in rows without subjects


class MipTrainee(ImageAttentionTrainee):
    """A MIP-Adapter in training.

    options: of the recipe; the other arguments as in `Trainee`.
    """

    needs_subjects = True

    def __init__(self, base: Base, features: Features, settings: PassSettings, options: Options):
        super().__init__(base, features, settings, options, options.text_gain)
        self.attention.mixing = Mixing(options.merge)

    def chosen(self, draw: Draw) -> Sequence[ExampleSubject]:
        """Return all subjects of a picture."""
        return draw.example.subjects

    def names(
        self, draws: Sequence[Draw], chosen: Sequence[Sequence[ExampleSubject]], m: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return name states [B, M * L, D] and segments [B, M, M * L], L tokens of the longest name; None for pictures
        with one subject each.
        """
        if m == 1:
            return None, None
        found = self.features.names([s.name for row in chosen for s in row])
        (empty,) = self.features.names([""])
        longest, each = max(map(len, found)), iter(found)
        names = torch.zeros(len(draws), m, longest, empty.shape[-1])
        segments = torch.zeros(len(draws), m, m, longest)
        for b, (draw, row) in enumerate(zip(draws, chosen, strict=True)):
            nameless = draw.chance("names").random() < self.options.drop_names
            for i in range(len(row)):
                tokens = next(each)
                count = len(tokens)
                names[b, i, :count] = empty[:count] if nameless else tokens
                segments[b, i, i, :count] = 1 / count
        return names.flatten(1, 2), segments.flatten(2, 3)


def build(base: Base, features: Features, settings: PassSettings, options: Options) -> Trainee:
    """Return a MIP-Adapter to train. Raises TroupeError if the start or the image encoder does not fit."""
    return MipTrainee(base, features, settings, options)
