"""Train the rehearsal world's DINOv2 on pictures of individuals, without captions or names: it counts DINOv2 likeness,
and the subject collapse rate, of painted pictures.

Self-distillation as DINO does it (arXiv 2104.14294): to which prototypes a student assigns one view of an individual
must be to which the average of its own weights assigns another one. As in DINOv2 (arXiv 2304.07193), Sinkhorn-Knopp
spreads these assignments over all prototypes, and the KoLeo regulariser keeps the individuals of a batch apart. Unlike
DINO's, two views are no crops of one picture: each shows the individual in a scene or on its reference. From crops of
one picture, a small net learns the background, which they share.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import linear, log_softmax, normalize
from transformers import Dinov2Config, Dinov2Model

from .. import files
from ..world import CELLS, CLASSES, TEST_LOOKS, VARIANTS, Figure, draw_cells, place_figures, reference_cells
from . import clip
from .encoder import random_figure
from .loop import Trainer, pixels_of, random_scenes
from .recogniser import disturbed

SHAPE = {"num_hidden_layers": 3, "num_attention_heads": 3, "hidden_size": 96, "patch_size": 4}
PROTOTYPES = 256
STUDENT, TEACHER = 0.1, 0.05  # temperatures
ROUNDS = 3  # of Sinkhorn-Knopp
WHOLE = (0, 0, CELLS, CELLS)
GREY = 1 / 3  # part of the views that are drawn in grey
KOLEO = 0.1  # its weight, for each view


class Head(nn.Module):
    """DINO's head on the CLS token [b, 96]: its cosines with the prototypes. Used in training only."""

    def __init__(self):
        super().__init__()
        width = SHAPE["hidden_size"]
        self.layers = nn.Sequential(
            nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 64)
        )
        self.prototypes = nn.Parameter(torch.randn(PROTOTYPES, 64))

    def forward(self, cls: torch.Tensor) -> torch.Tensor:
        """Return the cosines with each prototype, [b, PROTOTYPES] float32."""
        found = self.layers(cls).float()
        with torch.autocast(cls.device.type, enabled=False):
            return linear(normalize(found, dim=-1), normalize(self.prototypes, dim=-1))


def build() -> Dinov2Model:
    """Build the model: pictures of 32 x 32 pixels, patches of 4."""
    return Dinov2Model(Dinov2Config(**SHAPE, image_size=clip.SIDE))


def view(chance: random.Random, figure: Figure) -> torch.Tensor:
    """Draw the figure as the model reads it, [1, 3, 32, 32]: half of the time its reference, else a part of a scene of
    chance that holds it. One view in three is drawn in grey, so that colours alone do not tell individuals apart; half
    of the views are then disturbed as painted pictures are, half are mirrored.
    """
    figure = replace(figure, variant=chance.choice(VARIANTS))
    if chance.random() < 0.5:
        cells, crop = reference_cells(figure, (chance.randint(-4, 4), chance.randint(-4, 4))), WHOLE
    else:
        companions = [random_figure(chance) for _ in range(chance.randint(0, 1))]
        scene = place_figures(chance, (figure, *companions))
        cells, crop = draw_cells(scene), wider(chance, clip.crop_around(scene.subjects[scene.mentioned[0]], chance))
    drawing = pixels_of([cells])
    if chance.random() < GREY:
        drawing = drawing.mean(1, keepdim=True).expand_as(drawing)
    if chance.random() < 0.5:
        drawing = disturbed(drawing)
    pixels = clip.crops_of(clip.pixels_from(drawing), [crop])
    return pixels.flip(-1) if chance.random() < 0.5 else pixels


def wider(chance: random.Random, crop: clip.Crop) -> clip.Crop:
    """Return a crop around a crop; most are a little wider, a few are the whole picture."""
    part = chance.random() ** 2
    top, left, bottom, right = (round(side + part * (edge - side)) for side, edge in zip(crop, WHOLE, strict=True))
    return top, left, bottom, right


def spread_evenly(cosines: torch.Tensor) -> torch.Tensor:
    """Return the teacher's assignments as probabilities [n, K], of cosines [n, K]: over the batch each prototype is
    about as likely as every other one (Sinkhorn-Knopp).
    """
    shares = ((cosines - cosines.max()) / TEACHER).exp()
    for _ in range(ROUNDS):
        shares = shares / shares.sum(0, keepdim=True)
        shares = shares / shares.sum(1, keepdim=True)
    return shares


