"""An evaluation on two real servers, one of which is killed in the middle; and one host's graphs on another."""

from __future__ import annotations

import csv
import json
import threading
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import fake_benchmarks as fake
from support.host.two_servers import server_in, started_together
from support.shipped_templates import template
from troupe.evaluation.engines.comfyui import ComfyUIEngine, HostError
from troupe.evaluation.engines.embedded import EmbeddedEngine
from troupe.evaluation.engines.engine import EngineLostError
from troupe.evaluation.journal import read_journal
from troupe.evaluation.pool import run_tasks
from troupe.evaluation.run import evaluate
from troupe.evaluation.settings import read_settings
from troupe.evaluation.tasks import Method, Task, TaskSubject
from troupe.rehearsal.cast import CAST
from troupe.rehearsal.world import reference
from troupe_tools.engine.host_server import HostServer
from troupe_tools.engine.on_comfyui import convert
from troupe_tools.pack import ROOT

pytestmark = pytest.mark.slow
KINDS = ("cat", "robot", "bird")
SETTINGS = {"checkpoint": "rehearsal", "steps": 6}
METHODS = (Method("relevance", {"merge": "relevance"}), Method("add", {"merge": "add", "weight": 0.5}))


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    for kind in KINDS:
        Image.fromarray(reference(CAST[kind])).save(folder / f"{kind}.png")
    return folder


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    """Two subjects, the first with a box in every other task: 3 pairs, 2 methods, 2 seeds."""
    boxes = ((0.0, 0.2, 0.5, 0.7), None)
    return [
        Task(
            "rehearsal",
            f"{a} and {b} {seed}",
            method,
            f"a {a} and a {b} on grass",
            (TaskSubject(a, (f"{a}.png",), boxes[seed % 2]), TaskSubject(b, (f"{b}.png",))),
            seed,
        )
        for a, b in zip(KINDS, (*KINDS[1:], KINDS[0]), strict=True)
        for method in METHODS
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def servers(host, tmp_path_factory):
    """Two servers with folders of their own, which share nothing but the pack's code."""
    both = [server_in(host, tmp_path_factory.mktemp(f"host_{name}")) for name in "ab"]
    with started_together(both) as servers:
        yield servers


class Mortal(ComfyUIEngine):
    """An engine whose server is killed while it samples its third picture."""

    server: HostServer
    asked = 0

    def paint(self, task: Task) -> np.ndarray:
        self.asked += 1
        if self.asked == 3:
            threading.Timer(0.3, self.server._process.kill).start()
        return super().paint(task)


def engine_of(server: HostServer, suite: Path, kind=ComfyUIEngine, **options) -> ComfyUIEngine:
    return kind(server.url, suite, settings={**SETTINGS, **options})


def pictures(results: Path, tasks: list[Task]) -> dict[str, np.ndarray]:
    return {task.key: np.asarray(Image.open(results / task.file)) for task in tasks}


def test_a_graph_made_for_one_host_runs_on_another_with_only_its_inputs(servers, suite):
    """As ComfyUI-Distributed does it: the same prompt goes to a worker that has seen nothing else, with a seed of its
    own; the worker's picture is what the first host paints at that seed, after other prompts.
    """
    first, worker = servers
    prompt = convert(template("1_start_here_rehearsal"), first.object_info())
    made = {}
    for seed, hosts in ((1, (first,)), (2, (worker, first))):
        sent = json.loads(json.dumps(prompt))
        for node in sent.values():
            if node["class_type"] == "KSampler":
                node["inputs"].update(seed=seed, steps=4)
        for server in hosts:
            made[seed, server.url] = [np.asarray(Image.open(path)).tobytes() for path in server.run(sent)]
    assert made[2, worker.url] == made[2, first.url] != made[1, first.url]


def test_errors_of_a_real_host_are_its_own_sentences(servers, suite, tasks):
    task = tasks[0]
    with pytest.raises(HostError, match="CheckpointLoaderSimple .*not in"):
        engine_of(servers[0], suite, checkpoint="none.safetensors", adapter="none").paint(task)
    nameless = Task("rehearsal", "x", METHODS[0], task.prompt, (TaskSubject("", ("cat.png",)),) * 2, 0)
    with pytest.raises(HostError, match=r"TroupeAddSubject|TroupeEncodeSubjects|TroupeApplyImageAttention") as caught:
        engine_of(servers[0], suite, merge="relevance").paint(nameless)
    assert "Expected" in str(caught.value).removeprefix("Expected")
    with pytest.raises(EngineLostError, match="no picture after 0.2 seconds"):
        ComfyUIEngine(servers[0].url, suite, settings={**SETTINGS, "steps": 400}, timeout=0.2).paint(task)
    assert engine_of(servers[0], suite).paint(task).shape == (128, 128, 3)  # the long one was cancelled


HEAD = """
[suite]
name = "rehearsal"
casts = "two classes"
seeds = {seeds}
[engine]
kind = "{kind}"
servers = "{url}"
[scores]
preset = "none"
colours = "yes"
[output]
folder = "{folder}"
"""
METHODS_TOML = """
[[methods]]
name = "relevance"
merge = "relevance"
weight = 1.0
steps = 5
{more}
[[methods]]
name = "boxes"
merge = "relevance"
weight = 1.0
steps = 5
boxes = true
{more}
[[methods]]
name = "without"
merge = "none"
steps = 5
{more}
"""


def head(kind, servers, folder, seeds) -> str:
    """The settings of an evaluation, without its methods."""
    return HEAD.format(kind=kind, url=servers[0].url, folder=folder.as_posix(), seeds=seeds)


def test_an_evaluation_on_a_server_paints_what_the_embedded_engine_paints(servers, tmp_path):
    """From the settings to the report, by method and seed."""
    painted = {}
    for kind, more in (("embedded", ""), ("comfyui", 'checkpoint = "rehearsal"')):
        file, folder = tmp_path / f"{kind}.toml", tmp_path / kind
        file.write_text(head(kind, servers, folder, seeds=2) + METHODS_TOML.format(more=more))
        evaluate(read_settings(file))
        rows = list(csv.DictReader((folder / "scores.csv").open()))
        painted[kind] = {
            (row["method"], row["seed"]): np.asarray(Image.open(folder / row["file"])).astype(float) for row in rows
        }
    assert painted["embedded"].keys() == painted["comfyui"].keys() and len(painted["comfyui"]) == 6
    for key, picture in painted["embedded"].items():
        assert np.abs(picture - painted["comfyui"][key]).max() <= 1, key  # Save Image cuts what the other one rounds
    for seed in ("0", "1"):
        apart = [painted["comfyui"][method, seed] for method in ("relevance", "boxes", "without")]
        assert min(np.abs(a - b).mean() for a, b in combinations(apart, 2)) > 1, "all methods paint the same"


EMBEDDED = {  # method -> settings on the embedded engine
    "umm": {"adapter": "umm"},
    "fastcomposer": {"adapter": "fastcomposer"},
    "subject": {"adapter": "subject", "layout": "row"},
    "mm": {"adapter": "mm", "merge": "relevance"},
    "mip": {"merge": "relevance"},
}


def of_the_kits(name: str) -> dict:
    """A workflow of the kits, with the rehearsal models and their size."""
    graph = json.loads((ROOT / "evaluation" / "workflows" / f"{name}.json").read_text())
    shown = {"subject_1": "cat", "subject_2": "robot", "subject_3": "bird"}
    graph["checkpoint"] = {"class_type": "TroupeRehearsal", "inputs": {"adapter": "${adapter}", **shown}}
    del graph["adapter"]
    for node in graph.values():
        inputs = node["inputs"]
        inputs.update({key: ["checkpoint", 4] for key, value in inputs.items() if value == ["adapter", 0]})
        inputs.update({key: 128 for key, value in inputs.items() if value == 512})
        inputs.update({key: "simple" for key, value in inputs.items() if (key, value) == ("scheduler", "normal")})
    return graph


def of_a_template(name: str, server: HostServer) -> dict:
    """A shipped template as somebody would export it and write the placeholders into it."""
    graph = convert(template(name), server.object_info())
    number = 0
    for node in list(graph.values()):
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "TroupeAddSubject":
            number = 2 if "cast" in inputs else 1
            inputs.update(image=f"${{photos_{number}}}", name=f"${{name_{number}}}")
        elif kind == "PrimitiveStringMultiline":
            inputs["value"] = "${prompt}"
        elif kind == "PrimitiveInt":
            inputs["value"] = "${seed}"
        elif kind == "KSampler":
            inputs["steps"] = "${steps}"
        elif kind == "SaveImage":
            inputs["images"] = graph[inputs["images"][0]]["inputs"]["image"]  # without the enlargement
    assert number == 2
    return graph


def test_methods_with_their_own_workflows_are_painted_as_the_embedded_engine_paints_them(servers, tmp_path):
    """The kits' workflows and a template, beside a method with the pack's graph."""
    graphs = {name: of_the_kits(name) for name in ("in_prompt_2", "mm_diff_2", "subject_diffusion_2")}
    graphs["mm_diff_template_2"] = of_a_template("research_mm_diff_rehearsal", servers[0])
    for name, graph in graphs.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(graph))

    def own(name, **settings):
        return {"workflow": f"{tmp_path.as_posix()}/{name}_{{subjects}}.json", **settings}

    in_prompt = {"fuse_start_step": -1, "cfg": 5.0, "negative": ""}
    on_server = {
        "umm": own("in_prompt", adapter="umm_diffusion", **in_prompt),
        "fastcomposer": own("in_prompt", adapter="fastcomposer", **in_prompt),
        # with equal strengths the guider is classifier-free guidance
        "subject": own("subject_diffusion", adapter="subject_diffusion", cfg=5.0, second=5.0, negative=""),
        "mm": own("mm_diff", adapter="mm_diff", merge="relevance", weight=1.0, **in_prompt),
        "mm of the template": own("mm_diff_template"),
        "mip": {"checkpoint": "rehearsal", "merge": "relevance", "weight": 1.0},
    }
    pictures = {}
    for kind, methods in (("embedded", EMBEDDED), ("comfyui", on_server)):
        text = head(kind, servers, tmp_path / kind, seeds=1)
        for name, settings in methods.items():
            lines = [f"{key} = {json.dumps(value)}" for key, value in {"name": name, "steps": 4, **settings}.items()]
            text += "\n".join(["[[methods]]", *lines, ""])
        (tmp_path / f"{kind}.toml").write_text(text)
        report = evaluate(read_settings(tmp_path / f"{kind}.toml")).read_text(encoding="utf-8")
        assert f"{len(methods)} of {len(methods)} pictures are painted and scored." in report, report
        rows = list(csv.DictReader((tmp_path / kind / "scores.csv").open()))
        pictures[kind] = {
            row["method"]: np.asarray(Image.open(tmp_path / kind / row["file"])).astype(float) for row in rows
        }
    apart = {name: np.abs(pictures["embedded"][name] - pictures["comfyui"][name]).max() for name in EMBEDDED}
    assert max(apart.values()) <= 1, apart
    of_the_template = pictures["comfyui"].pop("mm of the template")
    assert np.array_equal(pictures["comfyui"]["mm"], of_the_template)
    assert min(np.abs(a - b).mean() for a, b in combinations(pictures["comfyui"].values(), 2)) > 1


