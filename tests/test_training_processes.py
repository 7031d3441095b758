"""A training in several processes computes what one process does, and goes on where it was stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import tiny_training as small
from support.stopped_training import STEPS, STOPPED

RECIPES = ("ip_adapter", "mip_adapter", "umm_diffusion", "fastcomposer", "mm_diff", "subject_diffusion")
SCRIPT = Path(__file__).parent / "support" / "step_gradients.py"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def gradients(pictures, output, processes, batch, accumulation):
    """{recipe: its gradients}; every process computes those of one recipe after the other."""
    output.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if processes > 1:
        environment |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(SCRIPT), *map(str, (pictures, output, batch, accumulation)), *RECIPES]
    running = [
        subprocess.Popen(
            command, env=environment | ({"RANK": str(r), "LOCAL_RANK": str(r)} if processes > 1 else {}), stderr=-1
        )
        for r in range(processes)
    ]
    for process in running:
        said = process.communicate(timeout=400)[1]
        assert process.returncode == 0, said.decode()[-3000:]
    return {recipe: torch.load(output / f"{recipe}.pt") for recipe in RECIPES}


def assert_resumed(output, processes):
    """The training of which a signal to one process ended the first part is the uninterrupted one, bit for bit, in
    every process; so are the sheets.
    """
    each = [torch.load(output / f"stopped-{rank}.pt") for rank in range(processes)]
    assert [found["ended"] for found in each] == [(STOPPED, signal.SIGTERM)] * processes
    expected = each[0]["whole"]
    assert len(expected) > 20
    for state in (found[part] for found in each for part in ("whole", "parts")):
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], value) for name, value in expected.items())
    sheets = [{path.name: path.read_bytes() for path in (output / p / "sheets").iterdir()} for p in ("whole", "parts")]
    assert sheets[0] == sheets[1] and sorted(sheets[0]) == [f"step-{n:08}.png" for n in (STEPS - 1, STEPS)]


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one_and_go_on_where_they_stopped(tmp_path):
    """Two gloo processes with two passes of one picture each, and one process with one pass of four.

    One test for all recipes, and for what follows: most of its time goes to starting processes.
    """
    pictures = small.write_set(tmp_path / "pictures")
    two, one = gradients(pictures, tmp_path / "two", 2, 1, 2), gradients(pictures, tmp_path / "one", 1, 4, 1)
    assert_resumed(tmp_path / "two", 2)
    for recipe in RECIPES:
        assert (two[recipe]["processes"], one[recipe]["processes"]) == (2, 1)
        found, expected = two[recipe]["gradients"], one[recipe]["gradients"]
        assert found.keys() == expected.keys() and len(expected) > 2, recipe
        whole = max(float(gradient.abs().max()) for gradient in expected.values())
        assert whole > 1e-6, recipe
        for name, gradient in expected.items():
            assert found[name].shape == gradient.shape, (recipe, name)
            tolerance = 2e-5 * float(gradient.abs().max()) + 1e-7 * whole
            difference = float((found[name] - gradient).abs().max())
            assert difference <= tolerance, (recipe, name, difference)
