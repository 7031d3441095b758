"""Several engines on one list of tasks: every task has one row and one picture, whatever the engines do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from troupe.evaluation import journal as journal_module
from troupe.evaluation.engines.engine import EngineLostError
from troupe.evaluation.journal import ResultsError, Row, read_journal
from troupe.evaluation.pool import EnginesError, run_tasks
from troupe.evaluation.tasks import Method, Task, TaskSubject
from troupe.model_patches.errors import TroupeError
from troupe_tools.pack import ROOT

SIZE = 8
QUICK = (0.01, 0.02, 0.04)


def make_tasks(count: int) -> list[Task]:
    cat = TaskSubject("cat", ("cat.png",))
    return [Task("suite", f"case {i}", Method("plain"), "a cat", (cat,), i) for i in range(count)]


def picture_of(task: Task) -> np.ndarray:
    return np.random.default_rng(task.seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def lost(text: str = "no answer") -> EngineLostError:
    return EngineLostError("an engine", text, "Start it.")


class Fake:
    """An engine that paints what the seed says, after `seconds`. `before` is called with each task and may raise."""

    def __init__(self, name: str, before=lambda task: None, seconds: float = 0.0):
        self.name, self.before, self.seconds = name, before, seconds
        self.asked: list[str] = []

    def paint(self, task: Task) -> np.ndarray:
        self.asked.append(task.key)
        time.sleep(self.seconds)
        self.before(task)
        return picture_of(task)


def check(results: Path, tasks: list[Task], failed: int = 0) -> dict[str, Row]:
    """Every task has exactly one line in the journal, and each picture is the task's own; nothing else lies about."""
    lines = [json.loads(line) for line in (results / "journal.jsonl").read_text().splitlines()]
    assert Counter(line["key"] for line in lines) == Counter(task.key for task in tasks)
    rows = read_journal(results)
    assert sum(row.error is not None for row in rows.values()) == failed
    painted = [task for task in tasks if rows[task.key].error is None]
    for task in painted:
        assert np.array_equal(np.asarray(Image.open(results / task.file)), picture_of(task))
    assert {path.name for path in (results / "pictures").iterdir()} == {Path(task.file).name for task in painted}
    return rows


def test_engines_share_the_tasks(tmp_path):
    tasks, engines, seen = make_tasks(20), [Fake("a", seconds=0.01), Fake("b", seconds=0.01)], []
    rows = run_tasks(tasks, engines, tmp_path, progress=lambda done, of: seen.append((done, of)))
    assert check(tmp_path, tasks) == rows and list(rows) == [task.key for task in tasks]
    assert min(len(engine.asked) for engine in engines) > 4
    assert {row.engine for row in rows.values()} == {"a", "b"}
    assert all(row.seconds >= 0.01 for row in rows.values())
    assert seen == [(done, 20) for done in range(21)]


def test_two_engines_paint_at_the_same_time(tmp_path):
    """Each waits in its first task for the other."""
    both = threading.Barrier(2, timeout=10)
    first = {}

    def meet(task):
        name = threading.get_ident()
        if name not in first:
            first[name] = task
            both.wait()

    run_tasks(make_tasks(4), [Fake("a", meet), Fake("b", meet)], tmp_path)


def test_an_engine_with_two_slots_has_two_tasks_at_once(tmp_path):
    both = threading.Barrier(2, timeout=10)
    engine = Fake("a", lambda task: both.wait())
    engine.slots = 2
    run_tasks(make_tasks(2), [engine], tmp_path)
    check(tmp_path, make_tasks(2))


def test_the_same_task_twice_is_one_row(tmp_path):
    tasks = make_tasks(3)
    run_tasks([*tasks, *tasks], [Fake("a"), Fake("b")], tmp_path)
    check(tmp_path, tasks)


def test_a_killed_engine_gives_its_task_to_another(tmp_path):
    """The one in hand is painted by the other engine, and the lost one is given up."""
    tasks, alive = make_tasks(12), []

    def die(task):
        alive.append(task)
        if len(alive) > 3:
            raise lost()

    mortal, sound = Fake("mortal", die, 0.005), Fake("sound", seconds=0.02)
    rows = run_tasks(tasks, [mortal, sound], tmp_path, pauses=QUICK)
    check(tmp_path, tasks)
    assert Counter(row.engine for row in rows.values()) == {"mortal": 3, "sound": 9}
    assert len(mortal.asked) == 3 + 1 + len(QUICK)


