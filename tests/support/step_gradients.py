"""The gradients of the first step of each recipe's training, in this process or in one of several.

usage: python step_gradients.py PICTURES OUTPUT BATCH ACCUMULATION FAULTY RECIPE ... as one of several processes. They
then stop a training and go on with it, see `stopped_training.py`, and there are trainings with faults, see
`faulty_training`, whose arguments FAULTY is in JSON: most of the time goes to starting processes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path


def write_gradients(pictures: Path, output: Path, batch: int, accumulation: int, recipes: Sequence[str]) -> None:
    """Train one step of each recipe without an update, and let the main process write what it would be made with into
    OUTPUT/RECIPE.pt.
    """
    import torch
    from troupe.training.config.reading import as_tables
    from troupe.training.config.schema import Config, OutputConfig, TrainingConfig
    from troupe.training.examples.draws import Draws
    from troupe.training.examples.folder import FolderSet
    from troupe.training.loop import Loop
    from troupe.training.recipes.registry import RECIPES
    from troupe.training.run import make_accelerator

    from . import tiny_training as small

    training = TrainingConfig(steps=1, batch=batch, accumulation=accumulation, lr=1e-3)
    for recipe in recipes:
        folder = output / recipe
        config = Config(recipe, RECIPES[recipe].Options(), training=training, output=OutputConfig(folder=str(folder)))
        accelerator = make_accelerator(config, cpu=True)
        total = training.batch * training.accumulation * accelerator.num_processes
        trainee = small.trainee(recipe, small.base_for(recipe), total=total)
        loop = Loop(config, trainee, Draws(FolderSet(pictures, small.SIDE, 4), 0), as_tables(config), accelerator)
        state = {}

        def keep(state: dict = state, trainee: torch.nn.Module = trainee) -> None:
            state.update({name: p.grad for name, p in trainee.named_parameters() if p.grad is not None})

        loop.optimizer.step = keep
        loop.run()
        if accelerator.is_main_process:
            found = {"gradients": state, "processes": accelerator.num_processes}
            torch.save(found, output / f"{recipe}.pt")


def main(pictures: str, output: str, batch: str, accumulation: str, faulty: str, *recipes: str) -> None:
    """Do everything that is done in several processes."""
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root / "tools"), str(root / "tests")]
    from troupe_tools.pack import hide_broken_torchaudio, load_pack

    hide_broken_torchaudio()
    load_pack()
    import torch
    from accelerate import PartialState

    from support.faulty_training import train_twice
    from support.step_gradients import write_gradients
    from support.stopped_training import stop_and_resume

    torch.set_num_threads(1)
    write_gradients(Path(pictures), Path(output), int(batch), int(accumulation), recipes)
    stop_and_resume(Path(pictures), Path(output))
    PartialState().destroy_process_group()
    train_twice(*json.loads(faulty))


if __name__ == "__main__":
    main(*sys.argv[1:])
