"""Every recipe's gradients against an evaluation of its own: written from the papers and specifications in float64, one
picture and one subject at a time, with plain torch.
"""

from __future__ import annotations

import copy

import pytest
import torch
from support import tiny_training as small
from support.paper_mm_diff import tokenizer
from support.two_head_layers import interpolated, two_heads
from torch.nn.functional import gelu, layer_norm
from troupe.model_patches.attention.decoupled import Mixing
from troupe.model_patches.hosts.diffusers.cross_layers import cross_layers
from troupe.training.recipes.drops import dropped

TOLERANCE = 2e-4  # of the largest gradient of a tensor: float32 against float64


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five pictures: with one, two, three and four subjects."""
    names = (*small.NAMES, ("cup", "cat", "old dog", "bus"))
    return small.write_set(tmp_path_factory.mktemp("pictures"), names)


def softmax_attention(q, k, v):
    """q [n, d], k and v [t, d] of one head."""
    return ((q @ k.T) / q.shape[-1] ** 0.5).softmax(-1) @ v


class PaperAttention:
    """IP-Adapter's and MIP-Adapter's layer in float64, head by head. references: for each picture a list of (image
    tokens [T, D], name tokens [L, D]).
    """

    def __init__(self, weights, references):
        self.weights, self.references = weights, references

    def __call__(self, attention, hidden, encoder_hidden_states=None, attention_mask=None):
        query, heads = attention.to_q(hidden), attention.heads
        rows = []
        for b, subjects in enumerate(self.references):
            qs = query[b].chunk(heads, -1)
            ks = attention.to_k(encoder_hidden_states[b]).chunk(heads, -1)
            vs = attention.to_v(encoder_hidden_states[b]).chunk(heads, -1)
            text = torch.cat([softmax_attention(q, k, v) for q, k, v in zip(qs, ks, vs, strict=True)], -1)
            images, relevance = [], []
            for tokens, name in subjects:
                ik = (tokens @ self.weights["to_k_ip.weight"].T).chunk(heads, -1)
                iv = (tokens @ self.weights["to_v_ip.weight"].T).chunk(heads, -1)
                images.append(torch.cat([softmax_attention(q, k, v) for q, k, v in zip(qs, ik, iv, strict=True)], -1))
                nk = attention.to_k(name).chunk(heads, -1)
                maps = [((k @ q.T) / q.shape[-1] ** 0.5).softmax(-1) for q, k in zip(qs, nk, strict=True)]
                relevance.append(torch.stack(maps).mean((0, 1)).detach())  # over heads and the name's tokens
            whole = sum(relevance)
            added = sum((a / whole).unsqueeze(-1) * z for a, z in zip(relevance, images, strict=True))
            if "text_to_weight.weight" in self.weights:
                gate = torch.sigmoid(text @ self.weights["text_to_weight.weight"].T)
                added = added * gate / gate.mean()
            rows.append(text + added)
        return attention.to_out[0](torch.stack(rows))


def noisy_and_target(models, batch, draws):
    """Latents, noise and steps as the paper has them, from the draws' own random numbers."""
    clean = torch.stack([small._encode(draw.example.pixels[None])[0] for draw in draws]).double()
    noise = torch.stack([draw.noise(tuple(clean.shape[1:])) for draw in draws]).double()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = (1 - betas).cumprod(0)[batch.noised.timesteps].view(-1, 1, 1, 1)
    return signal.sqrt() * clean + (1 - signal).sqrt() * noise, noise


def states(towers, texts):
    """Of texts in float64: what the UNet reads [n, 77, D], how many tokens each has between BOS and EOS, and SDXL's
    pooled texts [n, E].
    """
    ids, found = [[49406, *tokenizer().encode(text)] for text in texts], []
    for model, padding in zip(towers, (49407, 0), strict=False):
        rows = torch.tensor([[*row, 49407, *[padding] * (76 - len(row))] for row in ids])
        with torch.no_grad():
            found.append(model(rows, output_hidden_states=True))
    counts = [len(row) - 1 for row in ids]
    if len(found) == 1:
        return found[0].last_hidden_state, counts, None
    return torch.cat([each.hidden_states[-2] for each in found], -1), counts, found[1].text_embeds


