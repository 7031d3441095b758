"""Print the structure of the pack in numbers: modules, rooms, imports between rooms, circles, long lines.

usage: python tools/structure.py [REVISION ...] [--folders FOLDER ...]

A column for each git revision, such as `HEAD` or `v0.1.0`; without one, the working tree. A room is a folder of
modules, or a module beside such folders. Imports inside functions count too. --folders counts only these folders.
"""

import sys

from troupe_tools.dev.structure import main

if __name__ == "__main__":
    sys.exit(main())
