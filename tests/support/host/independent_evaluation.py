"""A second evaluation of the method, written from the formulas alone: no wrapper, no patch point, no code of the pack.

Every cross-attention layer of the host's UNet gets a slow forward in float64, one row and one subject at a time, and
the sampler is a plain Euler loop that calls the model for cond and for uncond apart.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field

import comfy.samplers
import torch


@dataclass
class Truth:
    """What the method is told: per subject tokens [T, D], name tokens [L, D], weight w_i, limit mask [H, W] or None;
    the node's settings.

    kv: per layer (to_k_ip, to_v_ip, text_to_weight or None) weight matrices; empty: tokens of "" after BOS [K, D];
    uncond: [T, D].
    """

    tokens: list
    names: list
    kv: list
    uncond: torch.Tensor
    empty: torch.Tensor
    weights: list
    scale: float = 0.65
    merge: str = "relevance"
    sharpness: float = 1.0
    background: float = 1.0
    regions: list | None = None
    ranges: list = field(default_factory=list)  # per subject (start, end) percent
    active: list | None = None
    boxes: list | None = None  # per subject a limit mask [H, W] or None, which holds while box_end is not reached
    box_end: float = 1.0
    boxed: bool = True
    absent: list = field(default_factory=list)  # numbers of subjects that are as if they were not there


def attention(q, k, v, heads):
    """[N, C] x [S, C] -> [N, C], plain softmax attention in float64."""
    d = q.shape[-1] // heads
    out = []
    for h in range(heads):
        s = slice(h * d, (h + 1) * d)
        out.append(torch.softmax(q[:, s] @ k[:, s].T / math.sqrt(d), -1) @ v[:, s])
    return torch.cat(out, -1)


def relevance_of(q, name_keys, heads):
    """A(p) of one subject, [N]: softmax over positions, mean over heads and tokens."""
    d = q.shape[-1] // heads
    maps = []
    for h in range(heads):
        s = slice(h * d, (h + 1) * d)
        for token in name_keys:
            maps.append(torch.softmax(q[:, s] @ token[s] / math.sqrt(d), 0))
    return sum(maps) / len(maps)


def cell_means(mask, h, w):
    """Mean of a mask over each of h x w cells, [h * w]; a cell covers the pixels it touches."""
    height, width = mask.shape
    values = []
    for i in range(h):
        for j in range(w):
            rows = slice(i * height // h, -(-(i + 1) * height // h))
            columns = slice(j * width // w, -(-(j + 1) * width // w))
            values.append(mask[rows, columns].double().mean())
    return torch.stack(values)


def layer_result(x, context, attn, layer, role, truth, grid):
    """One row through one cross-attention layer, before to_out. x [N, C], context [S, D].

    Without uncond tokens, uncond rows are plain.
    """
    q, k, v = (m.weight.double() for m in (attn.to_q, attn.to_k, attn.to_v))
    q, heads = x @ q.T, attn.heads
    text = attention(q, context @ k.T, context @ v.T, heads)
    if role != "cond" and truth.uncond is None:
        return text
    k_ip, v_ip, gain = (None if m is None else m.double() for m in truth.kv[layer])
    n, m = len(x), len(truth.tokens)
    f = torch.ones(n, dtype=torch.float64)
    if gain is not None:
        g = torch.sigmoid(text @ gain[0])
        f = g / g.mean()
    tokens = [(truth.tokens[i] if role == "cond" else truth.uncond).double() for i in range(m)]
    names = (
        [(truth.names[i] if role == "cond" else truth.empty[: len(truth.names[i])]).double() for i in range(m)]
        if truth.names
        else None
    )
    a = [relevance_of(q, name @ k.T, heads) ** truth.sharpness for name in names] if names else None
    limit = [
        torch.ones(n, dtype=torch.float64)
        if truth.regions is None or truth.regions[i] is None
        else cell_means(truth.regions[i], *grid)
        for i in range(m)
    ]
    if truth.boxes is not None and truth.boxed:
        limit = [m if box is None else m * cell_means(box, *grid) for m, box in zip(limit, truth.boxes, strict=True)]
    weights = [truth.scale * truth.weights[i] * (1.0 if truth.active is None else truth.active[i]) for i in range(m)]
    b = torch.ones(n, dtype=torch.float64)
    if truth.background < 1 and truth.merge != "uniform":
        b = truth.background + (1 - truth.background) * torch.stack([x / x.mean() for x in a]).amax(0).clamp(max=1)
    if truth.merge == "joint":
        there = [i for i in range(m) if i not in truth.absent]
        together = torch.cat([tokens[i] for i in there])
        keys, values, d = together @ k_ip.T, together @ v_ip.T, q.shape[-1] // heads
        parts = []
        for h in range(heads):
            s = slice(h * d, (h + 1) * d)
            p = torch.softmax(q[:, s] @ keys[:, s].T / math.sqrt(d), -1)
            factors = torch.cat([(weights[i] * limit[i] * f * b)[:, None].expand(-1, len(tokens[i])) for i in there], 1)
            parts.append((p * factors) @ values[:, s])
        return text + torch.cat(parts, -1)
    images = [attention(q, tok @ k_ip.T, tok @ v_ip.T, heads) for tok in tokens]
    if truth.merge == "paper":
        return f[:, None] * text + sum(
            (weights[i] * limit[i] * b * a[i] / a[i].mean())[:, None] * images[i] for i in range(m)
        )
    one = torch.ones(n, dtype=torch.float64)
    if truth.merge not in ("relevance", "uniform", "add"):
        raise ValueError(f"no formula for merge {truth.merge} here")
    claims = [limit[i] * (a[i] if truth.merge == "relevance" and a else one) for i in range(m)]
    total = sum(claims)
    shares = [one if truth.merge == "add" else torch.where(total > 0, c / total, 0 * c) for c in claims]
    return text + sum((weights[i] * f * b * shares[i] * limit[i])[:, None] * images[i] for i in range(m))


def cross_attentions(unet):
    """attn2 modules in published order: input blocks, output blocks, middle."""
    found = []
    for part in (unet.input_blocks, unet.output_blocks, unet.middle_block):
        found += [m.attn2 for m in part.modules() if hasattr(m, "attn2")]
    return found


@contextmanager
def replaced(unet, truths, role, size):
    """The UNet with every cross-attention evaluated here. size: latent (h, w); the grid is found from the position
    count by halving.
    """
    layers = cross_attentions(unet)
    grids = {}
    h, w = size
    while h * w not in grids and h * w > 0:
        grids[h * w] = (h, w)
        h, w = -(-h // 2), -(-w // 2)

    def forward_of(index, attn):
        def forward(x, context=None, value=None, mask=None, transformer_options=None):
            rows = []
            for row, text in zip(x.double(), context.double(), strict=True):
                plain = attention(
                    row @ attn.to_q.weight.double().T,
                    text @ attn.to_k.weight.double().T,
                    text @ attn.to_v.weight.double().T,
                    attn.heads,
                )
                results = [layer_result(row, text, attn, index, role, truth, grids[len(row)]) for truth in truths]
                # Apply nodes add up and do not see each other
                rows.append(plain + sum(result - plain for result in results))
            return attn.to_out(torch.stack(rows).to(x.dtype))

        return forward

    for i, attn in enumerate(layers):
        attn.forward = forward_of(i, attn)
    try:
        yield
    finally:
        for attn in layers:
            del attn.forward


def sample(patcher, truth, positive, negative, noise, steps=2, cfg=5.0, sigmas=None, latent=None):
    """Euler on the host's normal schedule; the latent as KSampler returns it. truth: one Truth, several (one an Apply
    node), or None.

    latent: the picture that a run with fewer sigmas begins from, as a LATENT holds it."""
    model = patcher.model
    if sigmas is None:
        sigmas = comfy.samplers.calculate_sigmas(model.model_sampling, "normal", steps)
    begin = torch.zeros_like(noise) if latent is None else model.process_latent_in(latent)
    x = model.model_sampling.noise_scaling(sigmas[0], noise, begin, latent is None)
    for i in range(len(sigmas) - 1):
        sigma = sigmas[i].expand(len(x))
        predictions = {}
        for role, cond in (("cond", positive), ("uncond", negative)):
            if role == "uncond" and cfg == 1.0:
                continue
            size = {"width": noise.shape[3] * 8, "height": noise.shape[2] * 8}
            kind = "positive" if role == "cond" else "negative"
            conds = model.extra_conds(
                noise=noise, device=noise.device, cross_attn=cond[0][0], prompt_type=kind, **size, **cond[0][1]
            )
            context = conds["c_crossattn"].cond.expand(len(x), -1, -1)
            extra = {k: v.cond.expand(len(x), *v.cond.shape[1:]) for k, v in conds.items() if k == "y"}
            if truth is None:
                predictions[role] = model.apply_model(x, sigma, c_crossattn=context, **extra)
                continue
            truths = truth if isinstance(truth, list) else [truth]
            for t in truths:
                t.active = [float(_inside(model.model_sampling, sigma[0], *r)) for r in t.ranges] if t.ranges else None
                t.boxed = bool(_inside(model.model_sampling, sigma[0], 0.0, t.box_end))
            with replaced(model.diffusion_model, truths, role, noise.shape[-2:]):
                predictions[role] = model.apply_model(x, sigma, c_crossattn=context, **extra)
        denoised = (
            predictions["cond"]
            if cfg == 1.0
            else predictions["uncond"] + cfg * (predictions["cond"] - predictions["uncond"])
        )
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return model.process_latent_out(model.model_sampling.inverse_noise_scaling(sigmas[-1], x))


def _inside(model_sampling, sigma, start, end):
    """The host's rule for a conditioning's range."""
    return model_sampling.percent_to_sigma(end) <= sigma <= model_sampling.percent_to_sigma(start)
