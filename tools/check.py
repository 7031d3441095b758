"""Will this workflow run here? Missing nodes, missing model files with their links, wires and values that do not fit.

usage: python tools/check.py WORKFLOW.json [--comfyui DIR | --url http://127.0.0.1:8188 | --no-host]
       python tools/check.py --from-ipadapter OLD.json [-o NEW.json]

Reads what ComfyUI saves, also in a picture, and what it exports for the API. The first form asks a running ComfyUI, or
starts the one that it finds with its own nodes; without any it checks files and links, and says so. The second rewrites
the nodes of IPAdapter_plus as Troupe's.
"""

import sys

from troupe_tools.commands.check import main

if __name__ == "__main__":
    sys.exit(main())
