"""The loop: passes, updates, checkpoints and sheets, on accelerate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader

from .checkpoints import checkpoints, load_checkpoint, save_checkpoint
from .config.schema import Config
from .examples.draws import Draw, Draws, Share
from .optimizers import make_optimizer
from .progress import Progress
from .recipes.recipe import Losses, Trainee
from .stop import TrainingError, stop_requests

Painter = Callable[[Trainee, int], None]


@dataclass(frozen=True)
class Ended:
    """End of a training. step: at which it ended; signal: that stopped it, 0 if it is finished."""

    step: int
    signal: int = 0


class Loop:
    """A training of one adapter.

    Arguments:
        trainee: on the CPU; draws: its pictures; settings: of the whole training, as plain values, for checkpoints.
        accelerator: made by `make_accelerator`; output: folder.
        paint: paints a validation sheet of the trainee at a step; say: takes sentences.
    """

    def __init__(
        self,
        config: Config,
        trainee: Trainee,
        draws: Draws,
        settings: dict[str, Any],
        accelerator: Accelerator,
        paint: Painter | None = None,
        say: Callable[[str], None] = lambda sentence: None,
    ):
        self.config, self.trainee, self.draws, self.settings = config, trainee, draws, settings
        self.accelerator, self.paint, self.say, self.output = accelerator, paint, say, Path(config.output.folder)
        training = config.training
        self.parameters = [parameter for parameter in trainee.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(training, self.parameters)
        self.scheduler = get_scheduler(
            training.schedule, optimizer, num_warmup_steps=training.warmup, num_training_steps=training.steps
        )
        self.model, self.optimizer = accelerator.prepare(trainee, optimizer)
        self.average: EMAModel | None = None
        accelerator.register_for_checkpointing(self.scheduler)
        if training.ema:
            self.average = EMAModel(self.parameters, decay=training.ema_decay)
            self.average.to(accelerator.device)
            accelerator.register_for_checkpointing(self.average)
        self.step = self.saved = 0

    def run(self) -> Ended:
        """Train to the last step, or until a signal. Either way there is a checkpoint of the last step.

        Raises TrainingError: a loss is not finite, or the last checkpoint cannot be written.
        """
        self.resume()
        training, accelerator = self.config.training, self.accelerator
        per_step = training.batch * training.accumulation * accelerator.num_processes
        progress = Progress(
            training.steps, self.step, per_step, self.trainee.weights, accelerator.is_local_main_process
        )
        say, self.say = self.say, progress.say
        try:
            with stop_requests() as request:
                batches = self._batches()
                while self.step < training.steps:
                    losses, stop = self._update(batches, request.signal)
                    shown = progress.update(self.step, losses)
                    if self.step % self.config.output.log_every == 0:
                        accelerator.log({**shown, "lr": self.scheduler.get_last_lr()[0]}, step=self.step)
                    if stop:
                        self.save()
                        return Ended(self.step, stop)
                    self._at_intervals()
            if self.saved != self.step:
                self.save()
            return Ended(self.step)
        finally:
            progress.close()
            self.say = say

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one and the settings ask for it."""
        found = checkpoints(self.output) if self.config.output.resume else []
        if found:
            self.step = self.saved = load_checkpoint(self.accelerator, found[-1][1], self.settings)
            if self.average is not None:
                self.average.to(self.accelerator.device)
            self.say(f"goes on from step {self.step}, {found[-1][1]}")

    def save(self) -> None:
        """Write a checkpoint. Raises TrainingError."""
        save_checkpoint(self.accelerator, self.output, self.step, self.settings, self.config.output.keep)
        self.saved = self.step

    def averaged(self) -> _Averaged:
        """Return a context in which the trainee has the averaged weights, if there are any."""
        return _Averaged(self.average, self.parameters)

    def _at_intervals(self) -> None:
        output, sheet = self.config.output, self.config.sheet
        if self.step % output.save_every == 0:
            try:
                self.save()
            except TrainingError as error:  # a disk that is full now may have room at the next interval
                self.say(f"{error} The training goes on.")
        last = self.step == self.config.training.steps
        if self.paint is not None and (last or self.step % sheet.every == 0):
            if self.accelerator.is_main_process:
                with self.averaged():
                    self.paint(self.trainee, self.step)
            self.accelerator.wait_for_everyone()

    def _batches(self) -> Iterator[list[Draw]]:
        training, accelerator = self.config.training, self.accelerator
        share = Share(
            self.step,
            training.steps,
            training.accumulation,
            training.batch,
            accelerator.process_index,
            accelerator.num_processes,
        )
        return iter(
            DataLoader(
                self.draws,
                batch_sampler=share,  # pyright: ignore[reportArgumentType] - any iterable of lists with a length
                collate_fn=list,
                num_workers=self.config.data.workers,
            )
        )

    def _update(self, batches: Iterator[list[Draw]], signal: int) -> tuple[dict[str, float], int]:
        """One step. Returns its mean losses over all processes, and the signal of any process."""
        training, accelerator = self.config.training, self.accelerator
        collected: list[torch.Tensor] = []
        names: list[str] = []
        suspects: list[str] = []
        for _ in range(training.accumulation):
            draws = next(batches)
            with accelerator.accumulate(self.model):
                losses: Losses = self.model(self.trainee.prepare(draws))
                names = list(losses)
                total = sum(self.trainee.weights[name] * loss.mean() for name, loss in losses.items())
                accelerator.backward(total)
            each = torch.stack([loss.detach().float() for loss in losses.values()])  # losses, B
            collected.append(each.mean(1))
            suspects += [
                draw.example.label for draw, fine in zip(draws, each.isfinite().all(0), strict=True) if not fine
            ]
        mean = torch.stack(collected).mean(0)
        told = accelerator.gather(torch.cat((mean, mean.new_tensor([float(signal)]))).unsqueeze(0))
        values, stop = told[:, :-1].mean(0).tolist(), int(told[:, -1].max())
        self._check(values, suspects)
        norm = accelerator.clip_grad_norm_(self.parameters, training.max_grad_norm or float("inf"))
        if (
            training.precision != "fp16" and norm is not None and not norm.isfinite()
        ):  # fp16's scaler skips such a step by itself
            raise self._broken("length of the gradients", [])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            self.average.step(self.parameters)
        return dict(zip(names, values, strict=True)), stop

    def _check(self, values: Sequence[float], suspects: Sequence[str]) -> None:
        if not all(map(math.isfinite, values)):  # in all processes alike
            raise self._broken("loss", gather_object(list(suspects)))

    def _broken(self, what: str, suspects: Sequence[str]) -> TrainingError:
        pictures = f" with {', '.join(dict.fromkeys(suspects))}" if suspects else ""
        left = f"The weights of step {self.saved} are saved." if self.saved else "Nothing was saved yet."
        return TrainingError(
            f"a finite {what} in step {self.step + 1}",
            f"NaN or infinite values{pictures}",
            f"{left} Look at these pictures, lower lr, or set max_grad_norm = 1.0.",
        )


class _Averaged:
    def __init__(self, average: EMAModel | None, parameters: list[torch.nn.Parameter]):
        self._average, self._parameters = average, parameters

    def __enter__(self) -> None:
        if self._average is not None:
            self._average.store(self._parameters)
            self._average.copy_to(self._parameters)

    def __exit__(self, *error: Any) -> None:
        if self._average is not None:
            self._average.restore(self._parameters)
