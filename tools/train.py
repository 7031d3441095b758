"""Train a subject adapter: docs/training.md.

usage: python tools/train.py SETTINGS.toml [--set key=value ...] [--cpu] [--export]

For several GPUs: accelerate launch tools/train.py SETTINGS.toml
"""

import sys

from troupe_tools.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
