"""Train the rehearsal world's image adapters on the frozen base: an IP-Adapter on one reference at a time, a
MIP-Adapter on all of them merged by relevance.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn.functional import mse_loss

from ...model_patches.attention.decoupled import LayerTokens, attend
from ...model_patches.attention.heads import join_heads, split_heads
from ...model_patches.attention.relevance import relevance_of_heads, shares, text_gain
from ...model_patches.encoders.decoupled import DecoupledLayer, DecoupledLayers
from ...model_patches.encoders.projections import ImageProj
from ...model_patches.families.registry import read_adapter
from ...model_patches.hosts.diffusers.cross_layers import cross_layers
from .. import files
from ..engine import load, nets
from ..vocabulary import EOS, LONGEST, tokens
from ..world import MOST, VARIANTS, Figure, Scene
from .encoder import reference_pixels
from .loop import Diffusion, PlainAttention, Trainer, latents_of, plain_attention, random_scenes

NOISIER = 1.0  # steps are drawn in proportion to their noise: looks are decided early in a run
DROPPED = 0.05  # captions, references, and both: each in one of twenty pictures, as IP-Adapter was trained


@dataclass
class References:
    """What the layers read in one step, B pictures.

    keys and values come from tokens [B, S, D]; present: [B, M] bool; names: [B, M * LONGEST, D] and segments [B, M, M *
    LONGEST], or None for one reference a picture.
    """

    tokens: torch.Tensor
    present: torch.Tensor
    names: torch.Tensor | None = None
    segments: torch.Tensor | None = None


class TrainingProcessor:
    """Cross-attention with image attention beside it, from the same functions that sampling uses; gradients reach the
    adapter's layer and the tokens.
    """

    def __init__(self, layer: DecoupledLayer):
        self.layer = layer
        self.references: References | None = None

    def __call__(
        self,
        attention: Attention,
        hidden: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        query, heads, found = attention.to_q(hidden), attention.heads, self.references
        text = plain_attention(
            query, attention.to_k(encoder_hidden_states), attention.to_v(encoder_hidden_states), heads
        )
        keys, values = self.layer.to_k_ip(found.tokens), self.layer.to_v_ip(found.tokens)
        weights = found.present[:, None, :, None].float().expand(-1, 1, -1, query.shape[1])  # B, 1, M, N
        if found.names is not None:
            names = attention.to_k(found.names).detach() * (query.shape[-1] // heads) ** -0.5
            a = relevance_of_heads(split_heads(query.detach(), heads), split_heads(names, heads), found.segments, 1)
            weights = shares(a, weights)
        if self.layer.text_to_weight is not None:
            weights = weights * text_gain(self.layer.text_to_weight(text)[None].transpose(0, 1)[..., 0]).unsqueeze(2)
        image = join_heads(attend(split_heads(query, heads), LayerTokens(keys, values).prepared(heads), weights))
        return attention.to_out[0](text + image.to(text.dtype))


def wanted(chance: random.Random, scene: Scene, alone: bool) -> list[Figure]:
    """Whose references a picture is trained with: of one subject in an IP-Adapter's training, else of all.

    Each reference is another picture of the individual.
    """
    figures = [subject.figure for subject in scene.subjects]
    return [chance.choice(figures)] if alone else figures


def another_picture(chance: random.Random, figure: Figure) -> Figure:
    """The same individual in another variant, mostly in none: a reference never is a cut-out of the picture."""
    return Figure(figure.kind, figure.look, chance.choice(("", "", "", *VARIANTS[1:])))


def train_adapter(
    kind: str,
    folder: Path,
    minutes: float,
    base: Path = files.FOLDER,
    batch: int = 32,
    rate: float = 1e-3,
    cooldown: float = 0.4,
    seed: int = 2,
    device: str = "cpu",
    start: Path | None = None,
) -> None:
    """Train, or go on where the checkpoint in `folder` ends.

    kind: 'ip', one reference at a time, or 'mip', all of a picture's with relevance and text gain; base: folder of the
    base model's and the image encoder's files; start: folder of exported files whose weights a new training begins
    with.
    """
    alone = kind == "ip"
    unet, texts, encoder = (
        module.to(device) for module in (load.load_unet(base), load.load_texts(base), load.load_image_encoder(base))
    )
    unet.set_attn_processor(PlainAttention())
    attentions = [layer.attention for layer in cross_layers(unet)]
    projection = ImageProj(nets.VISION["projection_dim"], nets.CONTEXT, nets.TOKENS).to(device)
    layers = DecoupledLayers(nets.CONTEXT, [a.to_q.out_features for a in attentions], text_gain=not alone).to(device)
    processors = [TrainingProcessor(layer) for layer in layers.layers]
    for attention, layer, processor in zip(attentions, layers.layers, processors, strict=True):
        layer.to_k_ip.weight.data.copy_(attention.to_k.weight)
        layer.to_v_ip.weight.data.copy_(attention.to_v.weight)
        if layer.text_to_weight is not None:
            nn.init.zeros_(layer.text_to_weight.weight)
        attention.set_processor(processor)
    if start is not None:
        begun = read_adapter(start / files.ADAPTERS[kind])
        projection.load_state_dict({name: value.float() for name, value in begun.projection.state_dict().items()})
        layers.load_state_dict({name: value.float() for name, value in begun.layers.state_dict().items()})
    trainer = Trainer({"projection": projection, "layers": layers}, folder, minutes, rate, cooldown, seed)
    diffusion, chance = Diffusion(torch.device(device)), trainer.chance
    for _ in trainer.steps(batch):
        scenes = random_scenes(chance, batch)
        figures = [wanted(chance, scene, alone) for scene in scenes]
        number = [chance.random() for _ in scenes]
        captions = ["" if n < 2 * DROPPED else scene.caption for n, scene in zip(number, scenes, strict=True)]
        kept = torch.tensor([not DROPPED < n < 3 * DROPPED for n in number])
        noisy, steps, target, _ = diffusion.noised(latents_of(scenes).to(device), NOISIER)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            references = _references(chance, figures, kept, encoder, projection, texts, alone, device)
            for processor in processors:
                processor.references = references
            with torch.no_grad():
                context = texts(torch.tensor([tokens(text) for text in captions], device=device)).last_hidden_state
            prediction = unet(noisy, steps, context).sample
        trainer.descend(mse_loss(prediction.float(), target))  # without min-SNR, which hardly counts the noisy steps


def _references(
    chance: random.Random,
    figures: Sequence[Sequence[Figure]],
    kept: torch.Tensor,
    encoder: nn.Module,
    projection: ImageProj,
    texts: nn.Module,
    alone: bool,
    device: str,
) -> References:
    """Tokens of every picture's references, with empty places up to the most; those that are not kept are the embedding
    0.
    """
    b, m = len(figures), 1 if alone else MOST
    flat = [another_picture(chance, figure) for row in figures for figure in row]
    places = torch.tensor([row * m + i for row, found in enumerate(figures) for i in range(len(found))], device=device)
    with torch.no_grad():
        found = encoder(reference_pixels(chance, flat).to(device)).image_embeds.float()
    embeds = (
        found.new_zeros(b * m, found.shape[-1]).index_copy(0, places, found)
        * kept.to(device).repeat_interleave(m)[:, None]
    )
    present = torch.zeros(b * m, dtype=torch.bool, device=device).index_fill(0, places, True).view(b, m)
    image_tokens = projection(embeds).unflatten(0, (b, m)).flatten(1, 2)
    if alone:
        return References(image_tokens, present)
    names, segments = _names(figures, texts, m, device)
    return References(image_tokens, present, names, segments)


@torch.no_grad()
def _names(
    figures: Sequence[Sequence[Figure]], texts: nn.Module, m: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the names' own tokens [B, M * LONGEST, D], and rows that average each subject's [B, M, M *
    LONGEST].
    """
    words = sorted({figure.words for row in figures for figure in row})
    rows = [tokens(text) for text in words]
    states = texts(torch.tensor(rows, device=device)).last_hidden_state.float()[:, 1 : 1 + LONGEST]
    lengths = [min(row.index(EOS) - 1, LONGEST) for row in rows]
    names = states.new_zeros(len(figures), m, LONGEST, states.shape[-1])
    segments = states.new_zeros(len(figures), m, m, LONGEST)
    for b, row in enumerate(figures):
        for i, figure in enumerate(row):
            place = words.index(figure.words)
            names[b, i] = states[place]
            segments[b, i, i, : lengths[place]] = 1 / lengths[place]
    return names.flatten(1, 2), segments.flatten(2, 3)
