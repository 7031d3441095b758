"""What goes wrong during a training ends with a sentence, and no step that was trained is lost."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import tiny_training as small
from support.start_methods import needs_fork
from support.tiny_training import loop_for, same, weights
from troupe.model_patches.errors import SubjectError
from troupe.model_patches.families.registry import read_adapter
from troupe.training import loop as loop_module
from troupe.training import run
from troupe.training.checkpoints import checkpoints
from troupe.training.config.schema import SheetConfig
from troupe.training.sheet import paint_sheet
from troupe.training.stop import TrainingError

pytestmark = pytest.mark.usefixtures("own_accelerator")

STEPS = 6


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return small.write_set(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory):
    """Weights after a training in which nothing goes wrong."""
    loop = loop_for(pictures, tmp_path_factory.mktemp("undisturbed"), steps=STEPS, batch=1)
    loop.run()
    return weights(loop)


@pytest.fixture
def said(monkeypatch):
    """What trainings say."""
    sentences: list[str] = []

    class Bar(loop_module.Progress):
        def say(self, sentence):
            sentences.append(sentence)

    monkeypatch.setattr(loop_module, "Progress", Bar)
    return sentences


@pytest.fixture
def deadline():
    """At most a minute: training would wait for ever for a worker process that hands on nothing."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def late(*given):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def no_space(*given, **named):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=needs_fork)])
def test_a_mask_that_is_black_ends_the_training_with_a_checkpoint(workers, undisturbed, tmp_path):
    """At the fourth step; once the mask is replaced, the training goes on as if nothing had happened."""
    pictures, output = small.write_set(tmp_path / "pictures"), tmp_path / "out"
    loop = loop_for(pictures, output, steps=STEPS, batch=1, workers=workers)
    mask = pictures / f"m{Path(loop.draws[3].example.label).stem[1:]}_0.png"
    white = mask.read_bytes()
    Image.new("L", (96, 64)).save(mask)
    with pytest.raises(TrainingError) as error:
        loop.run()
    saved = output / "checkpoints" / "step-00000003"
    assert str(error.value).startswith("Expected '")
    assert str(error.value).endswith(
        f"in white in {mask}, found a mask that is black everywhere. Replace the mask, or remove it from its line. "
        f"The weights of step 3 are saved in {saved}: the same command goes on from there."
    )
    assert checkpoints(output) == [(3, saved)]
    mask.write_bytes(white)
    again = loop_for(pictures, output, steps=STEPS, batch=1, workers=workers)
    assert again.run().step == STEPS and same(weights(again), undisturbed)


def test_a_fault_before_the_first_step_leaves_no_checkpoint(tmp_path):
    pictures, output = small.write_set(tmp_path / "pictures"), tmp_path / "out"
    for path in pictures.glob("r*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(TrainingError, match=r"Replace it, or delete its line\. Nothing was trained yet\.$"):
        loop_for(pictures, output).run()
    assert checkpoints(output) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", [torch.cuda.OutOfMemoryError("no memory"), RuntimeError("a worker is killed")])
def test_an_unexpected_error_leaves_a_checkpoint_too(fault, undisturbed, pictures, tmp_path, said):
    loop = loop_for(pictures, tmp_path, steps=STEPS, batch=1, resume=False)
    forward = loop.model.forward

    def failing(batch):
        if loop.step == 2:
            raise fault
        return forward(batch)

    loop.model.forward = failing
    with pytest.raises(RuntimeError) as error:
        loop.run()
    assert error.value is fault
    saved = tmp_path / "checkpoints" / "step-00000002"
    command = "the same command with --set resume=true"
    assert said == [f"The weights of step 2 are saved in {saved}: {command} goes on from there."]
    again = loop_for(pictures, tmp_path, steps=STEPS, batch=1)
    assert again.run().step == STEPS and same(weights(again), undisturbed)


@pytest.mark.slow
@needs_fork
@pytest.mark.usefixtures("deadline")
def test_an_interrupt_leaves_the_workers_to_the_step_that_is_finished(pictures, tmp_path):
    """Ctrl-C reaches every process of a terminal, also those that read pictures."""
    loop = loop_for(pictures, tmp_path, steps=3, batch=1, workers=1)
    update = loop._update

    def interrupted(*given):
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGINT)
        return update(*given)

    loop._update = interrupted
    assert loop.run().step == 3


