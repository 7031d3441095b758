"""Low-rank pairs beside frozen layers of the base, which act while they are wanted: LoRA in training.

The published change is merged into the weights when pictures are made. Beside them it has gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...model_patches.encoders.lora import LowRank


class PairSwitch:
    """Pairs that are switched together. on: whether they act."""

    def __init__(self) -> None:
        self.on = False

    def put(self, layer: nn.Module, pair: LowRank) -> None:
        """Put a pair beside a linear layer, for good."""

        def add(module: nn.Module, given: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
            return output + pair(given[0]).to(output.dtype) if self.on else None

        layer.register_forward_hook(add)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Let them act while the context is open."""
        self.on = True
        try:
            yield
        finally:
            self.on = False


def new_pair(layer: nn.Linear, rank: int) -> LowRank:
    """Return a pair for a layer that changes nothing yet."""
    pair = LowRank(layer.in_features, layer.out_features, rank)
    begin(pair)
    return pair


def begin(pair: LowRank) -> None:
    """Give a pair the numbers that a training begins with: those of `down` by chance, 0 in `up`."""
    nn.init.normal_(pair.down.weight, std=1 / pair.down.out_features)
    nn.init.zeros_(pair.up.weight)
