"""MM-Diff by its formulas, in float64 with plain torch, one picture and one head at a time: nothing of the pack's own
modules is called.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch.nn.functional import gelu, interpolate, layer_norm

SDXL_BLOCKS = (  # the published numbers run through them in this order, two for each transformer block
    *(("down_blocks.1.attentions.0", 2), ("down_blocks.1.attentions.1", 2)),
    *(("down_blocks.2.attentions.0", 10), ("down_blocks.2.attentions.1", 10)),
    *(("up_blocks.0.attentions.0", 10), ("up_blocks.0.attentions.1", 10), ("up_blocks.0.attentions.2", 10)),
    *(("up_blocks.1.attentions.0", 2), ("up_blocks.1.attentions.1", 2), ("up_blocks.1.attentions.2", 2)),
    ("mid_block.attentions.0", 10),
)
SD15_BLOCKS = (
    *((f"down_blocks.{i}.attentions.{j}", 1) for i in range(3) for j in range(2)),
    *((f"up_blocks.{i}.attentions.{j}", 1) for i in range(1, 4) for j in range(3)),
    ("mid_block.attentions.0", 1),
)
# whose maps the constraints read
SDXL_MIDDLE = ("down_blocks.2.", "mid_block.", "up_blocks.0.")
SD15_MIDDLE = ("down_blocks.1.", "down_blocks.2.", "mid_block.", "up_blocks.1.", "up_blocks.2.")
HEAD = 256  # channels of a head of the SE-Refiner
BOS, EOS = 49406, 49407


tokenizer = cache(SimpleTokenizer)


def ids_of(caption, padding):
    ids = [BOS, *tokenizer().encode(caption), EOS]
    return ids + [padding] * (77 - len(ids))


def last_token(caption, name):
    """The position of a name's last token in a caption's 77 tokens."""
    ids, own = ids_of(caption, EOS), tokenizer().encode(name)
    (start,) = [i for i in range(77) if ids[i : i + len(own)] == own]
    return start + len(own) - 1


def attend(q, k, v, heads):
    """Softmax attention of [N, C] to [L, C]: the result [N, C] and the probabilities of each head, [H, N, L]."""
    parts = zip(*(x.chunk(heads, -1) for x in (q, k, v)), strict=True)
    shares = [((q @ k.T) / q.shape[-1] ** 0.5).softmax(-1) for q, k, _ in parts]
    return torch.cat([p @ v for p, v in zip(shares, v.chunk(heads, -1), strict=True)], -1), torch.stack(shares)


def norm(weights, name, x):
    return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def pair(weights, name, x):
    return x @ weights[f"{name}.down.weight"].T @ weights[f"{name}.up.weight"].T


def image_tokens(weights, vector, patches, depth):
    """`face_embeds_proj` on one subject: vector [V], patches [P, E] -> [T, C]."""
    context = weights["face_embeds_proj.layer_norm.weight"].shape[0]
    x = linear(weights, "face_embeds_proj.proj.2", gelu(linear(weights, "face_embeds_proj.proj.0", vector)))
    x = norm(weights, "face_embeds_proj.layer_norm", x.view(-1, context))
    refiner = "face_embeds_proj.refiner"
    dense, query = linear(weights, f"{refiner}.proj_in", patches), x
    for i in range(depth):
        name = f"{refiner}.layers.{i}"
        d, q = norm(weights, f"{name}.0.norm1", dense), norm(weights, f"{name}.0.norm2", query)
        k, v = linear(weights, f"{name}.0.to_kv", torch.cat((d, q))).chunk(2, -1)
        q = linear(weights, f"{name}.0.to_q", q)
        query = query + linear(weights, f"{name}.0.to_out", attend(q, k, v, q.shape[-1] // HEAD)[0])
        y = gelu(linear(weights, f"{name}.1.1", norm(weights, f"{name}.1.0", query)))
        query = query + linear(weights, f"{name}.1.3", y)
    return x + norm(weights, f"{refiner}.norm_out", linear(weights, f"{refiner}.proj_out", query))


def photo_words(weights, embed):
    """A photo in the word space of each text encoder."""
    h = gelu(linear(weights, "obj_embeds_proj.fc", norm(weights, "obj_embeds_proj.layernorm", embed)))
    names = [name for name in ("proj_1", "proj_2") if f"obj_embeds_proj.{name}.weight" in weights]
    return [linear(weights, f"obj_embeds_proj.{name}", h) for name in names]


def fused(weights, name, word, photo):
    x = norm(weights, f"{name}.layernorm", torch.cat((word, photo)))
    return linear(weights, f"{name}.fc2", gelu(linear(weights, f"{name}.fc1", x)))


def text_states(model, embeddings, act, weights=None):
    """The states after every layer of a CLIP text model, [77, d] each; weights: with LoRAs of its self-attention."""
    text = getattr(model, "text_model", model)
    x = embeddings + text.embeddings.position_embedding.weight
    mask, found = torch.full((77, 77), -torch.inf, dtype=torch.float64).triu(1), []
    for n, block in enumerate(text.encoder.layers):
        where = f"text_encoder.text_model.encoder.layers.{n}.self_attn"

        def through(name, y, block=block, where=where):
            there = f"{where}.{name}.lora_linear_layer"
            own = getattr(block.self_attn, name)(y)
            return own + pair(weights, there, y) if weights and f"{there}.up.weight" in weights else own

        y = block.layer_norm1(x)
        heads = model.config.num_attention_heads
        q, k, v = (through(name, y).chunk(heads, -1) for name in ("q_proj", "k_proj", "v_proj"))
        each = [(q @ k.T / q.shape[-1] ** 0.5 + mask).softmax(-1) @ v for q, k, v in zip(q, k, v, strict=True)]
        x = x + through("out_proj", torch.cat(each, -1))
        x = x + block.mlp.fc2(act(block.mlp.fc1(block.layer_norm2(x))))
        found.append(x)
    return found


@dataclass(eq=False)
class PaperAttention:
    """One attention of the UNet with its LoRA, and with the image tokens of each picture in a cross-attention.

    tokens: [S, C] of each picture, None where it has none; keeps: whether its probabilities are kept.
    """

    weights: dict
    number: int
    tokens: list
    keeps: bool
    text_maps: list = field(default_factory=list)
    image_maps: list = field(default_factory=list)

    def __call__(self, attention, hidden, encoder_hidden_states=None, attention_mask=None, **more):
        def changed(layer, name, x):
            return layer(x) + pair(self.weights, f"unet.{self.number}.{name}_lora", x)

        rows = []
        for b, x in enumerate(hidden):
            context = x if encoder_hidden_states is None else encoder_hidden_states[b]
            q = changed(attention.to_q, "to_q", x)
            k, v = changed(attention.to_k, "to_k", context), changed(attention.to_v, "to_v", context)
            row, shares = attend(q, k, v, attention.heads)
            if self.keeps:
                self.text_maps.append(shares)
            if encoder_hidden_states is not None and self.tokens[b] is not None:
                c = self.tokens[b]
                keys = attention.to_k(c) + pair(self.weights, f"unet.{self.number}.to_k_lora_image", c)
                values = attention.to_v(c) + pair(self.weights, f"unet.{self.number}.to_v_lora_image", c)
                images, shares = attend(q, keys, values, attention.heads)
                row = row + images
            if self.keeps:
                self.image_maps.append(shares if self.tokens[b] is not None else None)
            rows.append(changed(attention.to_out[0], "to_out", row))
        return torch.stack(rows)


def paper_unet(unet, weights, tokens):
    """A copy of a UNet with these attentions everywhere, and those whose maps are kept."""
    unet, kept, number = copy.deepcopy(unet).double(), [], 0
    sdxl = unet.config.addition_embed_type == "text_time"
    blocks, middle = (SDXL_BLOCKS, SDXL_MIDDLE) if sdxl else (SD15_BLOCKS, SD15_MIDDLE)
    for path, depth in blocks:
        for t in range(depth):
            for name in ("attn1", "attn2"):
                keeps = name == "attn2" and path.startswith(middle)
                processor = PaperAttention(weights, number, tokens, keeps)
                unet.get_submodule(f"{path}.transformer_blocks.{t}.{name}").set_processor(processor)
                kept += [processor] if keeps else []
                number += 1
    return unet, kept


def outside_less_inside(probabilities, mask):
    """[N] of a square picture, and a mask [h, w]: mean outside of it less mean inside."""
    side = round(len(probabilities) ** 0.5)
    m = interpolate(mask[None, None].double(), size=(side, side), mode="bilinear", antialias=True).flatten()
    return (probabilities * (1 - m)).sum() / ((1 - m).sum() + 1e-5) - (probabilities * m).sum() / (m.sum() + 1e-5)