def test_an_engine_that_comes_back_paints_again(tmp_path):
    tasks, gone = make_tasks(10), [5, 6, 12]  # calls in which it is away; a picture between starts the pauses anew
    calls = []

    def away(task):
        calls.append(task)
        if len(calls) in gone:
            raise lost()

    run_tasks(tasks, [Fake("a", away)], tmp_path, pauses=(0.01, 0.02), retries=2)
    check(tmp_path, tasks)
    assert len(calls) == 13


def test_a_long_absence_of_an_engine_is_not_the_fault_of_its_task(tmp_path):
    calls = []

    def away(task):
        calls.append(task)
        if len(calls) <= 4:
            raise lost()

    run_tasks(make_tasks(1), [Fake("a", away)], tmp_path, pauses=(0.01,) * 4, retries=1)
    check(tmp_path, make_tasks(1))


def test_pauses_grow_and_end_early_when_others_finish(tmp_path):
    times = []

    def away(task):
        times.append(time.monotonic())
        raise lost()

    started = time.monotonic()
    rows = run_tasks(make_tasks(40), [Fake("away", away), Fake("b", seconds=0.02)], tmp_path, pauses=(0.05, 0.2, 60))
    check(tmp_path, make_tasks(40))
    assert time.monotonic() - started < 10
    gaps = np.diff(times)
    assert len(gaps) == 2 and gaps[0] >= 0.05 and gaps[1] >= 0.2
    assert {row.engine for row in rows.values()} == {"b"}


def test_all_lost_stops_with_one_sentence_and_keeps_everything(tmp_path):
    tasks, calls = make_tasks(6), []

    def die(task):
        calls.append(task)
        if len(calls) > 3:
            raise lost("connection refused")

    with pytest.raises(EngineLostError) as caught:
        run_tasks(tasks, [Fake("http://one", die), Fake("http://two", die)], tmp_path, pauses=(0.01,))
    sentence = str(caught.value)
    assert "the last 3 pictures" in sentence and "http://one is lost" in sentence and "http://two is lost" in sentence
    assert "connection refused" in sentence and "run the same command again" in sentence
    assert len(read_journal(tmp_path)) == 3
    again = Fake("http://one")
    run_tasks(tasks, [again], tmp_path)
    check(tmp_path, tasks)
    assert len(again.asked) == 3


def test_a_task_that_takes_every_engine_down_fails_and_the_others_are_painted(tmp_path):
    tasks = make_tasks(9)

    def poison(task):
        if task.seed == 4:
            raise lost("the host ended")

    rows = run_tasks(tasks, [Fake("a", poison), Fake("b", poison)], tmp_path, retries=1, pauses=QUICK)
    check(tmp_path, tasks, failed=1)
    assert "the host ended" in rows[tasks[4].key].error


def test_a_flaky_task_is_tried_again(tmp_path):
    tasks, tries = make_tasks(5), Counter()

    def flake(task):
        tries[task.seed] += 1
        if task.seed == 3 and tries[3] <= 2:
            raise TroupeError("memory", "none", "Wait.")

    run_tasks(tasks, [Fake("a", flake)], tmp_path, retries=2)
    check(tmp_path, tasks)
    assert tries[3] == 3


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_task_that_always_fails_is_recorded_with_its_sentence(tmp_path, retries):
    tasks, tries = make_tasks(5), Counter()

    def fail(task):
        tries[task.seed] += 1
        if task.seed == 3:
            raise TroupeError("a photo", "a sound file", "Choose another.")

    rows = run_tasks(tasks, [Fake("a", fail), Fake("b", fail)], tmp_path, retries=retries)
    assert check(tmp_path, tasks, failed=1) == rows
    assert rows[tasks[3].key].error == "Expected a photo, found a sound file. Choose another."
    assert tries[3] == retries + 1


def test_an_engine_on_which_everything_fails_at_once_spoils_nothing(tmp_path):
    """It must not use up the tries of tasks that another engine can paint."""

    def broken(task):
        raise TroupeError("a checkpoint", "none", "Download it.")

    tasks = make_tasks(12)
    run_tasks(tasks, [Fake("broken", broken), Fake("sound", seconds=0.01)], tmp_path, retries=1)
    check(tmp_path, tasks)


