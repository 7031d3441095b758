"""Counts what one pass of a training keeps and computes: bytes between forward and backward, their peak, and floating
point operations.

It runs the trainer's own forward and backward. On fake tensors, which have sizes and no numbers, that takes seconds and
next to no memory for a model of any size; on real ones it counts the same, which is how the tests check it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

PROMOTED = ("layer_norm", "group_norm")  # which autocast computes in float32 on a GPU, but not on a CPU
ON_CPU = {  # attention on a CPU, whose operations PyTorch does not count by itself
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, query, key, value, *_, **__: (
        sdpa_backward_flop_count(grad, query, key, value)
    ),
}


@dataclass(frozen=True)
class Memory:
    """Bytes of one forward and backward, of everything that did not exist before. kept: between the two; peak: the most
    at any time.
    """

    kept: int
    peak: int


class LiveBytes(TorchDispatchMode):
    """Bytes of tensors that were made while it is open and are not freed yet. now, peak: of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, tuple[Any, int]] = {}  # storage -> reference, bytes; 0 for what existed before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count the storages of its results that are none of its inputs'."""
        for given in _storages((args, kwargs)):
            self._note(given, 0)
        result = func(*args, **(kwargs or {}))
        for made in _storages(result):
            self._note(made, made.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _note(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key not in self._known:
            self.now += size
            self._known[key] = weakref.ref(storage, lambda _: self._forget(key)), size

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)[1]


def count_memory(
    forward: Callable[[], torch.Tensor], parameters: Iterable[nn.Parameter], precision: torch.dtype = torch.float32
) -> Memory:
    """Count the memory of one pass.

    Arguments:
        forward: returns the loss; parameters: of everything it uses. Gradients of those that are trained exist before
            and after, as in the second pass of a step.
        precision: of autocast, float32 for none.
    """
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    live = LiveBytes()
    with as_on_a_gpu(), live:
        with autocast(precision):
            loss = forward()
        kept = live.now
        loss.backward()
    return Memory(kept, live.peak)


def count_operations(forward: Callable[[], torch.Tensor], precision: torch.dtype = torch.float32) -> tuple[int, int]:
    """Return the floating point operations of a forward and of its backward; a multiplication and an addition are two.

    Apart from `count_memory`, because a FlopCounterMode keeps tensors that a backward makes.
    """
    flops = FlopCounterMode(display=False, custom_mapping=ON_CPU)
    with as_on_a_gpu(), flops:
        with autocast(precision):
            loss = forward()
        first = flops.get_total_flops()
        loss.backward()
    return first, flops.get_total_flops() - first


def count_without_gradients(run: Callable[[], Any]) -> tuple[int, int]:
    """Return the peak in bytes of something without a backward, and its floating point operations."""
    live, flops = LiveBytes(), FlopCounterMode(display=False, custom_mapping=ON_CPU)
    with torch.no_grad():
        with live:
            run()
        with flops:
            run()
    return live.peak, flops.get_total_flops()


def autocast(precision: torch.dtype) -> AbstractContextManager[Any]:
    """Return the precision of a forward, as accelerate sets it; nothing for float32."""
    return nullcontext() if precision == torch.float32 else torch.autocast("cpu", precision)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let autocast on a CPU compute norms in float32 while the context is open, as on a GPU."""
    with patch.multiple(nn.functional, **{name: _promoted(name) for name in PROMOTED}):
        yield


def _promoted(name: str) -> Callable[..., torch.Tensor]:
    plain = getattr(nn.functional, name)

    def run(*args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            args, kwargs = tuple(map(_float32, args)), {key: _float32(value) for key, value in kwargs.items()}
        return plain(*args, **kwargs)

    return run


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
