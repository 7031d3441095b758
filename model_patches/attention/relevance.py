"""How relevant each picture position is to each subject, and what share of it the subject gets (MIP-Adapter, arXiv
2409.17920).

Letters: G groups of rows that share their tokens (a cond or an uncond chunk), B rows in each, M subjects, N positions,
H heads, d channels a head, L name tokens of all subjects together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


def relevance_of_heads(
    queries: Float[Tensor, "G H BN d"], names: Float[Tensor, "G H L d"], segments: Float[Tensor, "G M L"], pictures: int
) -> Float[Tensor, "G {pictures} M N"]:
    """Return the attention of the name tokens over picture positions: softmax over POSITIONS, mean over heads, mean
    over a subject's own tokens.

    Arguments:
        queries: the UNet layer's own queries, split into heads.
        names: the UNet layer's own `to_k` of the name tokens (no BOS, EOS or padding unless weighted 0) times 1 /
            sqrt d.
        segments: float32, row i averages the tokens of subject i (its entries sum to 1).
        pictures: B.
    Returns:
        A, float32, >= 0, sums to 1 over N.
    """
    logits = torch.matmul(names, queries.transpose(2, 3)).unflatten(-1, (pictures, -1))  # G, H, L, B, N
    attention = logits.softmax(-1, dtype=torch.float32).mean(1)  # G, L, B, N
    return torch.bmm(segments, attention.flatten(2)).unflatten(2, (pictures, -1)).transpose(1, 2)


def shares(
    relevance: Float[Tensor, "*#any M #N"], limits: Float[Tensor, "..."] | None = None, sharpness: float = 1.0
) -> Float[Tensor, "*#any M #N"]:
    """Return `share_i = m_i A_i^s / sum_k m_k A_k^s`, or 0 if the sum is 0 (the published code's normaliser: over
    subjects).

    Arguments:
        relevance: A, float32.
        limits: m, 0..1, or None for 1 everywhere. The two are broadcast.
        sharpness: s, 1 is the published form; larger gives a position more clearly to one subject.
    Returns:
        float32 in 0..1, summing to 1 (or 0) over M.
    """
    a = relevance if limits is None else torch.where(limits > 0, relevance, torch.zeros_like(relevance))
    if sharpness != 1.0:
        # a common factor leaves the share as it is and keeps the power from underflowing
        largest = a.amax(-2, keepdim=True)
        a = torch.where(largest > 0, a / largest, a).pow(sharpness)
    if limits is not None:
        a = a * limits
    return a / a.sum(-2, keepdim=True).clamp(min=torch.finfo(a.dtype).tiny)


def limited_shares(
    relevance: Float[Tensor, "*any M N"], limits: Float[Tensor, "..."] | None = None, sharpness: float = 1.0
) -> Float[Tensor, "*any M N"]:
    """Return `share_i * m_i`: how much of each position belongs to a subject. A lone subject's share would be 1 at
    every position where its limit is, so its own relevance is returned instead, `m A^s / max_p(m A^s)`: 1 at its most
    relevant position.

    Arguments: as `shares`. Returns float32 in 0..1.
    """
    if relevance.shape[-2] > 1:
        found = shares(relevance, limits, sharpness)
        return found if limits is None else found * limits
    a = relevance / relevance.amax(-1, keepdim=True)
    a = a.pow(sharpness) if limits is None else torch.where(limits > 0, a, torch.zeros_like(a)).pow(sharpness) * limits
    largest = a.amax(-1, keepdim=True)
    return torch.where(largest > 0, a / largest, torch.zeros_like(a))


def mean_relevance(relevance: Float[Tensor, "*any M N"], sharpness: float = 1.0) -> Float[Tensor, "*any M N"]:
    """Return `A_i^s / mean_p A_i^s`, the paper's normaliser over positions; its mean over N is 1."""
    a = relevance
    if sharpness != 1.0:
        a = (a / a.amax(-1, keepdim=True)).pow(sharpness)
    return a / a.mean(-1, keepdim=True)


def background_gain(
    relevance: Float[Tensor, "*any M N"], background: float, sharpness: float = 1.0
) -> Float[Tensor, "*any N"]:
    """Return `b = background + (1 - background) * min(1, max_i A_i / mean_p A_i)`, which weakens references where no
    subject is relevant.

    Arguments: relevance A; background 0..1 (1 switches it off). Returns numbers in background..1.
    """
    return background + (1.0 - background) * mean_relevance(relevance, sharpness).amax(-2).clamp(max=1.0)


def text_gain(logits: Float[Tensor, "*any N"]) -> Float[Tensor, "*any N"]:
    """Return `f = sigmoid(w . Z_text) / mean_p(...)` of MIP-Adapter's trained files, float32.

    logits: `w . Z_text`. The mean over N is 1.
    """
    gate = torch.sigmoid(logits.float())
    return gate / gate.mean(-1, keepdim=True)
