"""Several engines paint one list of tasks, and no task is lost or painted twice into the results."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..model_patches.errors import TroupeError
from .engines.engine import Engine, EngineLostError
from .journal import Journal, Row, lock_results, open_journal
from .tasks import Task

log = logging.getLogger("troupe.evaluation")
PAUSES = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0)
TICK = 0.2  # seconds between looks at Ctrl-C; waiting on a lock without an end hides it on some systems


class EnginesError(TroupeError):
    """An error about the list of engines."""


class PictureError(TroupeError):
    """An error about what an engine returned as a picture."""


def run_tasks(
    tasks: Iterable[Task],
    engines: Sequence[Engine],
    results: Path,
    *,
    retries: int = 2,
    pauses: Sequence[float] = PAUSES,
    retry_failed: bool = True,
    locked: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Row]:
    """Paint what is missing in a results folder, with all engines at once, and return the rows of the tasks by key.

    Each task gets a picture at `results/<task.file>` and one row in the journal. A task that fails is tried `retries`
    more times, on engines that have not tried it if there are any, and then its row has the error. An engine that is
    lost gives its task back and is tried again after each of `pauses` (seconds); a picture from it starts them anew. An
    engine with a number `slots` gets that many tasks at once. Ctrl-C waits for the pictures in hand; a second one does
    not. locked: whether the caller has locked the folder.
    Raises:
        EngineLostError: no engine is left. What was painted is kept, and the same call goes on from there.
        EnginesError: there is no engine, or two have one name.
        ResultsError: another run uses the folder, or it cannot be written.
    """
    wanted = {task.key: task for task in tasks}
    names = [engine.name for engine in engines]
    if not names or len(set(names)) < len(names):
        found = ", ".join(names) or "none"
        raise EnginesError("engines with different names", found, "Give each engine once, and at least one.")
    with nullcontext() if locked else lock_results(results):
        journal = open_journal(results, wanted.values(), retry_failed)
        missing = [task for key, task in wanted.items() if key not in journal.rows]
        _Pool(missing, journal, retries, pauses, lambda left: progress(len(wanted) - left, len(wanted))).run(engines)
        return {key: journal.rows[key] for key in wanted}


@dataclass(eq=False)
class _Work:
    """A task that has no row yet, who tried it in vain, and how often it failed or went down with a sound engine."""

    task: Task
    tried: set[str] = field(default_factory=set)
    failures: int = 0


@dataclass(eq=False)
class _Worker:
    """One slot of an engine. losses: since its last picture; left: why it gave up, or None; ended: its thread."""

    engine: Engine
    losses: int = 0
    left: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class _Pool:
    """The queue and the threads. Everything that changes is guarded by `_turn`."""

    def __init__(
        self,
        tasks: Sequence[Task],
        journal: Journal,
        retries: int,
        pauses: Sequence[float],
        progress: Callable[[int], None],
    ):
        self._queue = deque(map(_Work, tasks))
        self._left = len(tasks)
        self._journal, self._retries, self._pauses, self._progress = journal, retries, pauses, progress
        self._turn = threading.Condition()
        self._workers: list[_Worker] = []
        self._stopping = self._closed = False
        self._fatal: BaseException | None = None

    def run(self, engines: Sequence[Engine]) -> None:
        """Return when every task has its row. Raises what run_tasks says."""
        self._workers = [_Worker(engine) for engine in engines for _ in range(getattr(engine, "slots", 1))]
        threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in self._workers]
        self._progress(self._left)
        for thread in threads:
            thread.start()
        try:
            self._wait()
        except KeyboardInterrupt:
            with self._turn:
                self._stopping = True
                self._turn.notify_all()
            log.warning("Stopping after the pictures in hand. Press Ctrl-C again to stop at once.")
            self._wait()
            raise
        finally:
            with self._turn:  # a thread that is still painting writes no more
                self._stopping = self._closed = True
                self._turn.notify_all()
        if self._fatal is not None:
            raise self._fatal
        if self._left:
            raise self._all_lost()

    def _wait(self) -> None:
        """Return when every thread has ended. Thread.join (3.11) takes a living thread for ended after Ctrl-C."""
        for worker in self._workers:
            while not worker.ended.wait(TICK):
                pass

    # ---- a thread --------------------------------------------------------------------------------------------------

    def _serve(self, worker: _Worker) -> None:
        try:
            while (work := self._take(worker)) is not None:
                self._paint(worker, work)
        except BaseException as error:  # of the results folder; a mistake of ours must not look like the end either
            with self._turn:
                self._fatal, self._stopping = self._fatal or error, True
        finally:
            with self._turn:
                self._turn.notify_all()
            worker.ended.set()

    def _paint(self, worker: _Worker, work: _Work) -> None:
        name, started = worker.engine.name, time.monotonic()
        try:
            picture = _checked(worker.engine.paint(work.task))
        except EngineLostError as error:
            self._lose(worker, work, time.monotonic() - started, str(error))
        except Exception as error:  # an engine's mistake costs one task, not a night
            if not isinstance(error, TroupeError):
                log.exception("%s failed at %s", name, work.task.key)
            text = str(error) if isinstance(error, TroupeError) else f"{type(error).__name__}: {error}"
            self._fail(worker, work, Row(work.task.key, name, time.monotonic() - started, text))
        else:
            self._finish(worker, work.task, Row(work.task.key, name, time.monotonic() - started), picture)

    def _take(self, worker: _Worker) -> _Work | None:
        """The next task for an engine; None: there is nothing more to do for it."""
        with self._turn:
            while self._left and not self._stopping and worker.left is None:
                work = self._choice(worker)
                if work is not None:
                    self._queue.remove(work)
                    return work
                self._turn.wait()  # a task in hand elsewhere may come back
            return None

    def _choice(self, worker: _Worker) -> _Work | None:
        """The first task that this engine has not tried; one that it has, if no other engine at hand could do better.

        An engine on which everything fails at once would otherwise use up every task's tries.
        """
        name = worker.engine.name
        at_hand = {other.engine.name for other in self._workers if other.left is None and not other.losses}
        fresh = (work for work in self._queue if name not in work.tried)
        again = (work for work in self._queue if not at_hand - work.tried)
        return next(fresh, None) or next(again, None)

    # ---- what comes of a task ----------------------------------------------------------------------------------------

    def _finish(self, worker: _Worker, task: Task, row: Row, picture: np.ndarray) -> None:
        if not self._closed:
            self._journal.write_picture(task, picture)
        with self._turn:
            worker.losses = 0
            self._record(row)

    def _fail(self, worker: _Worker, work: _Work, row: Row) -> None:
        with self._turn:
            worker.losses = 0  # it answered
            self._count(work, row)
            self._turn.notify_all()

    def _lose(self, worker: _Worker, work: _Work, seconds: float, reason: str) -> None:
        """Give the task back and wait. A task that takes sound engines down with it fails at last."""
        name = worker.engine.name
        with self._turn:
            worker.losses += 1
            if worker.losses == 1:
                self._count(work, Row(work.task.key, name, seconds, reason), first=True)
            else:
                self._queue.appendleft(work)
            if worker.losses > len(self._pauses):
                worker.left = reason
                log.warning("%s is given up: %s", name, reason)
            self._turn.notify_all()
            if worker.left is None:
                pause = self._pauses[worker.losses - 1]
                log.warning("%s is lost and tried again in %g seconds: %s", name, pause, reason)
                self._turn.wait_for(lambda: self._stopping or not self._left, pause)

    def _count(self, work: _Work, row: Row, first: bool = False) -> None:
        """Count a try in vain: the task is queued again, at the front or the end, or failed."""
        work.failures += 1
        work.tried.add(row.engine)
        if work.failures > self._retries:
            self._record(row)
        elif first:
            self._queue.appendleft(work)
        else:
            self._queue.append(work)

    def _record(self, row: Row) -> None:
        if self._closed:
            return
        self._journal.add(row)
        self._left -= 1
        self._progress(self._left)
        self._turn.notify_all()

    def _all_lost(self) -> EngineLostError:
        reasons = {worker.engine.name: worker.left for worker in self._workers}
        return EngineLostError(
            f"an engine for the last {self._left} pictures",
            "none: " + "; ".join(f"{name} is lost ({reason})" for name, reason in reasons.items()),
            "Start an engine and run the same command again: what was painted is kept.",
        )


def _checked(picture: object) -> np.ndarray:
    """Return what an engine returned. Raises PictureError unless it is a picture."""
    if not isinstance(picture, np.ndarray):
        found = type(picture).__name__
    elif picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3 and picture.size > 0:
        return picture
    else:
        found = f"{picture.dtype} {list(picture.shape)}"
    raise PictureError("a picture from the engine, uint8 [height, width, 3]", found, "Check the engine.")
