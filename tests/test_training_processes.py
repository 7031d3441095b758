"""A training in several processes computes what one process does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import tiny_training as small

SCRIPT = Path(__file__).parent / "support" / "step_gradients.py"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def gradients(recipe, pictures, output, processes, batch, accumulation):
    output.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if processes > 1:
        environment |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(SCRIPT), recipe, str(pictures), str(output), str(batch), str(accumulation)]
    running = [
        subprocess.Popen(
            command, env=environment | ({"RANK": str(r), "LOCAL_RANK": str(r)} if processes > 1 else {}), stderr=-1
        )
        for r in range(processes)
    ]
    for process in running:
        said = process.communicate(timeout=200)[1]
        assert process.returncode == 0, said.decode()[-3000:]
    return torch.load(output / "gradients.pt")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["mip_adapter", "umm_diffusion", "fastcomposer", "mm_diff", "subject_diffusion"])
def test_two_processes_give_the_gradients_of_one(recipe, tmp_path):
    """Two gloo processes with two passes of one picture each, and one process with one pass of four."""
    pictures = small.write_set(tmp_path / "pictures")
    two = gradients(recipe, pictures, tmp_path / "two", 2, 1, 2)
    one = gradients(recipe, pictures, tmp_path / "one", 1, 4, 1)
    assert (two["processes"], one["processes"]) == (2, 1)
    assert two["gradients"].keys() == one["gradients"].keys() and len(one["gradients"]) > 2
    whole = max(float(gradient.abs().max()) for gradient in one["gradients"].values())
    assert whole > 1e-6
    for name, gradient in one["gradients"].items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=0, atol=2e-5 * largest + 1e-7 * whole)
