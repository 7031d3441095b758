"""From trainers' checkpoints to the shipped files: averaged weights in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .. import files
from ..engine.recogniser import FILE as RECOGNISER
from . import clip, dino
from .vocabulary import known_ids


def averaged_states(checkpoint: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return the state dicts of a checkpoint's modules, with the averaged in place of the last parameters."""
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    values = iter(state["average"])
    return {
        name: {key: next(values) if key in state["trained"][name] else value for key, value in module.items()}
        for name, module in state["modules"].items()
    }


def write(tensors: Mapping[str, torch.Tensor], path: Path, about: str, **more: str) -> None:
    """Write a safetensors file, numbers as float16. more: of its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in tensors.items()
        if not name.endswith("position_ids")
    }
    save_file(halves, path, {"about": about, "licence": "CC0-1.0", **more})
    path.chmod(0o644)


def export_base(checkpoint: Path, folder: Path = files.FOLDER) -> None:
    """Write the UNet, and the text encoder with the rows of the words that the world knows."""
    modules = averaged_states(checkpoint)
    write(modules["unet"], folder / files.UNET, "Troupe's rehearsal world: UNet, v-prediction, diffusers' names")
    texts = dict(modules["texts"])
    texts[files.TABLE] = texts[files.TABLE][: len(known_ids())]
    write(
        {**texts, files.IDS: torch.tensor(known_ids(), dtype=torch.int32)},
        folder / files.TEXTS,
        "Troupe's rehearsal world: CLIP text encoder, transformers' names",
    )


def export_encoder(checkpoint: Path, folder: Path = files.FOLDER) -> None:
    """Write the image encoder."""
    write(
        averaged_states(checkpoint)["encoder"],
        folder / files.IMAGES,
        "Troupe's rehearsal world: CLIP vision encoder, transformers' names",
    )


def export_recogniser(checkpoint: Path, folder: Path = files.FOLDER) -> None:
    """Write the network that counts who is in a picture."""
    write(averaged_states(checkpoint)["recogniser"], folder / RECOGNISER, "Troupe's rehearsal world: recogniser")


def export_clip(checkpoint: Path, folder: Path = files.FOLDER) -> None:
    """Write the CLIP as a folder in transformers' layout, whose weights become float32 when it is loaded."""
    words, target = clip.tokenizer(), folder / files.CLIP
    config = clip.build(words).config
    config.architectures, config.dtype = ["CLIPModel"], "float32"
    weights = averaged_states(checkpoint)["clip"]
    write(weights, folder / files.CLIP_WEIGHTS, "Troupe's rehearsal world: CLIP, transformers' names", format="pt")
    for part in (config, clip.processor(), words):
        part.save_pretrained(target)


def export_dino(checkpoint: Path, folder: Path = files.FOLDER) -> None:
    """Write the DINOv2 as a folder in transformers' layout, whose weights become float32 when it is loaded."""
    model, weights = dino.build(), averaged_states(checkpoint)["dino"]
    model.load_state_dict(weights)  # or transformers would leave out layers that the configuration does not name
    config = model.config
    config.architectures, config.dtype = ["Dinov2Model"], "float32"
    write(weights, folder / files.DINO_WEIGHTS, "Troupe's rehearsal world: DINOv2, transformers' names", format="pt")
    for part in (config, clip.processor()):  # which reads pictures as the CLIP does
        part.save_pretrained(folder / files.DINO)


def export_all(checkpoints: Path, folder: Path) -> list[Path]:
    """Write every model that has a checkpoint in `checkpoints`. Returns the files in `folder`."""
    ways = {
        "encoder": export_encoder,
        "base": export_base,
        "recogniser": export_recogniser,
        "clip": export_clip,
        "dino": export_dino,
    }
    for name, way in ways.items():
        if (checkpoints / name / "checkpoint.pt").exists():
            way(checkpoints / name / "checkpoint.pt", folder=folder)
    return sorted(folder.rglob("*.safetensors"))
