"""A second evaluation of gated adapters, written from the published formulas alone, in float64: no wrapper, no patch
point, no code of the pack.

Every transformer block of the host's UNet gets a plain forward with the naive fuser in it (object tokens appended, all
attend to all, their own results thrown away), evaluated anew for every row and block; the sampler is a plain Euler
loop.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field

import comfy.samplers
import torch
from torch.nn import functional as F

from .independent_evaluation import replaced


@dataclass
class GatedTruth:
    """What the method is told.

    kind: 'text', 'text_image' or 'patches'; net, fusers: raw tensors by published name, fusers in the order input,
    output, middle blocks;
    boxes: per subject (left, top, right, bottom) or None; text, image: per subject features or None; slots: how many
    objects in all.
    """

    kind: str
    net: dict
    fusers: list
    boxes: list
    text: list
    image: list
    weights: list
    slots: int
    heads: int | None = None  # of every fuser; None: 8 for 768-wide objects, else heads of 64 channels
    strength: float = 1.0
    end: float = 1.0
    decay: float = 0.0
    ranges: list = field(default_factory=list)
    mask_conv: torch.Tensor | None = None
    use_bbox: bool = True


def fourier(box, frequencies=8):
    """sin and cos of 100^(k/8) times each coordinate: frequency slowest, then sin before cos, then coordinate."""
    out = []
    for k in range(frequencies):
        f = 100 ** (k / frequencies)
        out += [math.sin(f * c) for c in box] + [math.cos(f * c) for c in box]
    return torch.tensor(out, dtype=torch.float64)


def perceptron(state, prefix, x):
    """Linear, SiLU, Linear, SiLU, Linear."""
    for i in (0, 2, 4):
        x = x @ state[f"{prefix}.{i}.weight"].double().T + state[f"{prefix}.{i}.bias"].double()
        x = F.silu(x) if i < 4 else x
    return x


def norm(x, state, prefix):
    return F.layer_norm(x, x.shape[-1:], state[f"{prefix}.weight"].double(), state[f"{prefix}.bias"].double(), 1e-5)


def objects(truth, active, role):
    """[M, D] object tokens and [M] factors of their values for one row. active: per subject 0 or 1."""
    net = {k: v.double() for k, v in truth.net.items()}
    n = truth.slots
    here = [i < len(truth.boxes) and bool(active[i]) and truth.weights[i] > 0 and role == "cond" for i in range(n)]
    scale = [truth.weights[i] if here[i] else 1.0 for i in range(n)]
    if truth.kind == "patches":
        tokens, features = net["null_image_feature"].shape[2:]
        if role == "uncond":
            width = net["linears_image.fc2.weight"].shape[0]
            return torch.zeros(n * tokens, width, dtype=torch.float64), torch.ones(n * tokens, dtype=torch.float64)
        rows = []
        for i in range(n):
            box = (truth.boxes[i] or (0.0, 0.0, 1.0, 1.0)) if here[i] else (0.0, 0.0, 0.0, 0.0)
            for t in range(tokens):
                feature = truth.image[i][t].double() if here[i] else net["null_image_feature"][0, 0, t]
                position = (
                    fourier(box)
                    if (here[i] if truth.use_bbox else sum(here) > 1)
                    else net["null_position_feature"][0, 0, t]
                )
                rows.append(torch.cat((feature, position)))
        x = norm(torch.stack(rows), net, "linears_image.layernorm")
        x = (
            F.gelu(x @ net["linears_image.fc1.weight"].T + net["linears_image.fc1.bias"])
            @ net["linears_image.fc2.weight"].T
            + net["linears_image.fc2.bias"]
        )
        return x, torch.tensor([s for s in scale for _ in range(tokens)], dtype=torch.float64)
    halves = []
    for which, features, null in (
        ("text", truth.text, "null_text_feature"),
        ("image", truth.image, "null_image_feature"),
    ):
        if truth.kind == "text":
            if which == "image":
                continue
            prefix, null = "linears", "null_positive_feature"
        else:
            prefix = f"linears_{which}"
        for i in range(n):
            there = here[i] and features[i] is not None
            style = (
                truth.boxes[i] is None and truth.kind == "text_image" and truth.text[i] is None if here[i] else False
            )
            box = truth.boxes[i] or ((0.0, 1.0, 0.0, 1.0) if style else (0.0, 0.0, 1.0, 1.0)) if here[i] else None
            feature = features[i].double() if there else net[null]
            halves.append(
                perceptron(net, prefix, torch.cat((feature, fourier(box) if here[i] else net["null_position_feature"])))
            )
    return torch.stack(halves), torch.tensor(scale * (1 if truth.kind == "text" else 2), dtype=torch.float64)


def fuse(x, state, tokens, factors, scale, heads=None):
    """One row [N, C] through one fuser, the published way."""
    s = {k: v.double() for k, v in state.items()}
    n, c = x.shape
    if heads is None:
        heads = 8 if tokens.shape[-1] == 768 else c // 64
    d = c // heads
    together = norm(torch.cat((x, tokens @ s["linear.weight"].T + s["linear.bias"])), s, "norm1")
    q, k, v = (together @ s[f"attn.to_{name}.weight"].T for name in "qkv")
    v = torch.cat((v[:n], v[n:] * factors[:, None]))
    out = torch.cat(
        [
            torch.softmax(q[:, i * d : (i + 1) * d] @ k[:, i * d : (i + 1) * d].T / math.sqrt(d), -1)
            @ v[:, i * d : (i + 1) * d]
            for i in range(heads)
        ],
        -1,
    )
    out = out @ s["attn.to_out.0.weight"].T + s["attn.to_out.0.bias"]
    x = x + scale * torch.tanh(s["alpha_attn"]) * out[:n]
    y = norm(x, s, "norm2") @ s["ff.net.0.proj.weight"].T + s["ff.net.0.proj.bias"]
    value, gate = y.chunk(2, -1)
    return x + scale * torch.tanh(s["alpha_dense"]) * (
        (value * F.gelu(gate)) @ s["ff.net.2.weight"].T + s["ff.net.2.bias"]
    )


def transformer_blocks(unet):
    """Blocks in published order: input blocks, output blocks, middle."""
    return [
        m
        for part in (unet.input_blocks, unet.output_blocks, unet.middle_block)
        for m in part.modules()
        if hasattr(m, "attn2")
    ]


def box_channel(truth, active, height, width):
    """1 outside, 0 inside the boxes of the subjects that act, cell by cell: pixel 8 i belongs to cell i."""
    mask = torch.ones(1, 1, height, width)
    for box, weight, on in zip(truth.boxes, truth.weights, active, strict=True):
        if not (on and weight > 0):
            continue
        left, top, right, bottom = box or (0.0, 0.0, 1.0, 1.0)
        for i in range(height):
            for j in range(width):
                if round(top * height * 8) <= 8 * i < round(bottom * height * 8) and round(
                    left * width * 8
                ) <= 8 * j < round(right * width * 8):
                    mask[0, 0, i, j] = 0
    return mask


@contextmanager
def gated(unet, truths, role, scales, actives):
    """The UNet with every block's naive fusers, one after the other, and the mask channel."""
    blocks, first = transformer_blocks(unet), unet.input_blocks[0][0]
    given = [objects(truth, active, role) for truth, active in zip(truths, actives, strict=True)]

    def forward_of(index, block):
        def forward(x, context=None, transformer_options=None):
            x = block.attn1(block.norm1(x), context=None) + x
            for truth, scale, (tokens, factors), active in zip(truths, scales, given, actives, strict=True):
                if scale and any(on and w > 0 for on, w in zip(active, truth.weights, strict=True)):
                    x = torch.stack(
                        [fuse(row, truth.fusers[index], tokens, factors, scale, truth.heads) for row in x.double()]
                    ).to(x.dtype)
            x = block.attn2(block.norm2(x), context=context) + x
            return block.ff(block.norm3(x)) + x

        return forward

    def conv(x, *args):
        out = type(first).forward(first, x)
        for truth, scale, active in zip(truths, scales, actives, strict=True):
            if (
                truth.mask_conv is not None
                and scale
                and role == "cond"
                and any(on and w > 0 for on, w in zip(active, truth.weights, strict=True))
            ):
                out = out + F.conv2d(box_channel(truth, active, *x.shape[-2:]), truth.mask_conv, padding=1).to(
                    out.dtype
                )
        return out

    for i, block in enumerate(blocks):
        block.forward = forward_of(i, block)
    first.forward = conv
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
        del first.forward