def distillation(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return DINO's loss: the mean cross-entropy of each view's assignment with that of the teacher's other view.

    student: logits [b, K] of each view; teacher: probabilities [b, K] of each view.
    """
    losses = [
        -(right * log_softmax(logits / STUDENT, dim=-1)).sum(-1).mean()
        for i, right in enumerate(teacher)
        for j, logits in enumerate(student)
        if i != j
    ]
    return torch.stack(losses).mean()


def crowding(vectors: torch.Tensor) -> torch.Tensor:
    """Return the KoLeo regulariser of vectors [b, E]: minus the mean logarithm of the distance to the nearest other."""
    unit = normalize(vectors.float(), dim=-1)
    near = (unit @ unit.T).fill_diagonal_(-1).argmax(1)
    return -((unit - unit[near]).norm(dim=-1) + 1e-6).log().mean()


def batch_loss(trainer: Trainer, model: Dinov2Model, head: Head, batch: int) -> torch.Tensor:
    """Return the loss of new individuals, as many as `batch`, with two views each."""
    figures = [random_figure(trainer.chance) for _ in range(batch)]
    pixels = torch.cat([view(trainer.chance, figure) for _ in range(2) for figure in figures]).to(model.device)
    kind = model.device.type
    # two contexts: within one, autocast would give the student its copies of the teacher's weights
    with trainer.average.swapped(), torch.no_grad(), torch.autocast(kind, torch.bfloat16):
        answers = head(cls_tokens(model, pixels))
    with torch.autocast(kind, torch.bfloat16):
        tokens = cls_tokens(model, pixels)
        guesses = head(tokens)
    right = spread_evenly(answers).chunk(2)
    return distillation(guesses.chunk(2), right) + KOLEO * sum(crowding(one) for one in tokens.chunk(2))


def cls_tokens(model: Dinov2Model, pixels: torch.Tensor) -> torch.Tensor:
    """Return the CLS token after the last norm, [b, 96], of pictures as the model reads them."""
    return model(pixel_values=pixels).last_hidden_state[:, 0]


def train_dino(
    folder: Path,
    minutes: float,
    batch: int = 48,
    rate: float = 7e-4,
    cooldown: float = 0.5,
    seed: int = 5,
    device: str = "cpu",
    start: Path | None = None,
) -> dict[str, float]:
    """Train, or go on where the checkpoint in `folder` ends; start: as in `train_base`.

    Returns what `accuracy` finds.
    """
    torch.manual_seed(seed)
    model, head = build().train().to(device), Head().to(device)
    if start is not None:
        model.load_state_dict(load(start).state_dict())
    model.set_attn_implementation("eager")  # on a CPU the fused kernel's gradients take longer
    trainer = Trainer({"dino": model, "head": head}, folder, minutes, rate, cooldown, seed)
    for _ in trainer.steps(batch):
        trainer.descend(batch_loss(trainer, model, head, batch))
    trainer.average.swap()
    return accuracy(model.cpu().eval())


def load(folder: Path) -> Dinov2Model:
    """Load the exported model from a folder of rehearsal files, float32."""
    return Dinov2Model.from_pretrained(folder / files.DINO, dtype=torch.float32)


@torch.no_grad()
def accuracy(model: Dinov2Model, count: int = 512) -> dict[str, float]:
    """Return, on new drawings of held-out looks, how often a subject's crop is nearer to its own reference than to
    another one: of another class with the same looks, or of the same class with other looks.
    """
    chance = random.Random(56)
    scenes = random_scenes(chance, count, TEST_LOOKS)
    cells = pixels_of([draw_cells(scene) for scene in scenes])
    subjects = [(i, subject) for i, scene in enumerate(scenes) for subject in scene.subjects]
    pixels = clip.pixels_from(cells)[[i for i, _ in subjects]]
    tokens = cls_tokens(model, clip.crops_of(pixels, [clip.crop_around(one) for _, one in subjects]))
    found, figures = normalize(tokens, dim=-1), [one.figure for _, one in subjects]
    others: Mapping[str, list[Figure]] = {
        "class": [replace(f, kind=chance.choice([kind for kind in CLASSES if kind != f.kind])) for f in figures],
        "looks": [replace(f, look=chance.choice([look for look in TEST_LOOKS if look != f.look])) for f in figures],
    }
    own = (found * _references(model, figures)).sum(1)
    return {
        f"other {name}": (own > (found * _references(model, other)).sum(1)).float().mean().item()
        for name, other in others.items()
    }


def _references(model: Dinov2Model, figures: Sequence[Figure]) -> torch.Tensor:
    """The CLS tokens of the figures' references, [n, 96] of length 1."""
    cells = [reference_cells(replace(figure, variant="")) for figure in figures]
    return normalize(cls_tokens(model, clip.seen(clip.pixels_from(pixels_of(cells)))), dim=-1)
