"""Evaluate ways to paint on a benchmark: docs/evaluation.md.

usage: python tools/evaluate.py SETTINGS.toml [--set table.key=value ...] [--report]
"""

import sys

from troupe_tools.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
