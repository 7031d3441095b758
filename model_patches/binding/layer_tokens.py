"""Keys and values of the subjects for every cross-attention layer, projected once a run and never by reading a
weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from ..adapter import ImageAttentionSpec
from ..attention.decoupled import LayerTokens, image_delta
from ..attention.merges import Mixing
from ..encoders.decoupled import ImageLayers, layers_of
from ..subjects import References
from .settings import ImageAttentionSettings

Base = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]
COND, UNCOND = "cond", "uncond"  # what rows get: the subjects, or the adapter's empty tokens
ORDER = (UNCOND, COND)  # the order of the first axis of everything here; the host usually asks for [uncond, cond]


@dataclass(frozen=True, eq=False)
class Projected:
    """The keys and values of one layer, [2, S, C], uncond first; [1, S, C] if rows of role UNCOND get nothing."""

    keys: torch.Tensor
    values: torch.Tensor


def project_images(
    layers: ImageLayers,
    references: References,
    device: torch.device,
    dtype: torch.dtype,
    bases: Iterable[Base] | None = None,
    merged: float = 0.0,
) -> list[Projected]:
    """Return the keys and values of all image tokens for every layer; the uncond tokens are the same for every subject.

    bases: the UNet's own (to_k, to_v) of each layer, and merged: how strongly the adapter's text LoRA is in them, for
    layers that need them. A subject with fewer tokens than another is filled up with zeros, see `valid_image_tokens`.
    """
    each = _given((s.tokens for s in references.subjects), "image tokens")
    longest = max(map(len, each))
    subjects = torch.stack([pad(own, (0, 0, 0, longest - len(own))) for own in each])  # M, T, D
    kinds = [subjects] if references.uncond_tokens is None else [references.uncond_tokens.expand_as(subjects), subjects]
    tokens = torch.stack([kind.flatten(0, 1) for kind in kinds]).to(device, dtype)
    found = layers_of(layers)
    pairs = bases if bases is not None else [(None, None)] * len(found)
    return [
        Projected(layer.keys(tokens, to_k, merged), layer.values(tokens, to_v, merged))
        for layer, (to_k, to_v) in zip(found, pairs, strict=True)
    ]


def valid_image_tokens(references: References, without_absent: bool, device: torch.device) -> torch.Tensor | None:
    """Return which image tokens are there, [1, S] bool, or None if all are. without_absent: those of subjects with
    weight 0 are not.
    """
    lengths = list(map(len, _given((s.tokens for s in references.subjects), "image tokens")))
    each = zip(references.subjects, lengths, strict=True)
    counts = [0 if without_absent and s.weight == 0 else length for s, length in each]
    longest = max(lengths)
    if min(counts) == longest:
        return None
    return (torch.arange(longest) < torch.tensor(counts).unsqueeze(1)).flatten().unsqueeze(0).to(device)


def project_names(
    text_keys: Iterable[Callable[[torch.Tensor], torch.Tensor]],
    references: References,
    device: torch.device,
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    """Return the name tokens projected by the UNet's own `to_k` of each layer, [2, L, C] each, with the LoRAs and hooks
    that are active now.
    """
    each = _given((s.name_tokens for s in references.subjects), "name tokens")
    (uncond,) = _given([references.uncond_name_tokens], "name tokens of the empty prompt")
    names = torch.cat(each)  # L, D
    empty = torch.zeros_like(names)
    longest = max(map(len, each))
    empty[:longest] = uncond[:longest]
    tokens = torch.stack((empty, names)).to(device, dtype)
    return [to_k(tokens) for to_k in text_keys]


def name_segments(references: References, device: torch.device) -> torch.Tensor:
    """Return the averaging weights, [2, M, L] float32: subject i's own tokens in cond rows, the first L_i tokens of the
    empty prompt in uncond rows.
    """
    lengths = list(map(len, _given((s.name_tokens for s in references.subjects), "name tokens")))
    weights = torch.zeros(2, len(lengths), sum(lengths))
    for i, length in enumerate(lengths):
        start = sum(lengths[:i])
        weights[0, i, :length] = 1.0 / length
        weights[1, i, start : start + length] = 1.0 / length
    return weights.to(device)


def pick(stored: torch.Tensor, roles: Sequence[str]) -> torch.Tensor:
    """Return the rows of the first axis for the roles of a call's chunks: a view where the order allows it. One row: of
    COND.
    """
    wanted = [ORDER[-len(stored) :].index(role) for role in roles]
    if wanted == list(range(wanted[0], wanted[0] + len(wanted))):
        return stored[wanted[0] : wanted[0] + len(wanted)]
    return torch.stack([stored[i] for i in wanted])


def layer_tokens(
    images: Projected,
    names: torch.Tensor | None,
    segments: torch.Tensor | None,
    roles: Sequence[str],
    valid_tokens: torch.Tensor | None = None,
) -> LayerTokens:
    """Return one layer's tokens for the chunks of a call."""
    if names is None or segments is None:
        return LayerTokens(pick(images.keys, roles), pick(images.values, roles), valid_tokens=valid_tokens)
    return LayerTokens(
        pick(images.keys, roles), pick(images.values, roles), pick(names, roles), pick(segments, roles), valid_tokens
    )


def call_tokens(
    references: References,
    settings: ImageAttentionSettings,
    images: Sequence[Projected],
    names: Sequence[torch.Tensor] | None,
    roles: Sequence[str],
    heads: Sequence[int],
    device: torch.device,
) -> list[LayerTokens]:
    """Return every layer's tokens for the groups of a call, prepared.

    images, names, heads: of each layer; names None if nothing asks for relevance; roles: COND or UNCOND, of each
    group. Subjects of weight 0 have no tokens in the joint softmax of an adapter that was published with it.
    """
    mixing = settings.mixing
    without_absent = mixing.rule.one_softmax and mixing.merge == references.adapter.spec.part(ImageAttentionSpec).merge
    valid_tokens = valid_image_tokens(references, without_absent, device)
    segments = None if names is None else name_segments(references, device)
    each = zip(images, names or [None] * len(images), heads, strict=True)
    return [layer_tokens(image, name, segments, roles, valid_tokens).prepared(count) for image, name, count in each]


def gain_weights(layers: ImageLayers, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor | None]:
    """Return what the text gain of each layer is made with, [C], None for layers without one."""
    return [layer.gain_weights(device, dtype) for layer in layers_of(layers)]


def layer_delta(
    query: torch.Tensor,
    tokens: LayerTokens,
    strengths: torch.Tensor,
    heads: int,
    mixing: Mixing,
    limits: torch.Tensor | None,
    gain: torch.Tensor | None,
    text: torch.Tensor | None,
    observe: Callable[[torch.Tensor, torch.Tensor], None] | None,
) -> torch.Tensor:
    """Return `image_delta` of a layer, [G, B, N, H, d].

    gain: [C], what its text gain is made with, or None; text: plain text attention [G, B, N, C], given and read only
    with a gain.
    """
    if gain is None or text is None:
        return image_delta(query, tokens, strengths, heads, mixing, limits, observe=observe)
    return image_delta(query, tokens, strengths, heads, mixing, limits, text, text @ gain, observe)


def _given(tensors: Iterable[torch.Tensor | None], what: str) -> list[torch.Tensor]:
    """The tensors. Raises ValueError if one was not encoded, which a host's own checks tell the artist first."""
    every = list(tensors)
    found = [tensor for tensor in every if tensor is not None]
    if len(found) < len(every):
        raise ValueError(f"references: expected {what}, found none")
    return found
