"""What a training shows while it runs, and the curves that it leaves."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
import tqdm.std
from support import tiny_training as small
from support.tiny_training import loop_for
from troupe.training import progress as module
from troupe.training import run
from troupe.training.progress import SMOOTH, Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds, counted on by the test."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    return now


def test_the_bar_shows_loss_speed_time_left_and_memory(clock, monkeypatch):
    """A training of 12 steps of 8 pictures that goes on from step 2 and takes 5 seconds a step."""
    monkeypatch.setattr(module, "memory", lambda: 3 * 2**29)
    monkeypatch.setattr(module.sys, "stderr", bar := io.StringIO())
    progress = Progress(12, 2, 8, {"diffusion": 1.0}, shown=True)
    for step in (3, 4):
        clock[0] += 5
        shown = progress.update(step, {"diffusion": 0.25})
    assert shown == {"loss": 0.25, "pictures_per_second": 1.6, "memory_gb": 1.5, "loss/diffusion": 0.25}
    drawn = bar.getvalue().rpartition("\r")[2]
    assert "4/12" in drawn and "loss 0.2500, 1.6 pictures/s, 1.5 GB" in drawn
    assert re.search(r"\[00:10<00:40, +5\.00s/step", drawn), drawn
    progress.say("a sentence")
    assert "a sentence\n" in bar.getvalue()
    progress.close()


def test_other_processes_show_nothing(capsys):
    progress = Progress(2, 0, 1, {"diffusion": 1.0}, shown=False)
    progress.update(1, {"diffusion": 1.0})
    progress.say("a sentence")
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_memory_is_that_of_the_process_without_a_gpu(monkeypatch):
    pytest.importorskip("resource")
    for gpu in (SimpleNamespace(), SimpleNamespace(is_available=lambda: False, max_memory_allocated=lambda: 7)):
        monkeypatch.setattr(module.torch, "get_device_module", lambda found=gpu: found)
        assert 2**26 < module.memory() < 2**40
    monkeypatch.delattr(module.torch, "get_device_module")
    assert 2**26 < module.memory() < 2**40


def test_memory_is_the_gpus_where_there_is_one(monkeypatch):
    gpu = SimpleNamespace(is_available=lambda: True, max_memory_allocated=lambda: 7)
    monkeypatch.setattr(module.torch, "get_device_module", lambda: gpu)
    assert module.memory() == 7


def test_the_shown_loss_is_the_one_that_is_trained():
    """Each loss with its factor; logs have each without."""
    progress = Progress(10, 0, 4, {"diffusion": 1.0, "localization": 0.001}, shown=False)
    shown = progress.update(1, {"diffusion": 0.2, "localization": -0.5})
    progress.close()
    assert shown["loss"] == pytest.approx(0.1995)
    assert (shown["loss/diffusion"], shown["loss/localization"]) == (0.2, -0.5)


@pytest.mark.slow
def test_the_curves_are_those_of_the_training(tmp_path, monkeypatch):
    """Written by tensorboard and read back: each step's losses, learning rate, speed and memory."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr(module, "memory", lambda: 3 * 2**29)
    small.forget_accelerate()
    loop = loop_for(
        small.write_set(tmp_path / "pictures"), tmp_path / "out", steps=4, schedule="linear", log="tensorboard"
    )
    update, losses = loop._update, []

    def noted(*given):
        found = update(*given)
        losses.append(found[0]["diffusion"])
        return found

    loop._update = noted
    run._run(loop)
    small.forget_accelerate()
    events = accumulator.EventAccumulator(str(tmp_path / "out" / "troupe"))
    events.Reload()
    curves = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert set(curves) == {"loss", "loss/diffusion", "lr", "pictures_per_second", "memory_gb"}
    values = {name: [event.value for event in curve] for name, curve in curves.items()}
    assert all([event.step for event in curve] == [1, 2, 3, 4] for curve in curves.values())
    assert len(set(losses)) == 4 and values["loss/diffusion"] == pytest.approx(losses)
    smooth = losses[:1]
    for loss in losses[1:]:
        smooth.append(SMOOTH * smooth[-1] + (1 - SMOOTH) * loss)
    assert values["loss"] == pytest.approx(smooth)
    assert values["lr"] == pytest.approx([0.0075, 0.005, 0.0025, 0.0])
    assert values["memory_gb"] == [1.5] * 4 and all(speed > 0 for speed in values["pictures_per_second"])


@pytest.mark.slow
def test_wandb_gets_the_same_curves(tmp_path, monkeypatch):
    """In its offline mode, whose files lie in the output folder."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    small.forget_accelerate()
    options = dict(steps=4, schedule="linear", log="wandb")
    loop = loop_for(small.write_set(tmp_path / "pictures"), tmp_path / "out", **options)
    rows, runs, begin = [], [], wandb.init

    def begun(*given, **more):
        runs.append(begin(*given, **more))
        log = runs[0].log
        monkeypatch.setattr(runs[0], "log", lambda values, step: (rows.append((step, dict(values))), log(values, step)))
        return runs[0]

    monkeypatch.setattr(wandb, "init", begun)
    run._run(loop)
    small.forget_accelerate()
    assert [step for step, _ in rows] == [1, 2, 3, 4] and runs[0].project == "troupe"
    assert set(rows[0][1]) == {"loss", "loss/diffusion", "lr", "pictures_per_second", "memory_gb"}
    assert [values["lr"] for _, values in rows] == pytest.approx([0.0075, 0.005, 0.0025, 0.0])
    assert list((tmp_path / "out").glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_a_training_without_a_wandb_account_goes_on_without_curves(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")

    def refused(*_, **__):
        raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refused)
    small.forget_accelerate()
    loop = loop_for(small.write_set(tmp_path / "pictures"), tmp_path / "out", steps=2, log="wandb")
    said: list[str] = []
    loop.say = said.append
    run._run(loop)
    small.forget_accelerate()
    told = "The curves cannot be written (api_key not configured (no-tty)). The training goes on without them."
    assert loop.step == 2 and said.count(told) == 1
