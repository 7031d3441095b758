"""Add an adapter that `tools/train.py` trained for the rehearsal world to the shipped files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ...model_patches.checkpoints.compact import compacted
from ...model_patches.errors import CheckpointError
from .. import files
from .card import CARD, hash_lines

ABOUT = {  # recipe -> key of `files.EVERY_ADAPTER`, what it is, what it was trained on
    "ip_adapter": (
        "ip",
        "IP-Adapter, 4 tokens",
        "on the frozen base: one reference of one subject in each picture, training looks",
    ),
    "mip_adapter": (
        "mip",
        "MIP-Adapter, 4 tokens, with text_to_weight",
        "on the frozen base: the references of all subjects in each picture, merged by relevance, training looks",
    ),
    "umm_diffusion": (
        "umm",
        "UMM-Diffusion, one pseudo word",
        "on the frozen base: the references of all subjects in each picture, training looks",
    ),
    "fastcomposer": (
        "fastcomposer",
        "FastComposer, with a UNet of its own",
        "from the base: the references of all subjects in each picture and their masks, training looks",
    ),
    "subject_diffusion": (
        "subject",
        "Subject-Diffusion, with a text encoder and text keys and values of its own",
        "from the base: the references of all subjects in each picture, their boxes and masks, training looks",
    ),
    "mm_diff": (
        "mm",
        "MM-Diff, with LoRAs for the UNet and the text encoder",
        "from the base and the IP-Adapter: the references of all subjects in each picture, training looks",
    ),
}
IN_INT8 = ("fastcomposer",)  # whose UNet is a whole one, twice as large as all other adapters together


def adopt(output: Path, minutes: float, folder: Path = files.FOLDER) -> list[Path]:
    """Copy the adapter of a finished training, and write its row into the card.

    Arguments:
        output: folder of the training, with its exported file and its last checkpoint; minutes: that it took.
    Returns:
        The written files.
    Raises:
        CheckpointError: the training has not ended, its adapter is not that of the last step, or its recipe has no
            file in the rehearsal world.
    """
    saved = sorted(output.glob("checkpoints/step-*/training.json"))
    about = json.loads(saved[-1].read_text(encoding="utf-8")) if saved else {}
    settings: dict[str, Any] = about.get("settings", {})
    recipe = settings.get("recipe", {}).get("name", "")
    source = output / f"{settings.get('output', {}).get('name') or recipe}.safetensors"
    if recipe not in ABOUT or about["step"] != settings["training"]["steps"] or not _is_newer(source, saved[-1]):
        found = f"recipe '{recipe}', last saved at step {about['step']}" if about else "no checkpoint"
        raise CheckpointError(
            f"a finished training of {' or '.join(ABOUT)} in {output}, with the file of its last step",
            found,
            "Run tools/train.py to its end first.",
        )
    kind, what, data = ABOUT[recipe]
    path = folder / files.EVERY_ADAPTER[kind]
    state = load_file(source)
    small = compacted(
        state, lambda key: kind in IN_INT8 and key.startswith("unet."), lambda key: key.endswith(files.TABLE)
    )
    save_file(small, path, {**_metadata(source), "about": f"Troupe's rehearsal world: {what}", "licence": "CC0-1.0"})
    path.chmod(0o644)
    training = settings["training"]
    pictures = about["step"] * training["batch"] * training["accumulation"] * about["processes"]
    row = f"| {path.name} | {path.stat().st_size / 1e6:.1f} MB | {what} | {data} | {pictures:,} | {minutes:.0f} |"
    card = folder / CARD
    card.write_text(with_row(card.read_text(encoding="utf-8"), row, folder), encoding="utf-8")
    return [path, card]


def with_row(card: str, row: str, folder: Path) -> str:
    """Return the card with a file's row, in place of the one that it had or as the last, and today's hashes."""
    lines, name = card.split("\n"), row.split(" | ")[0]
    table = [i for i, line in enumerate(lines) if line.startswith("| ")]
    old = [i for i in table if lines[i].startswith(f"{name} |")]
    lines[old[0] if old else table[-1] + 1 : (old[0] if old else table[-1]) + 1] = [row]
    first, last = (i for i, line in enumerate(lines) if line == "```")
    lines[first + 1 : last] = hash_lines(folder)
    return "\n".join(lines)


def _is_newer(path: Path, checkpoint: Path) -> bool:
    """Whether a file is there and was written after a checkpoint: a training that is stopped exports too."""
    return path.is_file() and path.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}