@pytest.mark.parametrize(("name", "count"), [("in_prompt", 1), ("in_prompt", 3), ("subject_diffusion", 1)])
def test_the_kits_workflows_for_other_numbers_of_subjects(servers, suite, tmp_path, name, count):
    """In four steps: they divide the schedule of 1000, so that both engines have the same ones."""
    (tmp_path / f"{name}_{count}.json").write_text(json.dumps(of_the_kits(f"{name}_{count}")))
    gated = name == "subject_diffusion"
    own = (
        {"adapter": "subject_diffusion", "second": 5.0}
        if gated
        else {"adapter": "umm_diffusion", "fuse_start_step": -1}
    )
    own |= {"workflow": f"{tmp_path.as_posix()}/{name}_{{subjects}}.json", "steps": 4, "cfg": 5.0, "negative": ""}
    embedded = {"steps": 4, **EMBEDDED["subject" if gated else "umm"]}
    prompt = f"{' and '.join(f'a {kind}' for kind in KINDS[:count])} on grass"
    subjects = tuple(TaskSubject(kind, (f"{kind}.png",)) for kind in KINDS[:count])
    found, truth = (
        engine.paint(Task("s", "c", Method("m", settings), prompt, subjects, 5)).astype(float)
        for engine, settings in (
            (ComfyUIEngine(servers[0].url, suite), own),
            (EmbeddedEngine({"s": suite}), embedded),
        )
    )
    assert np.abs(found - truth).max() <= 1


