"""Several Apply nodes on one attention layer: their deltas are added to one result and never see each other's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

D = TypeVar("D")
T = TypeVar("T")
S = TypeVar("S", bound="DeltaStack")


class DeltaStack(Generic[D]):
    """The function that was in the layer's place before, and the deltas on top of it, in the order of the Apply
    nodes.

    previous: that function, or None; deltas: in the order in which they are added.
    """

    def __init__(self, previous: Any, deltas: tuple[D, ...]):
        self.previous, self.deltas = previous, deltas

    @classmethod
    def on(cls: type[S], previous: Any, delta: Any, *more: Any) -> S:
        """Return a stack on the present owner of the place; one of the same class is replaced and its deltas are kept.

        more: further arguments of the constructor.
        """
        if isinstance(previous, cls):
            return cls(previous.previous, (*previous.deltas, delta), *more)
        return cls(previous, (delta,), *more)


def at_first_call(make: Callable[[], T]) -> Callable[[], T]:
    """Return a function that computes a value at its first call and returns the same one from then on."""
    found: list[T] = []

    def get() -> T:
        if not found:
            found.append(make())
        return found[0]

    return get
