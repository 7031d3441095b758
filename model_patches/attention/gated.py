"""The gated self-attention adapter between a block's self- and cross-attention (GLIGEN, arXiv 2301.07093;
Subject-Diffusion, arXiv 2307.11410).

As published, object tokens are appended to the visual tokens, all attend to all, and the objects' own results are
thrown away. Here objects have keys and values only: they depend on no timestep, so they are made once a run, and what
would be thrown away is not computed.

Letters: B rows, G groups of rows that share their object tokens (rows group by group, B a multiple of G), N positions,
M object tokens of all subjects together, C channels of the block, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

if TYPE_CHECKING:
    from jaxtyping import Float

PROGRESS_ROUNDING = 1e-5  # of a progress that was found from a float32 sigma


@dataclass(frozen=True, eq=False)
class ObjectTokens:
    """The objects' tokens for one gated layer: keys, values [G, M, C], and its two gates, `tanh` of the trained
    scalars, in -1..1, as numbers, or as tensors [] while they are trained; equal: of each group whether its M tokens
    are one and the same, () where none are.
    """

    keys: Float[Tensor, "G M C"]
    values: Float[Tensor, "G M C"]
    attention_gate: float | Float[Tensor, ""]
    dense_gate: float | Float[Tensor, ""]
    equal: tuple[bool, ...] = ()

    def group(self, g: int) -> ObjectTokens:
        """Return the tokens of group g alone, [1, M, C]."""
        return replace(self, keys=self.keys[g : g + 1], values=self.values[g : g + 1], equal=self.equal[g : g + 1])


def gated_self_attention(
    query: Float[Tensor, "B N C"],
    keys: Float[Tensor, "B N C"],
    values: Float[Tensor, "B N C"],
    objects: ObjectTokens,
    heads: int,
) -> Float[Tensor, "B N C"]:
    """Return `softmax(q [k; k_o]^T / sqrt d) [v; v_o]` for the visual tokens' queries.

    Arguments:
        query, keys, values: [B, N, C], of the visual tokens; objects: [G, M, C] each; heads: H.
    Returns:
        [B, N, C], heads joined, before the output projection.
    """
    if any(objects.equal) and query.device.type == "cpu":  # the mask that it takes costs a GPU its fastest kernels
        rows = query.shape[0] // len(objects.equal)
        groups = zip(query.split(rows), keys.split(rows), values.split(rows), strict=True)
        return torch.cat([_group_attention(*of_group, objects.group(g), heads) for g, of_group in enumerate(groups)])
    return _attention(query, keys, values, objects, heads)


def _group_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, objects: ObjectTokens, heads: int
) -> torch.Tensor:
    """One group: M equal tokens are one whose logit is greater by log M."""
    if not objects.equal[0]:
        return _attention(query, keys, values, objects, heads)
    one = replace(objects, keys=objects.keys[:, :1], values=objects.values[:, :1])
    return _attention(
        query,
        keys,
        values,
        one,
        heads,
        pad(query.new_zeros(1, keys.shape[1]), (0, 1), value=math.log(objects.keys.shape[1])),
    )


def _attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    objects: ObjectTokens,
    heads: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """bias: [1, N + M], added to the logits, or None."""
    b, n, c = query.shape
    # B, N + M, C
    k, v = torch.cat((keys, rows_of(objects.keys, b)), 1), torch.cat((values, rows_of(objects.values, b)), 1)
    q, k, v = (x.view(b, -1, heads, c // heads).transpose(1, 2) for x in (query, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(b, n, c)


def rows_of(grouped: Float[Tensor, "G M C"], b: int) -> Float[Tensor, "{b} M C"]:
    """Map [G, M, C] to [B, M, C]: every group's tokens for each of its rows.

    Raises ValueError if B is not a multiple of G.
    """
    g = grouped.shape[0]
    if b % g:
        raise ValueError(f"object tokens: expected one group, or groups that share {b} rows evenly, found {g} groups")
    return grouped.unsqueeze(1).expand(g, b // g, *grouped.shape[1:]).flatten(0, 1)


def gated_residual(
    x: Float[Tensor, "*any C"],
    branch: Callable[[Tensor], Tensor],
    gate: float | Float[Tensor, ""],
    scale: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, "*any C"]:
    """Return `x + scale * gate * branch(x)`, or x unchanged, without calling `branch`, if scale or gate is 0. x [B, N,
    C]; gate -1..1, as a tensor [] with gradients, which are also there at 0; scale: strength times `scale_at`, as a
    number or as a tensor [] on the device of x, which is not read, so it may change without recompiling a graph.
    """
    never = not isinstance(gate, torch.Tensor) and gate == 0
    if never or (not isinstance(scale, torch.Tensor) and scale == 0):
        return x
    return (branch(x) * (scale * gate)).add_(x)


def weighted(objects: ObjectTokens, weights: Float[Tensor, "*G M"]) -> ObjectTokens:
    """Return the objects with each token's values scaled by its weight. weights: [M] or [G, M].

    Tokens in the dtype of `objects`.
    """
    return replace(objects, values=objects.values * weights.to(objects.values).unsqueeze(-1))


def scale_at(progress: float, end: float, decay: float = 0.0) -> float:
    """Return the scale of GLIGEN's scheduled sampling if no step count is known: 1 before `end`, then linearly to 0
    over `decay`, then 0.

    Arguments: all 0..1 of the run; `end` of 1 or more never ends. A progress on the end, whatever rounding made of it,
    is past it. Published `alpha_type` is (end, decay, rest), end is the paper's tau: (0.3, 0, 0.7) for text boxes, (1,
    0, 0) for images; there a step takes the value that this line has at the step's end.
    """
    if progress < end - PROGRESS_ROUNDING or end >= 1:
        return 1.0
    return min(1.0, max(0.0, 1.0 - (progress - end) / decay)) if decay > 0 else 0.0
