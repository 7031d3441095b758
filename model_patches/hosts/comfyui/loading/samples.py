"""The sample photos of the templates, in the host's input folder."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import folder_paths

SAMPLES = Path(__file__).parents[4] / "samples"


def provide_photos() -> None:
    """Copy each sample photo into the host's input folder, unless a file has its name there, so that templates run
    without an upload.
    """
    for photo in sorted(SAMPLES.glob("*.jpg")):
        target = os.path.join(folder_paths.get_input_directory(), photo.name)
        if not os.path.lexists(target):
            with suppress(OSError):  # an input folder that is missing or cannot be written to stays as it is
                shutil.copyfile(photo, target)
