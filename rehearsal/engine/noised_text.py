"""Noise on text attention, to see which part of the picture a name acts on: MIP-Adapter's object relevance score paints
each picture with and without it.
"""

from __future__ import annotations

from typing import Any

import torch

from ...model_patches.attention.heads import split_heads
from ...model_patches.attention.relevance import relevance_of_heads
from ...model_patches.binding.layer_tokens import name_segments, project_names
from ...model_patches.hosts.diffusers.image_attention import ImageAttention

SEED = 0  # of the noise, the same in every step and layer of a size


class NoisedText(ImageAttention):
    """Image attention beside text attention with noise in its conditional rows.

    level: standard deviation of the noise, in that of the layer's attention; by_relevance: spread in proportion to the
    relevance of the first subject's name, else evenly. Either way its mean weight over positions is 1.
    """

    level, by_relevance = 0.0, False

    def __enter__(self) -> NoisedText:
        super().__enter__()
        names = project_names(
            (layer.attention.to_k for layer in self._layers), self.references, self._unet.device, self._unet.dtype
        )
        segments = name_segments(self.references, self._unet.device)
        for layer, name in zip(self._layers, names, strict=True):
            heads = layer.attention.heads
            keys = split_heads(name[-1:] * (name.shape[-1] // heads) ** -0.5, heads)
            weights: dict[str, torch.Tensor] = {}

            def see(
                module: torch.nn.Module,
                args: tuple[Any, ...],
                query: torch.Tensor,
                heads: int = heads,
                keys: torch.Tensor = keys,
                weights: dict[str, torch.Tensor] = weights,
            ) -> None:
                cond = query.chunk(len(self.roles))[-1]  # B, N, C
                found = relevance_of_heads(split_heads(cond.flatten(0, 1)[None], heads), keys, segments[-1:], len(cond))
                a = found[0][:, 0]  # B, N
                weights["now"] = a / a.mean(-1, keepdim=True) if self.by_relevance else torch.ones_like(a)

            def disturb(
                module: torch.nn.Module, args: tuple[torch.Tensor, ...], weights: dict[str, torch.Tensor] = weights
            ) -> tuple[torch.Tensor, ...]:
                *others, cond = args[0].chunk(len(self.roles))
                drawn = torch.randn(cond.shape[1:], generator=torch.Generator().manual_seed(SEED)).to(cond)
                noise = self.level * cond.std() * drawn * weights["now"][..., None]
                return (torch.cat([*others, cond + noise]), *args[1:])

            self._hooks.append(layer.attention.to_q.register_forward_hook(see))
            self._hooks.append(layer.attention.to_out[0].register_forward_pre_hook(disturb))
        return self


def noised_text(noise: float, relevance: bool) -> type[NoisedText]:
    """Return a NoisedText of a level."""
    return type("NoisedText", (NoisedText,), {"level": noise, "by_relevance": relevance})
