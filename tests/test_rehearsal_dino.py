"""The rehearsal world's DINOv2: what it is trained on, its folder in transformers' layout, and what it counts."""

from __future__ import annotations

import random
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.exported_folders import check_exported, check_shipped
from torch.nn.functional import cosine_similarity
from troupe.evaluation.origin import fingerprint
from troupe.evaluation.scores.features import DinoFeatures
from troupe.evaluation.scores.making import REHEARSAL_CLIP, REHEARSAL_DINO, ScoreSettings, make_scorers
from troupe.evaluation.scores.scores import Painted, PlacedSubjects, WholePicture
from troupe.evaluation.suites.rehearsal import rehearsal_suite
from troupe.evaluation.suites.suite import tasks_of
from troupe.evaluation.tasks import Method
from troupe.rehearsal import files
from troupe.rehearsal.engine.trials import trial
from troupe.rehearsal.training import clip, dino, export
from troupe.rehearsal.training.loop import Trainer, pixels_of
from troupe.rehearsal.world import CELLS, PLACES, VARIANTS, draw, reference_cells

SHIPPED = files.FOLDER / files.DINO


@pytest.fixture
def few_steps(monkeypatch):
    """Trainings end after three steps and are not measured."""
    monkeypatch.setattr(Trainer, "progress", property(lambda self: self.step / 3))
    monkeypatch.setattr(dino, "accuracy", lambda *_: {})


# ---- what it is trained on -------------------------------------------------------------------------------------------


def test_a_view_shows_its_individual_on_a_reference_or_in_a_scene(monkeypatch):
    """With any variant, at any place, half of the time beside another one; seen is at least about its box."""
    scenes, boxes, references = [], [], []
    place, widen, reference = dino.place_figures, dino.wider, dino.reference_cells
    monkeypatch.setattr(dino, "place_figures", lambda *given: scenes.append(place(*given)) or scenes[-1])
    monkeypatch.setattr(dino, "wider", lambda chance, box: boxes.append(box) or widen(chance, box))
    monkeypatch.setattr(dino, "reference_cells", lambda *given: references.append(given) or reference(*given))
    chance, figure = random.Random(1), dino.random_figure(random.Random(2))
    for _ in range(200):
        assert dino.view(chance, figure).shape == (1, 3, 32, 32)
    assert 75 < len(references) < 125 and len(scenes) == len(boxes) == 200 - len(references)
    placed = [scene.subjects[scene.mentioned[0]] for scene in scenes]
    for one, box in zip(placed, boxes, strict=True):
        assert all(abs(a - b) <= max(clip.STRAY) for a, b in zip(clip.crop_around(one), box, strict=True))
    individuals = [given for given, _ in references] + [one.figure for one in placed]
    assert {(one.kind, one.look) for one in individuals} == {(figure.kind, figure.look)}
    assert {one.variant for one in individuals} == set(VARIANTS)
    assert {scene.place for scene in scenes} == set(PLACES) and len({shift for _, shift in references}) > 30
    assert 25 < sum(len(scene.subjects) == 2 for scene in scenes) < 75


def test_a_wider_crop_lies_around_the_crop():
    chance, crop, areas = random.Random(3), (10, 12, 20, 26), []
    for _ in range(400):
        top, left, bottom, right = dino.wider(chance, crop)
        assert 0 <= top <= 10 and 0 <= left <= 12 and 20 <= bottom <= CELLS and 26 <= right <= CELLS
        areas.append((bottom - top) * (right - left) / CELLS**2)
    assert sorted(areas)[200] < 0.35 and max(areas) > 0.9


@pytest.fixture
def figure(monkeypatch):
    """A figure whose views are its reference in the middle, except for what is done to every view."""
    found = replace(dino.random_figure(random.Random(5)), variant="")
    monkeypatch.setattr(dino, "reference_cells", lambda *_: reference_cells(found))
    monkeypatch.setattr(dino, "draw_cells", lambda _: reference_cells(found))
    monkeypatch.setattr(dino, "wider", lambda *_: dino.WHOLE)
    return found