LAYOUT = """
[suite]
name = "concept101"
folder = "{benchmark}"
crops = "{boxes}"
cases = 2
seeds = 1
first_seed = 420
[engine]
kind = "{kind}"
servers = "{url}"
[scores]
preset = "none"
colours = "yes"
[output]
folder = "{folder}"
zip = true
[[methods]]
name = "relevance"
merge = "relevance"
weight = 1.0
steps = 4
{more}
"""


def test_a_published_layout_on_a_server(servers, tmp_path):
    """Concepts with six photos each, painted from crops and scored with the whole photos."""
    benchmark = fake.concept101(tmp_path / "concept101", photos=6)
    boxes = fake.concept_boxes(tmp_path / "json_data", benchmark)
    rows = {}
    for kind, more in (("embedded", ""), ("comfyui", 'checkpoint = "rehearsal"')):
        file, folder = tmp_path / f"{kind}.toml", tmp_path / kind
        places = {"benchmark": benchmark.as_posix(), "boxes": boxes.as_posix(), "folder": folder.as_posix()}
        file.write_text(LAYOUT.format(kind=kind, url=servers[0].url, more=more, **places))
        report = evaluate(read_settings(file)).read_text(encoding="utf-8")
        assert "2 of 2 pictures are painted and scored." in report and "Painted from crops" in report
        assert (folder / "results.zip").is_file()
        rows[kind] = list(csv.DictReader((folder / "scores.csv").open()))
    for one, other in zip(rows["embedded"], rows["comfyui"], strict=True):
        assert one["prompt"] == other["prompt"] and one["seed"] == other["seed"] == "420"
        pictures = [
            np.asarray(Image.open(tmp_path / kind / row["file"])).astype(float)
            for kind, row in (("embedded", one), ("comfyui", other))
        ]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
        assert float(one["colours"]) == pytest.approx(float(other["colours"]), abs=0.02)


