"""The loop: it learns, goes on exactly where it stopped, and ends with a sentence and a checkpoint when it cannot."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from support import tiny_training as small
from support.tiny_training import loop_for, same, weights
from troupe.training import optimizers
from troupe.training.checkpoints import checkpoints
from troupe.training.config.schema import TrainingConfig
from troupe.training.recipes.registry import RECIPES
from troupe.training.run import move
from troupe.training.stop import TrainingError
from troupe_tools.commands.train import main
from troupe_tools.pack import ROOT

pytestmark = pytest.mark.usefixtures("own_accelerator")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return small.write_set(tmp_path_factory.mktemp("pictures"))


STEPS = 50
LEARNED = {  # learning rate, and what part of the loss is left at most
    "ip_adapter": (1e-2, 0.4),
    "mip_adapter": (1e-2, 0.4),
    "umm_diffusion": (3e-3, 0.3),
    "fastcomposer": (1e-3, 0.01),
    "mm_diff": (3e-3, 0.05),
    "subject_diffusion": (3e-3, 0.02),
}


def quick(*recipes):
    """All recipes as cases; those that are not named take seconds."""
    return [pytest.param(recipe, marks=[] if recipe in recipes else pytest.mark.slow) for recipe in RECIPES]


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("recipe", quick("ip_adapter"))
def test_one_batch_is_learned_by_heart(recipe, pictures):
    """The same two pictures with the same noise, all losses with their factors: the part of the diffusion loss that an
    adapter can change falls to a fraction, and every other loss falls.

    It cannot reach 0, since the random UNet around it is frozen; steps of Adam go on until that part is left.
    """
    bound = {"localization": 1.0} if recipe == "subject_diffusion" else {}  # 0.01 is too little to see in so few steps
    trainee = small.trainee(recipe, **small.no_drops(recipe), **bound)
    batch = trainee.prepare(small.draws(pictures, 2))
    if recipe == "umm_diffusion":  # a word changes little of the noise: it learns what another mapping predicts
        other = small.trainee(recipe, trainee.base, **small.no_drops(recipe), activation="relu")
        torch.nn.init.normal_(other.mapping.layers[1].weight)
        with torch.no_grad():
            batch.noised.target.copy_(other.predict(batch))
    if recipe == "mm_diff":  # so do pairs of low rank: it learns what others predict, on models of their own
        other = small.trainee(recipe, **small.no_drops(recipe), **small.MM_DIFF)
        with torch.no_grad():
            for parameter in other.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            batch.noised.target.copy_(other.predict(batch))
    rate, part = LEARNED[recipe]
    optimizer = torch.optim.Adam([p for p in trainee.parameters() if p.requires_grad], rate, eps=1e-15)
    steps = []
    for _ in range(STEPS):
        losses = {name: loss.mean() for name, loss in trainee(batch).items()}
        optimizer.zero_grad()
        sum(trainee.weights[name] * loss for name, loss in losses.items()).backward()
        optimizer.step()
        steps.append({name: loss.item() for name, loss in losses.items()})
        if steps[-1]["diffusion"] < part * steps[0]["diffusion"]:
            break
    assert steps[-1]["diffusion"] < part * steps[0]["diffusion"], steps[::10]
    assert steps[0].keys() == trainee.weights.keys()
    fallen = {name for name, loss in steps[-1].items() if loss < steps[0][name]}
    assert fallen == {name for name, factor in trainee.weights.items() if factor}, steps[::10]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", quick("ip_adapter", "mip_adapter"))
def test_half_precision_gives_about_the_same_gradients(recipe, pictures, tmp_path):
    """Frozen models in bfloat16, passes under autocast, trained weights and gradients in float32."""
    found, options = {}, small.no_drops(recipe)
    for precision in ("no", "bf16"):
        loop = loop_for(pictures, tmp_path / precision, recipe, options, steps=1, precision=precision)
        base, keep = loop.trainee.base, {}
        whole_weights = [copy.deepcopy(module.state_dict()) for module in base.modules]
        move(base, loop.trainee, loop.accelerator)
        loop.optimizer.step = lambda keep=keep, loop=loop: keep.update(
            {n: p.grad.flatten() for n, p in loop.trainee.named_parameters() if p.grad is not None}
        )
        loop.run()
        whole = "no" in precision or base.unet in loop.trainee.modules_of_base()
        assert base.unet.dtype == (torch.float32 if whole else torch.bfloat16)
        for module, state in zip(base.modules, whole_weights, strict=True):  # shared by tests
            module.float().load_state_dict(state)
        found[precision] = torch.cat(list(keep.values()))
    assert found["bf16"].dtype == torch.float32 and not torch.equal(*found.values())
    assert torch.nn.functional.cosine_similarity(*found.values(), dim=0) > 0.999


@pytest.mark.slow
def test_accumulated_passes_are_one_large_one(pictures, tmp_path):
    """One step of four pictures, in one pass and in four: plain gradients are compared, before Adam's normalisation."""
    found = {}
    for batch, accumulation in ((4, 1), (1, 4)):
        loop = loop_for(pictures, tmp_path / str(batch), batch=batch, accumulation=accumulation, steps=1)
        keep = {}
        loop.optimizer.step = lambda keep=keep, loop=loop: keep.update(
            {n: p.grad.clone() for n, p in loop.trainee.named_parameters() if p.grad is not None}
        )
        loop.run()
        found[batch] = keep
    assert len(found[4]) > 10
    for name, gradient in found[4].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()) + 1e-12)