# ---- losses and weights ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [1, 1000])
def test_a_loss_that_is_no_number_names_the_pictures_and_leaves_a_checkpoint(
    save_every, undisturbed, pictures, tmp_path
):
    loop = loop_for(pictures, tmp_path, steps=STEPS, batch=1, accumulation=1, save_every=save_every)
    prepare, bad = loop.trainee.prepare, []

    def broken(draws):
        batch = prepare(draws)
        if draws[0].number == 4:  # the fifth step
            bad.append(draws[0].example.label)
            batch.noised.target[0, 0, 0, 0] = torch.nan
        return batch

    loop.trainee.prepare = broken
    with pytest.raises(TrainingError) as error:
        loop.run()
    saved = tmp_path / "checkpoints" / "step-00000004"
    assert f"a finite loss in step 5, found NaN or infinite values with {bad[0]}. Look at" in str(error.value)
    assert f"max_grad_norm = 1.0. The weights of step 4 are saved in {saved}: the same command" in str(error.value)
    assert all(value.isfinite().all() for value in weights(loop).values())
    again = loop_for(pictures, tmp_path, steps=STEPS, batch=1)
    assert again.run().step == STEPS and same(weights(again), undisturbed)


@pytest.mark.slow
def test_a_fault_in_the_second_pass_of_a_step_changes_nothing(pictures, tmp_path):
    """Passes are counted from the step's first, also after a checkpoint that was written in the middle of a step."""
    whole = loop_for(pictures, tmp_path / "whole", steps=STEPS, batch=1, accumulation=2)
    whole.run()
    loop = loop_for(pictures, tmp_path / "parts", steps=STEPS, batch=1, accumulation=2)
    prepare, passes = loop.trainee.prepare, []

    def broken(draws):
        passes.append(draws)
        if len(passes) == 6:  # the second of the third step
            raise RuntimeError("a fault")
        return prepare(draws)

    loop.trainee.prepare = broken
    with pytest.raises(RuntimeError, match="a fault"):
        loop.run()
    again = loop_for(pictures, tmp_path / "parts", steps=STEPS, batch=1, accumulation=2)
    assert again.run().step == STEPS and same(weights(again), weights(whole))


@pytest.mark.slow
def test_a_fault_that_breaks_the_saving_too_is_the_one_that_is_raised(pictures, tmp_path, said, monkeypatch):
    """As where a GPU no longer answers."""
    loop = loop_for(pictures, tmp_path, steps=STEPS, save_every=1)
    prepare = loop.trainee.prepare

    def unanswered():
        raise RuntimeError("no answer")

    def broken(draws):
        if loop.step == 2:
            monkeypatch.setattr(loop, "save", unanswered)
            loop.saved = 1  # as if step 2 had not been saved yet
            raise RuntimeError("a fault")
        return prepare(draws)

    loop.trainee.prepare = broken
    with pytest.raises(RuntimeError, match="^a fault$"):
        loop.run()
    assert said[-1] == "The checkpoint of step 2 is unchanged."


@pytest.mark.slow
@pytest.mark.parametrize("spoiled", ["weights", "average"])
def test_weights_that_are_no_numbers_replace_no_checkpoint(spoiled, pictures, tmp_path, said):
    loop = loop_for(pictures, tmp_path, steps=STEPS, save_every=1, keep=1, ema=True)
    update = loop._update

    def spoiling(*given):
        done = update(*given)
        if loop.step == 3:
            (loop.parameters if spoiled == "weights" else loop.average.shadow_params)[0].data.view(-1)[0] = torch.nan
        return done

    loop._update = spoiling
    with pytest.raises(TrainingError) as error:
        loop.run()
    finite = "Expected finite weights for a checkpoint, found NaN or infinite ones after step"
    assert said[0].startswith(f"{finite} 3. The checkpoint of step 2 is unchanged.")
    assert said[0].endswith(" The training goes on.")
    if spoiled == "weights":
        assert "a finite loss in step 4" in str(error.value)
    assert f"{finite} {3 if spoiled == 'weights' else STEPS}. The checkpoint of step 2" in str(error.value)
    assert [step for step, _ in checkpoints(tmp_path)] == [2]


# ---- disks -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_and_keeps_the_checkpoint_before(pictures, tmp_path, said):
    """Files may not grow beyond 20 kB from the second checkpoint on; the training goes on and fails only at its end."""
    resource = pytest.importorskip("resource")
    loop = loop_for(pictures, tmp_path, steps=4, save_every=1)
    update, limits = loop._update, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*given):
        if loop.step == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        return update(*given)

    loop._update = full
    try:
        with pytest.raises(TrainingError) as error:
            loop.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "to write a checkpoint of step 4" in str(error.value)
    assert "The checkpoint of step 1 is unchanged. Free space" in str(error.value)
    assert [sentence[-22:] for sentence in said] == [" The training goes on."] * 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert loop_for(pictures, tmp_path, steps=2).run().step == 2


