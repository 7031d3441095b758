"""Evaluate ways to paint on a benchmark, from a TOML file of settings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..pack import hide_broken_torchaudio, load_pack

NEEDED = 'An evaluation needs more packages than ComfyUI has. Run: pip install -e ".[evaluate]"'
AGAIN = "interrupted; the same command goes on where it stopped"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = parse(arguments)
    hide_broken_torchaudio()
    load_pack()
    from troupe.model_patches.errors import TroupeError

    try:
        from troupe.evaluation.run import evaluate
        from troupe.evaluation.settings import read_settings
    except ModuleNotFoundError as error:
        print(f"{NEEDED} ({error.name} is missing)", file=sys.stderr)
        return 1
    try:
        report = evaluate(read_settings(options.settings, options.set), say, paint=not options.report)
    except TroupeError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(AGAIN, file=sys.stderr)
        return 130
    say(f"wrote {report}, with table and contact sheet beside it")
    return 0


def say(sentence: str) -> None:
    """Print a sentence for the user."""
    print(sentence, file=sys.stderr, flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description="Evaluate ways to paint on a benchmark: docs/evaluation.md."
    )
    parser.add_argument("settings", type=Path, help="TOML file; evaluation/rehearsal.toml is an example")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="another value for a setting, such as suite.seeds=5; may be repeated",
    )
    parser.add_argument("--report", action="store_true", help="paint nothing; report what is there")
    return parser.parse_args(arguments)