# ---- going on --------------------------------------------------------------------------------------------------------

WHOLE = {"steps": 4, "schedule": "cosine", "ema": True, "accumulation": 2, "max_grad_norm": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe, options, more",
    [
        ("ip_adapter", {}, {}),
        pytest.param("mip_adapter", {}, {}, marks=pytest.mark.slow),
        pytest.param("mip_adapter", {}, {"cache": True}, marks=pytest.mark.slow),
        pytest.param("umm_diffusion", {"hidden": 8}, {"batch": 1}, marks=pytest.mark.slow),
        pytest.param("fastcomposer", {}, {"batch": 1}, marks=pytest.mark.slow),
        pytest.param("mm_diff", small.MM_DIFF, {}, marks=pytest.mark.slow),
        pytest.param("subject_diffusion", {}, {}, marks=pytest.mark.slow),
        pytest.param("subject_diffusion", {}, {"cache": True}, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(recipe, options, more, pictures, tmp_path):
    given = {"recipe": recipe, "options": options, **WHOLE, **more}
    whole = loop_for(pictures, tmp_path / "whole", **given)
    whole.run()
    first = loop_for(pictures, tmp_path / "parts", save_every=2, **given)
    calls = iter(range(100))
    update = first._update

    def stopped(batches, number):
        return update(batches, signal.SIGTERM if next(calls) == 1 else number)

    first._update = stopped
    ended = first.run()
    assert (ended.step, ended.signal) == (2, signal.SIGTERM)
    assert not same(weights(first), weights(whole))
    torch.manual_seed(99)  # what an interruption leaves behind
    second = loop_for(pictures, tmp_path / "parts", **given)
    torch.nn.init.normal_(second.parameters[0])
    assert second.run().step == 4
    assert same(weights(second), weights(whole))
    assert all(
        torch.equal(a, b) for a, b in zip(second.average.shadow_params, whole.average.shadow_params, strict=True)
    )
    moments = [[state["exp_avg_sq"] for state in loop.optimizer.state.values()] for loop in (second, whole)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    assert second.scheduler.get_last_lr() == whole.scheduler.get_last_lr() == [0.0]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_settings_that_change_between_two_parts_act(schedule, pictures, tmp_path):
    """After a loss that is not finite the advice is a lower lr and the same command."""
    loop_for(pictures, tmp_path, steps=2, lr=1e-2, schedule=schedule).run()
    changed = {"lr": 1e-5, "weight_decay": 0.5, "beta1": 0.8, "max_grad_norm": 1.0, "steps": 4, "schedule": schedule}
    second, said = loop_for(pictures, tmp_path, **changed), []
    second.say = said.append
    before, update = {}, second._update

    def first(*given):
        before.setdefault("weights", weights(second))
        before.setdefault("rate", second.optimizer.param_groups[0]["lr"])
        return update(*given)

    second._update = first
    second.run()
    (group,) = second.optimizer.param_groups
    assert group["betas"] == (0.8, 0.999) and group["weight_decay"] == 0.5 and group["initial_lr"] == 1e-5
    assert before["rate"] == pytest.approx(1e-5 if schedule == "constant" else 0.5e-5)
    moved = max((a - b).abs().max() for a, b in zip(weights(second).values(), before["weights"].values(), strict=True))
    assert 0 < moved < 1e-4
    assert "training.lr 0.01 -> 1e-05, " in said[0] and "training.weight_decay 0.01 -> 0.5" in said[0]
    assert "training.steps 2 -> 4" in said[0] and "output" not in said[0].split("; changed since: ")[1]


@pytest.mark.slow
def test_a_finished_training_is_not_trained_again(pictures, tmp_path):
    loop = loop_for(pictures, tmp_path, steps=2)
    loop.run()
    before = weights(loop)
    again = loop_for(pictures, tmp_path, steps=2)
    assert again.run().step == 2 and same(weights(again), before)
    fresh = loop_for(pictures, tmp_path, steps=1, resume=False)
    assert fresh.run().step == 1


@pytest.mark.slow
def test_only_the_newest_checkpoints_are_kept(pictures, tmp_path):
    loop_for(pictures, tmp_path, steps=5, save_every=1, keep=2).run()
    assert [step for step, _ in checkpoints(tmp_path)] == [4, 5]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


@pytest.mark.slow
def test_a_checkpoint_of_another_recipe_is_a_sentence(pictures, tmp_path):
    loop_for(pictures, tmp_path, steps=1).run()
    with pytest.raises(TrainingError, match="recipe.name = 'mip_adapter' .* found 'ip_adapter'"):
        loop_for(pictures, tmp_path, recipe="ip_adapter", steps=2).run()


@pytest.mark.slow
def test_a_checkpoint_of_another_optimiser_is_a_sentence(pictures, tmp_path):
    loop = loop_for(pictures, tmp_path, steps=1)
    loop.run()
    changed = {**loop.settings, "training": {**loop.settings["training"], "optimizer": "adamw8bit"}}
    again = loop_for(pictures, tmp_path, steps=2)
    again.settings = changed
    with pytest.raises(TrainingError, match="training.optimizer = 'adamw' .* found 'adamw8bit'"):
        again.run()


def test_a_damaged_checkpoint_is_a_sentence(pictures, tmp_path):
    loop_for(pictures, tmp_path, steps=1).run()
    (tmp_path / "checkpoints" / "step-00000001" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="Delete that folder"):
        loop_for(pictures, tmp_path, steps=2).run()


# ---- the average -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sheets_and_exports_use_the_average(pictures, tmp_path):
    loop = loop_for(pictures, tmp_path, steps=3, ema=True)
    loop.run()
    last = weights(loop)
    with loop.averaged():
        averaged = weights(loop)
    assert same(weights(loop), last) and not same(averaged, last)
    shadow = dict(
        zip((n for n, p in loop.trainee.named_parameters() if p.requires_grad), loop.average.shadow_params, strict=True)
    )
    assert all(torch.equal(averaged[name], value) for name, value in shadow.items())


# ---- mistakes -------------------------------------------------------------------------------------------------------


def test_a_warm_up_that_the_schedule_does_not_have_is_a_sentence():
    with pytest.raises(TrainingError, match="constant_with_warmup"):
        optimizers.make_optimizer(TrainingConfig(warmup=5), [])


def test_an_optimiser_that_is_not_installed_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(TrainingError, match="pip install bitsandbytes"):
        optimizers.make_optimizer(TrainingConfig(optimizer="adamw8bit"), [torch.nn.Parameter(torch.zeros(1))])


# ---- the command -----------------------------------------------------------------------------------------------------

SETTINGS = """
[recipe]
name = "ip_adapter"
[data]
kind = "rehearsal"
[training]
batch = 1
steps = {steps}
[output]
folder = "{folder}"
"""


def command(tmp_path, *more, steps=100_000):
    path = tmp_path / "settings.toml"
    path.write_text(SETTINGS.format(steps=steps, folder=(tmp_path / "out").as_posix()))
    return [sys.executable, str(ROOT / "tools" / "train.py"), str(path), "--cpu", *more]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a process")
def test_ctrl_c_leaves_a_checkpoint_and_an_adapter(tmp_path, capsys):
    def interrupt():
        while not checkpoints(tmp_path / "out") and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    deadline = time.monotonic() + 120
    waiting = threading.Thread(target=interrupt, daemon=True)
    waiting.start()
    status = main([*command(tmp_path, "--set", "save_every=2")[2:]])
    waiting.join()
    assert_stopped(tmp_path / "out", signal.SIGINT, status, capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a process")
def test_a_terminated_process_leaves_a_checkpoint_and_an_adapter(tmp_path):
    process = subprocess.Popen(command(tmp_path, "--set", "save_every=2"), stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not checkpoints(tmp_path / "out") and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
    assert_stopped(tmp_path / "out", signal.SIGTERM, process.returncode, said)


def assert_stopped(output, number, status, said):
    assert status == 128 + number, said
    step = checkpoints(output)[-1][0]
    assert step >= 2 and f"stopped at step {step}; the same command goes on from there" in said
    assert (output / "ip_adapter.safetensors").is_file()


@pytest.mark.slow
def test_the_command_trains_exports_and_says_what_is_wrong(tmp_path, capsys):
    """In this process, since most of another's time is its start; the tests of signals start one."""
    first = command(tmp_path, steps=1)
    assert main(first[2:]) == 0
    said = capsys.readouterr().err
    assert "the weights of step 1" in said, said
    exported = tmp_path / "out" / "ip_adapter.safetensors"
    exported.unlink()
    small.forget_accelerate()
    assert main([*first[2:], "--export"]) == 0 and exported.is_file()
    assert main([*first[2:], "--set", "lrr=1"]) == 1
    assert capsys.readouterr().err.strip().endswith("Did you mean 'lr'?")
