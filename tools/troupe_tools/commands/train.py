"""Train a subject adapter from a TOML file of settings."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..pack import hide_broken_torchaudio, load_pack

NEEDED = 'Training needs more packages than ComfyUI has. Run: pip install -e ".[train]"'
LEFT_TO_MAIN = 0  # a launcher that sees a process fail stops the others, also the one that has not yet said why
SIGNALLED = 128  # plus the signal's number is the exit status

load_pack()  # not in main: processes of data.workers import this module, and then receive objects of the pack


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = parse(arguments)
    hide_broken_torchaudio()
    from troupe.model_patches.errors import TroupeError

    try:
        from troupe.training.run import settings_of, train
        from troupe.training.stop import how_to_go_on
        from troupe.training.together import OtherProcessError
    except ModuleNotFoundError as error:
        print(f"{NEEDED} ({error.name} is missing)", file=sys.stderr)
        return 1
    try:
        config = settings_of(options.settings, options.set)
        ended = train(config, say, options.cpu, options.export)
    except OtherProcessError:
        return LEFT_TO_MAIN
    except TroupeError as error:
        if not is_first("LOCAL_RANK"):  # settings, which the first process of this machine has too
            return LEFT_TO_MAIN
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    if ended.signal and is_first("RANK"):
        say(f"stopped at step {ended.step}; {how_to_go_on(config.output.resume)} goes on from there")
        return SIGNALLED + ended.signal
    return 0


def is_first(number: str) -> bool:
    """Return whether this process is the only one or the first. number: LOCAL_RANK of a machine's, RANK of all."""
    return os.environ.get(number, "0") == "0"


def say(sentence: str) -> None:
    """Print a sentence for the user."""
    print(sentence, file=sys.stderr)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train a subject adapter: docs/training.md.")
    parser.add_argument("settings", type=Path, help="TOML file; training/recipes has examples")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value for a setting, such as lr=1e-5 or data.folder=pictures; may be repeated",
    )
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--export", action="store_true", help="only export the adapter of the newest checkpoint")
    return parser.parse_args(arguments)
