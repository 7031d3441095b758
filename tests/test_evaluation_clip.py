"""CLIP-T and object quality of the rehearsal world, by its small CLIP."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch
from PIL import Image
from troupe.evaluation.origin import fingerprint
from troupe.evaluation.scores.detectors import RehearsalDetector
from troupe.evaluation.scores.features import PilClip
from troupe.evaluation.scores.making import REHEARSAL_CLIP, ScoreSettings, make_scorers
from troupe.evaluation.scores.scores import FoundQuality, Painted, PromptLikeness
from troupe.evaluation.suites.rehearsal import rehearsal_suite
from troupe.evaluation.suites.suite import tasks_of
from troupe.evaluation.tasks import Method
from troupe.rehearsal import files
from troupe.rehearsal.engine.trials import trial
from troupe.rehearsal.training import clip
from troupe.rehearsal.world import draw

SHIPPED = files.FOLDER / files.CLIP


@pytest.fixture
def offline(monkeypatch):
    """Whoever asks for the network fails."""

    def refused(*_, **__):
        raise AssertionError("asked for the network")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """The drawing of a trial, as if a method had painted it."""
    suite = rehearsal_suite(tmp_path_factory.mktemp("suite"), ["two classes"], range(1))
    [task] = tasks_of(suite, [Method("drawn")], [])
    return suite.folder, Painted(task, suite.cases[0], Image.fromarray(draw(trial("two classes", 0).scene)))


@pytest.mark.slow
def test_the_evaluation_loads_it_as_any_folder(offline, painted):
    """`scores.clip = FOLDER` counts CLIP-I and CLIP-T; the preset counts the same CLIP-T, and object quality."""
    folder, one = painted
    [whole, *_] = make_scorers(ScoreSettings("none", clip=str(SHIPPED)), "other", folder)
    assert isinstance(whole.features, PilClip)
    assert {parameter.dtype for parameter in whole.features.model.parameters()} == {torch.float32}
    preset = make_scorers(ScoreSettings(), "rehearsal", folder)
    [alone] = [scorer for scorer in preset if isinstance(scorer, PromptLikeness)]
    [quality] = [scorer for scorer in preset if isinstance(scorer, FoundQuality)]
    assert alone.model == REHEARSAL_CLIP and quality.model == f"{RehearsalDetector.name}, {REHEARSAL_CLIP}"
    found = alone(one)
    assert found == {name: whole(one)[name] for name in ("clip_t", "clip_t_times_2_5")}
    words, model = clip.tokenizer(), clip.load(files.FOLDER).eval()
    picture = clip.embedded(model, clip.seen(torch.from_numpy(np.array(one.picture)).permute(2, 0, 1)[None] / 255))
    cosine = (picture @ clip.embedded_texts(model, words, [one.task.prompt]).T).item()
    assert found["clip_t"] == pytest.approx(cosine, abs=0.01)
    other = clip.embedded_texts(model, words, ["a tree in the snow"])
    assert found["clip_t"] > (picture @ other.T).item() + 0.1
    scene, names = trial("two classes", 0).scene, [subject.name for subject in one.task.subjects]
    pixels = torch.from_numpy(np.array(one.picture)).permute(2, 0, 1).expand(2, 3, 128, 128) / 255
    crops = clip.embedded(model, clip.crops_of(pixels, [clip.crop_around(scene.subjects[i]) for i in scene.mentioned]))
    single = (crops * clip.embedded_texts(model, words, names)).sum(1).mean().item()
    assert quality(one)["object_quality"] == pytest.approx(single - (crops[0] @ crops[1]).item(), abs=0.05)


def test_its_hash_is_its_own(monkeypatch, tmp_path):
    """Painted pictures and other scores do not depend on it."""
    before = [fingerprint(name) for name in (REHEARSAL_CLIP, "rehearsal recogniser")]
    assert before[0] != before[1] and before[0].startswith(f"{REHEARSAL_CLIP} ")
    copy = tmp_path / files.CLIP_WEIGHTS
    copy.parent.mkdir()
    copy.write_bytes(b"other")
    for path in files.FOLDER.glob("*.safetensors"):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr("troupe.evaluation.origin.REHEARSAL_FILES", tmp_path)
    after = [fingerprint(name) for name in (REHEARSAL_CLIP, "rehearsal recogniser")]
    assert after[0] != before[0] and after[1] == before[1]
