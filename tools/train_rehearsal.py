"""Train the rehearsal world's models and export them: the commands of rehearsal/files/MODEL_CARD.md.

usage: python tools/train_rehearsal.py WHAT --minutes M [--folder DIR] [--cooldown PART] [--device cpu|cuda] [--threads
N]

WHAT: encoder, base, recogniser, clip or dino; a later run of the same goes on where the last one ended.
`sheet` paints a sample sheet of what there is, `export` writes rehearsal/files.
"""

import sys

from troupe_tools.dev.train_rehearsal import main

if __name__ == "__main__":
    sys.exit(main())
