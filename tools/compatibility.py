"""The README's table of ComfyUI versions, from what the host tests did on each.

usage: python tools/compatibility.py [RESULTS.xml ...]

RESULTS.xml is what `COMFYUI_PATH=... python -m pytest tests/host --junitxml=RESULTS.xml` leaves; the host tests write
into it which host it was. Results are added to benchmarks/compatibility.json, and the table is written anew. Several
files of the same host and commit are one record; another commit begins a new one. Without files only the table is
written.
"""

import sys

from troupe_tools.dev.compatibility import ResultError, main

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ResultError as error:
        sys.exit(str(error))
