"""The stored outputs of the official Subject-Diffusion and GLIGEN modules, and the deterministic weights they were made
with.
"""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from troupe.model_patches.encoders.leaf_parameter import module_name

FOLDER = Path(__file__).parent.parent / "golden" / "subject_diffusion"
KINDS = ("plain", "sharp")
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


@cache
def golden(name: str) -> dict[str, torch.Tensor]:
    """All tensors of a stored file by its stem; boolean ones are uint8 in the file and here."""
    return safetensors.torch.load_file(FOLDER / f"{name}.safetensors")


def parameter(name: str, shape: tuple[int, ...], kind: str) -> torch.Tensor:
    """The generator's weights, seeded by the published name: `plain` is weak noise, `sharp` keeps the signal alive
    through the layers.
    """
    z = np.asarray(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape))
    if kind == "plain":
        values = 0.05 * z
    elif len(shape) >= 2:
        values = z / np.sqrt(np.prod(shape[1:]))
    elif not shape:
        values = z
    else:
        values = 1 + 0.05 * z if name.endswith("weight") else 0.05 * z
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def normal(name: str, *shape: int) -> torch.Tensor:
    """The generator's unstored inputs: standard normal, seeded by the name."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32))


def published_name(ours: str) -> str:
    """The name in published files of a tensor of our modules: bare tensors have no `.weight` there."""
    bare = ours.removesuffix(".weight")
    return bare if module_name(bare) == ours else ours


def filled(module: torch.nn.Module, kind: str, prefix: str = "") -> torch.nn.Module:
    """The module with the generator's weights, named as published, after `prefix`."""
    module.load_state_dict(
        {
            name: parameter(prefix + published_name(name), tuple(tensor.shape), kind)
            for name, tensor in module.state_dict().items()
        }
    )
    return module.requires_grad_(False).eval()
