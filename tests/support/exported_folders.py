"""Rehearsal models that are exported as folders in transformers' layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open


def check_shipped(folder: Path, files: set[str], state: Mapping[str, torch.Tensor], architecture: str) -> None:
    """The folder has these files and `model.safetensors`, in half precision, with the tensors of a new model."""
    assert {path.name for path in folder.iterdir()} == {*files, "model.safetensors"}
    with safe_open(folder / "model.safetensors", "pt") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert file.metadata()["format"] == "pt" and file.metadata()["licence"] == "CC0-1.0"
        assert {part.get_dtype() for part in found.values()} == {"F16"}
        assert {name: part.get_shape() for name, part in found.items()} == {
            name: list(value.shape) for name, value in state.items() if "position_ids" not in name
        }
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [architecture] and config["dtype"] == "float32"


def check_exported(
    checkpoint: Path, module: str, state: Mapping[str, torch.Tensor], folder: Path, shipped: Path
) -> None:
    """The weights are the checkpoint's averages of the module, rounded; the other files are as shipped."""
    saved = torch.load(checkpoint, weights_only=True)
    names = [(part, name) for part, trained in saved["trained"].items() for name in trained]
    averages = {name: value for (part, name), value in zip(names, saved["average"], strict=True) if part == module}
    assert averages
    for name, value in averages.items():
        assert torch.equal(state[name], value.half().float()), name
    for path in shipped.glob("*.json"):
        ours, theirs = (json.loads((place / path.name).read_text(encoding="utf-8")) for place in (folder, shipped))
        assert {**theirs, "transformers_version": ""} == {**ours, "transformers_version": ""}, path.name
