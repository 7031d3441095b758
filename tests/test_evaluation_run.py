"""A whole evaluation: interrupted, resumed, damaged, reported; the command and its sentences."""

from __future__ import annotations

import csv
import json
import zipfile
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import fake_benchmarks as fake
from support import tiny_annotators as tiny
from troupe.evaluation import run
from troupe.evaluation.engines import embedded
from troupe.evaluation.engines.embedded import EmbeddedEngine
from troupe.evaluation.journal import Journal, read_journal
from troupe.evaluation.making import make_engines, workflows
from troupe.evaluation.results import ResultsError, append_scores, stored_scores
from troupe.evaluation.scores import making
from troupe.evaluation.settings import EngineSettings, read_settings
from troupe.evaluation.tasks import Method
from troupe.model_patches.errors import SubjectError, TroupeError
from troupe.training.config.tables import ConfigError
from troupe.training.data.models import GroundingDino
from troupe_tools.commands import evaluate as command
from troupe_tools.pack import ROOT

TEXT = """
[suite]
casts = "two classes"
seeds = 3
[output]
folder = "{folder}"
[[methods]]
name = "none"
merge = "none"
steps = 1
[[methods]]
name = "relevance"
steps = 1
"""
COUNT = 6


@pytest.fixture(autouse=True, scope="module")
def loaded_once():
    """The models are loaded once for all evaluations of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "load_rehearsal", cache(embedded.load_rehearsal))
        patch.setattr(run, "load_rehearsal", embedded.load_rehearsal)
        yield


@pytest.fixture
def settings(tmp_path):
    def read(*overrides, text=TEXT):
        path = tmp_path / "evaluation.toml"
        path.write_text(text.format(folder=(tmp_path / "results").as_posix()))
        return read_settings(path, overrides)

    return read


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "scores.csv").open(encoding="utf-8")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished evaluation: its folder and settings."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "evaluation.toml"
    path.write_text(TEXT.format(folder=(folder / "results").as_posix()) + "boxes = true\n")
    settings = read_settings(path, ["output.zip=true"])
    run.evaluate(settings)
    return folder / "results", settings


@pytest.mark.slow
def test_every_picture_has_one_row(finished):
    folder, _ = finished
    rows = table(folder)
    assert len(rows) == len({row["key"] for row in rows}) == COUNT
    assert [row["method"] for row in rows] == ["none", "relevance"] * 3
    assert [row["seed"] for row in rows] == ["0", "0", "1", "1", "2", "2"]
    for row in rows:
        assert (folder / row["file"]).is_file() and row["truth_right"] in ("0", "0.5", "1")
        assert len(row["truth_verdicts"]) == len(row["verdicts"]) == 2
        assert -1 <= float(row["clip_i"]) <= 1 and 0 <= float(row["colours"]) <= 1


@pytest.mark.slow
def test_the_report(finished):
    folder, _ = finished
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert f"{COUNT} of {COUNT} pictures are painted and scored." in text and "not painted yet" not in text
    for part in (
        "| relevance | 3 |",
        "prefers the better of two",
        '"seeds": 3',
        "| torch | ",
        "rehearsal image encoder ",
    ):
        assert part in text
    sheet = Image.open(folder / "sheet.png")
    assert sheet.width > 3 * 128 and np.array(sheet).std() > 20
    with zipfile.ZipFile(folder / "results.zip") as archive:
        assert sorted(archive.namelist()) == ["report.md", "scores.csv", "settings.json", "sheet.png"]
        assert archive.read("scores.csv") == (folder / "scores.csv").read_bytes()


@pytest.mark.slow
def test_a_second_run_paints_nothing_and_changes_nothing(finished, monkeypatch):
    folder, settings = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(EmbeddedEngine, "paint", lambda self, task: pytest.fail("painted again"))
    monkeypatch.setattr(run, "load_rehearsal", lambda: pytest.fail("boxes searched again"))
    run.evaluate(settings)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


class Stop(BaseException):
    """As Ctrl-C at some point."""


def stopping(monkeypatch, place, name, after):
    """Make a function stop at its call number `after`."""
    calls, inner = [], getattr(place, name)

    def stopped(*args, **options):
        calls.append(1)
        if len(calls) == after:
            raise Stop
        return inner(*args, **options)

    monkeypatch.setattr(place, name, stopped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "name", "after"), [(EmbeddedEngine, "paint", 4), (run, "append_scores", 3), (Journal, "write_picture", 2)]
)
def test_interrupted_and_resumed(place, name, after, settings, monkeypatch):
    chosen = settings()
    folder = Path(chosen.output.folder)
    with monkeypatch.context() as patched:
        stopping(patched, place, name, after)
        with pytest.raises(Stop):
            run.evaluate(chosen)
    left = {path: path.stat().st_mtime_ns for path in (folder / "pictures").glob("*.png")}
    run.evaluate(chosen)
    rows = table(folder)
    assert len(rows) == len({row["key"] for row in rows}) == COUNT
    assert {path: path.stat().st_mtime_ns for path in left} == left, "what was painted stays"


def test_lines_of_a_killed_process(tmp_path):
    append_scores(tmp_path, "a", {"clip_i": 0.5})
    with (tmp_path / "scores.jsonl").open("a") as file:
        file.write('{"key": "b", "sco')
    assert stored_scores(tmp_path) == {"a": {"clip_i": 0.5}}
    append_scores(tmp_path, "b", {"clip_i": 0.25})
    append_scores(tmp_path, "a", {"dino": 1.0})
    assert stored_scores(tmp_path) == {"a": {"clip_i": 0.5, "dino": 1.0}, "b": {"clip_i": 0.25}}


@pytest.mark.slow
def test_more_seeds_and_methods_are_added(settings):
    run.evaluate(settings("suite.seeds=1"))
    folder = Path(settings().output.folder)
    first = table(folder)
    run.evaluate(settings(text=TEXT + '[[methods]]\nname = "add"\nmerge = "add"\nsteps = 1\n'))
    rows = table(folder)
    assert len(rows) == 9 and [row for row in rows if row["seed"] == "0" and row["method"] != "add"] == first


@pytest.mark.slow
def test_other_models_are_not_mixed(settings):
    run.evaluate(settings("suite.seeds=1"), paint=False)
    folder = Path(settings().output.folder)
    origin = json.loads((folder / "origin.json").read_text())
    before = (folder / "origin.json").read_text()
    assert "score clip_i" in origin and any(name.startswith("photo ") for name in origin)
    changed = {**origin, "engine": "embedded, other models"}
    (folder / "origin.json").write_text(json.dumps(changed))
    with pytest.raises(
        ResultsError, match="same suite, photos and models .* engine: embedded, other models instead of"
    ):
        run.evaluate(settings("suite.seeds=1"))
    assert not (folder / "pictures").exists() and (folder / "origin.json").read_text() == json.dumps(changed)
    (folder / "origin.json").write_text("{")
    with pytest.raises(ResultsError, match="JSON in"):
        run.evaluate(settings("suite.seeds=1"))
    (folder / "origin.json").write_text(before)
    with pytest.raises(ResultsError, match="suite: rehearsal instead of dreambench"):
        name = fake.dreambench(folder.parent / "dreambench").as_posix()
        run.evaluate(
            settings("suite.name=dreambench", f"suite.folder={name}", "scores.preset=none", "scores.colours=yes")
        )


@pytest.mark.slow
def test_another_workflow_is_not_mixed(settings, tmp_path, monkeypatch):
    """Its pictures would differ, under the same names."""
    monkeypatch.setattr(run, "run_tasks", lambda *args, **options: {})
    graph = '{"1": {"class_type": "KSampler", "inputs": {}}}'
    (tmp_path / "own_2.json").write_text(graph)
    path = f"{tmp_path.as_posix()}/own_{{subjects}}.json"
    chosen = settings("suite.seeds=1", "engine.kind=comfyui", f"engine.workflow={path}")
    run.evaluate(chosen)
    (tmp_path / "own_2.json").write_text(graph.replace("KSampler", "Other"))
    with pytest.raises(ResultsError, match="workflow .*own_2.json: .* instead of"):
        run.evaluate(chosen)


@pytest.mark.slow
def test_a_damaged_picture_is_named_in_a_report_and_painted_again_by_a_run(settings):
    chosen = settings("suite.seeds=2")
    folder = Path(chosen.output.folder)
    run.evaluate(chosen)
    (folder / "scores.jsonl").unlink()
    damaged = folder / table(folder)[1]["file"]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    run.evaluate(chosen, paint=False)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert len(table(folder)) == 3 and "3 of 4 pictures" in text
    assert f"'pictures/{damaged.name}' does not open: delete it" in text
    run.evaluate(chosen)
    assert len(table(folder)) == 4 and damaged.read_bytes() == whole


@pytest.mark.slow
def test_a_task_that_cannot_be_painted_is_in_the_report(settings, monkeypatch):
    inner = EmbeddedEngine.paint

    def paint(self, task):
        if task.seed == 1 and task.method.name == "none":
            raise SubjectError("a photo", "none", "Take one.")
        return inner(self, task)

    monkeypatch.setattr(EmbeddedEngine, "paint", paint)
    chosen = settings()
    run.evaluate(chosen)
    folder = Path(chosen.output.folder)
    assert len(table(folder)) == COUNT - 1
    assert "Expected a photo, found none. Take one." in (folder / "report.md").read_text(encoding="utf-8")
    run.evaluate(chosen, paint=False)
    assert "Expected a photo, found none. Take one." in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("paint", [True, False])
def test_a_second_run_is_refused_while_the_first_scores(settings, monkeypatch, paint):
    chosen, inner, refused = settings("suite.seeds=1"), run.score_tasks, []

    def score(*arguments):
        with pytest.raises(ResultsError, match="in use by another run") as error:
            run.evaluate(chosen, paint=paint)
        refused.append(error)
        return inner(*arguments)

    monkeypatch.setattr(run, "score_tasks", score)
    run.evaluate(chosen)
    assert len(refused) == 1 and len(table(Path(chosen.output.folder))) == 2
    monkeypatch.undo()
    run.evaluate(chosen, paint=paint)


@pytest.mark.slow
def test_a_report_of_what_is_there(settings):
    chosen = settings()
    run.evaluate(settings("suite.seeds=1"))
    run.evaluate(chosen, paint=False)
    text = (Path(chosen.output.folder) / "report.md").read_text(encoding="utf-8")
    assert "2 of 6 pictures are painted" in text and "4 are not painted yet: run the command without --report." in text


@pytest.mark.slow
def test_every_picture_has_one_line_in_the_journal(settings):
    chosen = settings()
    run.evaluate(chosen)
    folder = Path(chosen.output.folder)
    rows = read_journal(folder)
    assert len((folder / "journal.jsonl").read_text().splitlines()) == len(rows) == COUNT
    assert {row.error for row in rows.values()} == {None} and {row.engine for row in rows.values()} == {"embedded"}


def test_the_engines_of_the_settings(tmp_path):
    methods = [Method("m", {"merge": "add"})]
    servers = EngineSettings("comfyui", "http://127.0.0.1:1 , http://127.0.0.1:2,", slots=2)
    made = make_engines(servers, {"s": tmp_path}, methods)
    assert [(one.name, one.slots) for one in made] == [("http://127.0.0.1:1", 2), ("http://127.0.0.1:2", 2)]
    own = [Method("m"), Method("own", {"workflow": f"{tmp_path.as_posix()}/own_{{subjects}}.json"})]
    graph = '{"1": {"class_type": "KSampler", "inputs": {}}}'
    (tmp_path / "own_1.json").write_text(graph)
    make_engines(servers, {"s": tmp_path}, own, {1})
    with pytest.raises(TroupeError, match="a workflow in API format, found .*own_3.json"):
        make_engines(servers, {"s": tmp_path}, own, {1, 3})
    (tmp_path / "every.json").write_text(graph)
    every = EngineSettings("comfyui", workflow=str(tmp_path / "every.json"))
    assert workflows(every, own, {1}) == [tmp_path / "every.json", tmp_path / "own_1.json"]
    assert workflows(EngineSettings(), own, {1}) == []
    [embedded] = make_engines(EngineSettings(), {"s": tmp_path}, methods)
    assert isinstance(embedded, EmbeddedEngine)
    with pytest.raises(ConfigError, match="the address of a ComfyUI server"):
        make_engines(EngineSettings("comfyui", " , "), {"s": tmp_path}, methods)
    with pytest.raises(TroupeError, match="twice"):
        make_engines(EngineSettings(), {"s": tmp_path}, [Method("m", {"merge": "twice"})])


@pytest.fixture(scope="module")
def scoring(tmp_path_factory):
    """Settings of small random models in place of those that papers use."""
    place = tmp_path_factory.mktemp("models")
    makers = {"clip": tiny.save_clip, "dino": tiny.save_dino, "dinov2": tiny.save_dinov2}
    makers["detector"] = partial(tiny.save_grounding_dino, side=96)
    return [f'scores.{name}="{make(place / name).as_posix()}"' for name, make in makers.items()]


class EachWordFound(GroundingDino):
    """A random detector prefers one word to the others: here it is asked for each alone, and sure of every box."""

    @classmethod
    def load(cls, name, device):
        return super().load(name, device, 0.0)

    def __call__(self, pictures, words):
        each = [super(EachWordFound, self).__call__(pictures, [[word]])[0] for word in words[0]]
        return [[found for one in each for found in one]]


LAYOUTS = {  # name -> maker, cases, groups, subjects of a picture, what the report says
    "dreambench": (fake.dreambench, 3, {"backpack", "cat"}, 1, "Painted from the first photo"),
    "dreambench_pairs": (fake.dreambench, 2, None, 2, "Troupe's choice"),
    "concept101": (fake.concept101, 6, {"001 sofa + chair", "002 chair + sofa"}, 2, "furniture_chair3 a sofa is kept"),
    "concept101 from crops": (fake.concept101, 4, {"001 sofa + chair", "002 chair + sofa"}, 2, "Painted from crops"),
    "dreambench_plus": (fake.dreambench_plus, 4, {"animal/00", "object/07"}, 1, "GPT-4o scores are not counted"),
    "xverse_multi": (fake.xverse, 1, {"4"}, 3, "Not the published protocol"),
}
SCORED = (
    *("clip_i", "clip_t", "clip_t_times_2_5", "dino", "dinov2", "scr_0.4", "scr_0.5", "scr_0.6"),
    *("colours", "ip_sim", "subjects_right", "verdicts"),
    *("ip_sim_clip", "subjects_right_clip", "verdicts_clip", "ip_sim_dino", "subjects_right_dino", "verdicts_dino"),
    *("ip_sim_colours", "subjects_right_colours", "verdicts_colours", "object_quality"),
)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_photos_end_to_end(layout, settings, tmp_path, scoring, monkeypatch):
    """A benchmark's folder through painting, all scores and report; the rehearsal models know no backpacks."""
    make, cases, groups, subjects, note = LAYOUTS[layout]
    monkeypatch.setattr(making, "GroundingDino", EachWordFound)
    name, benchmark = layout.split()[0], make(tmp_path / "benchmark")
    options = [f"suite.name={name}", f"suite.folder={benchmark.as_posix()}", f"suite.cases={cases}", "suite.seeds=1"]
    if "crops" in layout:
        options.append(f"suite.crops={fake.concept_boxes(tmp_path / 'boxes', benchmark).as_posix()}")
    chosen = settings(*options, "scores.preset=none", "scores.colours=yes", *scoring)
    run.evaluate(chosen)
    folder = Path(chosen.output.folder)
    rows = table(folder)
    assert len(rows) == 2 * cases and {row["file"] for row in rows} == {
        f"pictures/{path.name}" for path in (folder / "pictures").iterdir()
    }
    assert groups is None or {row["group"] for row in rows} == groups
    assert list(rows[0])[-len(SCORED) :] == list(SCORED)
    for row in rows:
        assert [column for column in SCORED if not row[column]] == [], row
        assert len(row["verdicts"]) == subjects == len(row["subjects"].split("; "))
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert f"{2 * cases} of {2 * cases} pictures are painted and scored." in text
    assert note in text and "How far each score" not in text
    assert_group_means(text, rows)
    if name == "concept101":
        lacking = [row for row in rows if "at dawn" in row["prompt"]]
        assert [row["prompt"] for row in lacking][::2] == ["A photo of sofa at dawn with sofa."] + (
            ["A photo of chair at dawn with chair."] if cases == 6 else []
        )


