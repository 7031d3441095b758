"""The README's pictures: templates as a running ComfyUI shows them in Chromium.

usage: python tools/screenshots.py [--comfyui DIR] [--to FOLDER]

Needs a ComfyUI, a Chromium (CHROMIUM names its file where it is not found) and the package playwright.
"""

import sys

from troupe_tools.dev.screenshots import main

if __name__ == "__main__":
    sys.exit(main())