def share_of_run(model_sampling, sigma):
    """ComfyUI's percent of a sigma, by bisection of the host's own function."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(model_sampling.percent_to_sigma(middle)) > sigma else (low, middle)
    return (low + high) / 2


def scale_of(truth, percent):
    """Full strength until `end`, then a line to 0."""
    if truth.end >= 1 or percent < truth.end - 1e-5:
        return truth.strength
    return truth.strength * max(0.0, 1 - max(0.0, percent - truth.end) / truth.decay) if truth.decay else 0.0


def predict(model, truths, role, x, sigma, context, attention=(), extra=None):
    """One model call for all rows with one role. attention: `independent.Truth`s of image attention in the same
    picture.
    """
    percent = share_of_run(model.model_sampling, float(sigma[0]))
    scales = [scale_of(t, percent) for t in truths]
    actives = [
        [_inside(model.model_sampling, sigma[0], *r) for r in t.ranges] if t.ranges else [1] * len(t.boxes)
        for t in truths
    ]
    with gated(model.diffusion_model, truths, role, scales, actives):
        if attention:
            with replaced(model.diffusion_model, list(attention), role, x.shape[-2:]):
                return model.apply_model(x, sigma, c_crossattn=context, **(extra or {}))
        return model.apply_model(x, sigma, c_crossattn=context, **(extra or {}))


def sample(patcher, truths, positive, negative, noise, steps=2, cfg=5.0, attention=(), sigmas=None, latent=None):
    """Euler on the host's normal schedule; the latent as KSampler returns it."""
    model = patcher.model
    if sigmas is None:
        sigmas = comfy.samplers.calculate_sigmas(model.model_sampling, "normal", steps)
    begin = torch.zeros_like(noise) if latent is None else model.process_latent_in(latent)
    x = model.model_sampling.noise_scaling(sigmas[0], noise, begin, latent is None)
    for i in range(len(sigmas) - 1):
        sigma = sigmas[i].expand(len(x))
        found = {}
        for role, cond in (("cond", positive), ("uncond", negative)):
            if role == "uncond" and cfg == 1.0:
                continue
            size = {"width": noise.shape[3] * 8, "height": noise.shape[2] * 8}
            conds = model.extra_conds(
                noise=noise,
                device=noise.device,
                cross_attn=cond[0][0],
                prompt_type="positive" if role == "cond" else "negative",
                **size,
                **cond[0][1],
            )
            extra = {k: v.cond.expand(len(x), *v.cond.shape[1:]) for k, v in conds.items() if k == "y"}
            found[role] = predict(
                model, truths, role, x, sigma, conds["c_crossattn"].cond.expand(len(x), -1, -1), attention, extra
            )
        denoised = found["cond"] if cfg == 1.0 else found["uncond"] + cfg * (found["cond"] - found["uncond"])
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return model.process_latent_out(model.model_sampling.inverse_noise_scaling(sigmas[-1], x))


def _inside(model_sampling, sigma, start, end):
    return model_sampling.percent_to_sigma(end) <= sigma <= model_sampling.percent_to_sigma(start)
