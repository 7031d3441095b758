"""What the rehearsal world's trainings share: batches drawn as they are needed, the schedule, averaged weights,
checkpoints.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from .. import codec
from ..engine import nets
from ..world import TRAINING_LOOKS, Look, Scene, draw_cells, random_scene


def pixels_of(cells: Sequence[np.ndarray]) -> torch.Tensor:
    """Return drawings [h, w, 3] uint8 as pixels [b, 3, h, w] in -1..1."""
    return torch.from_numpy(np.stack(cells)).permute(0, 3, 1, 2).float() / 127.5 - 1


def latents_of(scenes: Sequence[Scene]) -> torch.Tensor:
    """Return [b, 12, 16, 16]: what the codec makes of the drawn scenes, without the detour by pixels."""
    coefficients = codec.cells_to_coefficients(pixels_of([draw_cells(scene) for scene in scenes]))
    return (coefficients - codec.MEAN.view(-1, 1, 1)) / codec.SCALE.view(-1, 1, 1)


def random_scenes(
    chance: random.Random, count: int, choice: Sequence[Look] = TRAINING_LOOKS, alone: float = 0.3
) -> list[Scene]:
    """Draw scenes of individuals with these looks; alone: part of them with one subject."""
    return [random_scene(chance, choice, alone) for _ in range(count)]


class Diffusion:
    """V-prediction on SD's schedule, weighted by min-SNR (arXiv 2303.09556, gamma 5).

    device: of the schedule.
    """

    def __init__(self, device: torch.device):
        betas = (
            torch.linspace(
                nets.BETAS["beta_start"] ** 0.5,
                nets.BETAS["beta_end"] ** 0.5,
                nets.BETAS["num_train_timesteps"],
                dtype=torch.float64,
            )
            ** 2
        )
        self.signal = torch.cumprod(1 - betas, 0).float().to(device)  # alpha bar

    def noised(self, clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return noisy latents [b, c, h, w], steps [b], the v to be predicted [b, c, h, w], and the loss weight of each
        [b].

        Steps are spread evenly over the batch.
        """
        b = len(clean)
        even = (torch.arange(b, device=clean.device) + torch.rand(b, device=clean.device)) / b
        steps = (even * len(self.signal)).long().clamp(max=len(self.signal) - 1)
        signal = self.signal[steps].view(-1, 1, 1, 1)
        noise = torch.randn_like(clean)
        snr = signal / (1 - signal)
        weight = snr.clamp(max=5) / (snr + 1)
        return (
            signal.sqrt() * clean + (1 - signal).sqrt() * noise,
            steps,
            signal.sqrt() * noise - (1 - signal).sqrt() * clean,
            weight.flatten(),
        )


