"""A training in several processes computes what one process does, goes on where it was stopped, and ends in all of
them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import tiny_training as small
from support.step_gradients import write_gradients
from support.stopped_training import STEPS, STOPPED
from troupe.training.checkpoints import checkpoints
from troupe.training.examples.draws import Draws
from troupe.training.examples.folder import FolderSet
from troupe_tools.commands.train import main

RECIPES = ("ip_adapter", "mip_adapter", "umm_diffusion", "fastcomposer", "mm_diff", "subject_diffusion")
SCRIPT = Path(__file__).parent / "support" / "step_gradients.py"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


SETTINGS = """
[recipe]
name = "ip_adapter"
[data]
folder = "{folder}"
resolution = 64
[training]
batch = 1
[output]
save_every = 1000
"""


def in_processes(pictures, output, processes, batch, accumulation, faulty):
    """What each of several processes wrote to stderr that compute the gradients of one recipe after the other. faulty:
    settings and folder of trainings after them.
    """
    meeting = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    more = json.dumps([*map(str, faulty), [free_port(), free_port()]])
    command = [sys.executable, str(SCRIPT), *map(str, (pictures, output, batch, accumulation, more)), *RECIPES]
    running = [
        subprocess.Popen(
            command, env={**os.environ, **meeting, "RANK": str(r), "LOCAL_RANK": str(r)}, stderr=subprocess.PIPE
        )
        for r in range(processes)
    ]
    try:
        said = [process.communicate(timeout=400)[1].decode() for process in running]
    finally:
        for process in running:
            process.kill()
    for process, text in zip(running, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return said


def saved(output):
    """{recipe: its gradients}."""
    return {recipe: torch.load(output / f"{recipe}.pt") for recipe in RECIPES}


@pytest.mark.parametrize("rank, status, sentences", [(None, 1, 1), ("0", 1, 1), ("1", 0, 0)])
def test_settings_with_a_fault_are_one_sentence_on_each_machine(tmp_path, monkeypatch, capsys, rank, status, sentences):
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert main([str(tmp_path / "missing.toml")]) == status
    assert (
        capsys.readouterr().err.count(f"Expected a settings file {tmp_path / 'missing.toml'}, found none") == sentences
    )


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
    last = checkpoints(output / "parts")[-1][1] / "training.json"
    assert json.loads(last.read_text())["processes"] == processes
    sheets = [{path.name: path.read_bytes() for path in (output / p / "sheets").iterdir()} for p in ("whole", "parts")]
    assert sheets[0] == sheets[1] and sorted(sheets[0]) == [f"step-{n:08}.png" for n in (STEPS - 1, STEPS)]


@pytest.mark.slow
def test_two_processes_train_as_one_go_on_where_they_stopped_and_end_together(tmp_path, own_accelerator):
    """Two gloo processes with two passes of one picture each, and one process with one pass of four; a training that
    is stopped and goes on; then trainings in two processes of which one has a fault.

    One test for everything: most of its time goes to starting processes.
    """
    pictures, faulty = small.write_set(tmp_path / "pictures"), faulty_set(tmp_path / "faulty")
    outputs = [tmp_path / "two", tmp_path / "one"]
    for output in outputs:
        output.mkdir()
    said = in_processes(pictures, outputs[0], 2, 1, 2, (faulty / "settings.toml", faulty))
    write_gradients(pictures, outputs[1], 4, 1, RECIPES)
    two, one = map(saved, outputs)
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
    one_sentence_for_a_fault(faulty, *said)


def faulty_set(folder):
    """A training set in which a picture of the second process cannot be read in step 2, and settings for it."""
    pictures = small.write_set(folder / "pictures")
    broken = Path(Draws(FolderSet(pictures, small.SIDE, 4), 0)[3].example.label)
    broken.write_bytes(broken.read_bytes()[:-40])
    (folder / "settings.toml").write_text(SETTINGS.format(folder=pictures.as_posix()))
    return folder


def one_sentence_for_a_fault(folder, first, second):
    """The main process had no room for its checkpoint; in the next training the other one could not read a picture."""
    for rank in range(2):
        ends = json.loads((folder / f"{rank}.json").read_text())
        expected = 1 if rank == 0 else 0  # a launcher stops all processes when the first fails
        assert [status for status, _ in ends] == [expected] * 2 and all(seconds < 120 for _, seconds in ends), ends
    full, adapter = folder / "full" / "checkpoints", folder / "full" / "ip_adapter.safetensors"
    assert (
        f"Expected to write a checkpoint of step 1 into {full}, found [Errno 28] No space left on device. There is no "
        f"earlier one. Free space, or choose another 'folder' in [output]. The adapter of step 1 is in {adapter}.\n"
    ) in first
    saved = folder / "unreadable" / "checkpoints" / "step-00000001"
    assert f"Expected a picture in {folder / 'pictures'}" in first
    assert f"The weights of step 1 are saved in {saved}: the same command goes on from there.\n" in first
    assert first.count("Expected") == 2 and "Expected" not in second and "Traceback" not in first + second
    assert checkpoints(folder / "full") == [] and checkpoints(folder / "unreadable") == [(1, saved)]
    assert {path.name for path in saved.glob("random_states_*")} == {"random_states_0.pkl", "random_states_1.pkl"}
