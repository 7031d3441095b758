"""A training in several processes that is stopped and goes on, beside one that is not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

RECIPE, STEPS, STOPPED = "mip_adapter", 4, 2


def stop_and_resume(pictures: Path, output: Path) -> None:
    """Train in one part into OUTPUT/whole, and in two into OUTPUT/parts: a signal to the last process ends the first.

    Every process writes OUTPUT/stopped-RANK.pt: the weights of both, their averages, and the step and signal of the
    stop.
    """
    import torch
    from troupe.training.config.reading import as_tables
    from troupe.training.config.schema import Config, OutputConfig, SheetConfig, TrainingConfig
    from troupe.training.examples.draws import Draws
    from troupe.training.examples.folder import FolderSet
    from troupe.training.loop import Loop
    from troupe.training.recipes.registry import RECIPES
    from troupe.training.run import make_accelerator, sheet_painter

    from . import tiny_training as small

    def begun(folder: str) -> Loop:
        config = Config(
            RECIPE,
            RECIPES[RECIPE].Options(),
            training=TrainingConfig(steps=STEPS, batch=1, lr=1e-2, ema=True, schedule="cosine"),
            output=OutputConfig(folder=str(output / folder)),
            sheet=SheetConfig(every=STEPS - 1, rows=1, steps=1),
        )
        accelerator, draws = make_accelerator(config, cpu=True), Draws(FolderSet(pictures, small.SIDE, 4), 0)
        trainee = small.trainee(RECIPE, total=accelerator.num_processes)
        return Loop(config, trainee, draws, as_tables(config), accelerator, sheet_painter(config, draws))

    def state(loop: Loop) -> dict[str, torch.Tensor]:
        assert loop.average is not None
        averages = {f"average.{i}": value for i, value in enumerate(loop.average.shadow_params)}
        return {**loop.trainee.state_dict(), **averages}

    whole, first = begun("whole"), begun("parts")
    whole.run()
    accelerator, update = first.accelerator, first._update

    def interrupted(*given):
        if first.step == STOPPED - 2 and accelerator.is_last_process:  # it is seen in the next step
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*given)

    first._update = interrupted
    ended = first.run()
    torch.manual_seed(99)  # what an interruption leaves behind
    second = begun("parts")
    torch.nn.init.normal_(second.parameters[0])
    second.run()
    found = {"whole": state(whole), "parts": state(second), "ended": (ended.step, int(ended.signal))}
    torch.save(found, output / f"stopped-{accelerator.process_index}.pt")
