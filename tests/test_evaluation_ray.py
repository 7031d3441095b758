"""Engines in the actors of a local Ray cluster."""

from __future__ import annotations

import csv
import importlib.util
import os
import sys
import time

import numpy as np
import pytest
from PIL import Image
from troupe.evaluation.engines.engine import EngineLostError
from troupe.evaluation.engines.ray_tasks import RayMissingError, ray_engines
from troupe.evaluation.journal import read_journal
from troupe.evaluation.pool import run_tasks
from troupe.evaluation.run import evaluate
from troupe.evaluation.settings import read_settings
from troupe.evaluation.tasks import Method, Task, TaskSubject
from troupe.rehearsal.cast import CAST
from troupe.rehearsal.world import reference

NO_RAY = "NO RAY (pip install ray): nothing about engines in a Ray cluster was tested"
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None and os.environ.get("TROUPE_REQUIRE_RAY") != "1", reason=NO_RAY
)
TASKS = [Task("suite", f"case {i}", Method("plain"), "a cat", (TaskSubject("cat", ("cat.png",)),), i) for i in range(8)]


def factory(end_at: int = -1, hang_at: int = -1):
    """A function that Ray can send: an engine that paints its process's number and the seed."""

    def make():
        assert reference(CAST["cat"]).shape == (128, 128, 3)  # of the pack, which the actor has loaded

        class Tiny:
            name = "tiny"

            def paint(self, task):
                import os
                import time

                import numpy as np
                from troupe.evaluation.engines.engine import EngineLostError
                from troupe.model_patches.errors import TroupeError

                if task.seed == 100:
                    raise TroupeError("a photo", "none", "Choose one.")
                if task.seed == 102:
                    raise EngineLostError("a host", "no answer", "Start it.")
                if task.seed == 101:
                    raise KeyError("weight")
                if task.seed == end_at:
                    os._exit(1)
                time.sleep(60 if task.seed == hang_at else 0.05)
                number = os.getpid()
                return np.array([[[number >> 16, number >> 8 & 255, number & 255], [task.seed] * 3]], np.uint8)

        return Tiny()

    return make


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    yield
    ray.shutdown()


@needs_ray
@pytest.mark.slow
def test_two_actors_paint(cluster, tmp_path):
    rows = run_tasks(TASKS, ray_engines(factory(), 2), tmp_path)
    assert {row.engine for row in rows.values()} == {"ray 1", "ray 2"}
    painted = {task.seed: np.asarray(Image.open(tmp_path / task.file)) for task in TASKS}
    assert all(picture[0, 1].tolist() == [seed] * 3 for seed, picture in painted.items())
    processes = {tuple(picture[0, 0]) for picture in painted.values()}
    assert len(processes) == 2 and (0, os.getpid() >> 8 & 255, os.getpid() & 255) not in processes


@needs_ray
@pytest.mark.slow
def test_an_actor_that_ends_is_made_anew_and_its_task_fails_at_last(cluster, tmp_path):
    rows = run_tasks(TASKS, ray_engines(factory(end_at=3), 1), tmp_path, retries=1, pauses=(0.1, 0.1))
    assert [seed for seed, row in enumerate(rows.values()) if row.error] == [3]
    assert "Actor" in rows[TASKS[3].key].error


@needs_ray
@pytest.mark.slow
def test_an_actor_that_is_late_is_lost_and_gives_its_place_back(cluster):
    [engine] = ray_engines(factory(hang_at=5), 1, options={"num_cpus": 2}, timeout=15)
    engine.paint(TASKS[0])
    engine._timeout = 1
    with pytest.raises(EngineLostError, match="GetTimeoutError"):
        engine.paint(TASKS[5])
    engine._timeout = 60
    started = time.monotonic()
    assert engine.paint(TASKS[1])[0, 1, 0] == 1
    assert time.monotonic() - started < 50


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "sentence"), [(100, "Expected a photo, found none. Choose one."), (101, "found KeyError: 'weight'.")]
)
def test_an_error_in_an_actor_is_the_engine_s_own_sentence(cluster, tmp_path, seed, sentence):
    task = Task("suite", "case", Method("plain"), "a cat", (), seed)
    [row] = run_tasks([task], ray_engines(factory(), 1), tmp_path, retries=0).values()
    assert sentence in row.error


@needs_ray
@pytest.mark.slow
def test_an_engine_that_is_lost_in_an_actor_is_lost(cluster):
    [engine] = ray_engines(factory(), 1)
    with pytest.raises(EngineLostError, match="no answer"):
        engine.paint(Task("suite", "case", Method("plain"), "a cat", (), 102))


def test_without_ray_it_is_refused_with_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayMissingError, match="pip install ray"):
        ray_engines(factory(), 1)


SETTINGS = """
[suite]
name = "rehearsal"
casts = "two classes"
seeds = 2
[engine]
{engine}
[scores]
preset = "none"
colours = "yes"
[output]
folder = "{folder}"
[[methods]]
name = "relevance"
merge = "relevance"
steps = 2
"""


@needs_ray
@pytest.mark.slow
def test_an_evaluation_in_actors_paints_and_scores_what_one_in_this_process_does(cluster, tmp_path):
    """From the settings to the table: the rehearsal models are loaded in each actor."""
    found = {}
    for kind, engine in (("embedded", 'kind = "embedded"'), ("ray", 'kind = "ray"\nactors = 2')):
        file, folder = tmp_path / f"{kind}.toml", tmp_path / kind
        file.write_text(SETTINGS.format(engine=engine, folder=folder.as_posix()))
        evaluate(read_settings(file))
        rows = list(csv.DictReader((folder / "scores.csv").open()))
        pictures = [np.asarray(Image.open(folder / row["file"])) for row in rows]
        found[kind] = [(row["seed"], row["colours"], row["truth_right"]) for row in rows], pictures
    assert found["ray"][0] == found["embedded"][0] and [seed for seed, *_ in found["ray"][0]] == ["0", "1"]
    assert all(np.array_equal(*pair) for pair in zip(found["ray"][1], found["embedded"][1], strict=True))
    assert not np.array_equal(*found["ray"][1])
    assert {row.engine for row in read_journal(tmp_path / "ray").values()} <= {"ray 1", "ray 2"}
