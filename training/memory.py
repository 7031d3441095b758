"""How much memory a training needs beside the activations of its passes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .config.schema import TrainingConfig

FLOAT32 = 4  # bytes: trained weights, their gradients and averages are float32 whatever the passes are
STATES = {"adamw": 2 * FLOAT32, "adamw8bit": 2}  # bytes of the optimiser's two moments per weight


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    frozen: models that are not trained; weights, gradients: of what is trained; optimizer: its moments (8-bit moments
    without their scales, about 3 % more); average: the moving average of the weights, 0 without one.
    """

    frozen: int
    weights: int
    gradients: int
    optimizer: int
    average: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.frozen + self.weights + self.gradients + self.optimizer + self.average

    def sentence(self) -> str:
        """Return the numbers for the user."""
        trained = self.weights // FLOAT32 / 1e6
        return (
            f"{trained:.1f} million weights are trained. Memory without activations: {_gigabytes(self.total)} GB, "
            f"{_gigabytes(self.frozen)} of them frozen models."
        )


def memory_of(trainee: nn.Module, frozen: Iterable[nn.Module], config: TrainingConfig) -> Memory:
    """Return the memory of a training. frozen: the base's models as they lie on the device, of which trained ones are
    left out.
    """
    trained = {id(parameter): parameter for parameter in trainee.parameters() if parameter.requires_grad}
    count = sum(parameter.numel() for parameter in trained.values())
    others = {id(p): p for module in (trainee, *frozen) for p in module.parameters() if id(p) not in trained}
    return Memory(
        sum(parameter.numel() * parameter.element_size() for parameter in others.values()),
        FLOAT32 * count,
        FLOAT32 * count,
        STATES[config.optimizer] * count,
        FLOAT32 * count if config.ema else 0,
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f}" if count >= 1e8 else f"{count / 1e9:.3f}"
