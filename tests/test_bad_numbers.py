"""Weights that are no numbers: one of them makes a black picture."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from support.refused_files import STATE, refused
from support.small_checkpoints import FORMATS
from troupe.model_patches.attention.decoupled import LayerTokens, image_delta
from troupe.model_patches.attention.merges import Mixing
from troupe.model_patches.errors import CheckpointError
from troupe.model_patches.families.registry import read_adapter


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
        state = (
            {key: torch.full_like(t, float("nan")) if t.is_floating_point() else t for key, t in bag.state.items()}
            if file == folder.target
            else None
        )
        (tmp_path / file).write_bytes(bag.bytes(state))
    with pytest.raises(CheckpointError, match="finite numbers in"):
        read_adapter(tmp_path / folder.chosen)


# ---- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("gained", [False, True], ids=["no gain", "text gain"])
@pytest.mark.parametrize("merge", ["paper", "relevance", "add"])
@pytest.mark.parametrize(("side", "weight", "sharpness"), [(64, 1.0, 8.0), (128, 6.0, 8.0), (192, 2.0, 4.0)])
def test_large_weights_in_half_precision_are_finite_and_right(side, weight, sharpness, merge, gained):
    """Relevance of one position, and a text gain there, reach the number of positions; the result is float32's, where
    float16 can hold it.
    """
    chance = torch.Generator().manual_seed(0)
    n, c, heads = side * side, 320, 8
    query = torch.randn(1, 1, n, c, generator=chance)
    query[0, 0, n // 2] *= 3
    keys, values = torch.randn(1, 8, c, generator=chance), torch.randn(1, 8, c, generator=chance) * 0.05
    names = torch.cat((query[0, 0, n // 2][None, None], torch.randn(1, 1, c, generator=chance)), 1)
    text = torch.randn(1, 1, n, c, generator=chance)
    logits = torch.full((1, 1, n), -20.0)
    logits[0, 0, n // 2] = 20.0

    def delta(dtype):
        tokens = LayerTokens(keys.to(dtype), values.to(dtype), names.to(dtype), torch.eye(2)[None])
        given = (text.to(dtype), logits) if gained else (None, None)
        return image_delta(
            query.to(dtype), tokens, torch.tensor([weight, weight]), heads, Mixing(merge, sharpness), None, *given
        )

    half, full = delta(torch.float16), delta(torch.float32)
    assert half.dtype == torch.float16 and half.isfinite().all()
    held = full.abs() < torch.finfo(torch.float16).max
    largest = full.abs().amax((-2, -1), keepdim=True).clamp(min=0.05)  # the values' own size
    assert ((half.float() - full).abs() / largest)[held].max() < 0.06, (
        "the power 8 makes eight times the error of a half precision query"
    )
    assert not held.logical_not().any() or half[~held].abs().min() > 6e4