def test_half_of_the_views_are_disturbed_and_half_are_mirrored(figure, monkeypatch):
    disturbed, plain, seen, chance = [], dino.disturbed, [], random.Random(4)
    monkeypatch.setattr(dino, "disturbed", lambda cells: disturbed.append(1) or plain(cells))
    monkeypatch.setattr(dino, "GREY", 0)
    undisturbed = clip.seen(clip.pixels_from(pixels_of([reference_cells(figure)])))
    for _ in range(200):
        before = len(disturbed)
        pixels = dino.view(chance, figure)
        if len(disturbed) == before:
            seen.append((torch.equal(pixels, undisturbed), torch.equal(pixels.flip(-1), undisturbed)))
    assert 75 < len(disturbed) < 125
    assert all(same ^ mirrored for same, mirrored in seen) and 35 < sum(same for same, _ in seen) < 65


def test_one_view_in_three_is_drawn_in_grey(figure, monkeypatch):
    monkeypatch.setattr(dino, "disturbed", lambda cells: cells)
    chance, spread = random.Random(4), torch.tensor(clip.STD).view(-1, 1, 1)
    views = [dino.view(chance, figure) * spread + torch.tensor(clip.MEAN).view(-1, 1, 1) for _ in range(200)]
    grey = [float((one - one.mean(1, keepdim=True)).abs().max()) < 1e-5 for one in views]
    assert 45 < sum(grey) < 90
    undisturbed = clip.pixels_from(pixels_of([reference_cells(figure)])).mean((1, 2, 3))
    assert all(abs(float(one.mean() - undisturbed)) < 0.02 for one in views), "as bright as the others"


def test_the_loss_compares_each_view_with_the_teachers_other_one():
    torch.manual_seed(0)
    student = [torch.randn(3, 5, dtype=torch.float64) for _ in range(2)]
    teacher = [torch.rand(3, 5, dtype=torch.float64) for _ in range(2)]
    parts = []
    for i, right in enumerate(teacher):
        for j, logits in enumerate(student):
            if i != j:
                shares = (logits / 0.1).exp() / (logits / 0.1).exp().sum(1, keepdim=True)
                parts += [-(right[row] * shares[row].log()).sum() for row in range(3)]
    assert len(parts) == 6
    torch.testing.assert_close(dino.distillation(student, teacher), sum(parts) / 6)


def test_the_teacher_uses_every_prototype_about_as_often():
    """However alike its answers are; the order of two prototypes over the pictures stays as it is."""
    torch.manual_seed(0)
    bias = torch.linspace(-0.5, 0.5, 8)
    cosines = (0.2 * torch.randn(64, 8) + bias).clamp(-1, 1)
    plain, found = (cosines / dino.TEACHER).softmax(1), dino.spread_evenly(cosines)
    torch.testing.assert_close(found.sum(1), torch.ones(64))
    apart, left = (table.sum(0).max() / table.sum(0).min() for table in (plain, found))
    assert apart > 1e4 and left < 5, "three rounds leave a rest"
    for column in range(7):
        order = [(table[:, column] / table[:, column + 1]).argsort() for table in (plain, found)]
        assert torch.equal(*order), "only weights of prototypes and pictures are changed"


def test_vectors_that_lie_close_cost_more():
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.1]]), dim=-1)
    distances = torch.cdist(vectors, vectors) + 10 * torch.eye(3)
    torch.testing.assert_close(dino.crowding(3 * vectors), -distances.min(1).values.log().mean(), atol=1e-5, rtol=0)
    assert dino.crowding(vectors[:2]) > dino.crowding(vectors[[0, 2]])


def far_apart(tmp_path) -> tuple[Trainer, torch.nn.Module, dino.Head]:
    """A trainer whose averages are those of another model."""
    torch.manual_seed(0)
    model, head = dino.build().eval(), dino.Head()
    trainer = Trainer({"dino": model, "head": head}, tmp_path, 1.0, 1e-3, 0.5, 0, say=lambda line: None)
    torch.manual_seed(1)
    others = [*dino.build().parameters(), *dino.Head().parameters()]
    trainer.average.values = [parameter.detach().clone() for parameter in others]
    return trainer, model, head


