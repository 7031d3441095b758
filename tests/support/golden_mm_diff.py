"""The stored outputs of the official MM-Diff and FastComposer modules and of UMM-Diffusion's formulas, and the
deterministic weights behind them.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

FOLDER = Path(__file__).parent.parent / "golden"
MODES = ("std", "wide")
SHAPES: dict[str, list[int]] = json.loads((FOLDER / "mm_diff" / "parameters.json").read_text())["parameters"]


@cache
def golden(name: str) -> dict[str, torch.Tensor]:
    """All tensors of a stored file, by its stem: of MM-Diff and FastComposer, or `umm`."""
    return safetensors.torch.load_file(FOLDER / ("umm" if name == "umm" else "mm_diff") / f"{name}.safetensors")


def normal(name: str, *shape: int) -> torch.Tensor:
    """Standard normal, seeded by the name, float64."""
    return torch.from_numpy(np.asarray(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)))


def parameter(name: str, shape: list[int], mode: str) -> torch.Tensor:
    """The generator's weights: `std` is weak noise everywhere, `wide` makes sharp attention."""
    z = normal(name, *shape)
    if mode == "std":
        values = 0.05 * z
    elif len(shape) == 1:
        values = 1 + 0.1 * z if name.endswith(".weight") else 0.1 * z
    else:
        values = 0.25 * z
    return values.float()


def state(prefix: str, mode: str) -> dict[str, torch.Tensor]:
    """The published state dict under a prefix, which its names have no more."""
    return {
        name.removeprefix(f"{prefix}."): parameter(name, shape, mode)
        for name, shape in SHAPES.items()
        if name.startswith(f"{prefix}.")
    }


def loaded(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The module with a published state dict, taken as it is: no name missing, none left over."""
    module.load_state_dict(tensors)
    return module.requires_grad_(False).eval()


def close(found: torch.Tensor, expected: torch.Tensor, relative: float = 2e-5) -> None:
    """Within the file's tolerance: the largest error, relative to the largest value."""
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=relative * float(expected.abs().max()))