@pytest.mark.parametrize(
    "picture",
    [
        None,
        np.zeros((8, 8, 3)),
        np.zeros((8, 8), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["none", "floats", "grey", "channels first", "empty"],
)
def test_what_is_no_picture_is_a_failure(tmp_path, picture):
    engine = Fake("a")
    engine.paint = lambda task: picture
    tasks = make_tasks(2)
    rows = run_tasks(tasks, [engine], tmp_path, retries=0)
    check(tmp_path, tasks, failed=2)
    assert "uint8 [height, width, 3]" in rows[tasks[0].key].error


def test_a_mistake_in_an_engine_costs_one_task(tmp_path, caplog):
    def mistake(task):
        if task.seed == 1:
            raise KeyError("weight")

    tasks = make_tasks(4)
    rows = run_tasks(tasks, [Fake("a", mistake)], tmp_path, retries=0)
    check(tmp_path, tasks, failed=1)
    assert rows[tasks[1].key].error == "KeyError: 'weight'"
    assert "Traceback" in caplog.text


# ---- going on with what is there -------------------------------------------------------------------------------------


def test_a_second_run_paints_only_what_is_missing(tmp_path):
    tasks, first, second, third = make_tasks(8), Fake("a"), Fake("b"), Fake("c")
    run_tasks(tasks[:5], [first], tmp_path)
    seen = []
    run_tasks(tasks, [second], tmp_path, progress=lambda done, of: seen.append(done))
    check(tmp_path, tasks)
    assert set(second.asked) == {task.key for task in tasks[5:]} and seen == [5, 6, 7, 8]
    assert len(run_tasks(tasks, [third], tmp_path)) == 8 and not third.asked


def test_rows_of_other_tasks_stay(tmp_path):
    tasks = make_tasks(8)
    run_tasks(tasks[:5], [Fake("a")], tmp_path)
    assert len(run_tasks(tasks[5:], [Fake("a")], tmp_path)) == 3
    check(tmp_path, tasks)


@pytest.mark.parametrize("again", [True, False])
def test_failed_tasks_are_tried_again_unless_they_shall_not(tmp_path, again):
    def fail(task):
        if task.seed == 1:
            raise TroupeError("a photo", "none", "Choose one.")

    tasks, second = make_tasks(3), Fake("b")
    run_tasks(tasks, [Fake("a", fail)], tmp_path, retries=0)
    run_tasks(tasks, [second], tmp_path, retry_failed=again)
    check(tmp_path, tasks, failed=0 if again else 1)
    assert second.asked == ([tasks[1].key] if again else [])


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_half_a_last_line_is_dropped_and_its_task_painted_again(tmp_path, cut):
    tasks, second = make_tasks(4), Fake("b")
    run_tasks(tasks, [Fake("a")], tmp_path)
    journal = tmp_path / "journal.jsonl"
    *_, last = read_journal(tmp_path)
    whole = journal.read_bytes()
    journal.write_bytes(whole[: -1 - cut])
    assert last not in read_journal(tmp_path)
    run_tasks(tasks, [second], tmp_path)
    check(tmp_path, tasks)
    assert second.asked == [last]


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "changed", "text"])
def test_a_damaged_picture_is_painted_again(tmp_path, damage):
    tasks, second = make_tasks(3), Fake("b")
    run_tasks(tasks, [Fake("a")], tmp_path)
    path = tmp_path / tasks[1].file
    whole = path.read_bytes()
    broken = {"empty": b"", "half": whole[: len(whole) // 2], "text": b"no picture"}
    broken["changed"] = whole[:60] + bytes([whole[60] ^ 1]) + whole[61:]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(broken[damage])
    run_tasks(tasks, [second], tmp_path)
    check(tmp_path, tasks)
    assert second.asked == [tasks[1].key]


def test_leftovers_of_a_crash_are_removed(tmp_path):
    """A picture half written, and one without its row."""
    tasks = make_tasks(3)
    run_tasks(tasks[:2], [Fake("a")], tmp_path)
    (tmp_path / "pictures" / "tmpxyz.part").write_bytes(b"half")
    (tmp_path / "journal.jsonl.part").write_bytes(b"half")
    Image.new("RGB", (3, 3)).save(tmp_path / tasks[2].file)
    run_tasks(tasks, [Fake("b")], tmp_path)
    check(tmp_path, tasks)
    assert not (tmp_path / "journal.jsonl.part").exists()


PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background inherit one that ignores it
sys.path[:0] = [{tests!r}]
import conftest
from test_evaluation_pool import Fake, make_tasks, run_tasks, Path
print("ready", flush=True)
run_tasks(make_tasks({count}), [Fake(name, seconds=s) for name, s in zip("abc", {seconds!r})], Path({results!r}),
          progress=lambda done, of: print(done, flush=True))
"""


def start(results: Path, count: int = 60, seconds: tuple[float, float, float] = (0.03,) * 3) -> subprocess.Popen:
    """Paint in another process, on three engines of these speeds. It prints how many are done."""
    program = PROGRAM.format(tests=str(ROOT / "tests"), results=str(results), count=count, seconds=seconds)
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT / "tests", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen, word: str) -> None:
    while (line := process.stdout.readline()).strip() != word:
        assert line, process.stderr.read()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_process_that_is_stopped_is_gone_on_with(tmp_path, name):
    how = getattr(signal, name)  # Windows has no SIGKILL
    process = start(tmp_path)
    wait_for(process, "20")
    process.send_signal(how)
    process.communicate(timeout=20)
    assert process.returncode == -how
    kept = read_journal(tmp_path)
    assert 20 <= len(kept) < 60
    second = Fake("second")
    run_tasks(make_tasks(60), [second], tmp_path)
    check(tmp_path, make_tasks(60))
    assert len(second.asked) == 60 - len(kept)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize(("times", "kept"), [(1, 6), (2, 3)])
def test_ctrl_c_waits_for_the_pictures_in_hand_and_twice_does_not(tmp_path, times, kept):
    process = start(tmp_path, count=9, seconds=(2, 2, 2))
    wait_for(process, "3")
    time.sleep(0.7)  # the next three have begun
    process.send_signal(signal.SIGINT)
    assert "Stopping after the pictures in hand" in process.stderr.readline()
    if times == 2:
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert errors.rstrip().endswith("KeyboardInterrupt") and process.returncode == -signal.SIGINT
    assert len(read_journal(tmp_path)) == len(list((tmp_path / "pictures").glob("*.png"))) == kept


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_waits_for_the_slowest_engine(tmp_path):
    process = start(tmp_path, count=300, seconds=(3, 0.03, 0.03))
    wait_for(process, "10")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    rows = read_journal(tmp_path).values()
    assert [row.engine for row in rows].count("a") == 1 and process.returncode == -signal.SIGINT
    assert len(rows) == len(list((tmp_path / "pictures").glob("*.png"))) < 300


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused(tmp_path):
    """In this process and in another."""
    other = start(tmp_path)
    try:
        wait_for(other, "3")
        with pytest.raises(ResultsError, match="in use by another run"):
            run_tasks(make_tasks(60), [Fake("mine")], tmp_path)
        assert other.wait(20) == 0
    finally:
        other.kill()
        other.communicate()
    check(tmp_path, make_tasks(60))

    def nested(task):
        run_tasks(make_tasks(2), [Fake("b")], tmp_path)

    rows = run_tasks(make_tasks(61), [Fake("a", nested)], tmp_path, retries=0)
    assert "in use by another run" in rows[make_tasks(61)[60].key].error


def test_a_folder_that_cannot_be_written_stops_the_run(tmp_path, monkeypatch):
    def full(part, path):
        raise OSError(28, "No space left on device")

    tasks = make_tasks(6)
    run_tasks(tasks[:2], [Fake("a")], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(journal_module.os, "replace", full)
        with pytest.raises(ResultsError, match="No space left on device"):
            run_tasks(tasks, [Fake("a"), Fake("b")], tmp_path)
    assert len(read_journal(tmp_path)) == 2
    run_tasks(tasks, [Fake("a")], tmp_path)
    check(tmp_path, tasks)


def test_a_file_in_the_place_of_the_folder_is_a_sentence(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(ResultsError, match="choose another folder"):
        run_tasks(make_tasks(1), [Fake("a")], tmp_path / "results")


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_engines_need_names_of_their_own(tmp_path, names):
    with pytest.raises(EnginesError, match="at least one"):
        run_tasks(make_tasks(1), [Fake(name) for name in names], tmp_path)