def weighted_loss(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the mean over pictures of weight * mean square error, divided by the mean weight."""
    return (weight * (prediction.float() - target).square().mean((1, 2, 3))).mean() / weight.mean()


class PlainAttention:
    """Attention as two products of matrices.

    On a CPU its gradients take a third of the time that the fused kernel's take at these sizes.
    """

    def __call__(
        self,
        attention: Attention,
        hidden: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        states = hidden if encoder_hidden_states is None else encoder_hidden_states
        found = plain_attention(attention.to_q(hidden), attention.to_k(states), attention.to_v(states), attention.heads)
        return attention.to_out[0](found)


def plain_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, heads: int) -> torch.Tensor:
    """Return attention [b, n, c], heads joined, of a query [b, n, c], keys and values [b, t, c]."""
    return attention_shares(query, keys, values, heads)[1]


def attention_shares(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result of `plain_attention`, with the probabilities [b * heads, n, t] before it."""
    q, k, v = (
        x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)
        for x in (query * (query.shape[-1] // heads) ** -0.5, keys, values)
    )
    logits = torch.bmm(q, k.transpose(1, 2))
    shares = logits.softmax(-1, dtype=logits.dtype)
    return shares, torch.bmm(shares, v).unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


class Average:
    """Exponential moving average of parameters; its memory grows with the run up to 1 / (1 - `most`) steps."""

    def __init__(self, parameters: Iterable[nn.Parameter], most: float = 0.9995):
        self.parameters, self.most, self.steps = list(parameters), most, 0
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    def update(self) -> None:
        """Move the averages towards the present parameters."""
        self.steps += 1
        decay = min(self.most, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self.parameters], 1 - decay)

    def swap(self) -> None:
        """Change places of the parameters with their averages."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.values, strict=True):
                kept = parameter.detach().clone()
                parameter.copy_(value)
                value.copy_(kept)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the averages in the place of the parameters while the context is open, whatever ends it."""
        self.swap()
        try:
            yield
        finally:
            self.swap()


class Trainer:
    """AdamW with a warm-up, a constant rate and a linear cool-down over the last part of the minutes; checkpoints that
    a later run goes on from.

    modules: what is trained, by name; folder: of checkpoints and log; minutes: of this run; cooldown: its last part,
    0..1; rate: largest learning rate; seed: of batches and noise; save_every: minutes between checkpoints; say: gets a
    line of progress now and then.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        folder: Path,
        minutes: float,
        rate: float,
        cooldown: float,
        seed: int,
        save_every: float = 5.0,
        say: Callable[[str], None] = print,
    ):
        self.modules, self.folder, self.minutes, self.rate, self.cooldown, self.save_every = (
            modules,
            folder,
            minutes,
            rate,
            cooldown,
            save_every,
        )
        self.say = say
        parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.average = Average(parameters)
        self.parameters = parameters
        self.step, self.samples, self.seconds, self.loss = 0, 0, 0.0, math.nan
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = folder / "checkpoint.pt"
        if self.checkpoint.exists():
            self._load()
        self.chance = random.Random(f"{seed} {self.step}")
        torch.manual_seed(seed * 1_000_003 + self.step)
        self.begin = self.said = self.saved = time.monotonic()

    @property
    def progress(self) -> float:
        """Part of this run's minutes that has passed, 0..1 and beyond."""
        return (time.monotonic() - self.begin) / (60 * self.minutes)

    def steps(self, batch: int) -> Iterable[int]:
        """Yield the numbers of the steps until the minutes are over; save and report on the way."""
        try:
            while self.progress < 1:
                rest = (1 - self.progress) / self.cooldown if self.cooldown else 1.0
                for group in self.optimizer.param_groups:
                    group["lr"] = self.rate * min(1.0, (self.step + 1) / 200, max(rest, 0.01))
                yield self.step
                self.step, self.samples = self.step + 1, self.samples + batch
                now = time.monotonic()
                if now - self.said > 30:
                    self.report()
                    self.said = now
                if now - self.saved > 60 * self.save_every:
                    self.save()
                    self.saved = now
        finally:  # whatever ends the run, Ctrl-C too
            self.save()
            self.report()

    def descend(self, loss: torch.Tensor) -> None:
        """Take one step of the optimizer. Raises FloatingPointError where the loss is not finite."""
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"Expected a finite loss, found {loss.item()} at step {self.step}. Continue from the last "
                "checkpoint with a lower --rate."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.average.update()
        value = loss.item()
        self.loss = value if math.isnan(self.loss) else 0.99 * self.loss + 0.01 * value

    def report(self) -> None:
        """Print the mean losses since the last report."""
        seconds = self.seconds + time.monotonic() - self.begin
        line = {
            "step": self.step,
            "samples": self.samples,
            "minutes": round(seconds / 60, 1),
            "loss": round(self.loss, 5),
            "rate": self.optimizer.param_groups[0]["lr"],
        }
        self.say(json.dumps(line))
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write everything that a later run needs; an interrupted write leaves the last checkpoint."""
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "trained": {
                name: [key for key, p in module.named_parameters() if p.requires_grad]
                for name, module in self.modules.items()
            },
            "average": self.average.values,
            "average_steps": self.average.steps,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds + time.monotonic() - self.begin,
            "loss": self.loss,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.average.values, self.average.steps = state["average"], state["average_steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.samples, self.seconds, self.loss = (
            state["step"],
            state["samples"],
            state["seconds"],
            state["loss"],
        )
