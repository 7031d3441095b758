"""Train the recogniser on drawings that are disturbed as painted pictures are: noise, blur, faded and wrong colours.

It measures, and knows all pairs of colours, so that none is read as another one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate, max_pool2d, pad

from .. import files
from ..engine.recogniser import ANSWERS, FILE, Recogniser, recognise
from ..world import ALL_LOOKS, TEST_LOOKS, Scene, draw, draw_cells, masks, random_scene
from .loop import Trainer, pixels_of, random_scenes


def labels_of(scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """Return the right answer at every latent cell, [b, 16, 16]; 0 ('nobody') for `kind` and -100 (not asked) for the
    others where nobody is.
    """
    answers = {name: torch.full((len(scenes), 32, 32), 0 if name == "kind" else -100) for name in ANSWERS}
    for b, scene in enumerate(scenes):
        for subject, mask in zip(scene.subjects, torch.from_numpy(masks(scene)), strict=True):
            f = subject.figure
            read = {
                "kind": f.kind,
                "variant": f.variant,
                "body": f.look.body,
                "accent": f.look.accent,
                "pattern": f.look.pattern,
                "accessory": f.look.accessory,
            }
            for name, value in read.items():
                answers[name][b][mask] = ANSWERS[name].index(value)
    # subjects lie on whole latent cells
    return {name: max_pool2d(values.float()[:, None], 2)[:, 0].long() for name, values in answers.items()}


def disturbed(cells: torch.Tensor) -> torch.Tensor:
    """Return [b, 3, 32, 32] with noise, blur, faded contrast and wrong colours of chance: errors of a latent have the
    size of its cells or more.
    """

    def strength(most: float) -> torch.Tensor:
        return torch.rand(len(cells), 1, 1, 1) ** 2 * most

    blurred = avg_pool2d(pad(cells, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    cells = cells.lerp(blurred, strength(0.6)) * (0.7 + 0.4 * torch.rand(len(cells), 1, 1, 1))
    for size in (32, 16, 8, 1):  # places of one colour error along a side
        cells = cells + interpolate(torch.randn(len(cells), 3, size, size), cells.shape[-1]) * strength(0.4)
    return cells.clamp(-1, 1)


def train_recogniser(
    folder: Path,
    minutes: float,
    batch: int = 32,
    rate: float = 1e-3,
    cooldown: float = 0.5,
    seed: int = 3,
    device: str = "cpu",
    start: Path | None = None,
) -> dict[str, float]:
    """Train, or go on where the checkpoint in `folder` ends; start: as in `train_base`.

    Returns what `accuracy` finds.
    """
    recogniser = Recogniser().to(device)
    if start is not None:
        recogniser.load_state_dict(files.read(FILE, start))
    trainer = Trainer({"recogniser": recogniser}, folder, minutes, rate, cooldown, seed)
    for _ in trainer.steps(batch):
        scenes = random_scenes(trainer.chance, batch, ALL_LOOKS)
        cells = disturbed(pixels_of([draw_cells(scene) for scene in scenes])).to(device)
        labels = labels_of(scenes)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = recogniser(cells)
        trainer.descend(sum(cross_entropy(logits[name].float(), labels[name].to(device)) for name in ANSWERS))
    trainer.average.swap()
    return accuracy(recogniser.cpu().eval())


def accuracy(recogniser: Recogniser, count: int = 400) -> dict[str, float]:
    """Return, on new drawings of the held-out looks, the part of pictures whose classes are all found and nothing else,
    and of the subjects in them part of right answers.
    """
    chance = random.Random(77)
    scenes = [random_scene(chance, TEST_LOOKS) for _ in range(count)]
    pictures = torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2).float() / 255
    complete, right, asked = 0, dict.fromkeys(("variant", "body", "accent", "pattern", "accessory"), 0), 0
    for scene, found in zip(scenes, recognise(recogniser, pictures), strict=True):
        found = sorted(found, key=lambda sighting: np.nonzero(sighting.mask)[1].mean())
        if [sighting.kind for sighting in found] != [subject.figure.kind for subject in scene.subjects]:
            continue
        complete += 1
        for sighting, subject in zip(found, scene.subjects, strict=True):
            asked += 1
            right["variant"] += sighting.variant == subject.figure.variant
            for name in ("body", "accent", "pattern", "accessory"):
                right[name] += getattr(sighting.look, name) == getattr(subject.figure.look, name)
    return {"pictures": complete / count, **{name: number / max(1, asked) for name, number in right.items()}}
