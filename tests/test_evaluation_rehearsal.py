"""The rehearsal suite and the embedded engine: the same pictures as the trials they are made of, and their truth."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from troupe.evaluation.engines import embedded
from troupe.evaluation.engines.embedded import EmbeddedEngine
from troupe.evaluation.scores import scores
from troupe.evaluation.scores.detectors import RehearsalDetector
from troupe.evaluation.scores.features import as_picture
from troupe.evaluation.scores.scores import KnownTruth, Painted, object_relevance
from troupe.evaluation.suites.rehearsal import rehearsal_suite, trial_of
from troupe.evaluation.suites.suite import SuiteError, tasks_of
from troupe.evaluation.tasks import Method
from troupe.model_patches.errors import TroupeError
from troupe.model_patches.placement.layouts import places
from troupe.model_patches.subjects import Box
from troupe.rehearsal.engine.paint import load_rehearsal
from troupe.rehearsal.engine.recogniser import load_recogniser
from troupe.rehearsal.engine.trials import (
    GATED,
    IN_PROMPT,
    METHODS,
    METHODS_OF,
    RELEVANCE,
    Judgement,
    paint_trial,
    places_painted,
)
from troupe.rehearsal.world import reference

CASTS, STEPS = ["two classes", "one class"], 2
# name in trials -> settings of the engine
SAME = {
    "without references": {"merge": "none"},
    "add": {"merge": "add"},
    "relevance, sharpness 3": {"merge": "relevance", "sharpness": 3.0},
    "relevance with boxes": {"merge": "relevance", "boxes": True},
    "one layer's map": {"merge": "add", "map_from": "one layer"},
}


@pytest.fixture(scope="module")
def models():
    return load_rehearsal(in_prompt=True)


@pytest.fixture(scope="module")
def suite(tmp_path_factory, models):
    folder = tmp_path_factory.mktemp("suite")
    return rehearsal_suite(folder, CASTS, range(2), True, lambda: (models, load_recogniser()))


@pytest.mark.slow
def test_the_suite_has_the_trials(suite):
    assert [case.name for case in suite.cases] == [
        *("two classes 0000", "one class 0000", "two classes 0001", "one class 0001")
    ]
    for case in suite.cases:
        one = trial_of(case.name)
        assert (case.prompt, case.seeds) == (one.scene.caption, (one.seed,))
        assert [subject.name for subject in case.subjects] == [figure.words for figure in one.figures]
        for subject, figure in zip(case.subjects, one.figures, strict=True):
            assert np.array_equal(np.array(Image.open(suite.folder / subject.photos[0])), reference(figure))


@pytest.mark.slow
def test_boxes_are_found_once(suite, models):
    def never():
        raise AssertionError("the boxes are stored")

    again = rehearsal_suite(suite.folder, CASTS, range(2), True, never)
    assert again == suite
    expected = places_painted(models, load_recogniser(), trial_of("one class 0001"))
    assert [subject.box for subject in suite.cases[3].subjects] == [tuple(map(float, box)) for box in expected]


@pytest.mark.slow
def test_only_methods_with_boxes_get_them(suite):
    methods = [Method("plain"), Method("boxed", {"boxes": True}), Method("unboxed", {"boxes": False})]
    tasks = tasks_of(suite, methods, [7])
    assert len(tasks) == len({task.key for task in tasks}) == 12
    assert {task.seed for task in tasks} == {0, 1}, "the trial's own seed"
    assert {task.method.name for task in tasks if task.subjects[0].box is not None} == {"boxed"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_the_engine_paints_the_trial(name, suite, models):
    case = suite.cases[0]
    engine = EmbeddedEngine({"rehearsal": suite.folder}, models)
    [task] = tasks_of(dataclasses.replace(suite, cases=(case,)), [Method(name, {**SAME[name], "steps": STEPS})], [])
    places = [subject.box for subject in case.subjects]
    expected = paint_trial(models, "mip", METHODS[name], trial_of(case.name), steps=STEPS, places=places)
    found = engine.paint(task)
    assert found.shape == (128, 128, 3) and found.dtype == np.uint8
    assert np.array_equal(found, (expected.permute(1, 2, 0) * 255).round().byte().numpy())


@pytest.mark.slow
@pytest.mark.parametrize(("followed", "share"), [([True, False], 0.5), ([True, True], 1.0), ([False, False], 0.0)])
def test_the_truth_about_a_prompt_is_the_share_of_subjects_that_are_there(followed, share, suite, monkeypatch):
    judgement = Judgement(["right", "missing"], ["right", "mixed"], [True, False], followed)
    monkeypatch.setattr(scores, "judge", lambda *_: judgement)
    [task] = tasks_of(dataclasses.replace(suite, cases=suite.cases[:1]), [Method("m")], [])
    found = KnownTruth(load_recogniser())(Painted(task, suite.cases[0], Image.new("RGB", (128, 128))))
    assert found["truth_prompt"] == share and (found["truth_right"], found["truth_exact"]) == (0.5, 0.5)
    assert tuple(found) == KnownTruth.columns


OTHERS = {"umm": IN_PROMPT, "fastcomposer": IN_PROMPT, "subject": GATED, "mm": RELEVANCE}


@pytest.mark.slow
@pytest.mark.parametrize("adapter", OTHERS)
def test_the_engine_paints_with_the_other_adapters(adapter, suite, models):
    """In the prompt, and in gated layers or image attention; without references, their own weights act."""
    case, boxed = suite.cases[0], adapter == "subject"
    engine = EmbeddedEngine({"rehearsal": suite.folder}, models)
    settings = {"adapter": adapter, "steps": STEPS, **({"boxes": True} if boxed else {})}
    methods = [Method("with", settings), Method("without", {**settings, "merge": "none"})]
    engine.check(methods)
    found = [engine.paint(task) for task in tasks_of(dataclasses.replace(suite, cases=(case,)), methods, [])]
    own = [subject.box for subject in case.subjects]
    for picture, name in zip(found, (OTHERS[adapter], "without references"), strict=True):
        method = METHODS_OF[adapter][name]
        expected = paint_trial(models, adapter, method, trial_of(case.name), steps=STEPS, places=own)
        assert np.array_equal(picture, (expected.permute(1, 2, 0) * 255).round().byte().numpy())
    assert np.abs(found[0].astype(float) - found[1]).max() > 10


@pytest.mark.slow
def test_a_layout_gives_boxes_to_subjects_without_one(suite, models, monkeypatch):
    engine = EmbeddedEngine({"rehearsal": suite.folder}, models)
    casts = []
    monkeypatch.setattr(embedded, "paint_cast", lambda *args: casts.append(args[4]) or torch.zeros(3, 8, 8))
    subject = {"adapter": "subject", "layout": "row"}
    methods = [Method("row", subject), Method("own boxes", {**subject, "boxes": True})]
    engine.check(methods)
    for task in tasks_of(dataclasses.replace(suite, cases=suite.cases[:1]), methods, []):
        engine.paint(task)
    row, own = ([one.box for one in cast.subjects] for cast in casts)
    assert row == places("row", 2)
    assert own == [pytest.approx(Box(*subject.box)) for subject in suite.cases[0].subjects]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"adapter": "umm", "merge": "add"}, "the adapter umm has, for 'm', found merge = add"),
        ({"adapter": "fastcomposer", "sharpness": 3.0}, "found sharpness = 3.0, of image attention. Remove it"),
        ({"adapter": "umm", "weight": 0.5}, "found weight = 0.5"),
        ({"adapter": "subject"}, "boxes for the gated layers of 'm', found none. Set boxes = true"),
        ({"adapter": "subject", "layout": "row", "map_from": "one layer"}, "found map_from = one layer"),
        ({"adapter": "umm", "merge": "none", "sharpness": 3.0}, "found sharpness = 3.0"),
        ({"merges": "add"}, "known keys in .* the method 'm', found 'merges'. Did you mean 'merge'"),
        ({"merge": "relevanse"}, "found 'relevanse'. Did you mean 'relevance'"),
        ({"weight": "much"}, "a number as 'methods.weight'"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_an_unknown_setting_is_one_sentence(settings, sentence):
    with pytest.raises(TroupeError, match=sentence):
        EmbeddedEngine({}).check([Method("good", {"merge": "add"}), Method("m", settings)])


@pytest.mark.slow
def test_bad_input(suite, models, tmp_path):
    with pytest.raises(SuiteError, match="found 'two clases'. Did you mean 'two classes'"):
        rehearsal_suite(tmp_path, ["two clases"], range(1))
    with pytest.raises(SuiteError, match="found none"):
        rehearsal_suite(tmp_path, [], range(1))
    with pytest.raises(SuiteError, match="a case of the rehearsal suite"):
        trial_of("a cat and a dog")
    unboxed = rehearsal_suite(tmp_path, CASTS[:1], range(1))
    [task] = tasks_of(unboxed, [Method("boxed", {"boxes": True, "steps": STEPS})], [])
    engine = EmbeddedEngine({"rehearsal": tmp_path}, models)
    with pytest.raises(TroupeError, match="a box for each subject of 'two classes 0000'"):
        engine.paint(task)
    photo = tmp_path / unboxed.cases[0].subjects[1].photos[0]
    photo.write_bytes(photo.read_bytes()[:50])
    [task] = tasks_of(unboxed, [Method("plain", {"steps": STEPS})], [])
    with pytest.raises(TroupeError, match=r"references/two_classes_0000/1.png .*found picture does not open"):
        engine.paint(task)
    photo.unlink()
    with pytest.raises(TroupeError, match="found picture missing"):
        engine.paint(task)


@pytest.mark.slow
def test_a_stopped_search_for_boxes_keeps_what_it_found(tmp_path, models):
    asked = []

    def stopped():
        asked.append(1)
        raise KeyboardInterrupt

    rehearsal_suite(tmp_path, CASTS[:1], range(1), True, lambda: (models, load_recogniser()))
    with pytest.raises(KeyboardInterrupt):
        rehearsal_suite(tmp_path, CASTS[:1], range(2), True, stopped)
    assert list(json.loads((tmp_path / "boxes.json").read_text())) == ["two classes 0000"] and asked == [1]


@pytest.mark.slow
def test_noise_by_relevance_acts_where_the_subject_is(suite, models):
    """Three pictures of a case: without noise, with noise where the first name is relevant, and with as much of it
    everywhere.
    """
    noise = {"noise": 0.5, "beside": "plain"}
    methods = [Method("plain"), Method("relevance", noise), Method("evenly", {**noise, "noise_by": "evenly"})]
    methods = [Method(one.name, {"steps": 8, **one.settings}) for one in methods]
    engine = EmbeddedEngine({"rehearsal": suite.folder}, models)
    engine.check(methods)
    found = {"relevance": [], "evenly": []}
    detector = RehearsalDetector(load_recogniser())
    for case in suite.cases:
        plain, *noised = (
            torch.from_numpy(engine.paint(task)).float() / 255
            for task in tasks_of(dataclasses.replace(suite, cases=(case,)), methods, [])
        )
        regions = detector.regions(as_picture(plain), [subject.name for subject in case.subjects])[0]
        for method, picture in zip(found, noised, strict=True):
            if regions:
                found[method].append(object_relevance(plain, picture, regions[0].box))
    assert len(found["evenly"]) >= 3
    assert sum(found["relevance"]) > 1.2 * sum(found["evenly"]), found


def test_noise_needs_a_method_to_compare_with():
    engine = EmbeddedEngine({})
    with pytest.raises(TroupeError, match="another method as 'beside' of 'noised', found 'plan'. Did you mean 'plain'"):
        engine.check([Method("plain"), Method("noised", {"noise": 1.0, "beside": "plan"})])
    with pytest.raises(TroupeError, match="references and every layer's map for the noise"):
        engine.check([Method("plain"), Method("noised", {"noise": 1.0, "beside": "plain", "merge": "none"})])
