"""DreamBench++: `images/<category>/<number>.jpg`, and `captions/<category>/<number>.txt` with the subject in the first
line and a prompt in each other one. Published: 150 images x 9 prompts; averaged by image.

Its figures of CLIP and DINO use the models of the preset "dreambench++". Its GPT-4o scores are not counted here.
"""

from __future__ import annotations

from pathlib import Path

from ...training.data.pictures import pictures_below
from ..tasks import TaskSubject
from .suite import Case, Suite, SuiteError, existing_folder, read_lines

NAME, WHAT = "dreambench_plus", "DreamBench++"
IMAGES, CAPTIONS = "images", "captions"
NO_GPT = "The published GPT-4o scores are not counted here."


def dreambench_plus(folder: Path) -> Suite:
    """Read DreamBench++. Raises SuiteError where the folder has another layout."""
    images = existing_folder(existing_folder(folder, WHAT) / IMAGES, f"the images of {WHAT}")
    photos = pictures_below(images)
    if not photos:
        raise SuiteError(f"images of {WHAT} in '{images}'", "none", "Download it again.")
    cases = []
    for photo in photos:
        name = photo.relative_to(images).with_suffix("").as_posix()
        path = folder / CAPTIONS / f"{name}.txt"
        lines = [line for line in read_lines(path, WHAT) if line]
        if len(lines) < 2:
            raise SuiteError(f"a subject and prompts in '{path}'", f"{len(lines)} lines", "Download it again.")
        subject = TaskSubject(lines[0].lower(), (photo.relative_to(folder).as_posix(),))
        cases += [Case(f"{name} {i}", prompt, (subject,), name) for i, prompt in enumerate(lines[1:])]
    return Suite(NAME, folder, tuple(cases), (NO_GPT,))
