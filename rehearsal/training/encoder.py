"""Train the rehearsal world's image encoder on references: class, pattern, accessory, variant and both colours can be
read off its embedding by one matrix.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss

from .. import files
from ..engine import nets
from ..world import (
    ACCESSORIES,
    CLASSES,
    COLOURS,
    PATTERNS,
    TEST_LOOKS,
    TRAINING_LOOKS,
    VARIANTS,
    Colour,
    Figure,
    Look,
    reference_cells,
)
from .loop import Trainer, pixels_of

# of CLIP's pictures: what every host subtracts and divides by
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ANSWERS = {"kind": CLASSES, "pattern": PATTERNS, "accessory": ACCESSORIES, "variant": VARIANTS}
PAINTED = 0.7  # references in colours of chance, which are in no palette
COLOUR_WEIGHT = 10.0  # of the squared error of two colours in 0..1, beside the cross-entropies
Palette = Mapping[str, Colour]


class Questions(nn.ModuleDict):
    """A linear read-out of the image embedding for each part of a figure. Used in training only."""

    def __init__(self):
        width = nets.VISION["projection_dim"]
        super().__init__(
            {
                **{name: nn.Linear(width, len(answers)) for name, answers in ANSWERS.items()},
                "colours": nn.Linear(width, 6),
            }
        )

    def forward(self, embeds: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return from features [b, 256] the logits [b, answers] of each question, and `colours` [b, 6]: body and
        accent, RGB in 0..1.
        """
        return {name: layer(embeds) for name, layer in self.items()}


def random_figure(chance: random.Random, choice: Sequence[Look] = TRAINING_LOOKS) -> Figure:
    """Draw a figure of any class; half of the figures have no variant."""
    return Figure(chance.choice(CLASSES), chance.choice(choice), chance.choice(("", "", "", *VARIANTS[1:])))


def painted(chance: random.Random, look: Look) -> Palette:
    """Return the palette, mostly with two colours of chance in place of the look's own; the nearest palette colours of
    the two are never a pair that is held out.
    """
    if chance.random() > PAINTED:
        return COLOURS
    while True:
        body, accent = (tuple(chance.randrange(256) for _ in range(3)) for _ in range(2))
        near = nearest(body), nearest(accent)
        if near[0] != near[1] and not Look(*near, look.pattern, look.accessory).held_out:
            return {**COLOURS, look.body: body, look.accent: accent}


def nearest(colour: Sequence[float]) -> str:
    """Return the palette colour with the least distance, 0..255."""
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(colour, COLOURS[name], strict=True)))


def answers_of(figures: Sequence[Figure]) -> dict[str, torch.Tensor]:
    """Return the right answers as indices, [b] each."""
    parts = [
        {"kind": f.kind, "pattern": f.look.pattern, "accessory": f.look.accessory, "variant": f.variant}
        for f in figures
    ]
    return {name: torch.tensor([answers.index(part[name]) for part in parts]) for name, answers in ANSWERS.items()}


def colours_of(figures: Sequence[Figure], palettes: Sequence[Palette]) -> torch.Tensor:
    """Return [b, 6]: body and accent, 0..1."""
    return (
        torch.tensor(
            [[*palette[f.look.body], *palette[f.look.accent]] for f, palette in zip(figures, palettes, strict=True)]
        )
        / 255
    )


def reference_pixels(
    chance: random.Random, figures: Sequence[Figure], palettes: Sequence[Palette] | None = None
) -> torch.Tensor:
    """Return [b, 3, 64, 64] as the encoder reads them, CLIP's mean and deviation applied; at places of chance, half of
    them mirrored.
    """
    palettes = [COLOURS] * len(figures) if palettes is None else palettes
    drawn = [
        reference_cells(f, (chance.randint(-4, 4), chance.randint(-4, 4)), chance.random() < 0.5, palette)
        for f, palette in zip(figures, palettes, strict=True)
    ]
    return normalised(pixels_of(drawn))


def normalised(cells: torch.Tensor) -> torch.Tensor:
    """Return pictures [b, 3, 32, 32] in -1..1 as CLIP's encoders take them, [b, 3, 64, 64]."""
    pixels = interpolate((cells + 1) / 2, scale_factor=2, mode="nearest")
    return (pixels - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def train_encoder(
    folder: Path,
    minutes: float,
    batch: int = 64,
    rate: float = 1e-3,
    cooldown: float = 0.5,
    seed: int = 1,
    device: str = "cpu",
    start: Path | None = None,
) -> dict[str, float]:
    """Train, or go on where the checkpoint in `folder` ends; start: as in `train_base`.

    Returns the accuracy of each question on held-out looks.
    """
    encoder, questions = nets.image_encoder().to(device), Questions().to(device)
    if start is not None:
        encoder.load_state_dict(files.read(files.IMAGES, start))
    encoder.set_attn_implementation("eager")  # on a CPU the fused kernel's gradients take longer
    trainer = Trainer({"encoder": encoder, "questions": questions}, folder, minutes, rate, cooldown, seed)
    for _ in trainer.steps(batch):
        figures = [random_figure(trainer.chance) for _ in range(batch)]
        palettes = [painted(trainer.chance, figure.look) for figure in figures]
        pixels = reference_pixels(trainer.chance, figures, palettes)
        pixels = pixels + torch.randn_like(pixels) * 0.1 * trainer.chance.random()
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            found = questions(encoder(pixels.to(device)).image_embeds)
        asked = sum(cross_entropy(found[name].float(), right.to(device)) for name, right in answers_of(figures).items())
        trainer.descend(
            asked + COLOUR_WEIGHT * mse_loss(found["colours"].float(), colours_of(figures, palettes).to(device))
        )
    trainer.average.swap()
    return accuracy(encoder, questions, device)


@torch.no_grad()
def accuracy(encoder: nn.Module, questions: Questions, device: str = "cpu", count: int = 512) -> dict[str, float]:
    """Return part of right answers to each question, on references of held-out looks; a colour is right where the
    nearest one of the palette is.
    """
    chance = random.Random(99)
    figures = [random_figure(chance, TEST_LOOKS) for _ in range(count)]
    found = {
        name: values.cpu()
        for name, values in questions(encoder(reference_pixels(chance, figures).to(device)).image_embeds).items()
    }
    right = {
        name: (found[name].argmax(1) == answers).float().mean().item() for name, answers in answers_of(figures).items()
    }
    read = (found["colours"] * 255).unflatten(1, (2, 3)).tolist()
    for i, part in enumerate(("body", "accent")):
        right[part] = (
            sum(
                nearest(colours[i]) == getattr(figure.look, part) for figure, colours in zip(figures, read, strict=True)
            )
            / count
        )
    return right