def perceiver(weights, patches):
    """The "plus" projection in float64, head by head: patches [P, E] of one photo -> image tokens [T, D]."""

    def normed(x, name):
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = patches @ weights["proj_in.weight"].T + weights["proj_in.bias"]
    latents = weights["latents.weight"][0]
    for i in range(4):
        look, own = normed(x, f"layers.{i}.0.norm1"), normed(latents, f"layers.{i}.0.norm2")
        to_k, to_v = weights[f"layers.{i}.0.to_kv.weight"].chunk(2)
        both = torch.cat((look, own))
        each = (own @ weights[f"layers.{i}.0.to_q.weight"].T, both @ to_k.T, both @ to_v.T)
        heads = [softmax_attention(q, k, v) for q, k, v in zip(*(y.split(64, -1) for y in each), strict=True)]
        latents = latents + torch.cat(heads, -1) @ weights[f"layers.{i}.0.to_out.weight"].T
        wide = gelu(normed(latents, f"layers.{i}.1.0") @ weights[f"layers.{i}.1.1.weight"].T)
        latents = latents + wide @ weights[f"layers.{i}.1.3.weight"].T
    return normed(latents @ weights["proj_out.weight"].T + weights["proj_out.bias"], "norm_out")


def image_tokens(encoder, projection, image, left_out):
    """A reference's image tokens [T, D]; left_out: of no reference."""
    look = interpolated(image, 32)
    if "latents.weight" in projection:
        with torch.no_grad():
            found = encoder(torch.zeros_like(look) if left_out else look, output_hidden_states=True)
        return perceiver(projection, found.hidden_states[-2][0])
    with torch.no_grad():
        embed = encoder(look).image_embeds[0]
    tokens = (torch.zeros_like(embed) if left_out else embed) @ projection["proj.weight"].T + projection["proj.bias"]
    tokens = tokens.view(4, -1)
    return layer_norm(tokens, tokens.shape[1:], projection["norm.weight"], projection["norm.bias"])


def expected_gradients(trainee, draws, batch, dropped_text, dropped_images):
    """Gradients of projection and layers by the paper's formulas."""
    models = trainee.base
    projection = {n: v.detach().double().requires_grad_() for n, v in trainee.projection.named_parameters()}
    layers = {n: v.detach().double().requires_grad_() for n, v in trainee.layers.named_parameters()}
    unet = copy.deepcopy(models.unet).double()
    encoder = copy.deepcopy(models.images._model).double()
    towers = [copy.deepcopy(tower.model).double() for tower in models.texts.towers]
    references = []
    for draw, left_out in zip(draws, dropped_images, strict=True):
        chosen = trainee.chosen(draw)
        names, lengths, _ = states(towers, [subject.name for subject in chosen])
        photos = [image_tokens(encoder, projection, subject.photo.image, left_out) for subject in chosen]
        references.append([(t, n[1 : 1 + length]) for t, n, length in zip(photos, names, lengths, strict=True)])
    for j, place in enumerate(cross_layers(unet)):
        weights = {n.split(".", 2)[2]: v for n, v in layers.items() if n.startswith(f"layers.{j}.")}
        place.attention.set_processor(PaperAttention(weights, references))
    noisy, noise = noisy_and_target(models, batch, draws)
    captions = ["" if no else d.example.caption for d, no in zip(draws, dropped_text, strict=True)]
    context, _, pooled = states(towers, captions)
    sizes = torch.tensor([[64.0, 96.0, 0.0, 16.0, 64.0, 64.0]] * len(draws), dtype=torch.float64)
    more = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes}
    prediction = unet(noisy, batch.noised.timesteps, context, added_cond_kwargs=more).sample
    (prediction - noise).square().mean().backward()
    return {
        **{f"projection.{n}": v.grad for n, v in projection.items()},
        **{f"layers.{n}": v.grad for n, v in layers.items()},
    }


def assert_equal_gradients(trainee, expected):
    found = {name: p.grad for name, p in trainee.named_parameters() if p.requires_grad}
    assert found.keys() <= expected.keys() and len(found) > 2
    whole = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in found.items():
        largest = expected[name].abs().max()
        assert largest > 0, name
        error = (gradient.double() - expected[name]).abs().max()
        assert error <= TOLERANCE * largest + 1e-6 * whole, f"{name}: {error / largest:.1e} of the largest"


