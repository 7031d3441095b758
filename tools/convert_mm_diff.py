"""MM-Diff's three files made into one safetensors file."""

import sys

from troupe_tools.commands.convert_mm_diff import main

if __name__ == "__main__":
    sys.exit(main())
