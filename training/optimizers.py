"""The optimisers that a training can choose."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

import torch
from torch import nn

from .config.schema import TrainingConfig
from .stop import TrainingError


def make_optimizer(config: TrainingConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser of the settings.

    Raises TrainingError if its package is missing, or the schedule has no warm-up.
    """
    if config.warmup and config.schedule == "constant":
        do = 'Set schedule = "constant_with_warmup", or warmup = 0.'
        raise TrainingError("a schedule with a warm-up for training.warmup", 'schedule "constant"', do)
    kind = torch.optim.AdamW
    if config.optimizer == "adamw8bit":
        try:
            kind = import_module("bitsandbytes").optim.AdamW8bit
        except ImportError as error:
            raise TrainingError(
                "the package bitsandbytes for optimizer 'adamw8bit'",
                "none that can be imported",
                'Run pip install bitsandbytes (it needs a GPU), or set optimizer = "adamw".',
            ) from error
    return kind(list(parameters), lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay)
