"""Weights that are no numbers: one of them makes a black picture."""
from __future__ import annotations

import pytest
import safetensors.torch
import torch
from small_files import FORMATS
from test_bad_pickles import STATE, refused
from troupe.model_patches.checkpoints.load import read_adapter
from troupe.model_patches.errors import CheckpointError


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_one_number_that_is_none_is_refused_with_its_tensors_name(tmp_path, number, dtype):
    path = tmp_path / "x.safetensors"
    for name in STATE:
        state = {key: t.clone() for key, t in STATE.items()}
        state[name].view(-1)[-1] = number
        safetensors.torch.save_file({key: t.to(dtype) for key, t in state.items()}, path)
        assert f"finite numbers in '{name}'" in refused(path)


@pytest.mark.parametrize("name", FORMATS)
def test_nan_is_refused_in_every_format(tmp_path, name):
    folder = FORMATS[name]()
    for file, bag in folder.files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        state = {key: torch.full_like(t, float("nan")) if t.is_floating_point() else t for key, t in bag.state.items()} if file == folder.target else None
        (tmp_path / file).write_bytes(bag.bytes(state))
    with pytest.raises(CheckpointError, match="finite numbers in"):
        read_adapter(tmp_path / folder.chosen)
