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

from ..model_patches.errors import TroupeError
from .checkpoints import checkpoints, left_in, load_checkpoint, path_of, save_checkpoint, set_aside
from .config.schema import Config
from .curves import Curves
from .data.records import DatasetError
from .examples.draws import Draw, Draws, DrawsOrFaults, Share
from .optimizers import make_optimizer
from .progress import Progress
from .recipes.recipe import Batch, Losses, Trainee
from .stop import TrainingError, first_line, how_to_go_on, ignore_interrupts, stop_requests
from .together import together

Painter = Callable[[Trainee, int], None]


@dataclass(frozen=True)
class Ended:
    """End of a training. step: at which it ended; signal: that stopped it, 0 if it is finished."""

    step: int
    signal: int = 0


class Loop:
    """A training of one adapter.

    Arguments:
        config: the sections of the configuration file; trainee: on the CPU; draws: its pictures; settings: of the whole
            training, as plain values, for checkpoints.
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
        self.curves = Curves(accelerator, lambda sentence: self.say(sentence))
        self.step = self.saved = 0

    def run(self) -> Ended:
        """Train to the last step, or until a signal. Either way there is a checkpoint of the last step.

        Raises TrainingError, in every process: a picture cannot be read, a loss is not finite, or the last checkpoint
        cannot be written. The first two leave a checkpoint of the last step too.
        """
        if self.config.output.resume:
            self.resume()
        else:
            self._begin_anew()
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
                        self.curves.add({**shown, "lr": float(self.scheduler.get_last_lr()[0])}, self.step)
                    if stop or self.step == training.steps:
                        self.save()
                    elif self.step % self.config.output.save_every == 0:
                        self._save_if_possible()
                    if stop:
                        return Ended(self.step, stop)
                    self._sheet()
            return Ended(self.step)
        finally:
            progress.close()
            self.say = say

    def resume(self) -> bool:
        """Go on from the newest checkpoint, with the present settings. Return False if there is none.

        Raises TrainingError, in every process.
        """

        def load() -> tuple[Path, list[str]] | None:
            found = checkpoints(self.output)
            if not found:
                return None
            self.step, changed = load_checkpoint(self.accelerator, found[-1][1], self.settings)
            self.saved = self.step
            return found[-1][1], changed

        loaded = together(self.accelerator, load)
        if loaded is None:
            return False
        self._set_rates()
        if self.average is not None:
            self.average.to(self.accelerator.device)
            self.average.decay = self.config.training.ema_decay
        path, changed = loaded
        since = f"; changed since: {', '.join(changed)}" if changed else ""
        self.say(f"goes on from step {self.step}, {path}{since}")
        return True

    def _set_rates(self) -> None:
        """Give the optimiser the rates of the settings, in place of those of a checkpoint."""
        training, scheduler = self.config.training, self.scheduler
        for group, factor in zip(self.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
            rate = training.lr * factor(scheduler.last_epoch)
            group |= {"lr": rate, "initial_lr": training.lr}
            group |= {"betas": (training.beta1, training.beta2), "weight_decay": training.weight_decay}
        scheduler.base_lrs = [training.lr] * len(scheduler.base_lrs)
        scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def save(self) -> None:
        """Write a checkpoint.

        Raises TrainingError if it cannot be written or the weights are not finite: the earlier ones are unchanged.
        """
        kept = [*self.parameters, *(self.average.shadow_params if self.average is not None else ())]
        if not all(bool(tensor.isfinite().all()) for tensor in kept):
            raise TrainingError(
                "finite weights for a checkpoint",
                f"NaN or infinite ones after step {self.step}",
                f"{left_in(self.output)} Lower lr, or set max_grad_norm = 1.0.",
            )
        save_checkpoint(self.accelerator, self.output, self.step, self.settings, self.config.output.keep)
        self.saved = self.step

    def averaged(self) -> _Averaged:
        """Return a context in which the trainee has the averaged weights, if there are any."""
        return _Averaged(self.average, self.parameters)

    def _begin_anew(self) -> None:
        """Set the checkpoints of an earlier training aside."""

        def rename() -> Path | None:
            here = self.accelerator.is_main_process and checkpoints(self.output)
            return set_aside(self.output) if here else None

        path = together(self.accelerator, rename)
        if path is not None:
            self.say(f"begins anew; the checkpoints that were there are in {path} now")

    def _save_if_possible(self) -> None:
        try:
            self.save()
        except TrainingError as error:  # a disk that is full now may have room at the next interval
            self.say(f"{error} The training goes on.")

    def _sheet(self) -> None:
        last = self.step == self.config.training.steps
        if self.paint is None or not (last or self.step % self.config.sheet.every == 0):
            return
        if self.accelerator.is_main_process:
            try:
                with self.averaged():
                    self.paint(self.trainee, self.step)
            except (OSError, TroupeError, torch.OutOfMemoryError) as error:
                why = first_line(error).rstrip(".")
                self.say(f"The sheet of step {self.step} was not written: {why}. The training goes on.")
        self.accelerator.wait_for_everyone()

    def _batches(self) -> Iterator[list[Draw | DatasetError]]:
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
                DrawsOrFaults(self.draws),
                batch_sampler=share,  # pyright: ignore[reportArgumentType] - any iterable of lists with a length
                collate_fn=list,
                num_workers=self.config.data.workers,
                worker_init_fn=ignore_interrupts,
            )
        )

    def _update(self, batches: Iterator[list[Draw | DatasetError]], signal: int) -> tuple[dict[str, float], int]:
        """One step. Returns its mean losses over all processes, and the signal of any process."""
        try:
            losses, stop = self._gradients(batches, signal)
        except TroupeError as error:  # in all processes alike, with the weights of the last step
            raise TrainingError(error.expected, error.found, f"{error.remedy} {self._kept()}") from error
        except (RuntimeError, OSError, MemoryError):  # such as no memory, or the end of a process that reads pictures
            if self.accelerator.num_processes == 1:  # others would wait for this one
                self.say(self._kept())
            raise
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            self.average.step(self.parameters)
        return losses, stop

    def _gradients(self, batches: Iterator[list[Draw | DatasetError]], signal: int) -> tuple[dict[str, float], int]:
        """All passes of a step."""
        training, accelerator = self.config.training, self.accelerator
        collected: list[torch.Tensor] = []
        names: list[str] = []
        suspects: list[str] = []
        accelerator.step = 0  # it counts passes: a checkpoint of a step that ended in the middle has another count
        for _ in range(training.accumulation):
            draws, batch = together(accelerator, lambda: self._next(batches))
            with accelerator.accumulate(self.model):
                losses: Losses = self.model(batch)
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
        if not all(map(math.isfinite, values)):  # in all processes alike
            raise self._broken("loss", gather_object(list(suspects)))
        norm = accelerator.clip_grad_norm_(self.parameters, training.max_grad_norm or float("inf"))
        if (
            training.precision != "fp16" and norm is not None and not norm.isfinite()
        ):  # fp16's scaler skips such a step by itself
            raise self._broken("length of the gradients", [])
        return dict(zip(names, values, strict=True)), stop

    def _next(self, batches: Iterator[list[Draw | DatasetError]]) -> tuple[list[Draw], Batch]:
        draws: list[Draw] = []
        for draw in next(batches):
            if isinstance(draw, DatasetError):
                raise draw
            draws.append(draw)
        return draws, self.trainee.prepare(draws)

    def _broken(self, what: str, suspects: Sequence[str]) -> TrainingError:
        pictures = f" with {', '.join(dict.fromkeys(suspects))}" if suspects else ""
        return TrainingError(
            f"a finite {what} in step {self.step + 1}",
            f"NaN or infinite values{pictures}",
            "Look at these pictures, lower lr, or set max_grad_norm = 1.0.",
        )

    def _kept(self) -> str:
        """What is saved, as a sentence. A step that was not saved yet is saved first."""
        kept = "Nothing was trained yet."
        try:
            if self.saved < self.step:
                self.save()
            if self.saved:
                path = path_of(self.output, self.saved)
                how = how_to_go_on(self.config.output.resume)
                kept = f"The weights of step {self.saved} are saved in {path}: {how} goes on from there."
        except TrainingError as fault:
            kept = str(fault)
        except RuntimeError:  # what broke the step may break this too, as an error of a GPU does
            kept = left_in(self.output)
        return kept


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
