"""The model card of the shipped files, written from the checkpoints they come from."""
from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from .. import files
from ..engine.load import load_image_encoder
from ..engine.recogniser import FILE as RECOGNISER
from ..engine.recogniser import load_recogniser
from ..world import CLASSES, COLOURS, PLACES, VARIANTS
from . import encoder, recogniser
from .export import averaged

CARD = "MODEL_CARD.md"
WHAT = {  # training -> its files, what they are, what they were trained on
    "encoder": ((files.IMAGES,), "image encoder, CLIP vision in small", "references of training looks, and in colours of chance whose nearest palette pair is not held out"),
    "base": ((files.UNET, files.TEXTS), "UNet and text encoder, SD1.5 in small, v-prediction",
             "drawings of all looks with captions that mention none, and the masks of who stands where (FastComposer's localization loss)"),
    "ip": ((files.ADAPTERS["ip"],), "IP-Adapter, 4 tokens", "on the frozen base: one reference of one subject in each picture, training looks"),
    "mip": ((files.ADAPTERS["mip"],), "MIP-Adapter, 4 tokens, with text_to_weight",
            "on the frozen base: the references of all subjects in each picture, merged by relevance, training looks"),
    "recogniser": ((RECOGNISER,), "recogniser of who is in a picture, for measurements", "disturbed drawings of all looks"),
}
HEAD = """# The rehearsal models

Written by `tools/train_rehearsal.py export`, by a machine: change the scripts, not this page.

Small models of a small world, trained from scratch on pictures that `rehearsal/world.py` draws: {classes}, each {variants} or plain, {places}. A subject's
look (two of {colours} colours, pattern, accessory) is in no caption: it is what a reference picture brings. They show what the method does, within seconds on a CPU; they
paint nothing else, and say nothing about how well large models reproduce a photo. No picture, photo or text of other people was used.

**State.** A lone subject mostly takes its reference's colours; `benchmarks/CONFUSION.md` counts what becomes of several. The adapters' error on held-out pictures was still
falling slowly when the training ended: the last hour made it 3 % smaller. The base began with fewer pictures of one subject, its first tenth had no held-out
looks, and its first half no localization loss; the adapters began from adapters of an earlier base; the recogniser knew only the training looks in its first three quarters.

**Held out.** Pairs of colours are split: one in five, in either order, is for tests only, with every pattern and accessory. The image encoder and both
adapters never saw one. The base model saw drawings of all pairs, without references, as base models have seen much of the world; the recogniser, which only measures,
knows all of them.

**Latents.** The codec (`rehearsal/codec.py`) is fixed and exact: 12 channels, factor 8. Pictures have 128 x 128 pixels.

**Licence.** CC0-1.0, as the drawings.
"""


def write_card(checkpoints: Path, folder: Path, count: int = 600) -> Path:
    """Write the card beside the files in `folder`. checkpoints: of the trainings, one folder each; count: drawings that the
    accuracies are measured on."""
    rows = ["| file | size | what | trained on | pictures | minutes |", "|---|---|---|---|---|---|"]
    for name, (found, what, data) in WHAT.items():
        state = checkpoints / name / "checkpoint.pt"
        if not state.exists():
            continue
        numbers = torch.load(state, weights_only=True)
        for file in found:
            rows.append(f"| {file} | {(folder / file).stat().st_size / 1e6:.1f} MB | {what} | {data} | {numbers['samples']:,} | {numbers['seconds'] / 60:.0f} |")
    device = f"{platform.machine()} CPU" if not torch.cuda.is_available() else torch.cuda.get_device_name()
    hashes = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in sorted(folder.glob("*.safetensors"))]
    text = [
        HEAD.format(classes=", ".join(CLASSES), variants=", ".join(v for v in VARIANTS if v), places=", ".join(PLACES), colours=len(COLOURS)),
        "\n".join(rows),
        f"\nMinutes are of one core ({device}). Made by `python tools/train_rehearsal.py WHAT --threads 1 --minutes M` for WHAT = {', '.join(WHAT)},\n"
        "in several runs, the last of each with a cool-down, then `python tools/train_rehearsal.py export`.\n",
        *_accuracies(checkpoints, folder, count), "## sha256\n", "```", *hashes, "```", "",
    ]
    path = folder / CARD
    path.write_text("\n".join(text), encoding="utf-8")
    return path


def _accuracies(checkpoints: Path, folder: Path, count: int) -> list[str]:
    """How well encoder and recogniser read held-out drawings."""
    parts = []
    if (checkpoints / "encoder" / "checkpoint.pt").exists():
        questions = encoder.Questions()
        questions.load_state_dict(averaged(checkpoints / "encoder" / "checkpoint.pt")["questions"])
        read = _listed(encoder.accuracy(load_image_encoder(folder), questions, count=count))
        parts.append(f"The image encoder, read out linearly on references of held-out looks: {read}.\n")
    if (folder / RECOGNISER).exists():
        read = _listed(recogniser.accuracy(load_recogniser(folder), count))
        parts.append(f"The recogniser on new drawings of held-out looks: {read} (`pictures`: every subject found and nobody else).\n")
    return ["## Accuracy\n", *parts] if parts else []


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share * 100:.1f} %" for name, share in shares.items())
