"""The loop: it learns, goes on exactly where it stopped, and ends with a sentence and a checkpoint when it cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support import tiny_training as small
from troupe.training import optimizers
from troupe.training.checkpoints import checkpoints
from troupe.training.config.reading import as_tables
from troupe.training.config.schema import Config, OutputConfig, TrainingConfig
from troupe.training.examples.draws import Draws
from troupe.training.examples.folder import FolderSet
from troupe.training.loop import Loop
from troupe.training.recipes.registry import RECIPES
from troupe.training.run import make_accelerator, move
from troupe.training.stop import TrainingError
from troupe_tools.pack import ROOT


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return small.write_set(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(autouse=True)
def own_accelerator():
    small.forget_accelerate()
    yield
    small.forget_accelerate()


def loop_for(pictures, output, recipe="mip_adapter", options=None, cache=False, **training):
    """A loop on micro models; training: of TrainingConfig, and save_every, keep, resume of OutputConfig."""
    own = {key: training.pop(key) for key in ("save_every", "keep", "resume") if key in training}
    training = {"batch": 2, "lr": 1e-2, **training}
    chosen = RECIPES[recipe].Options(**(options or {}))
    config = Config(
        recipe,
        chosen,
        training=TrainingConfig(**training),
        output=OutputConfig(folder=str(output), **{"save_every": 1000, **own}),
    )
    small.forget_accelerate()
    total = config.training.batch * config.training.accumulation
    trainee = small.trainee(recipe, total=total, cache=cache, **(options or {}))
    draws = Draws(FolderSet(pictures, small.SIDE, 4), config.training.seed)
    return Loop(config, trainee, draws, as_tables(config), make_accelerator(config, cpu=True))


def weights(loop):
    return {name: value.clone() for name, value in loop.trainee.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


STEPS = 50
LEARNED = {  # learning rate, and what part of the loss is left at most
    "ip_adapter": (1e-2, 0.4),
    "mip_adapter": (1e-2, 0.4),
    "umm_diffusion": (3e-3, 0.3),
    "fastcomposer": (1e-3, 0.01),
    "mm_diff": (3e-3, 0.05),
    "subject_diffusion": (3e-3, 0.02),
}

# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_batch_is_learned_by_heart(recipe, pictures):
    """The same two pictures with the same noise: the part of the loss that an adapter can change falls to a fraction.

    It cannot reach 0, since the random UNet around it is frozen; steps of Adam go on until they find no more.
    """
    trainee = small.trainee(recipe, **small.no_drops(recipe))
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
    losses = []
    for _ in range(STEPS):
        loss = trainee(batch)["diffusion"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < part * losses[0], losses[::10]


@pytest.mark.parametrize("recipe", RECIPES)
def test_half_precision_gives_about_the_same_gradients(recipe, pictures, tmp_path):
    """Frozen models in bfloat16, passes under autocast, trained weights and gradients in float32."""
    found, options = {}, small.no_drops(recipe)
    for precision in ("no", "bf16"):
        loop = loop_for(pictures, tmp_path / precision, recipe, options, steps=1, precision=precision)
        base, keep = loop.trainee.base, {}
        move(base, loop.trainee, loop.accelerator)
        loop.optimizer.step = lambda keep=keep, loop=loop: keep.update(
            {n: p.grad.flatten() for n, p in loop.trainee.named_parameters() if p.grad is not None}
        )
        loop.run()
        whole = "no" in precision or base.unet in loop.trainee.modules_of_base()
        assert base.unet.dtype == (torch.float32 if whole else torch.bfloat16)
        for module in base.modules:  # shared by tests
            module.float()
        found[precision] = torch.cat(list(keep.values()))
    assert found["bf16"].dtype == torch.float32 and not torch.equal(*found.values())
    assert torch.nn.functional.cosine_similarity(*found.values(), dim=0) > 0.999


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

WHOLE = {"steps": 6, "schedule": "cosine", "ema": True, "accumulation": 2, "max_grad_norm": 1.0}


@pytest.mark.parametrize(
    "recipe, options, more",
    [
        ("ip_adapter", {}, {}),
        ("mip_adapter", {}, {}),
        ("mip_adapter", {}, {"cache": True}),
        ("umm_diffusion", {"hidden": 8}, {"batch": 1}),
        ("fastcomposer", {}, {"batch": 1}),
        ("mm_diff", small.MM_DIFF, {}),
        ("subject_diffusion", {}, {}),
        ("subject_diffusion", {}, {"cache": True}),
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(recipe, options, more, pictures, tmp_path):
    given = {"recipe": recipe, "options": options, **WHOLE, **more}
    whole = loop_for(pictures, tmp_path / "whole", **given)
    whole.run()
    first = loop_for(pictures, tmp_path / "parts", save_every=3, **given)
    calls = iter(range(100))
    update = first._update

    def stopped(batches, number):
        return update(batches, signal.SIGTERM if next(calls) == 2 else number)

    first._update = stopped
    ended = first.run()
    assert (ended.step, ended.signal) == (3, signal.SIGTERM)
    assert not same(weights(first), weights(whole))
    torch.manual_seed(99)  # what an interruption leaves behind
    second = loop_for(pictures, tmp_path / "parts", **given)
    torch.nn.init.normal_(second.parameters[0])
    assert second.run().step == 6
    assert same(weights(second), weights(whole))
    assert all(
        torch.equal(a, b) for a, b in zip(second.average.shadow_params, whole.average.shadow_params, strict=True)
    )
    moments = [[state["exp_avg_sq"] for state in loop.optimizer.state.values()] for loop in (second, whole)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    assert second.scheduler.get_last_lr() == whole.scheduler.get_last_lr() == [0.0]


def test_a_finished_training_is_not_trained_again(pictures, tmp_path):
    loop = loop_for(pictures, tmp_path, steps=2)
    loop.run()
    before = weights(loop)
    again = loop_for(pictures, tmp_path, steps=2)
    assert again.run().step == 2 and same(weights(again), before)
    fresh = loop_for(pictures, tmp_path, steps=1, resume=False)
    assert fresh.run().step == 1


def test_only_the_newest_checkpoints_are_kept(pictures, tmp_path):
    loop_for(pictures, tmp_path, steps=5, save_every=1, keep=2).run()
    assert [step for step, _ in checkpoints(tmp_path)] == [4, 5]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


def test_a_checkpoint_of_another_recipe_is_a_sentence(pictures, tmp_path):
    loop_for(pictures, tmp_path, steps=1).run()
    with pytest.raises(TrainingError, match="recipe.name = 'mip_adapter' .* found 'ip_adapter'"):
        loop_for(pictures, tmp_path, recipe="ip_adapter", steps=2).run()


def test_a_damaged_checkpoint_is_a_sentence(pictures, tmp_path):
    loop_for(pictures, tmp_path, steps=1).run()
    (tmp_path / "checkpoints" / "step-00000001" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="Delete that folder"):
        loop_for(pictures, tmp_path, steps=2).run()


# ---- the average -----------------------------------------------------------------------------------------------------


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


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_with_the_pictures_and_keeps_the_last_checkpoint(pictures, tmp_path):
    loop = loop_for(pictures, tmp_path, steps=9, save_every=1)
    prepare, bad = loop.trainee.prepare, []

    def broken(draws):
        batch = prepare(draws)
        if draws[0].number >= 4:  # the third step
            bad.append(draws[1].example.label)
            batch.noised.target[1, 0, 0, 0] = torch.nan
        return batch

    loop.trainee.prepare = broken
    with pytest.raises(TrainingError) as error:
        loop.run()
    assert f"in step 3, found NaN or infinite values with {bad[0]}." in str(error.value)
    assert "The weights of step 2 are saved." in str(error.value)
    assert all(value.isfinite().all() for value in weights(loop).values())
    again = loop_for(pictures, tmp_path, steps=3)
    assert again.run().step == 3


def test_a_full_disk_is_a_sentence_and_keeps_the_checkpoint_before(pictures, tmp_path):
    """Files may not grow beyond 20 kB from the second checkpoint on; the training goes on and fails only at its end."""
    resource = pytest.importorskip("resource")
    said: list[str] = []
    loop = loop_for(pictures, tmp_path, steps=4, save_every=1)
    update, limits = loop._update, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*given):
        if loop.step == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        return update(*given)

    loop._update = full
    import troupe.training.loop as module

    class Bar(module.Progress):
        def say(self, sentence):
            said.append(sentence)

    original, module.Progress = module.Progress, Bar
    try:
        with pytest.raises(TrainingError) as error:
            loop.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        module.Progress = original
    assert "to write a checkpoint of step 4" in str(error.value)
    assert "The checkpoint of step 1 is unchanged. Free space" in str(error.value)
    assert [sentence[-22:] for sentence in said] == [" The training goes on."] * 3
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert loop_for(pictures, tmp_path, steps=2).run().step == 2


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
    path.write_text(SETTINGS.format(steps=steps, folder=tmp_path / "out"))
    return [sys.executable, str(ROOT / "tools" / "train.py"), str(path), "--cpu", *more]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_an_adapter(tmp_path, number):
    process = subprocess.Popen(
        command(tmp_path, "--set", "save_every=2"), stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        deadline = time.monotonic() + 120
        while not checkpoints(tmp_path / "out") and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
    assert process.returncode == 128 + number, said
    step = checkpoints(tmp_path / "out")[-1][0]
    assert step >= 2 and f"stopped at step {step}; the same command goes on from there" in said
    assert (tmp_path / "out" / "ip_adapter.safetensors").is_file()


@pytest.mark.slow
def test_the_command_trains_exports_and_says_what_is_wrong(tmp_path):
    def run(*more):
        return subprocess.run(command(tmp_path, *more, steps=1), capture_output=True, text=True)

    done = run()
    assert done.returncode == 0 and "the weights of step 1" in done.stderr, done.stderr
    exported = tmp_path / "out" / "ip_adapter.safetensors"
    exported.unlink()
    assert run("--export").returncode == 0 and exported.is_file()
    wrong = run("--set", "lrr=1")
    assert wrong.returncode == 1 and wrong.stderr.strip().endswith("Did you mean 'lr'?")


def test_the_shown_loss_is_the_one_that_is_trained():
    """Each loss with its factor; logs have each without."""
    from troupe.training.progress import Progress

    progress = Progress(10, 0, 4, {"diffusion": 1.0, "localization": 0.001}, shown=False)
    shown = progress.update(1, {"diffusion": 0.2, "localization": -0.5})
    progress.close()
    assert shown["loss"] == pytest.approx(0.1995)
    assert (shown["loss/diffusion"], shown["loss/localization"]) == (0.2, -0.5)