def assert_group_means(text: str, rows: list[dict[str, str]]) -> None:
    """Each number of the report is the mean over the groups of the means over their pictures."""
    head, _, *lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")][:4]
    assert head[:2] == ["method", "pictures"] and [line[0] for line in lines] == ["none", "relevance"]
    columns = [column for column in SCORED if not column.startswith("verdicts")]
    assert head[2:] == columns
    for method, _, *cells in lines:
        for column, cell in zip(columns, cells, strict=True):
            groups: dict[str, list[float]] = {}
            for row in rows:
                if row["method"] == method:
                    groups.setdefault(row["group"], []).append(float(row[column]))
            assert float(cell) == pytest.approx(np.mean([np.mean(own) for own in groups.values()]), abs=6e-4), column


@pytest.mark.slow
def test_other_photos_are_refused(settings, tmp_path):
    name = fake.dreambench(tmp_path / "dreambench").as_posix()
    options = ["suite.name=dreambench", f"suite.folder={name}", "suite.cases=3", "suite.seeds=1"]
    chosen = settings(*options, "scores.preset=none", "scores.colours=yes")
    run.evaluate(chosen)
    photo = tmp_path / "dreambench" / "cat" / "02.jpg"
    photo.write_bytes(photo.read_bytes()[:-50] + bytes(50))
    with pytest.raises(ResultsError, match="photo cat/02.jpg"):
        run.evaluate(chosen)


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        ("[suite\n", [], "to be a TOML file"),
        ("[suit]\n", [], r"a \[\[methods\]\] table with a name for each method .* found none"),
        (TEXT + "[suit]\n", [], "found 'suit'. Did you mean 'suite'"),
        (TEXT.replace("seeds", "seds"), [], "found 'seds'. Did you mean 'seeds'"),
        (TEXT.replace('name = "none"', ""), [], "found one without a name"),
        (TEXT.replace('name = "none"', 'name = "relevance"'), [], "found 'relevance' twice"),
        (TEXT + "sizes = [1, 2]\n", [], r"plain values in the method 'relevance', found sizes = \[1, 2\]"),
        (TEXT, ["seeds=3"], "table.key=value"),
        (TEXT, ["suite.seeds=0"], "at least 1"),
        (TEXT, ["suite.name=dreambnch"], "Did you mean 'dreambench'"),
    ],
)
def test_bad_settings_are_one_sentence(text, overrides, sentence, settings):
    with pytest.raises(TroupeError, match=sentence):
        settings(*overrides, text=text)


