"""Make a training set of pictures with named subjects: a folder with `metadata.jsonl`, masks and references.

usage: python tools/make_dataset.py {coco,open-images,build,merge,references,quality,report} ... (--help after each)

    python tools/make_dataset.py build photos --out set
    python tools/make_dataset.py references set
    python tools/make_dataset.py quality set --keep 10000
    python tools/make_dataset.py report set

docs/training_data.md explains each command.
"""

import sys

from troupe_tools.commands.make_dataset import main

if __name__ == "__main__":
    sys.exit(main())
