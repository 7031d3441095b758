"""Tiny random diffusers UNets, adapters for them and references, for tests without a ComfyUI."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from troupe.model_patches.adapter import Adapter
from troupe.model_patches.families.ip_adapter import build
from troupe.model_patches.hosts.diffusers.cross_layers import cross_layers
from troupe.model_patches.subjects import References, ReferenceSubject

CONTEXT = 64
HEADS = 4
TOKENS = 4  # image tokens a subject
EMBED = 24  # of the image encoder
POOLED = 16
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
KINDS = {
    "sd15": {},
    "sd2": {"use_linear_projection": True, "attention_head_dim": (2, 4)},
    "sdxl": {
        "use_linear_projection": True,
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": POOLED + 6 * 8,
    },
}


def unet(kind: str = "sd15", seed: int = 0) -> UNet2DConditionModel:
    """A UNet of two levels, 7 (or 11) cross-attention layers, mid among them; under a second a step on a CPU."""
    torch.manual_seed(seed)
    config = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "cross_attention_dim": CONTEXT,
        "attention_head_dim": HEADS,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        **KINDS[kind],
    }
    return UNet2DConditionModel(sample_size=16, in_channels=4, out_channels=4, **config).eval().requires_grad_(False)


def scheduler() -> EulerDiscreteScheduler:
    """Stable Diffusion's noise schedule."""
    return EulerDiscreteScheduler(**SCHEDULE)


def adapter_state(
    widths: list[int], context: int = CONTEXT, text_gain: bool = False, seed: int = 1
) -> dict[str, torch.Tensor]:
    """An IP-Adapter (or, with text_gain, MIP-Adapter) file's tensors in the published layout."""
    g = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g) * shape[-1] ** -0.5

    state = {
        "image_proj.proj.weight": random(TOKENS * context, EMBED),
        "image_proj.proj.bias": random(TOKENS * context),
        "image_proj.norm.weight": torch.ones(context),
        "image_proj.norm.bias": random(context),
    }
    for j, width in enumerate(widths):
        for name in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * j + 1}.{name}.weight"] = random(width, context)
        if text_gain:
            state[f"ip_adapter.{2 * j + 1}.text_to_weight.weight"] = random(1, width) * 10
    return state


def adapter(model: UNet2DConditionModel, text_gain: bool = False, seed: int = 1) -> Adapter:
    """A random adapter of the UNet's widths."""
    widths = [layer.attention.to_q.out_features for layer in cross_layers(model)]
    return build(adapter_state(widths, text_gain=text_gain, seed=seed), "tiny.safetensors")


def references(model: UNet2DConditionModel, subjects: int = 2, text_gain: bool = False, **each: list) -> References:
    """References of that many subjects with names of 1, 3, 2, ... tokens; `each` gives a field's value for every
    subject.
    """
    g = torch.Generator().manual_seed(7)
    found = []
    for i in range(subjects):
        subject = ReferenceSubject(
            f"subject {i}",
            torch.randn(TOKENS, CONTEXT, generator=g),
            torch.randn((1, 3, 2)[i % 3], CONTEXT, generator=g),
        )
        found.append(replace(subject, **{field: values[i] for field, values in each.items()}))
    return References(
        adapter(model, text_gain),
        tuple(found),
        torch.randn(TOKENS, CONTEXT, generator=g),
        torch.randn(76, CONTEXT, generator=g),
    )


def alone(given: References, i: int) -> References:
    """The same references with only subject i."""
    return replace(given, subjects=given.subjects[i : i + 1])
