"""Keys and values of the subjects for every cross-attention layer, projected once a run and never by reading a weight."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from .attention.decoupled import LayerTokens
from .encoders.decoupled import DecoupledLayers
from .subjects import References

COND, UNCOND = "cond", "uncond"  # what rows get: the subjects, or the adapter's empty tokens
ORDER = (UNCOND, COND)  # the order of the first axis of everything here; the host usually asks for [uncond, cond]


@dataclass(frozen=True, eq=False)
class Projected:
    """[2, S, C] keys and values of one layer, uncond first."""

    keys: torch.Tensor
    values: torch.Tensor


def project_images(layers: DecoupledLayers, references: References, device: torch.device, dtype: torch.dtype) -> list[Projected]:
    """`to_k_ip` and `to_v_ip` of all image tokens for every layer; the uncond tokens are the same for every subject."""
    subjects = torch.stack([s.tokens for s in references.subjects])  # M, T, D
    tokens = torch.stack((references.uncond_tokens.expand_as(subjects).flatten(0, 1), subjects.flatten(0, 1))).to(device, dtype)
    return [Projected(layer.to_k_ip(tokens), layer.to_v_ip(tokens)) for layer in layers.layers]


def project_names(text_keys: Iterable[Callable[[torch.Tensor], torch.Tensor]], references: References, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """The UNet's own `to_k` (one for each layer) of the name tokens, [2, L, C] each, LoRAs and hooks of the moment included."""
    names = torch.cat([s.name_tokens for s in references.subjects])  # L, D
    empty = torch.zeros_like(names)
    longest = max(len(s.name_tokens) for s in references.subjects)
    empty[:longest] = references.uncond_name_tokens[:longest]
    tokens = torch.stack((empty, names)).to(device, dtype)
    return [to_k(tokens) for to_k in text_keys]


def name_segments(references: References, device: torch.device) -> torch.Tensor:
    """[2, M, L] float32 averaging weights: subject i's own tokens in cond rows, the first L_i tokens of the empty prompt in uncond rows."""
    lengths = [len(s.name_tokens) for s in references.subjects]
    weights = torch.zeros(2, len(lengths), sum(lengths))
    for i, length in enumerate(lengths):
        start = sum(lengths[:i])
        weights[0, i, :length] = 1.0 / length
        weights[1, i, start:start + length] = 1.0 / length
    return weights.to(device)


def pick(stored: torch.Tensor, roles: Sequence[str]) -> torch.Tensor:
    """Rows of the first axis for the roles of a call's chunks: a view where the order allows it."""
    wanted = [ORDER.index(role) for role in roles]
    if wanted == list(range(wanted[0], wanted[0] + len(wanted))):
        return stored[wanted[0]:wanted[0] + len(wanted)]
    return torch.stack([stored[i] for i in wanted])


def layer_tokens(images: Projected, names: torch.Tensor | None, segments: torch.Tensor | None, roles: Sequence[str]) -> LayerTokens:
    """One layer's tokens for the chunks of a call."""
    if names is None or segments is None:
        return LayerTokens(pick(images.keys, roles), pick(images.values, roles))
    return LayerTokens(pick(images.keys, roles), pick(images.values, roles), pick(names, roles), pick(segments, roles))
