"""The rehearsal world as a benchmark: casts of individuals with known looks that no model was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from ...rehearsal.engine.paint import Rehearsal
from ...rehearsal.engine.recogniser import Recogniser
from ...rehearsal.engine.trials import CASTS, Trial, places_painted, trial
from ...rehearsal.world import reference
from ...training.config.tables import meant
from ...training.data.pictures import write_whole
from ..tasks import Box, TaskSubject
from .suite import Case, Suite, SuiteError

NAME = "rehearsal"
BOXES_FILE = "boxes.json"  # where the same seed paints each subject without references, so that it is found once only
NOTE = (
    "The casts are those of benchmarks/CONFUSION.md: colours that no adapter was trained on, one drawn reference each. "
    "Boxes are where the same seed paints the subjects without references."
)
Models = Callable[[], tuple[Rehearsal, Recogniser]]


def case_name(cast: str, number: int) -> str:
    """Return the name of a trial's case."""
    return f"{cast} {number:04}"


def trial_of(case: str) -> Trial:
    """Return the trial of a case's name. Raises SuiteError where it is none."""
    cast, _, number = case.rpartition(" ")
    if cast not in CASTS or not number.isdigit():
        raise SuiteError("a case of the rehearsal suite", f"'{case}'", f"Casts are {', '.join(CASTS)}.")
    return trial(cast, int(number))


def check_casts(casts: Sequence[str]) -> None:
    """Raise SuiteError for a cast that does not exist, or for none."""
    if not casts:
        raise SuiteError("a cast in 'casts' of [suite]", "none", f"Casts are {', '.join(CASTS)}.")
    for cast in casts:
        if cast not in CASTS:
            raise SuiteError("known casts in 'casts' of [suite]", f"'{cast}'", meant(cast, CASTS))


def rehearsal_suite(
    folder: Path, casts: Sequence[str], numbers: Sequence[int], boxed: bool = False, models: Models | None = None
) -> Suite:
    """Return the suite of the trials `numbers` of each cast, and draw the references into `folder`.

    boxed: give the subjects boxes; models: makes the models that find them, called only if boxes are missing.
    Raises:
        SuiteError: a cast does not exist.
    """
    check_casts(casts)
    names = [case_name(cast, number) for number in numbers for cast in casts]
    places = _boxes(folder, names, models) if boxed and models is not None else {}
    cases = []
    for name in names:
        one = trial_of(name)
        found = places.get(name, [None] * len(one.figures))
        subjects = []
        for i, (figure, box) in enumerate(zip(one.figures, found, strict=True)):
            path = folder / "references" / name.replace(" ", "_") / f"{i}.png"
            if not path.is_file():
                write_whole(Image.fromarray(reference(figure)), path)
            subjects.append(TaskSubject(figure.words, (path.relative_to(folder).as_posix(),), box))
        cases.append(Case(name, one.scene.caption, tuple(subjects), name, seeds=(one.seed,)))
    return Suite(NAME, folder, tuple(cases), (NOTE,))


def _boxes(folder: Path, names: Sequence[str], models: Models) -> dict[str, list[Box]]:
    """The boxes of each case; what is found is stored case by case."""
    path = folder / BOXES_FILE
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    missing = [name for name in names if name not in stored]
    if missing:
        painter, recogniser = models()
        folder.mkdir(parents=True, exist_ok=True)
        for name in missing:
            stored[name] = [list(map(float, box)) for box in places_painted(painter, recogniser, trial_of(name))]
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(stored), encoding="utf-8")
            partial.replace(path)
    return {name: [(box[0], box[1], box[2], box[3]) for box in stored[name]] for name in names}
