"""The function in a block's `attn2` replace slot during a model call: the one before it, plus our deltas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from comfy.ldm.modules import attention

from ....binding.stack import DeltaStack, at_first_call

Options = dict[str, Any]
AddedRows = tuple[int, int, torch.Tensor]  # first row, number of rows, what is added to them: [rows, N, H, d]


class Delta(Protocol):
    """A callable that computes what one Apply node adds to a layer; `text()` gives plain text attention [rows, N, C],
    computed at most once a block.
    """

    def __call__(self, q: torch.Tensor, text: Callable[[], torch.Tensor], options: Options) -> list[AddedRows]: ...


class CrossAttentionPatch(DeltaStack[Delta]):
    """`out = previous + sum of deltas`. Deltas see the block's own queries and plain text attention, never each other's
    results.

    own: the attention that the block's checkpoint asks for, see `blocks.own_attentions`, or None.
    """

    def __init__(self, previous: Callable[..., torch.Tensor] | None, deltas: tuple[Delta, ...], own: Any = None):
        super().__init__(previous, deltas)
        self._more = {} if own is None else {"preferred_attention": own}

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Options) -> torch.Tensor:
        """q [rows, N, C], k, v [rows, text tokens, C] -> [rows, N, C], before `to_out`."""

        def attend() -> torch.Tensor:
            how = {"attn_precision": options["attn_precision"], "transformer_options": options, **self._more}
            return attention.optimized_attention(q, k, v, options["n_heads"], **how)

        text = at_first_call(attend)
        out = text() if self.previous is None else self.previous(q, k, v, options)
        for delta in self.deltas:
            for start, rows, part in delta(q, text, options):
                out = _added(out, start, rows, part)
        return out


def install(transformer_options: Options, deltas: Mapping[tuple, Delta], own: Mapping[tuple, Any]) -> Options:
    """Return a copy of the options with a delta on each block key; what other packs put there (3-tuple key, else
    2-tuple) is kept underneath.

    own: the attention of blocks whose checkpoint asks for one.
    """
    options, replace = dict(transformer_options), dict(transformer_options.get("patches_replace", {}))
    slots = dict(replace.get("attn2", {}))
    for key, delta in deltas.items():
        slots[key] = CrossAttentionPatch.on(slots.get(key, slots.get(key[:2])), delta, own.get(key))
    replace["attn2"] = slots
    options["patches_replace"] = replace
    return options


def _added(out: torch.Tensor, start: int, rows: int, part: torch.Tensor) -> torch.Tensor:
    acting = (out[start : start + rows].unflatten(-1, part.shape[-2:]) + part).flatten(-2)
    return acting if rows == out.shape[0] else torch.cat((out[:start], acting, out[start + rows :]))
