"""Run a workflow headless: in ComfyUI where there is one, else on the embedded engine.

usage: python tools/run.py [--workflow NAME_OR_FILE] [--photo FILE ...] [--name NAME ...] [--help]

Without arguments: the template 4_two_subjects on two real photos where its model files are there; where they are not,
the small rehearsal models that come with the pack paint a picture of their own cast, and the missing files are listed
with link and folder.
"""

import sys

from troupe_tools.commands.run import main

if __name__ == "__main__":
    sys.exit(main())
