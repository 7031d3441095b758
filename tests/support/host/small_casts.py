"""Small casts, adapters and sampling calls that the host tests share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from troupe.model_patches.adapter import ImageAttentionSpec
from troupe.model_patches.attention.merges import Mixing
from troupe.model_patches.binding.settings import ImageAttentionSettings
from troupe.model_patches.families.ip_adapter import build
from troupe.model_patches.hosts.comfyui.apply import apply_image_attention
from troupe.model_patches.hosts.comfyui.loading import adapters
from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks
from troupe.model_patches.subjects import References, ReferenceSubject

import nodes

from . import tiny_models
from .independent_evaluation import Truth

CONTEXT = 64
TOKENS = 4


def random(*shape: int, seed: int, gain: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * gain


def adapter_state(
    patcher, text_gain: bool = False, embed: int = 16, seed: int = 11, tokens: int = TOKENS
) -> dict[str, torch.Tensor]:
    """Random weights of an ImageProj adapter in the published layout for this model's layers."""
    blocks = attention_blocks(patcher.model.diffusion_model)
    context = blocks[0].context_dim
    state = {
        "image_proj.proj.weight": random(tokens * context, embed, seed=seed, gain=embed**-0.5),
        "image_proj.proj.bias": random(tokens * context, seed=seed + 1, gain=0.1),
        "image_proj.norm.weight": 1 + random(context, seed=seed + 2, gain=0.1),
        "image_proj.norm.bias": random(context, seed=seed + 3, gain=0.1),
    }
    for j, block in enumerate(blocks):
        for k, name in enumerate(("to_k_ip", "to_v_ip")):
            state[f"ip_adapter.{2 * j + 1}.{name}.weight"] = random(
                block.width, context, seed=seed + 100 + 2 * j + k, gain=(2.0 if k else 1.0) * context**-0.5
            )
        if text_gain:
            state[f"ip_adapter.{2 * j + 1}.text_to_weight.weight"] = random(
                1, block.width, seed=seed + 500 + j, gain=block.width**-0.5 * 2
            )
    return state


def host_adapter(state: dict[str, torch.Tensor], file: str = "test.safetensors") -> adapters.HostAdapter:
    """The modules of a state dict under the host's memory management."""
    import comfy.ops

    return adapters.host_adapter(build(state, file, comfy.ops.manual_cast))


@dataclass
class Stage:
    """A model, an adapter on it, and random prompts."""

    patcher: object
    adapter: adapters.HostAdapter
    state: dict
    positive: list
    negative: list

    def references(self, count: int, weights=None, regions=None, ranges=None, lengths=None, boxes=None) -> References:
        context = self.adapter.spec.context_dim
        lengths = lengths or [1 + i % 3 for i in range(count)]
        subjects = tuple(
            ReferenceSubject(
                f"subject {i}",
                random(TOKENS, context, seed=1000 + i),
                random(lengths[i], context, seed=2000 + i),
                (weights or [1.0] * count)[i],
                *((ranges or [(0.0, 1.0)] * count)[i]),
                region=(regions or [None] * count)[i],
                box=(boxes or [None] * count)[i],
            )
            for i in range(count)
        )
        return References(self.adapter, subjects, random(TOKENS, context, seed=3000), random(76, context, seed=3001))

    def truth(self, references: References, settings: ImageAttentionSettings, **extra) -> Truth:
        kv = [
            tuple(
                self.state.get(f"ip_adapter.{2 * j + 1}.{n}.weight") for n in ("to_k_ip", "to_v_ip", "text_to_weight")
            )
            for j in range(len(self.adapter.spec.part(ImageAttentionSpec).widths))
        ]
        s = references.subjects
        return Truth(
            [x.tokens for x in s],
            [x.name_tokens for x in s],
            kv,
            references.uncond_tokens,
            references.uncond_name_tokens,
            [x.weight for x in s],
            settings.weight,
            settings.mixing.merge,
            settings.mixing.sharpness,
            settings.mixing.background,
            [x.region for x in s],
            [(x.start_percent, x.end_percent) for x in s],
            **extra,
        )

    def apply(self, references, settings, wired=True):
        """(model, positive, negative) after Apply Image Attention; wired=False is the drop-in on the MODEL wire."""
        given = (self.positive, self.negative) if wired else (None, None)
        model, positive, negative, _ = apply_image_attention(self.patcher, references, settings, *given)
        return model, positive or self.positive, negative or self.negative


def settings(
    merge: str = "relevance", weight: float = 0.65, sharpness: float = 1.0, background: float = 1.0, **rest
) -> ImageAttentionSettings:
    return ImageAttentionSettings(weight, Mixing(merge, sharpness, background), **rest)


def stage(base: str = "SD15", text_gain: bool = False, tokens: int = 77, patcher=None) -> Stage:
    """A micro model of a family (or a given one) with a random adapter."""
    patcher = patcher or tiny_models.micro_model(base, context_dim=CONTEXT)
    context = attention_blocks(patcher.model.diffusion_model)[0].context_dim
    state = adapter_state(patcher, text_gain)
    return Stage(
        patcher,
        host_adapter(state),
        state,
        tiny_models.random_cond(tokens, context, seed=1),
        tiny_models.random_cond(77, context, seed=2),
    )


def ksample(
    model, positive, negative, size=(8, 8), batch=1, steps=2, cfg=5.0, seed=1, sampler="euler", scheduler="normal"
):
    """KSampler on an empty latent of `size` (h, w) cells."""
    latent = {"samples": torch.zeros(batch, 4, *size)}
    return nodes.common_ksampler(model, seed, steps, cfg, sampler, scheduler, positive, negative, latent)[0]["samples"]


def noise_of(size=(8, 8), batch=1, seed=1):
    """The noise that KSampler starts from."""
    import comfy.sample

    return comfy.sample.prepare_noise(torch.zeros(batch, 4, *size), seed)


def error(found, expected, without) -> float:
    """Largest difference, relative to the largest effect of the references."""
    effect = (expected - without).abs().max()
    assert effect > 1e-3, "the references have no effect, so nothing is tested"
    return float((found - expected).abs().max() / effect)