PLUS = {"projection": "Resampler"}
DROPS = {"drop_text": 0.4, "drop_images": 0.4, "drop_both": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe, options, base",
    [
        ("ip_adapter", {}, small.base),
        ("ip_adapter", {**PLUS, **DROPS}, two_heads),
        ("ip_adapter", {}, small.sdxl_base),
        ("mip_adapter", {"train_projection": True}, small.base),
        ("mip_adapter", {"text_gain": False}, small.base),
        ("mip_adapter", DROPS, small.base),
        ("mip_adapter", {**PLUS, "train_projection": True}, two_heads),
        ("mip_adapter", {**PLUS, **DROPS, "train_projection": True}, small.sdxl_base),
    ],
    ids=["ip", "ip plus", "ip SDXL", "mip", "mip without gain", "mip with drops", "mip plus", "mip plus SDXL"],
)
def test_the_gradients_are_the_papers(recipe, options, base, pictures):
    """Five pictures with one, two, three and four subjects in one batch."""
    options = {"drop_text": 0.0, "drop_images": 0.0, "drop_both": 0.0, **options}
    trainee = small.changed(small.trainee(recipe, base(), **options))
    if recipe == "mip_adapter" and options.get("text_gain", True):
        for layer in trainee.layers.layers:  # away from a gain of 1
            torch.nn.init.normal_(layer.text_to_weight.weight)
    draws = small.draws(pictures, 5, seed=3)
    assert {len(draw.example.subjects) for draw in draws} == {1, 2, 3, 4}
    drops = [dropped(draw, trainee.options) for draw in draws]
    if options["drop_text"]:
        assert {(d.text, d.images) for d in drops} >= {(True, False), (False, True)}
    batch = trainee.prepare(draws)
    trainee(batch)["diffusion"].mean().backward()
    trainee.finish()  # its references are not copied with the UNet
    expected = expected_gradients(trainee, draws, batch, [d.text for d in drops], [d.images for d in drops])
    assert_equal_gradients(trainee, expected)


def test_a_frozen_projection_gets_no_gradient(pictures):
    trainee = small.trainee("mip_adapter")
    trainee(trainee.prepare(small.draws(pictures, 2)))["diffusion"].mean().backward()
    assert all(p.grad is None for p in trainee.projection.parameters())
    assert all(p.grad.abs().max() > 0 for p in trainee.layers.parameters())


@pytest.mark.slow
def test_names_that_are_dropped_are_the_empty_prompts(pictures):
    """Subjects with as many tokens then get equal shares, as in rows of the negative prompt."""
    draws = small.draws(pictures, 4)
    names, most = {}, max(len(draw.example.subjects) for draw in draws)
    for part in (0.0, 1.0):
        trainee = small.trainee("mip_adapter", drop_names=part)
        names[part] = trainee.prepare(draws).extra.names
    empty = trainee.base.texts.encode([""])[0]
    for b, draw in enumerate(draws):
        for i, subject in enumerate(draw.example.subjects):
            count = len(trainee.base.texts.encode([subject.name])[0])
            rows = names[1.0][b].unflatten(0, (most, -1))[i, :count]
            assert torch.equal(rows, empty[:count])
            assert not torch.equal(names[0.0][b].unflatten(0, (most, -1))[i, :count], rows)


@pytest.mark.parametrize("merge", ["relevance", "uniform", "joint", "add"])
def test_a_place_without_a_subject_takes_no_share(merge, pictures):
    """A picture of one subject in a batch with pictures of three predicts as it does alone."""
    trainee = small.trainee("mip_adapter", **small.no_drops("mip_adapter"))
    trainee.attention.mixing = Mixing(merge)
    draws = small.draws(pictures, 4)
    alone = next(i for i, draw in enumerate(draws) if len(draw.example.subjects) == 1)
    with torch.no_grad():
        together = trainee.predict(trainee.prepare(draws))[alone]
        by_itself = trainee.predict(trainee.prepare(draws[alone : alone + 1]))[0]
    torch.testing.assert_close(together, by_itself, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ip_adapter", "mip_adapter", "umm_diffusion", "fastcomposer"])
def test_gradient_checkpointing_changes_no_gradient(recipe, pictures):
    """The UNet in evaluation mode, as in a training; its blocks are computed twice."""
    draws, found = small.draws(pictures, 2), []
    for on in (False, True):
        trainee, computed = small.changed(small.trainee(recipe)), []
        if on:
            trainee.base.unet.enable_gradient_checkpointing()
        attention = trainee.base.unet.up_blocks[-1].attentions[0].transformer_blocks[0].attn2
        hook = attention.register_forward_pre_hook(lambda *given, computed=computed: computed.append(given))
        losses = trainee(trainee.prepare(draws))
        sum(trainee.weights[name] * loss.mean() for name, loss in losses.items()).backward()
        hook.remove()
        assert len(computed) == 1 + on
        found.append({name: p.grad for name, p in trainee.named_parameters() if p.requires_grad})
    assert len(found[0]) > 2 and any(gradient.any() for gradient in found[0].values())
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())