@pytest.mark.slow
def test_the_teacher_has_the_averages_and_the_student_its_own_weights(tmp_path, monkeypatch):
    """What both compute in a batch is what each computes alone; only the student's pass leaves gradients."""
    trainer, model, head = far_apart(tmp_path)
    passes, tokens, given = [], dino.cls_tokens, {}

    def watched(model, pixels):
        found = tokens(model, pixels)
        passes.append((torch.is_grad_enabled(), pixels, found.detach()))
        return found

    def losses(student, teacher):
        given.update(student=student, teacher=teacher)
        return distillation(student, teacher)

    distillation = dino.distillation
    monkeypatch.setattr(dino, "cls_tokens", watched)
    monkeypatch.setattr(dino, "distillation", losses)
    dino.batch_loss(trainer, model, head, 4).backward()
    assert [grad for grad, *_ in passes] == [False, True]
    assert passes[0][1].shape == (8, 3, 32, 32) and torch.equal(passes[0][1], passes[1][1])

    def alone(pixels):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = tokens(model, pixels)
            return found, head(found)

    student, cosines = alone(passes[1][1])
    with trainer.average.swapped():
        teacher, answers = alone(passes[0][1])
    assert torch.equal(student, passes[1][2]) and torch.equal(torch.cat(given["student"]), cosines)
    assert torch.equal(teacher, passes[0][2]) and not torch.allclose(teacher, student, atol=0.1)
    assert torch.equal(torch.cat(given["teacher"]), dino.spread_evenly(answers))
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_a_stop_in_the_teachers_pass_saves_student_and_averages_apart(tmp_path, monkeypatch):
    trainer, model, head = far_apart(tmp_path)
    own = {name: value.clone() for name, value in model.state_dict().items()}

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(dino, "cls_tokens", stopped)
    with pytest.raises(KeyboardInterrupt):
        for _ in trainer.steps(4):
            dino.batch_loss(trainer, model, head, 4)
    saved = torch.load(trainer.checkpoint, weights_only=True)["modules"]["dino"]
    assert all(torch.equal(value, saved[name]) for name, value in own.items())


@pytest.mark.slow
def test_it_is_trained_on_training_looks_and_measured_on_held_out_ones(few_steps, tmp_path, monkeypatch):
    looks = []
    one, more = dino.random_figure, dino.random_scenes

    def figure(*given):
        found = one(*given)
        looks.append(found.look)
        return found

    def scenes(*given):
        found = more(*given)
        looks.extend(subject.figure.look for scene in found for subject in scene.subjects)
        return found

    monkeypatch.setattr(dino, "random_figure", figure)
    monkeypatch.setattr(dino, "random_scenes", scenes)
    dino.train_dino(tmp_path, 1.0, batch=4)
    assert len(looks) >= 12 and {look.held_out for look in looks} == {False}
    monkeypatch.undo()
    drawn, references = [], dino._references
    monkeypatch.setattr(dino, "_references", lambda model, given: drawn.extend(given) or references(model, given))
    found = dino.accuracy(dino.build().eval(), count=8)
    assert {figure.look.held_out for figure in drawn} == {True} and set(found) == {"other class", "other looks"}
    third = len(drawn) // 3
    own, classes, others = drawn[:third], drawn[third : 2 * third], drawn[2 * third :]
    for mine, kind, look in zip(own, classes, others, strict=True):
        assert mine.kind != kind.kind and mine.look == kind.look and mine.kind == look.kind and mine.look != look.look


@pytest.mark.slow
def test_a_few_steps_are_the_same_again(few_steps, tmp_path):
    states = []
    for name in ("one", "two"):
        dino.train_dino(tmp_path / name, 1.0, batch=4)
        states.append(torch.load(tmp_path / name / "checkpoint.pt", weights_only=True))
    for module in ("dino", "head"):
        first, second = (state["modules"][module] for state in states)
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    torch.manual_seed(5)
    fresh, trained = dino.build().state_dict(), states[0]["modules"]["dino"]
    unchanged = [name for name, value in fresh.items() if torch.equal(value, trained[name])]
    assert unchanged == ["embeddings.mask_token"], "no picture is masked"


# ---- its folder ------------------------------------------------------------------------------------------------------


def test_the_shipped_folder():
    check_shipped(SHIPPED, {"config.json", "preprocessor_config.json"}, dino.build().state_dict(), "Dinov2Model")
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 1.1e6


