"""Train the rehearsal world's models and export them, and add adapters that tools/train.py has trained for it: the
commands of rehearsal/files/MODEL_CARD.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

import torch

from ..pack import ROOT, hide_broken_torchaudio, load_pack

MODELS = ("encoder", "base", "recogniser", "clip", "dino")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # saves, as Ctrl-C does
    hide_broken_torchaudio()
    load_pack()
    try:
        run(options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(
        prog="train_rehearsal.py", description="Train the rehearsal world's models and export them."
    )
    parser.add_argument("what", choices=(*MODELS, "sheet", "export", "adopt"))
    parser.add_argument("--minutes", type=float, help="of this run (default: 60); adopt: that the training took")
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "output" / "rehearsal",
        help="of checkpoints, logs and sheets (default: output/rehearsal); of tools/train.py's output for adopt",
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="folder of exported files, such as rehearsal/files, whose weights a new training begins with",
    )
    parser.add_argument("--rate", type=float, help="learning rate (default: each model's own)")
    parser.add_argument("--batch", type=int, help="pictures a step (default: each model's own)")
    parser.add_argument(
        "--cooldown",
        type=float,
        help="last part of the minutes in which the learning rate falls to 0, 0..1 (default: each model's own)",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    options = parser.parse_args(arguments)
    if options.what == "adopt" and options.minutes is None:
        parser.error("adopt needs --minutes, which the training took")
    return options


def run(options: argparse.Namespace) -> None:
    """Run one training, paint the sheet, export, or add what tools/train.py has trained."""
    from troupe.rehearsal import files
    from troupe.rehearsal.training import export

    given = {
        name: value for name in ("rate", "batch", "cooldown", "start") if (value := getattr(options, name)) is not None
    }
    common = {"minutes": 60.0 if options.minutes is None else options.minutes, "device": options.device, **given}
    checkpoints, exported = options.folder, options.folder / "files"
    if options.what == "export":
        from troupe.rehearsal.training.card import write_card

        print(
            "\n".join(
                f"wrote {path}"
                for path in [*export.export_all(checkpoints, files.FOLDER), write_card(checkpoints, files.FOLDER)]
            )
        )
    elif options.what == "adopt":
        from troupe.rehearsal.training.adopt import adopt

        print("\n".join(f"wrote {path}" for path in adopt(options.folder, options.minutes)))
    elif options.what == "sheet":
        from troupe.rehearsal.training.sheet import sheet

        export.export_all(checkpoints, exported)
        print(f"wrote {sheet(exported, checkpoints / 'sheet.png')}")
    elif options.what == "encoder":
        from troupe.rehearsal.training.encoder import train_encoder

        print(json.dumps({"accuracy": train_encoder(checkpoints / "encoder", **common)}))
    elif options.what == "recogniser":
        from troupe.rehearsal.training.recogniser import train_recogniser

        print(json.dumps({"accuracy": train_recogniser(checkpoints / "recogniser", **common)}))
    elif options.what == "clip":
        from troupe.rehearsal.training.clip import train_clip

        print(json.dumps({"accuracy": train_clip(checkpoints / "clip", **common)}))
    elif options.what == "dino":
        from troupe.rehearsal.training.dino import train_dino

        print(json.dumps({"accuracy": train_dino(checkpoints / "dino", **common)}))
    else:
        from troupe.rehearsal.training.base import train_base

        train_base(checkpoints / "base", **common)
