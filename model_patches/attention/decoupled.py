"""Decoupled image cross-attention of several subjects, merged by relevance (IP-Adapter, arXiv 2308.06721; MIP-Adapter, arXiv 2409.17920).

Letters as in relevance.py; T image tokens a subject, S = M*T of them in all, subject-major.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import scaled_dot_product_attention

from .relevance import background_gain, mean_relevance, owned, relevance, shares, text_gain

MANY_TOKENS = 64  # a subject; full-face files have 257, for which the map of the fused form fills the memory
MERGES = ("relevance", "paper", "uniform", "joint", "add")


@dataclass(frozen=True, eq=False)
class LayerTokens:
    """What one cross-attention layer needs of the subjects; depends on no timestep, so it is made once a run.

    keys, values: [G, S, C] image keys and values; name_keys: [G, L, C] or None where nothing asks for relevance;
    segments: [G, M, L] float32 (see `relevance`) or None; columns: [1 or G, S] bool, image tokens that are there, or None for all: a subject
    with fewer tokens than another has some that are not, an absent one has none.
    """

    keys: torch.Tensor
    values: torch.Tensor
    name_keys: torch.Tensor | None = None
    segments: torch.Tensor | None = None
    columns: torch.Tensor | None = None

    def group(self, index: int) -> LayerTokens:
        """The tokens of one group alone, G = 1."""
        found = self._map(lambda t: t[index:index + 1])
        return found if self.columns is None or len(self.columns) == 1 else replace(found, columns=self.columns[index:index + 1])

    def float(self) -> LayerTokens:
        """The same in float32."""
        return self._map(torch.Tensor.float)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> LayerTokens:
        names, segments = (None if t is None else change(t) for t in (self.name_keys, self.segments))
        return LayerTokens(change(self.keys), change(self.values), names, segments, self.columns)


@dataclass(frozen=True)
class Mixing:
    """How several subjects share a position.

    merge: `relevance` (published code), `paper`, `uniform` (1/M of each subject's own softmax), `joint` (one softmax over all tokens) or
    `add` (share 1 each); sharpness: power on the relevance, > 0; background: 0..1, see `background_gain`.
    """

    merge: str = "relevance"
    sharpness: float = 1.0
    background: float = 1.0

    def needs_relevance(self, subjects: int) -> bool:
        """Whether the names' attention must be known for that many subjects (a lone one's share is 1 without it)."""
        if self.merge == "paper":
            return True
        if self.merge == "relevance":
            return subjects > 1 or self.background < 1.0
        return self.merge != "uniform" and self.background < 1.0


def image_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, weights: torch.Tensor, heads: int, joint: bool = False,
                    columns: torch.Tensor | None = None) -> torch.Tensor:
    """`sum_i weights_i(p) * softmax_T(q k_i^T / sqrt d) v_i`, all subjects in one pass, or one by one where their tokens are many.

    Arguments:
        query: [G, B, N, C]; keys, values: [G, S, C]; heads: H.
        weights: [G, B, M, N], multiplied after the softmax.
        joint: one softmax over all S tokens instead of one per subject.
        columns: [1 or G, S] bool, tokens that are there, or None for all; the others take no part in a softmax, and a subject without any weighs 0.
    Returns:
        [G, B, N, C] in the query's dtype, heads joined, before `to_out`.
    """
    g, b, n, c = query.shape
    m, s, d = weights.shape[2], keys.shape[1], c // heads
    q = query.reshape(g, b * n, heads, d).transpose(1, 2)  # G, H, B*N, d
    if columns is not None:
        weights = weights * _present(columns, m)
    if s // m > MANY_TOKENS and not joint:
        return _subject_by_subject(q, keys, values, weights, columns).transpose(1, 2).reshape(g, b, n, c)
    k = (keys * d**-0.5).view(g, s, heads, d).permute(0, 2, 3, 1)  # G, H, d, S
    v = values.view(g, s, heads, d).transpose(1, 2)  # G, H, S, d
    logits = torch.matmul(q, k)  # G, H, B*N, S
    if columns is not None:
        logits = logits.masked_fill(~columns[:, None, None], torch.finfo(logits.dtype).min)  # finite: a softmax over nothing weighs 0, and is not NaN
    p = logits.softmax(-1) if joint else logits.view(g, heads, b * n, m, s // m).softmax(-1).flatten(-2)
    w = weights.transpose(2, 3).reshape(g, 1, b * n, m, 1).to(p.dtype)
    p = (p.view(g, heads, b * n, m, s // m) * w).flatten(-2)
    return torch.matmul(p, v).transpose(1, 2).reshape(g, b, n, c)


def _present(columns: torch.Tensor, m: int) -> torch.Tensor:
    """Which subjects have any token, [1 or G, 1, M, 1] bool."""
    return columns.unflatten(1, (m, -1)).any(-1)[:, None, :, None]


def _subject_by_subject(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, weights: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
    """The same sum without a map of all positions times all tokens. q [G, H, B*N, d], keys, values [G, S, C], weights [G, B, M, N] -> [G, H, B*N, d]."""
    (g, heads, _, d), m = q.shape, weights.shape[2]
    k, v = (x.view(g, m, -1, heads, d).permute(1, 0, 3, 2, 4) for x in (keys, values))  # M, G, H, T, d
    w = weights.permute(2, 0, 1, 3).reshape(m, g, 1, -1, 1).to(q.dtype)  # M, G, 1, B*N, 1
    bias = [None] * m
    if columns is not None:
        masked = torch.zeros(columns.shape, dtype=q.dtype, device=q.device).masked_fill(~columns, torch.finfo(q.dtype).min)
        bias = masked.unflatten(1, (m, 1, 1, -1)).unbind(1)  # 1 or G, 1, 1, T each
    total = torch.zeros_like(q)
    for i in range(m):
        total = torch.addcmul(total, scaled_dot_product_attention(q, k[i], v[i], attn_mask=bias[i]), w[i])
    return total


def image_delta(query: torch.Tensor, tokens: LayerTokens, strengths: torch.Tensor, heads: int, mixing: Mixing, limits: torch.Tensor | None = None,
                text: torch.Tensor | None = None, text_logits: torch.Tensor | None = None, observe: Callable[[torch.Tensor], None] | None = None) -> torch.Tensor:
    """What the subjects add to a cross-attention layer's result, before `to_out`.

    `sum_i strength_i * f(p) * b(p) * share_i(p) * m_i(p) * Z_i(p)`; with every m = 1, sharpness 1 and background 1 this is MIP-Adapter's
    published code (paper's form: `(f - 1) Z_text + sum_i strength_i * A_i/mean_p(A_i) * Z_i`).

    Arguments:
        query: [G, B, N, C]; tokens: of this layer; heads: H.
        strengths: [M] float32, weight of the node times weight of the subject (0 where a subject rests in this step).
        mixing: see `Mixing`.
        limits: m, [1 or G, 1 or B, M, N] float32 in 0..1, or None.
        text: Z_text, [G, B, N, C], plain text attention (only merge `paper` with text_logits reads it).
        text_logits: [G, B, N], `text_to_weight(Z_text)` of files that have it, else None (f = 1).
        observe: is told `owned`, [G, B, M, N] float32, by the names' relevance whatever the merge; the tokens must have names then. Changes nothing.
    Returns:
        [G, B, N, C] in the query's dtype.
    """
    g, b, n, _ = query.shape
    m = strengths.shape[0]
    if tokens.columns is not None:  # who is absent has no share
        limits = _present(tokens.columns, m).float() * (1.0 if limits is None else limits)
    a = relevance(query, tokens.name_keys, tokens.segments, heads) if mixing.needs_relevance(m) else None
    weights = _position_weights(a, mixing, limits) if a is not None else None
    if weights is None:
        weights = _equal_weights(mixing, limits, query.new_ones((g, b, m, n), dtype=torch.float32))
    if limits is not None:
        weights = weights * limits
    if observe is not None:
        known = mixing.merge == "relevance" and m > 1
        observe(weights if known else owned(relevance(query, tokens.name_keys, tokens.segments, heads) if a is None else a, limits, mixing.sharpness))
    weights = weights * strengths.view(1, 1, m, 1)
    if a is not None and mixing.background < 1.0:
        weights = weights * background_gain(a, mixing.background, mixing.sharpness).unsqueeze(2)
    gain = None if text_logits is None else text_gain(text_logits)
    if gain is not None and mixing.merge != "paper":
        weights = weights * gain.unsqueeze(2)
    delta = image_attention(query, tokens.keys, tokens.values, weights, heads, mixing.merge == "joint", tokens.columns)
    if gain is not None and mixing.merge == "paper":
        delta = delta + (gain.unsqueeze(-1) - 1.0).to(text.dtype) * text
    return delta


def _position_weights(a: torch.Tensor, mixing: Mixing, limits: torch.Tensor | None) -> torch.Tensor | None:
    """What the merge makes of the relevance A, [G, B, M, N], or None where it gives every position the same."""
    if mixing.merge == "paper":
        return mean_relevance(a, mixing.sharpness)
    return shares(a, limits, mixing.sharpness) if mixing.merge == "relevance" else None


def _equal_weights(mixing: Mixing, limits: torch.Tensor | None, ones: torch.Tensor) -> torch.Tensor:
    """Weights without relevance: 1 for `add` and `joint`, equal shares for `uniform` and for a lone subject. ones: [G, B, M, N]."""
    return ones if mixing.merge in ("add", "joint") else shares(ones, limits)
