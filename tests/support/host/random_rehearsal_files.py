"""The rehearsal files with random weights, in the layouts of the shipped ones."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from troupe.rehearsal import files
from troupe.rehearsal.sizes import VISION
from troupe_tools.engine.random_models import randomise

SEEDS = {files.UNET: 1, files.TEXTS: 2, files.IMAGES: 3, files.ADAPTERS["ip"]: 4, files.ADAPTERS["mip"]: 5}


def write_base(folder: Path) -> None:
    """UNet, text encoder and image encoder, float16."""
    from troupe.rehearsal.engine import nets
    from troupe.rehearsal.training.vocabulary import known_ids

    modules = {
        files.UNET: nets.unet(),
        files.TEXTS: nets.text_encoder(len(known_ids())),
        files.IMAGES: nets.image_encoder(),
    }
    for name, module in modules.items():
        state = {
            key: value
            for key, value in randomise(module, SEEDS[name]).state_dict().items()
            if not key.endswith("position_ids")
        }
        if name == files.TEXTS:
            state[files.IDS] = torch.tensor(known_ids(), dtype=torch.int32)
        save(state, folder / name)


def write_adapters(folder: Path, patcher) -> None:
    """Both adapters for the model of `patcher`, float16."""
    from .small_casts import adapter_state

    for kind, name in files.ADAPTERS.items():
        save(adapter_state(patcher, kind == "mip", VISION["projection_dim"], SEEDS[name]), folder / name)


def save(state: dict[str, torch.Tensor], path: Path) -> None:
    save_file(
        {key: (value.half() if value.is_floating_point() else value).contiguous() for key, value in state.items()}, path
    )
