"""Train the rehearsal world's text-to-image model (UNet and text encoder) from scratch on its drawings and captions.

Its pictures show every pair of colours, as a base model has seen much of the world; it is given no references, and no
caption tells it a look. Text attention learns where a subject is from the known masks as well (FastComposer's
localization loss, arXiv 2305.10431): what large models learn from billions of pictures, a small one does not learn in
hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn

from ...model_patches.errors import CheckpointError
from ...model_patches.hosts.diffusers.cross_layers import cross_layers
from ...training.losses import localization_loss
from .. import files
from ..engine import nets
from ..world import ALL_LOOKS, CELLS, MOST, Scene, masks
from .loop import Diffusion, PlainAttention, Trainer, attention_shares, latents_of, random_scenes, weighted_loss
from .vocabulary import EOS, LONGEST, known_ids, rows, tokens

ALONE = 0.5  # pictures with one subject: they teach what a word looks like
DROPPED = 0.1  # captions that are left empty, for classifier-free guidance
LOCALIZATION = 0.05  # weight of the localization loss
SMALLEST = 64  # positions of the smallest layer that is localized: 8 x 8


class RecordingAttention:
    """Text attention that keeps its probabilities, [B * H, N, T], for the localization loss."""

    def __init__(self) -> None:
        self.probabilities: torch.Tensor | None = None

    def __call__(
        self,
        attention: Attention,
        hidden: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        keys, values = attention.to_k(encoder_hidden_states), attention.to_v(encoder_hidden_states)
        self.probabilities, found = attention_shares(attention.to_q(hidden), keys, values, attention.heads)
        return attention.to_out[0](found)


class LocalizedUNet(nn.Module):
    """The UNet, called so that it returns its prediction and the localization loss, mean over its layers of 8 x 8
    positions and more.

    unet: the model, whose attention processors are replaced.
    """

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet
        unet.set_attn_processor(PlainAttention())
        self.recorders = [RecordingAttention() for _ in cross_layers(unet)]
        for layer, recorder in zip(cross_layers(unet), self.recorders, strict=True):
            layer.attention.set_processor(recorder)

    def forward(
        self,
        noisy: torch.Tensor,
        steps: torch.Tensor,
        context: torch.Tensor,
        where: torch.Tensor,
        words: torch.Tensor,
        present: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prediction and the localization loss.

        where [B, S, h, w], words [B, S] and present [B, S] are as `places_of_words` makes them.
        """
        prediction = self.unet(noisy, steps, context).sample
        maps = [recorder.probabilities for recorder in self.recorders]
        losses = [
            localization_loss(found.float(), where, words, present)
            for found in maps
            if found is not None and found.shape[1] >= SMALLEST
        ]
        return prediction, torch.stack(losses).mean()


def places_of_words(
    scenes: Sequence[Scene], captions: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return, for every token of every name in the captions, its subject's mask [B, S, 32, 32], its row in the text [B,
    S], and whether there is one [B, S], S = 3 * LONGEST.

    An empty caption has none.
    """
    b, s = len(scenes), MOST * LONGEST
    where, words, present = (
        torch.zeros(b, s, CELLS, CELLS),
        torch.zeros(b, s, dtype=torch.long),
        torch.zeros(b, s, dtype=torch.bool),
    )
    for nth, (scene, caption) in enumerate(zip(scenes, captions, strict=True)):
        if not caption:
            continue
        row, begin, covered, filled = tokens(caption), 1, torch.from_numpy(masks(scene)), 0
        for i in scene.mentioned:
            name = [token for token in tokens(scene.subjects[i].figure.words)[1:] if token != EOS]
            begin = next(at for at in range(begin, len(row)) if row[at : at + len(name)] == name)
            many = slice(filled, filled + len(name))
            where[nth, many], words[nth, many], present[nth, many] = (
                covered[i].float(),
                torch.arange(begin, begin + len(name)),
                True,
            )
            begin, filled = begin + len(name), filled + len(name)
    return where, words, present


def train_base(
    folder: Path,
    minutes: float,
    batch: int = 32,
    rate: float = 1e-3,
    cooldown: float = 0.2,
    seed: int = 0,
    device: str = "cpu",
    compiled: bool = True,
    start: Path | None = None,
) -> None:
    """Train, or go on where the checkpoint in `folder` ends.

    start: folder of exported files whose weights a new training begins with.
    folder: of checkpoints; batch: pictures a step; rate: learning rate; cooldown: last part of the minutes in which it
    falls to 0.
    Raises CheckpointError where the start has another vocabulary.
    """
    unet, texts = nets.unet().to(device), nets.text_encoder(len(known_ids()) + 1).to(device)
    if start is not None:
        unet.load_state_dict(files.read(files.UNET, start))
        words = files.read(files.TEXTS, start)
        if words.pop(files.IDS).tolist() != list(known_ids()):
            raise CheckpointError(
                f"the world's words in '{files.TEXTS}'", "others", "Start without it: the vocabulary has changed."
            )
        words[files.TABLE] = torch.cat((words[files.TABLE], words[files.TABLE].new_zeros(1, nets.CONTEXT)))
        texts.load_state_dict(words)
    localized = LocalizedUNet(unet)
    table = texts.get_input_embeddings()
    unknown = len(known_ids())
    with torch.no_grad():
        table.weight[unknown] = 0
    table.weight.register_hook(
        lambda gradient: gradient.index_fill(0, torch.tensor([unknown], device=gradient.device), 0)
    )
    trainer = Trainer({"unet": unet, "texts": texts}, folder, minutes, rate, cooldown, seed)
    diffusion = Diffusion(torch.device(device))
    predict, encode = (torch.compile(localized), torch.compile(texts)) if compiled else (localized, texts)
    for _ in trainer.steps(batch):
        scenes = random_scenes(trainer.chance, batch, ALL_LOOKS, ALONE)
        captions = ["" if trainer.chance.random() < DROPPED else scene.caption for scene in scenes]
        noisy, steps, target, weight = diffusion.noised(latents_of(scenes).to(device))
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            context = encode(torch.tensor(rows(captions), device=device)).last_hidden_state
            prediction, misplaced = predict(
                noisy, steps, context, *(x.to(device) for x in places_of_words(scenes, captions))
            )
        trainer.descend(weighted_loss(prediction, target, weight) + LOCALIZATION * misplaced)
