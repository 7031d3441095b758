"""The stored outputs of the official MIP-Adapter modules, and the deterministic weights they were made with."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

FOLDER = Path(__file__).parent.parent / "golden" / "mip_adapter"
LAYERS = sorted(p.stem for p in FOLDER.glob("layer_*.safetensors"))


def fill(name: str, *shape: int) -> torch.Tensor:
    """The generator's weights: 0.05 * standard normal, seeded by the name."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape) * 0.05
    return torch.from_numpy(values.astype(np.float32))


def normal(name: str, *shape: int) -> torch.Tensor:
    """The generator's inputs: standard normal, seeded by the name."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32))


@dataclass
class Layer:
    """One stored layer case: tensors by name, and its parameters."""

    tensors: dict[str, torch.Tensor]
    meta: dict

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    @property
    def tolerance(self) -> dict[str, float]:
        return {"rtol": 1e-4, "atol": 5e-4 if self.meta["gain"] > 4 else 1e-4}


def layer(name: str) -> Layer:
    """A stored layer case by its file stem."""
    path = FOLDER / f"{name}.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
    return Layer(safetensors.torch.load_file(path), meta)


def projections() -> dict[str, torch.Tensor]:
    """All tensors of projections.safetensors."""
    return safetensors.torch.load_file(FOLDER / "projections.safetensors")
