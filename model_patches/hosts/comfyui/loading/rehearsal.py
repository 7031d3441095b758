"""What Load Rehearsal Models hands out: the small models that come with the pack, one of their adapters, and reference
pictures of their cast.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .....rehearsal import files
from .....rehearsal.cast import shown_as_references
from .....rehearsal.world import reference
from ....errors import CheckpointError
from . import adapters, rehearsal_models
from .adapters import HostAdapter


class HostModels(NamedTuple):
    """The models as the host's own objects, and the adapter that was trained for them."""

    model: Any
    clip: Any
    vae: Any
    clip_vision: Any
    adapter: HostAdapter


def load_host_models(kind: str) -> HostModels:
    """Return the rehearsal models with one adapter, a key of `files.EVERY_ADAPTER`.

    Several calls share one copy. Raises CheckpointError if a file is missing or damaged.
    """
    models = rehearsal_models
    return HostModels(
        models.model(),
        models.clip(),
        models.vae(),
        models.clip_vision(),
        models.shared(_LOADERS[kind], files.EVERY_ADAPTER[kind]),
    )


def rehearsal_fingerprint(kind: str) -> str:
    """Return a value that changes when one of the files does."""
    return str(files.state_of(files.UNET, files.TEXTS, files.IMAGES, files.EVERY_ADAPTER[kind]))


def reference_pictures(kinds: Sequence[str]) -> list[torch.Tensor]:
    """Return pictures [1, 128, 128, 3] of an individual of each class; a class named twice gives another individual.

    Their looks were kept out of all training.
    """
    return [torch.from_numpy(reference(figure).copy())[None].float() / 255 for figure in shown_as_references(kinds)]


def _adapter(kind: str, folder: Path) -> HostAdapter:
    try:
        return adapters.load_adapter(f"{adapters.REHEARSAL}/{files.EVERY_ADAPTER[kind]}")
    except CheckpointError as error:
        raise CheckpointError(error.expected, error.found, files.AGAIN) from error


_LOADERS = {kind: partial(_adapter, kind) for kind in files.EVERY_ADAPTER}
