"""An evaluation from settings to report: what the command does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..rehearsal.engine.paint import load_rehearsal
from ..rehearsal.engine.recogniser import load_recogniser
from ..training.data.pictures import PictureFault, open_picture
from .journal import lock_results, read_journal
from .making import make_engines, workflows
from .origin import origin_of
from .pool import run_tasks
from .report import Outcome, write_report
from .results import append_scores, check_origin, result_rows, stored_scores
from .scores.making import make_scorers
from .scores.scores import Painted, Scorer, columns_of
from .settings import EvaluationSettings
from .suites.registry import read_suite
from .suites.suite import BOXES, Suite, tasks_of
from .tasks import Task

SUITE = "suite"  # folder for what the rehearsal suite draws, in the folder of results
EVERY = 10  # pictures between two reports of progress
Say = Callable[[str], None]
Progress = Callable[[int, int], None]  # gets (pictures that are there, pictures in all)


def evaluate(settings: EvaluationSettings, say: Say = lambda sentence: None, paint: bool = True) -> Path:
    """Paint and score what is missing, write the report, and return its path.

    Arguments:
        say: takes sentences for the user; paint: False for a report of what is there.
    Raises:
        TroupeError: settings, benchmark, models or results do not fit. What is there is unchanged.
    """
    folder = Path(settings.output.folder)
    with lock_results(folder):
        return _evaluate(settings, folder, say, paint)


def _evaluate(settings: EvaluationSettings, folder: Path, say: Say, paint: bool) -> Path:
    boxed = any(method.settings.get(BOXES) for method in settings.methods)
    suite = read_suite(settings.suite, folder / SUITE, boxed, lambda: (load_rehearsal(), load_recogniser()))
    counts = {len(case.subjects) for case in suite.cases}
    engines = make_engines(settings.engine, {suite.name: suite.painted_from}, settings.methods, counts)
    noised = any(method.settings.get("noise") for method in settings.methods)
    scorers = make_scorers(settings.scores, suite.name, suite.folder, noised, suite.upright)
    check_origin(folder, origin_of(settings, suite, scorers, workflows(settings.engine, settings.methods, counts)))
    tasks = tasks_of(suite, settings.methods, settings.suite.numbers)
    if paint:
        retries, progress = settings.engine.retries, _progress(say, "painted")
        painted = run_tasks(tasks, engines, folder, retries=retries, locked=True, progress=progress)
    else:
        painted = read_journal(folder)
    wanted = {task.key for task in tasks}
    faults = {key: row.error for key, row in painted.items() if key in wanted and row.error}
    faults |= score_tasks(tasks, suite, scorers, folder, _progress(say, "scored"))
    cases = {case.name: case for case in suite.cases}
    scores = stored_scores(folder)
    columns = columns_of(scorers)
    whole = {key: found for key, found in scores.items() if key not in faults and found.keys() >= set(columns)}
    rows = result_rows(tasks, cases, whole, columns)
    return write_report(Outcome(settings, suite, tasks, rows, scorers, faults), folder)


def score_tasks(
    tasks: Sequence[Task], suite: Suite, scorers: Sequence[Scorer], results: Path, progress: Progress
) -> dict[str, str]:
    """Score each painted task by the scorers that have not scored it yet, and return why one could not be, by its
    key.
    """
    stored, faults = stored_scores(results), {}
    cases = {case.name: case for case in suite.cases}
    painted = [task for task in tasks if (results / task.file).is_file()]
    beside: dict[tuple[str, int], dict[str, Path]] = {}
    for task in painted:
        beside.setdefault((task.case, task.seed), {})[task.method.name] = results / task.file
    for count, task in enumerate(painted, 1):
        known = stored.get(task.key, {})
        waiting = [one for one in scorers if not set(one.columns) <= known.keys()]
        if not waiting:
            continue
        try:
            picture = open_picture(results / task.file)
        except PictureFault:
            faults[task.key] = f"'{task.file}' does not open: delete it and run the same command again."
            continue
        try:
            one = Painted(task, cases[task.case], picture, beside[task.case, task.seed])
            found = {column: value for scorer in waiting for column, value in scorer(one).items()}
        except PictureFault as fault:
            faults[task.key] = f"{fault.reason}: {fault.detail}. Correct it and run the same command again."
            continue
        append_scores(results, task.key, found)
        progress(count, len(painted))
    return faults


def _progress(say: Say, done: str) -> Progress:
    def tell(count: int, total: int) -> None:
        if count % EVERY == 0 or count == total:
            say(f"{count} of {total} pictures {done}")

    return tell