# of a subject's crops, how many are nearer to its own reference than to another one; by chance one half, by a net that
# was not trained up to 0.55 and 0.84
LEAST = {"other class": 0.6, "other looks": 0.93}


@pytest.mark.slow
def test_it_reads_held_out_drawings():
    found = dino.accuracy(dino.load(files.FOLDER).eval())
    assert found["other class"] > LEAST["other class"] and found["other looks"] > LEAST["other looks"], found


@pytest.mark.slow
def test_exported_weights_are_the_averaged_ones(few_steps, tmp_path):
    dino.train_dino(tmp_path / "dino", 1.0, batch=4)
    export.export_all(tmp_path, tmp_path / "files")
    found, folder = dino.load(tmp_path / "files").state_dict(), tmp_path / "files" / files.DINO
    check_exported(tmp_path / "dino" / "checkpoint.pt", "dino", found, folder, SHIPPED)


@pytest.mark.slow
def test_a_model_of_another_depth_is_neither_exported_nor_begun_with(few_steps, tmp_path, monkeypatch):
    """transformers would leave out layers that the configuration does not name."""
    dino.train_dino(tmp_path / "dino", 1.0, batch=4)
    monkeypatch.setitem(dino.SHAPE, "num_hidden_layers", 2)
    with pytest.raises(RuntimeError, match="layer.2"):
        export.export_all(tmp_path, tmp_path / "files")
    assert not (tmp_path / "files" / files.DINO_WEIGHTS).exists()
    with pytest.raises(RuntimeError, match="layer.2"):
        dino.train_dino(tmp_path / "other", 1.0, batch=4, start=files.FOLDER)


# ---- what it counts --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_preset_counts_its_cosines(monkeypatch, tmp_path):
    """And those of found subjects, beside those of the image encoder."""

    def refused(*_, **__):
        raise AssertionError("asked for the network")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    suite = rehearsal_suite(tmp_path, ["two classes"], range(1))
    [task] = tasks_of(suite, [Method("drawn")], [])
    picture = Image.fromarray(draw(trial("two classes", 0).scene))
    scorers = make_scorers(ScoreSettings(), "rehearsal", suite.folder)
    [one] = [s for s in scorers if isinstance(s, WholePicture) and isinstance(s.features, DinoFeatures)]
    assert one.model == REHEARSAL_DINO
    assert {parameter.dtype for parameter in one.features.model.parameters()} == {torch.float32}
    by_model = {s.columns[0]: s.model.rpartition(", ")[2] for s in scorers if isinstance(s, PlacedSubjects)}
    assert by_model == {"ip_sim": REHEARSAL_DINO, "ip_sim_clip": "rehearsal image encoder", "ip_sim_colours": "colours"}
    found = one(Painted(task, suite.cases[0], picture))
    model = dino.load(files.FOLDER).eval()

    def read(image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255
        return dino.cls_tokens(model, clip.seen(pixels)).detach()

    photos = [[read(Image.open(suite.folder / photo)) for photo in subject.photos] for subject in task.subjects]
    cosines = [torch.stack([cosine_similarity(read(picture), photo) for photo in each]).mean() for each in photos]
    assert found["dinov2"] == pytest.approx(torch.stack(cosines).mean().item(), abs=0.02)
    assert set(found) == {"dinov2", "scr_0.4", "scr_0.5", "scr_0.6"}


def test_its_hash_is_its_own(monkeypatch, tmp_path):
    """Other scores do not depend on it."""
    names = (REHEARSAL_DINO, REHEARSAL_CLIP, "rehearsal recogniser")
    before = [fingerprint(name) for name in names]
    for path in files.FOLDER.rglob("*.safetensors"):
        target = tmp_path / path.relative_to(files.FOLDER)
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(path)
    (tmp_path / files.DINO_WEIGHTS).unlink()
    (tmp_path / files.DINO_WEIGHTS).write_bytes(b"other")
    monkeypatch.setattr("troupe.evaluation.origin.REHEARSAL_FILES", tmp_path)
    after = [fingerprint(name) for name in names]
    assert after[0] != before[0] and after[1:] == before[1:]
