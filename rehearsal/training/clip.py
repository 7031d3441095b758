"""Train the rehearsal world's CLIP on drawings and their captions, and on crops of subjects and their names: it counts
CLIP-T and the object quality score of painted pictures.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, interpolate
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from .. import files
from ..world import (
    CELL,
    CELLS,
    CLASSES,
    PLACES,
    TEST_LOOKS,
    VARIANTS,
    Figure,
    PlacedFigure,
    Scene,
    draw_cells,
    figure_cells,
)
from .encoder import MEAN, STD
from .loop import Trainer, pixels_of, random_scenes
from .recogniser import disturbed
from .vocabulary import small_tokenizer

SIDE = 32  # pixels of a picture's side as the model reads it
LENGTH = 32  # tokens of a text at most; the longest caption has 25
TEXT = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 256}
VISION = {"num_hidden_layers": 4, "num_attention_heads": 3, "hidden_size": 96, "intermediate_size": 384}
EMBEDS = 64  # size of an embedding
SHARPEST = math.log(100)  # largest logit scale, as in CLIP
STRAY = (0, 0, 0, -2, 2)  # cells by which a side of a crop lies beside its subject's, drawn from these
NAMES = tuple(Figure(kind, TEST_LOOKS[0], variant).words for kind in CLASSES for variant in VARIANTS)
GROUP = 64  # captions among which a picture's own is looked for
Crop = tuple[int, int, int, int]  # top, left, bottom, right in cells


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Build the model: pictures of 32 x 32 pixels, patches of 4. Entries that no caption contains are zeros."""
    rows = len(tokenizer)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**TEXT, **ends, "pad_token_id": tokenizer.pad_token_id, "vocab_size": rows}
    model = CLIPModel(
        CLIPConfig(
            text_config={**text, "max_position_embeddings": LENGTH},
            vision_config={**VISION, "image_size": SIDE, "patch_size": 4},
            projection_dim=EMBEDS,
        )
    )
    with torch.no_grad():
        model.text_model.get_input_embeddings().weight[tokenizer.eos_token_id + 1 :] = 0
    return model


def tokenizer() -> CLIPTokenizer:
    """Build the tokenizer of the world's words."""
    return small_tokenizer(LENGTH)


def processor() -> CLIPImageProcessor:
    """Build what makes a picture ready: `seen` for pictures of any size."""
    size = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessor(size=size, do_center_crop=False, image_mean=list(MEAN), image_std=list(STD))


