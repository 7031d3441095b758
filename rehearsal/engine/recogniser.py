"""Who is in a picture of the rehearsal world, where, and with which look: a small convolutional network that labels
every latent cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from skimage.measure import label
from torch import nn

from .. import files
from ..world import ACCESSORIES, CLASSES, COLOURS, PATTERNS, VARIANTS, Look

FILE = "recogniser.safetensors"
ANSWERS: dict[str, Sequence[str]] = {
    "kind": ("nobody", *CLASSES),
    "variant": VARIANTS,
    "body": tuple(COLOURS),
    "accent": tuple(COLOURS),
    "pattern": PATTERNS,
    "accessory": ACCESSORIES,
}
SMALLEST = 6  # latent cells of a subject; the smallest drawn one covers 10


@dataclass(frozen=True, eq=False)
class Sighting:
    """One subject in a picture.

    kind, variant, look: as read; mask: the latent cells it covers, [16, 16] bool; colours: log probability of every
    colour as its 'body' and as its 'accent'.
    """

    kind: str
    variant: str
    look: Look
    mask: np.ndarray
    colours: Mapping[str, Mapping[str, float]]


class DilatedBlock(nn.Module):
    """Residual block: x + convolution(silu(norm(convolution(silu(norm(x)))))) at one dilation.

    width: channels, a multiple of 8; dilation: of the first convolution."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.convolution1 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.convolution2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x with the residual added, same shape."""
        x = x + self.convolution2(nn.functional.silu(self.norm2(self.convolution1(nn.functional.silu(self.norm1(x))))))
        return x


class Recogniser(nn.Module):
    """Cells [b, 3, 32, 32] in -1..1 -> logits [b, answers, 16, 16] of each question.

    width: channels, a multiple of 16."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, padding=1), nn.SiLU(), nn.Conv2d(width // 2, width, 2, stride=2)
        )
        self.blocks = nn.Sequential(*(DilatedBlock(width, dilation) for dilation in (1, 2, 4, 1, 2, 1)))
        self.heads = nn.ModuleDict({name: nn.Conv2d(width, len(answers), 1) for name, answers in ANSWERS.items()})

    def forward(self, cells: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the logits of each question at every latent cell."""
        features = self.blocks(self.stem(cells))
        return {name: head(features) for name, head in self.heads.items()}


def load_recogniser(folder: Path = files.FOLDER) -> Recogniser:
    """Load the shipped recogniser. Raises CheckpointError where its file is missing or damaged."""
    return files.load_into(Recogniser(), files.read(FILE, folder), FILE)


@torch.no_grad()
def recognise(recogniser: Recogniser, pictures: torch.Tensor) -> list[list[Sighting]]:
    """Find who is in each picture, [b, 3, 128, 128] in 0..1: connected cells of one class, and what they say on
    average.
    """
    logits = recogniser(nn.functional.avg_pool2d(pictures.float(), 4) * 2 - 1)
    logs = {name: values.log_softmax(1) for name, values in logits.items()}
    return [_sightings({name: values[b] for name, values in logs.items()}) for b in range(len(pictures))]


def _sightings(logs: dict[str, torch.Tensor]) -> list[Sighting]:
    """The subjects of one picture. logs: log probabilities [answers, 16, 16]."""
    kinds = logs["kind"].argmax(0).numpy()
    # cells that touch by a side and have one class
    parts, count = label(kinds, background=0, connectivity=1, return_num=True)
    found = []
    for part in range(1, count + 1):
        mask = parts == part
        if mask.sum() < SMALLEST:
            continue
        means = {
            name: dict(zip(answers, logs[name][:, torch.from_numpy(mask)].mean(1).tolist(), strict=True))
            for name, answers in ANSWERS.items()
            if name != "kind"
        }
        read = {name: max(values, key=values.__getitem__) for name, values in means.items()}
        look = Look(read["body"], read["accent"], read["pattern"], read["accessory"])
        found.append(
            Sighting(
                CLASSES[kinds[mask][0] - 1],
                read["variant"],
                look,
                mask,
                {part: means[part] for part in ("body", "accent")},
            )
        )
    return found
