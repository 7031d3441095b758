"""Decoupled image cross-attention of several subjects, merged by relevance (IP-Adapter, arXiv 2308.06721; MIP-Adapter,
arXiv 2409.17920).

Letters as in relevance.py; T image tokens a subject, S = M*T of them in all, subject-major.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .heads import split_heads
from .merges import Mixing
from .relevance import background_gain, limited_shares, relevance_of_heads, text_gain

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

MANY_TOKENS = 64  # a subject; full-face files have 257, for which the map of the fused form fills the memory
MAP = 2**19  # entries of that map that a CPU computes at a time: they stay in its cache
HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True, eq=False)
class HeadTokens:
    """A layer's tokens split into heads; keys and names times 1 / sqrt d."""

    keys: Float[Tensor, "G H S d"]
    values: Float[Tensor, "G H S d"]
    names: Float[Tensor, "G H L d"] | None


@dataclass(frozen=True, eq=False)
class LayerTokens:
    """The subjects' tokens for one cross-attention layer. They depend on no timestep, so they are made once a run.

    keys, values: of the image tokens; name_keys: None if nothing asks for relevance; segments: float32, see
    `relevance_of_heads`; valid_tokens: image tokens that are there, None for all: a subject with fewer tokens than
    another has some that are not, an absent one has none; split: the same in heads, of tokens that are `prepared`.
    """

    keys: Float[Tensor, "G S C"]
    values: Float[Tensor, "G S C"]
    name_keys: Float[Tensor, "G L C"] | None = None
    segments: Float[Tensor, "G M L"] | None = None
    valid_tokens: Bool[Tensor, "#G S"] | None = None
    split: HeadTokens | None = None

    def prepared(self, heads: int) -> LayerTokens:
        """Return the same with `split`, so that no step has to make it."""
        return self if self.split is not None else replace(self, split=self.in_heads(heads))

    def in_heads(self, heads: int) -> HeadTokens:
        """Return `split`, made anew for tokens that are not `prepared`."""
        if self.split is not None:
            return self.split
        scale = (self.keys.shape[-1] // heads) ** -0.5
        names = None if self.name_keys is None else split_heads(self.name_keys * scale, heads)
        return HeadTokens(split_heads(self.keys * scale, heads), split_heads(self.values, heads), names)

    def group(self, index: int) -> LayerTokens:
        """Return the tokens of one group alone, G = 1."""
        found = self._map(lambda t: t[index : index + 1])
        return (
            found
            if self.valid_tokens is None or len(self.valid_tokens) == 1
            else replace(found, valid_tokens=self.valid_tokens[index : index + 1])
        )

    def float(self) -> LayerTokens:
        """Return the same in float32."""
        return self._map(torch.Tensor.float)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> LayerTokens:
        def optional(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else change(tensor)

        split = self.split
        if split is not None:
            split = HeadTokens(change(split.keys), change(split.values), optional(split.names))
        names, segments = optional(self.name_keys), optional(self.segments)
        return LayerTokens(change(self.keys), change(self.values), names, segments, self.valid_tokens, split)


def attend(
    queries: Float[Tensor, "G H BN d"], tokens: LayerTokens, weights: Float[Tensor, "G B M N"], joint: bool = False
) -> Float[Tensor, "G H BN d"]:
    """Return `sum_i weights_i(p) * softmax_T(q k_i^T / sqrt d) v_i`, all subjects in one pass, or one by one where
    their tokens are many.

    Arguments:
        queries: of all rows of a group; tokens: prepared; those that are not in `valid_tokens` are excluded from the
            softmax, and a subject without any weighs 0.
        weights: multiplied after the softmax.
        joint: one softmax over all S tokens instead of one per subject.
    Returns:
        In the dtype of the queries, before `to_out`.
    """
    valid_tokens, (g, _, m, _), h, bn = tokens.valid_tokens, weights.shape, queries.shape[1], queries.shape[2]
    mine = tokens.in_heads(h)
    s = mine.keys.shape[2]
    if valid_tokens is not None:
        weights = weights * _present(valid_tokens, m)
    if s // m > MANY_TOKENS and not joint:
        return _subject_by_subject(queries, mine, weights, valid_tokens)
    weights = weights.transpose(1, 2).reshape(g, m, bn)
    step = max(1, MAP // (g * h * s))
    if queries.device.type != "cpu" or bn <= step:
        return _fused(queries, weights, mine, valid_tokens, joint)
    parts = zip(queries.split(step, 2), weights.split(step, 2), strict=True)
    return torch.cat([_fused(*part, mine, valid_tokens, joint) for part in parts], 2)


def token_shares(
    queries: Float[Tensor, "G H P d"],
    tokens: HeadTokens,
    subjects: int,
    valid_tokens: Bool[Tensor, "#G S"] | None = None,
    joint: bool = False,
) -> Float[Tensor, "G H M T P"]:
    """Return what share of each position's image attention each token has: the softmax over one subject's tokens, or
    with `joint` over all. subjects: M; tokens that are not in `valid_tokens` are excluded.
    """
    logits = torch.matmul(tokens.keys, queries.transpose(2, 3))  # G, H, S, P
    if valid_tokens is not None:
        # finite: a softmax over nothing weighs 0, and is not NaN
        logits = logits.masked_fill(~valid_tokens[:, None, :, None], torch.finfo(logits.dtype).min)
    if joint:
        return logits.softmax(2).unflatten(2, (subjects, -1))
    return logits.unflatten(2, (subjects, -1)).softmax(3)


def _fused(
    queries: torch.Tensor, weights: torch.Tensor, tokens: HeadTokens, valid_tokens: torch.Tensor | None, joint: bool
) -> torch.Tensor:
    """All subjects in one pass. queries [G, H, P, d], weights [G, M, P] -> [G, H, P, d]. Positions lie innermost in the
    map: subjects have few tokens, and what runs along them would be mostly overhead."""
    p = token_shares(queries, tokens, weights.shape[1], valid_tokens, joint)
    p = (p * weights[:, None, :, None].to(p.dtype)).flatten(2, 3)
    return torch.matmul(p.transpose(2, 3), tokens.values)


def _present(valid_tokens: torch.Tensor, m: int) -> torch.Tensor:
    """Which subjects have any token, [1 or G, 1, M, 1] bool."""
    return valid_tokens.unflatten(1, (m, -1)).any(-1)[:, None, :, None]


def _subject_by_subject(
    q: torch.Tensor, tokens: HeadTokens, weights: torch.Tensor, valid_tokens: torch.Tensor | None
) -> torch.Tensor:
    """The same sum without a map of all positions times all tokens. q [G, H, B*N, d], weights [G, B, M, N] -> [G, H,
    B*N, d].
    """
    m = weights.shape[2]
    k, v = (x.unflatten(2, (m, -1)).unbind(2) for x in (tokens.keys, tokens.values))  # G, H, T, d each
    w = weights.permute(2, 0, 1, 3).reshape(m, len(q), 1, -1, 1).to(q.dtype)  # M, G, 1, B*N, 1
    bias = [None] * m
    if valid_tokens is not None:
        masked = torch.zeros(valid_tokens.shape, dtype=q.dtype, device=q.device).masked_fill(
            ~valid_tokens, torch.finfo(q.dtype).min
        )
        bias = masked.unflatten(1, (m, 1, 1, -1)).unbind(1)  # 1 or G, 1, 1, T each
    total = torch.zeros_like(q)
    for i in range(m):
        total = torch.addcmul(total, scaled_dot_product_attention(q, k[i], v[i], attn_mask=bias[i], scale=1.0), w[i])
    return total


def image_delta(
    query: Float[Tensor, "G B N C"],
    tokens: LayerTokens,
    strengths: Float[Tensor, " M"],
    heads: int,
    mixing: Mixing,
    limits: Float[Tensor, "#G #B M N"] | None = None,
    text: Float[Tensor, "G B N C"] | None = None,
    text_logits: Float[Tensor, "G B N"] | None = None,
    observe: Callable[[Tensor, Tensor], None] | None = None,
) -> Float[Tensor, "G B N {heads} d"]:
    """Return what the subjects add to a cross-attention layer's result, before `to_out`.

    `sum_i strength_i * f(p) * b(p) * share_i(p) * m_i(p) * Z_i(p)`; with every m = 1, sharpness 1 and background 1 this
    is MIP-Adapter's published code (paper's form: `(f - 1) Z_text + sum_i strength_i * A_i/mean_p(A_i) * Z_i`).

    Arguments:
        query: of the visual tokens; tokens: of this layer, best `prepared`; heads: H.
        strengths: float32, weight of the node times weight of the subject (0 if it is disabled in this step).
        mixing: see `Mixing`.
        limits: m, float32 in 0..1, or None.
        text: Z_text, plain text attention (read only by a merge with `gain_on_text`, with text_logits).
        text_logits: `text_to_weight(Z_text)` of files that have it, else None (f = 1); give text with them.
        observe: receives `limited_shares` and the names' relevance, [G, B, M, N] float32 each, whatever the merge; the
            tokens must have names then. Changes nothing.
    Returns:
        In the query's dtype, heads apart: the caller joins them in the pass that adds the result.
    """
    g, b, n, _ = query.shape
    m = strengths.shape[0]
    if tokens.valid_tokens is not None:  # who is absent has no share
        limits = _present(tokens.valid_tokens, m).float() * (1.0 if limits is None else limits)
    queries, tokens = split_heads(query.flatten(1, 2), heads), tokens.prepared(heads)
    rule, needed = mixing.rule, mixing.needs_relevance(m)
    a = _relevance(queries, tokens.in_heads(heads).names, tokens.segments, b) if needed or observe is not None else None
    if a is not None and needed and rule.weights is not None:
        weights = rule.weights(a, limits, mixing.sharpness)
    else:
        weights = rule.equal_weights(strengths.new_ones((1, 1, m, 1)), limits)
    if limits is not None:
        weights = weights * limits
    if a is not None and observe is not None:
        observe(weights if rule.records_weights and m > 1 else limited_shares(a, limits, mixing.sharpness), a)
    weights = weights * strengths.view(1, 1, m, 1)
    if a is not None and needed and mixing.background < 1.0:
        weights = weights * background_gain(a, mixing.background, mixing.sharpness).unsqueeze(2)
    gain = None if text_logits is None else text_gain(text_logits)
    if gain is not None and not rule.gain_on_text:
        weights = weights * gain.unsqueeze(2)
    largest = None
    # weights up to N would overflow: they meet the values as parts of 1
    if query.dtype == torch.float16 and (rule.above_one or gain is not None):
        largest = weights.amax(2, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        weights = weights / largest
    delta = attend(queries, tokens, weights.expand(g, b, m, n), rule.one_softmax).transpose(1, 2).unflatten(1, (b, n))
    if largest is not None:
        delta = delta.float() * largest.expand(g, b, 1, n).transpose(2, 3).unsqueeze(-1)
    if text is not None and gain is not None and rule.gain_on_text:
        delta = delta + ((gain.unsqueeze(-1) - 1.0).to(delta.dtype) * text.to(delta.dtype)).unflatten(-1, (heads, -1))
    return delta if largest is None else delta.clamp(-HALF, HALF).half()


def _relevance(
    queries: torch.Tensor, names: torch.Tensor | None, segments: torch.Tensor | None, pictures: int
) -> torch.Tensor:
    """`relevance_of_heads`, without gradients: the published training detaches it. Raises ValueError for tokens without
    names.
    """
    if names is None or segments is None:
        raise ValueError("layer tokens: expected keys of the subjects' names, found none")
    return relevance_of_heads(queries.detach(), names.detach(), segments, pictures)