def seen(pixels: torch.Tensor) -> torch.Tensor:
    """Return pictures [b, 3, h, w] in 0..1 as the model reads them, [b, 3, 32, 32]: whole, whatever their shape."""
    small = interpolate(pixels, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    return (small - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def pixels_from(cells: torch.Tensor) -> torch.Tensor:
    """Return cells [b, 3, 32, 32] in -1..1 as pictures [b, 3, 128, 128] in 0..1."""
    return interpolate((cells + 1) / 2, scale_factor=CELL, mode="nearest")


def crop_around(subject: PlacedFigure, chance: random.Random | None = None) -> Crop:
    """Return the cells of a subject's box, clamped to the picture; with `chance`, sides lie a little beside it."""
    height, width = figure_cells(subject.figure)[1].shape
    sides = (subject.row, subject.column, subject.row + height, subject.column + width)
    moved = [side + (chance.choice(STRAY) if chance else 0) for side in sides]
    top, left, bottom, right = (min(max(side, 0), CELLS) for side in moved)
    return top, left, bottom, right


def crops_of(pixels: torch.Tensor, crops: Sequence[Crop]) -> torch.Tensor:
    """Return a crop of each picture [b, 3, 128, 128] as the model reads it, [b, 3, 32, 32]."""
    parts = []
    for picture, crop in zip(pixels, crops, strict=True):
        top, left, bottom, right = (CELL * side for side in crop)
        parts.append(seen(picture[None, :, top:bottom, left:right]))
    return torch.cat(parts)


def contrastive_loss(
    pictures: torch.Tensor, texts: torch.Tensor, words: Sequence[str], scale: torch.Tensor
) -> torch.Tensor:
    """Return CLIP's loss: the mean of both directions' cross-entropies.

    pictures, texts: [b, E] of length 1, picture i belongs to text i; words: the texts, equal ones are right alike;
    scale: of the cosines.
    """
    logits = scale * pictures.float() @ texts.float().T
    index = torch.tensor([words.index(word) for word in words], device=logits.device)
    same = (index[:, None] == index).float()
    right = same / same.sum(1, keepdim=True)
    return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2


def batch_loss(model: CLIPModel, words: CLIPTokenizer, scenes: Sequence[Scene], chance: random.Random) -> torch.Tensor:
    """Return the loss of drawings, disturbed as painted pictures are: that of the pictures with their captions, and
    that of a crop of each with its subject's name.
    """
    pixels = pixels_from(disturbed(pixels_of([draw_cells(scene) for scene in scenes])))
    subjects = [chance.choice(scene.subjects) for scene in scenes]
    crops = crops_of(pixels, [crop_around(subject, chance) for subject in subjects])
    captions, names = [scene.caption for scene in scenes], [subject.figure.words for subject in subjects]
    device = model.device
    with torch.autocast(device.type, torch.bfloat16):
        inputs = words([*captions, *names], padding=True, return_tensors="pt").to(device)
        found = model(pixel_values=torch.cat((seen(pixels), crops)).to(device), **inputs)
    scale, b = model.logit_scale.clamp(max=SHARPEST).exp(), len(scenes)
    whole = contrastive_loss(found.image_embeds[:b], found.text_embeds[:b], captions, scale)
    return whole + contrastive_loss(found.image_embeds[b:], found.text_embeds[b:], names, scale)


def train_clip(
    folder: Path,
    minutes: float,
    batch: int = 32,
    rate: float = 1e-3,
    cooldown: float = 0.5,
    seed: int = 4,
    device: str = "cpu",
    start: Path | None = None,
) -> dict[str, float]:
    """Train, or go on where the checkpoint in `folder` ends; start: as in `train_base`.

    Returns what `accuracy` finds.
    """
    torch.manual_seed(seed)
    words = tokenizer()
    model = (build(words) if start is None else load(start)).train().to(device)
    model.set_attn_implementation("eager")  # on a CPU the fused kernel's gradients take longer
    trainer = Trainer({"clip": model}, folder, minutes, rate, cooldown, seed)
    for _ in trainer.steps(batch):
        trainer.descend(batch_loss(model, words, random_scenes(trainer.chance, batch), trainer.chance))
    trainer.average.swap()
    return accuracy(model.cpu().eval(), words)


def load(folder: Path) -> CLIPModel:
    """Load the exported model from a folder of rehearsal files, float32."""
    return CLIPModel.from_pretrained(folder / files.CLIP, dtype=torch.float32)


@torch.no_grad()
def accuracy(model: CLIPModel, words: CLIPTokenizer, count: int = 512) -> dict[str, float]:
    """Return, on new drawings of held-out looks, how often the highest cosine is that of the right text.

    caption: among those of GROUP pictures; picture: a caption's own among as many; name: of a crop, among all NAMES;
    other class, other variant, other place: of the caption and one in which this is another one.
    """
    chance = random.Random(55)
    scenes = random_scenes(chance, count, TEST_LOOKS)
    right: dict[str, list[bool]] = {}
    names = embedded_texts(model, words, NAMES)
    for first in range(0, count, GROUP):
        group = scenes[first : first + GROUP]
        pixels = pixels_from(pixels_of([draw_cells(scene) for scene in group]))
        pictures, captions = embedded(model, seen(pixels)), [scene.caption for scene in group]
        texts = embedded_texts(model, words, captions)
        cosines = pictures @ texts.T
        for name, table in (("caption", cosines), ("picture", cosines.T)):
            best = table.argmax(1).tolist()
            right.setdefault(name, []).extend(captions[i] == own for i, own in zip(best, captions, strict=True))
        subjects = [(i, subject) for i, scene in enumerate(group) for subject in scene.subjects]
        crops = crops_of(pixels[[i for i, _ in subjects]], [crop_around(subject) for _, subject in subjects])
        found = (embedded(model, crops) @ names.T).argmax(1).tolist()
        right.setdefault("name", []).extend(
            NAMES[at] == one.figure.words for at, (_, one) in zip(found, subjects, strict=True)
        )
        for part in ("class", "variant", "place"):
            others = embedded_texts(model, words, [altered(chance, scene, part).caption for scene in group])
            right.setdefault(f"other {part}", []).extend((cosines.diagonal() > (pictures * others).sum(1)).tolist())
    return {name: sum(answers) / len(answers) for name, answers in right.items()}


def altered(chance: random.Random, scene: Scene, part: str) -> Scene:
    """Return a scene whose caption has another place, or one subject of another class or variant."""
    if part == "place":
        return replace(scene, place=chance.choice([place for place in PLACES if place != scene.place]))
    at = chance.randrange(len(scene.subjects))
    subject = scene.subjects[at]
    figure, there = subject.figure, [one.figure.words for one in scene.subjects]
    if part == "class":
        changes = [replace(figure, kind=kind) for kind in CLASSES if kind != figure.kind]
    else:
        changes = [replace(figure, variant=variant) for variant in VARIANTS if variant != figure.variant]
    chosen = replace(subject, figure=chance.choice([one for one in changes if one.words not in there]))
    return replace(scene, subjects=(*scene.subjects[:at], chosen, *scene.subjects[at + 1 :]))


def embedded(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """Return the embeddings of pictures as the model reads them, [b, E] of length 1."""
    return _unit(model.get_image_features(pixel_values=pixels))


def embedded_texts(model: CLIPModel, words: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Return the embeddings of texts, [b, E] of length 1."""
    return _unit(model.get_text_features(**words(list(texts), padding=True, return_tensors="pt")))


def _unit(found: torch.Tensor) -> torch.Tensor:
    """Newer versions of transformers return them in an object."""
    vectors = found if isinstance(found, torch.Tensor) else found.pooler_output
    return torch.nn.functional.normalize(vectors, dim=-1)
