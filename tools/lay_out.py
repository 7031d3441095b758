"""Lay out the templates so that no node covers another, also where the front end draws nodes taller (Nodes 2.0).

usage: python tools/lay_out.py [--comfyui DIR] [--front-end DIR] [NAME ...]

Needs a ComfyUI, a Chromium (CHROMIUM names its file where it is not found) and the package playwright. --front-end is
the `static` folder of a comfyui-frontend-package that has Nodes 2.0. Columns stay where they are; in each column the
nodes are stacked by their measured heights, with the message of a successful run on every node that has one.
"""

import sys

from troupe_tools.dev.lay_out import main

if __name__ == "__main__":
    sys.exit(main())
