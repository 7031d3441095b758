"""Train the rehearsal world's text-to-image model (UNet and text encoder) from scratch on its drawings and captions.

Its pictures show every pair of colours, as a base model has seen much of the world; it is given no references, and no caption tells it a look.
"""
from __future__ import annotations

from pathlib import Path

import torch

from ...model_patches.errors import CheckpointError
from .. import files
from ..engine import nets
from ..vocabulary import known_ids, rows
from ..world import ALL_LOOKS
from .loop import Diffusion, PlainAttention, Trainer, latents_of, random_scenes, weighted_loss

ALONE = 0.5  # pictures with one subject: they teach what a word looks like
DROPPED = 0.1  # captions that are left empty, for classifier-free guidance


def train_base(folder: Path, minutes: float, batch: int = 32, rate: float = 1e-3, cooldown: float = 0.2, seed: int = 0, device: str = "cpu", compiled: bool = True,
               start: Path | None = None) -> None:
    """Train, or go on where the checkpoint in `folder` ends.

    start: folder of exported files whose weights a new training begins with.
    folder: of checkpoints; batch: pictures a step; rate: learning rate; cooldown: last part of the minutes in which it falls to 0.
    """
    unet, texts = nets.unet().to(device), nets.text_encoder(len(known_ids()) + 1).to(device)
    if start is not None:
        unet.load_state_dict(files.read(files.UNET, start))
        words = files.read(files.TEXTS, start)
        if words.pop(files.IDS).tolist() != list(known_ids()):
            raise CheckpointError(f"the world's words in '{files.TEXTS}'", "others", "Start without it: the vocabulary has changed.")
        words[files.TABLE] = torch.cat((words[files.TABLE], words[files.TABLE].new_zeros(1, nets.CONTEXT)))
        texts.load_state_dict(words)
    unet.set_attn_processor(PlainAttention())
    table = texts.get_input_embeddings()
    unknown = len(known_ids())
    with torch.no_grad():
        table.weight[unknown] = 0
    table.weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([unknown], device=gradient.device), 0))
    trainer = Trainer({"unet": unet, "texts": texts}, folder, minutes, rate, cooldown, seed)
    diffusion = Diffusion(torch.device(device))
    predict, encode = (torch.compile(unet), torch.compile(texts)) if compiled else (unet, texts)
    for _ in trainer.steps(batch):
        scenes = random_scenes(trainer.chance, batch, ALL_LOOKS, ALONE)
        captions = ["" if trainer.chance.random() < DROPPED else scene.caption for scene in scenes]
        noisy, steps, target, weight = diffusion.noised(latents_of(scenes).to(device))
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            context = encode(torch.tensor(rows(captions), device=device)).last_hidden_state
            prediction = predict(noisy, steps, context).sample
        trainer.descend(weighted_loss(prediction, target, weight))
