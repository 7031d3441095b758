"""Training passes of recipes that act in the prompt, computed a second time."""

from __future__ import annotations

import torch

from support import tiny_training as small

TOLERANCE = 2e-4  # of the largest gradient of a tensor: float32 against float64


def through(model, embeddings):
    """CLIP's text transformer written out: pre-norm blocks with a causal mask, quick GELU, final norm."""
    text = getattr(model, "text_model", model)
    config, x = model.config, embeddings + text.embeddings.position_embedding.weight
    mask = torch.full((77, 77), -torch.inf, dtype=torch.float64).triu(1)
    for block in text.encoder.layers:
        y = block.layer_norm1(x)
        attention = block.self_attn
        heads = []
        for q, k, v in zip(
            *(
                p(y).chunk(config.num_attention_heads, -1)
                for p in (attention.q_proj, attention.k_proj, attention.v_proj)
            ),
            strict=True,
        ):
            heads.append((q @ k.T / q.shape[-1] ** 0.5 + mask).softmax(-1) @ v)
        x = x + attention.out_proj(torch.cat(heads, -1))
        y = block.mlp.fc1(block.layer_norm2(x))
        x = x + block.mlp.fc2(y * torch.sigmoid(1.702 * y))
    return text.final_layer_norm(x)


def noisy_and_noise(batch, draws):
    clean = torch.stack([small._encode(draw.example.pixels[None])[0] for draw in draws]).double()
    noise = torch.stack([draw.noise(tuple(clean.shape[1:])) for draw in draws]).double()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = (1 - betas).cumprod(0)[batch.noised.timesteps].view(-1, 1, 1, 1)
    return signal.sqrt() * clean + (1 - signal).sqrt() * noise, noise


def assert_equal_gradients(trainee, expected):
    found = {name: p.grad for name, p in trainee.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys() and len(found) > 2
    whole = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in found.items():
        error = (gradient.double() - expected[name]).abs().max()
        assert error <= TOLERANCE * expected[name].abs().max() + 1e-6 * whole, f"{name}: {error:.1e}"
    return whole


class WithMaps:
    """Plain attention head by head in float64; keeps its probabilities, [B, H, N, L]."""

    def __init__(self, maps):
        self.maps = maps

    def __call__(self, attention, hidden, encoder_hidden_states=None, attention_mask=None):
        rows, maps = [], []
        for b in range(len(hidden)):
            parts = [
                p(x[b]).chunk(attention.heads, -1)
                for p, x in (
                    (attention.to_q, hidden),
                    (attention.to_k, encoder_hidden_states),
                    (attention.to_v, encoder_hidden_states),
                )
            ]
            shares = [(q @ k.T / q.shape[-1] ** 0.5).softmax(-1) for q, k, _ in zip(*parts, strict=True)]
            rows.append(torch.cat([share @ v for share, v in zip(shares, parts[2], strict=True)], -1))
            maps.append(torch.stack(shares))
        self.maps.append(torch.stack(maps))
        return attention.to_out[0](torch.stack(rows))
