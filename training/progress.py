"""What is shown while a training runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from tqdm import tqdm

SMOOTH = 0.98  # of the shown loss


class Progress:
    """A bar with loss, pictures a second, time left and memory, in one process.

    steps: of the whole training; done: of them, before this run; pictures: of a step; weights: factor of each loss in
        the shown one; shown: whether it is this process.
    """

    def __init__(self, steps: int, done: int, pictures: int, weights: Mapping[str, float], shown: bool):
        self._bar = tqdm(total=steps, initial=done, desc="training", unit="step", disable=not shown, file=sys.stderr)
        self._pictures, self._weights, self._begun, self._first = pictures, weights, time.perf_counter(), done
        self._loss: float | None = None

    def update(self, step: int, losses: Mapping[str, float]) -> dict[str, float]:
        """Show a finished step, by its losses before they are weighted. Returns what was shown, for logs."""
        loss = sum(self._weights[name] * value for name, value in losses.items())
        self._loss = loss if self._loss is None else SMOOTH * self._loss + (1 - SMOOTH) * loss
        seconds = max(time.perf_counter() - self._begun, 1e-9)
        speed = (step - self._first) * self._pictures / seconds
        shown = {"loss": self._loss, "pictures_per_second": speed, "memory_gb": memory() / 2**30}
        self._bar.set_postfix_str(
            f"loss {self._loss:.4f}, {speed:.1f} pictures/s, {shown['memory_gb']:.1f} GB", refresh=False
        )
        self._bar.update(step - self._bar.n)
        return {**shown, **{f"loss/{name}": value for name, value in losses.items()}}

    def say(self, sentence: str) -> None:
        """Show a sentence above the bar."""
        if not self._bar.disable:
            self._bar.write(sentence, file=sys.stderr)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()


def memory() -> int:
    """Return the most memory that was used, in bytes: the GPU's, else this process's (0 if that is not known)."""
    gpu: Any = getattr(torch, "get_device_module", lambda: None)()  # since PyTorch 2.4; torch.cpu has no such figures
    if hasattr(gpu, "max_memory_allocated") and gpu.is_available():
        return gpu.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