def no_memory(*given, **named):
    raise torch.cuda.OutOfMemoryError("out of memory\nin many words")


def refused(*given, **named):
    raise SubjectError("a photo", "none", "Add one.")


@pytest.mark.slow
def test_a_sheet_that_is_not_written_is_a_sentence(undisturbed, pictures, tmp_path, said, monkeypatch):
    """It is painted with averaged weights, and cannot be saved; the training is the one without sheets. At later steps
    it cannot be painted.
    """
    loop = loop_for(pictures, tmp_path / "out", steps=STEPS, batch=1, ema=True, ema_decay=0.5)
    loop.config = replace(loop.config, sheet=SheetConfig(every=1))
    examples, path = [draw.example for draw in small.draws(pictures, 1)], tmp_path / "sheet.png"
    monkeypatch.setattr(Image.Image, "save", no_space)

    def paint(trainee, step):
        if step > 4:
            {5: no_memory, 6: refused}[step]()
        elif step == 4:
            paint_sheet(trainee, examples, SheetConfig(steps=1), small.SIDE, path)

    loop.paint = paint
    assert loop.run().step == STEPS and same(weights(loop), undisturbed)
    reasons = {4: "[Errno 28] No space left on device", 5: "out of memory", 6: "Expected a photo, found none. Add one"}
    assert said == [
        f"The sheet of step {step} was not written: {reason}. The training goes on." for step, reason in reasons.items()
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_curves_that_cannot_be_written_are_one_sentence(undisturbed, pictures, tmp_path, said, monkeypatch):
    loop = loop_for(pictures, tmp_path, steps=STEPS, batch=1)
    monkeypatch.setattr(loop.accelerator, "trackers", [tracker := FullDisk()])
    assert loop.run().step == STEPS and same(weights(loop), undisturbed)
    assert said == [CURVES] and tracker.written == [1, 2]


@pytest.mark.parametrize("method", ["start", "finish"])
def test_curves_that_cannot_be_opened_or_closed_are_a_sentence(method, pictures, tmp_path):
    loop, said = loop_for(pictures, tmp_path, steps=1), []
    loop.say = said.append
    loop.accelerator.trackers = [FullDisk()]
    if method == "start":
        loop.accelerator.init_trackers = no_space
        loop.curves.start()
    loop.curves.close()
    assert said == [CURVES] and loop.accelerator.trackers == []


CURVES = "The curves cannot be written ([Errno 28] No space left on device). The training goes on without them."


class FullDisk:
    """A tracker that can write two steps."""

    name = "curves"

    def __init__(self):
        self.written = []

    def log(self, values, step, **given):
        if len(self.written) == 2:
            no_space()
        self.written.append(step)

    finish = no_space


@pytest.mark.slow
def test_an_earlier_trainings_checkpoints_are_set_aside(pictures, tmp_path, said):
    """They would be taken for newer than those of the first steps, which would then be deleted."""
    loop_for(pictures, tmp_path, steps=3).run()
    for number in (1, 2):
        loop = loop_for(pictures, tmp_path, steps=1, keep=1, resume=False)
        loop.say = said.append
        assert loop.run().step == 1
        assert (
            said[-1] == f"begins anew; the checkpoints that were there are in {tmp_path / f'checkpoints_{number}'} now"
        )
        assert [step for step, _ in checkpoints(tmp_path)] == [1]
    assert (tmp_path / "checkpoints_1" / "step-00000003" / "training.json").is_file()
    assert loop_for(pictures, tmp_path, steps=2).run().step == 2


@pytest.mark.slow
def test_an_adapter_is_left_where_a_checkpoint_is_too_large(pictures, tmp_path):
    loop = loop_for(pictures, tmp_path, steps=2)
    loop.accelerator.save_state = no_space
    with pytest.raises(TrainingError) as error:
        run._run(loop)
    path = tmp_path / "mip_adapter.safetensors"
    assert f"to write a checkpoint of step 2 into {tmp_path / 'checkpoints'}, found [Errno 28]" in str(error.value)
    assert str(error.value).endswith(f" The adapter of step 2 is in {path}.")
    assert read_adapter(path).spec.family == "mip_adapter"