@pytest.mark.parametrize("sizes", ["one size", "different sizes"])
def test_a_subject_with_thirteen_photos_is_painted_as_the_embedded_engine_paints_it(servers, tmp_path, sizes):
    """More photos than Add Subject has inputs: as the concepts of CustomConcept101 have."""
    chance = np.random.default_rng(3)
    for i in range(13):
        photo = Image.fromarray(reference(CAST["cat"] if i < 10 else CAST["bird"]))
        side = (60 + 7 * i, 120 - 5 * i) if sizes == "different sizes" else (70, 70)
        whole = Image.fromarray(chance.integers(200, 256, (side[1], side[0], 3), np.uint8))
        whole.paste(photo.resize((48, 48)), (3, 5))
        whole.save(tmp_path / f"{i}.png")
    Image.fromarray(reference(CAST["robot"])).save(tmp_path / "robot.png")
    cat = TaskSubject("cat", tuple(f"{i}.png" for i in range(13)))
    few, robot = TaskSubject("cat", cat.photos[:1]), TaskSubject("robot", ("robot.png",))
    method = Method("relevance", {"merge": "relevance", "weight": 1.0, "steps": 5})
    tasks = [
        Task("s", f"{len(one.photos)}", method, "a cat and a robot on grass", (one, robot), 1) for one in (cat, few)
    ]
    embedded = EmbeddedEngine({"s": tmp_path})
    painted, truth, other = (
        picture.astype(float)
        for picture in (engine_of(servers[0], tmp_path).paint(tasks[0]), *map(embedded.paint, tasks))
    )
    assert np.abs(painted - truth).max() <= 1
    assert np.abs(truth - other).max() > 10, "thirteen photos paint what one of them paints"


def test_one_of_two_hosts_is_killed_and_every_row_is_there_once(servers, suite, tasks, tmp_path):
    first, mortal = servers
    alone = run_tasks(tasks, [engine_of(first, suite)], tmp_path / "one")
    assert all(row.error is None for row in alone.values())
    engines = [engine_of(first, suite), engine_of(mortal, suite, Mortal)]
    engines[1].server = mortal
    rows = run_tasks(tasks, engines, tmp_path / "two", pauses=(0.2, 0.4))
    lines = [json.loads(line)["key"] for line in (tmp_path / "two" / "journal.jsonl").read_text().splitlines()]
    assert Counter(lines) == Counter(task.key for task in tasks) and read_journal(tmp_path / "two") == rows
    assert all(row.error is None for row in rows.values())
    assert Counter(row.engine for row in rows.values()) == {first.url: len(tasks) - 2, mortal.url: 2}
    assert mortal._process.poll() is not None and engines[1].asked > 3
    one, two = pictures(tmp_path / "one", tasks), pictures(tmp_path / "two", tasks)
    assert len({picture.tobytes() for picture in one.values()}) == len(tasks)
    assert [key for key in one if not np.array_equal(one[key], two[key])] == []
