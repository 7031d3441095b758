"""Attention that trains faster in the rehearsal world on a CPU.

`rehearsal.training.loop.PlainAttention` does the same for the base model; recipes put their own processors there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .config.schema import Config


def two_products_are_faster(config: Config, device: torch.device) -> bool:
    """Return whether a training should compute attention as two products of matrices.

    In bf16 on a CPU the gradients of torch's fused kernel take longer. The products need memory for all shares, which
    is little for the rehearsal world's 256 positions, but not for large models.
    """
    return device.type == "cpu" and config.base.kind == "rehearsal" and config.training.precision == "bf16"


@contextmanager
def two_products(use: bool = True) -> Iterator[None]:
    """Let torch compute attention as two products of matrices, in its input's precision, while the context is open.

    use: whether to do so.
    """
    if not use:
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # on a CPU too: products in bf16, not in float32
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
