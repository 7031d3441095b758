"""Tensors that a file stores in less room."""

import pytest
import torch
from safetensors.torch import save_file
from troupe.model_patches.checkpoints.compact import compacted, expanded
from troupe.model_patches.checkpoints.files import read_state
from troupe.model_patches.errors import CheckpointError


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STATE = {
    "unet.conv.weight": drawn(6, 4, 3, 3),
    "unet.linear.weight": drawn(5, 7, seed=1) * torch.tensor([1.0, 10.0, 0.01, 0.0, 1e-3])[:, None],
    "unet.linear.bias": drawn(5, seed=2),
    "table.weight": torch.zeros(29, 3).index_copy_(0, torch.tensor([0, 3, 8]), drawn(3, 3, seed=3)),
    "ids": torch.arange(4),
}


def small() -> dict[str, torch.Tensor]:
    return compacted(STATE, lambda name: name.startswith("unet."), lambda name: name == "table.weight")


def test_every_number_stays_within_half_a_step_of_its_row(tmp_path):
    stored = small()
    save_file(stored, tmp_path / "small.safetensors")
    found = read_state(tmp_path / "small.safetensors")
    assert found.keys() == STATE.keys()
    for name in ("unet.conv.weight", "unet.linear.weight"):
        assert stored[name].dtype == torch.int8 and found[name].dtype == torch.float16
        rows, step = STATE[name].flatten(1), STATE[name].flatten(1).abs().amax(1, keepdim=True) / 127
        off = (found[name].float().flatten(1) - rows).abs()
        assert (off <= step * 0.5 + rows.abs().amax(1, keepdim=True) * 2**-10 + 1e-7).all() and off.max() > 0
    assert torch.equal(found["unet.linear.bias"], STATE["unet.linear.bias"].half())
    assert torch.equal(found["ids"], STATE["ids"])


def test_rows_of_zeros_are_not_stored():
    assert small()["table.weight"].shape == (3, 3)
    assert torch.equal(expanded(small())["table.weight"], STATE["table.weight"].half())


def test_other_files_are_as_they_were():
    """A factor without an int8 tensor is a tensor as any other, as CLIP's logit_scale; int8 without factors too."""
    state = {
        "logit": drawn(2, 2),
        "logit_scale": drawn(2, 1),
        "x": torch.ones(2, 2, dtype=torch.int8),
        "x_rows": drawn(1),
    }
    found = expanded(state)
    assert found.keys() == state.keys() and all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    "changed",
    [
        {"unet.linear.weight_scale": drawn(5)},
        {"unet.linear.weight_scale": torch.ones(5, 1, dtype=torch.int32)},
        {"table.weight_rows": torch.tensor([0, 3])},
        {"table.weight_rows": torch.tensor([0, 3, 3])},
        {"table.weight_rows": torch.tensor([0, 3, 29])},
        {"table.weight_rows": torch.tensor([-1, 3, 8])},
        {"table.weight_rows": torch.tensor([0.0, 3.0, 8.0])},
        {"table.weight_rows": torch.tensor([], dtype=torch.int32)},
        {"table.weight_size": torch.tensor([29, 29])},
        {"table.weight_size": torch.tensor(10**9)},
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, changed):
    stored = small() | changed
    with pytest.raises(ValueError, match="expected"):
        expanded(stored)
    save_file(stored, tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match="download it again"):
        read_state(tmp_path / "small.safetensors")
