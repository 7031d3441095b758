"""Subject-Diffusion's modules, as its training saves them, made into one safetensors file: what Troupe reads of them
and no more.
"""

import sys

from troupe_tools.commands.convert_subject_diffusion import main

if __name__ == "__main__":
    sys.exit(main())