def test_an_unknown_setting_of_a_method_stops_before_anything_is_painted(settings):
    chosen = settings(text=TEXT + "sharp = 3\n")
    with pytest.raises(TroupeError, match="the method 'relevance', found 'sharp'. Did you mean 'sharpness'"):
        run.evaluate(chosen)
    assert not (Path(chosen.output.folder) / "pictures").exists()


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    path = tmp_path / "evaluation.toml"
    path.write_text(TEXT.format(folder=(tmp_path / "results").as_posix()))
    assert command.main([str(path), "--set", "suite.seeds=1"]) == 0
    assert "2 of 2 pictures painted" in capsys.readouterr().err
    assert command.main([str(path), "--set", "suite.seed=1"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert command.main([str(tmp_path / "nowhere.toml")]) == 1
    assert "evaluation/rehearsal.toml is an example." in capsys.readouterr().err


def test_the_command_can_be_interrupted(tmp_path, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "evaluate", interrupted)
    path = tmp_path / "evaluation.toml"
    path.write_text(TEXT.format(folder=tmp_path.as_posix()))
    assert command.main([str(path)]) == 130 and "goes on where it stopped" in capsys.readouterr().err


def test_the_example(tmp_path):
    settings = read_settings(ROOT / "evaluation" / "rehearsal.toml")
    EmbeddedEngine({}).check(settings.methods)
    assert len(settings.methods) == 5 and settings.suite.name == "rehearsal"
