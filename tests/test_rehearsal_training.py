"""The trainings of the rehearsal models: they learn, go on where they ended, and export what the loaders read."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from torch import nn
from troupe.rehearsal import files
from troupe.rehearsal.engine import nets
from troupe.rehearsal.engine.load import load_image_encoder, load_texts, load_unet
from troupe.rehearsal.engine.recogniser import ANSWERS
from troupe.rehearsal.training import clip, dino, encoder, export, recogniser
from troupe.rehearsal.training.base import LocalizedUNet, places_of_words, train_base
from troupe.rehearsal.training.card import CARD, WHAT, write_card
from troupe.rehearsal.training.clip import train_clip
from troupe.rehearsal.training.dino import train_dino
from troupe.rehearsal.training.encoder import colours_of, nearest, painted, train_encoder
from troupe.rehearsal.training.loop import Average, Diffusion, PlainAttention, Trainer, plain_attention, weighted_loss
from troupe.rehearsal.training.recogniser import labels_of, train_recogniser
from troupe.rehearsal.training.vocabulary import known_ids, tokens
from troupe.rehearsal.world import COLOURS, TRAINING_LOOKS, Figure, Look, masks, random_scene

SHORT = 0.01  # minutes


@pytest.fixture(scope="module")
def few_drawings():
    """Trainings end with an examination; here it is of few drawings, for it would take longer than they do."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (encoder, recogniser, clip, dino):
            patch.setattr(module, "accuracy", partial(module.accuracy, count=16))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, few_drawings):
    """Every model after a moment of training, exported."""
    folder = tmp_path_factory.mktemp("training")
    train_encoder(folder / "encoder", SHORT, batch=4)
    train_base(folder / "base", SHORT, batch=4, compiled=False)
    export.export_all(folder, folder / "files")
    train_recogniser(folder / "recogniser", SHORT, batch=4)
    train_clip(folder / "clip", SHORT, batch=4)
    train_dino(folder / "dino", SHORT, batch=4)
    export.export_all(folder, folder / "files")
    return folder


def line(rate: float = 0.05) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A linear layer and a task that it can learn."""
    torch.manual_seed(1)
    x = torch.randn(64, 4)
    return nn.Linear(4, 1), x, x @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])


def run(folder, minutes: float, say=lambda text: None) -> tuple[Trainer, nn.Module, float]:
    model, x, y = line()
    trainer = Trainer({"line": model}, folder, minutes, rate=0.05, cooldown=0.5, seed=0, say=say)
    for _ in trainer.steps(64):
        trainer.descend((model(x) - y).square().mean())
    return trainer, model, (model(x) - y).square().mean().item()


# ---- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_learns_and_goes_on_where_it_ended(tmp_path):
    first, model, loss = run(tmp_path, 0.01)
    again = Trainer({"line": line()[0]}, tmp_path, 0.01, rate=0.05, cooldown=0.5, seed=0)
    assert first.step > 50 and loss < 1 and again.step == first.step and again.samples == 64 * first.step
    state = again.modules["line"].state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(again.average.values, first.average.values, strict=True))
    moments = [s["exp_avg"] for s in again.optimizer.state.values()]
    assert moments and all(
        torch.equal(a, s["exp_avg"]) for a, s in zip(moments, first.optimizer.state.values(), strict=True)
    )
    _, _, later = run(tmp_path, 0.01)
    assert later < max(loss, 1e-9), "a fast machine solves the task to rounding in the first run"


def test_an_interrupted_training_is_saved(tmp_path):
    model, x, y = line()
    trainer = Trainer({"line": model}, tmp_path, 1.0, rate=0.05, cooldown=0.5, seed=0, say=lambda text: None)
    with pytest.raises(KeyboardInterrupt):
        for step in trainer.steps(64):
            trainer.descend((model(x) - y).square().mean())
            if step == 20:
                raise KeyboardInterrupt
    assert Trainer({"line": line()[0]}, tmp_path, 1.0, rate=0.05, cooldown=0.5, seed=0).step == 20


def test_a_loss_that_is_no_number_ends_the_training_with_a_sentence(tmp_path):
    model, x, _ = line()
    trainer = Trainer({"line": model}, tmp_path, 1.0, rate=0.05, cooldown=0.5, seed=0, say=lambda text: None)
    with pytest.raises(FloatingPointError, match="found nan at step 0.*--rate"):
        for _ in trainer.steps(64):
            trainer.descend(model(x).mean() * torch.nan)
    assert all(
        value.isfinite().all()
        for value in torch.load(tmp_path / "checkpoint.pt", weights_only=True)["modules"]["line"].values()
    )


def test_the_average_follows_and_is_exchanged():
    parameter = nn.Parameter(torch.zeros(1))
    average = Average([parameter])
    parameter.data.fill_(1.0)
    for _ in range(200):
        average.update()
    assert 0.5 < average.values[0].item() < 1.0
    before = average.values[0].clone()
    average.swap()
    assert torch.equal(parameter.data, before) and average.values[0].item() == 1.0


# ---- the maths -------------------------------------------------------------------------------------------------------


def test_v_prediction_is_diffusers_own():
    """Noisy latents and targets equal DDPMScheduler's add_noise and get_velocity at the same steps; weights are
    min(snr, 5) / (snr + 1).
    """
    from diffusers import DDPMScheduler

    torch.manual_seed(0)
    clean, diffusion = torch.randn(8, 12, 4, 4), Diffusion(torch.device("cpu"))
    noisy, steps, target, weight = diffusion.noised(clean)
    theirs = DDPMScheduler(**nets.BETAS)
    signal = theirs.alphas_cumprod[steps].view(-1, 1, 1, 1)
    noise = (noisy - signal.sqrt() * clean) / (1 - signal).sqrt()
    assert torch.allclose(theirs.add_noise(clean, noise, steps), noisy, atol=1e-4) and torch.allclose(
        theirs.get_velocity(clean, noise, steps), target, atol=1e-3
    )
    snr = (signal / (1 - signal)).flatten()
    assert (
        torch.allclose(weight, snr.clamp(max=5) / (snr + 1), rtol=1e-4)
        and steps.tolist() == sorted(steps.tolist())
        and steps[0] < 125
        and steps[-1] >= 875
    )
    assert weighted_loss(target, target, weight) == 0 and torch.isclose(
        weighted_loss(target + 1, target, weight), torch.tensor(1.0)
    )


def test_plain_attention_is_attention():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 9, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    split = [x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (q, k, v)]
    assert torch.allclose(
        plain_attention(q, k, v, 2),
        nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2),
        atol=1e-6,
    )
    model = nets.unet().eval()
    given = (torch.randn(1, 12, 8, 8), torch.tensor([500]), torch.randn(1, 77, nets.CONTEXT))
    with torch.no_grad():
        before = model(*given).sample
        model.set_attn_processor(PlainAttention())
        assert torch.allclose(model(*given).sample, before, atol=1e-5)


def test_steps_are_drawn_evenly():
    torch.manual_seed(0)
    diffusion = Diffusion(torch.device("cpu"))
    steps = torch.cat([diffusion.noised(torch.zeros(32, 1, 1, 1))[1] for _ in range(50)]).float()
    assert abs(steps.mean() - 500) < 15 and steps.min() >= 0 and steps.max() <= 999 and (steps > 900).any()


def test_every_token_of_a_name_is_bound_to_its_subject():
    """Also of two subjects of one class; an empty caption binds nothing."""
    scenes = [random_scene(random.Random(seed)) for seed in range(60)]
    assert any(len({subject.figure.kind for subject in scene.subjects}) < len(scene.subjects) for scene in scenes)
    where, words, present = places_of_words([*scenes, scenes[0]], [*(scene.caption for scene in scenes), ""])
    for nth, scene in enumerate(scenes):
        expected = [
            (token, i)
            for i in scene.mentioned
            for token in tokens(scene.subjects[i].figure.words)
            if token < tokens("")[0]
        ]
        caption, covered = tokens(scene.caption), torch.from_numpy(masks(scene)).float()
        assert present[nth].tolist() == [True] * len(expected) + [False] * (present.shape[1] - len(expected))
        assert [caption[place] for place in words[nth, : len(expected)]] == [token for token, _ in expected] and words[
            nth, : len(expected)
        ].diff().gt(0).all()
        assert torch.equal(where[nth, : len(expected)], torch.stack([covered[i] for _, i in expected]))
    assert not present[-1].any()


@pytest.mark.slow
def test_the_localized_unet_predicts_as_the_plain_one_and_binds_words_to_places():
    """A few steps on the localization loss alone raise the attention that a subject's own cells pay to its words."""
    torch.manual_seed(0)
    model, scenes = nets.unet(), [random_scene(random.Random(seed), alone=0.0) for seed in range(4)]
    noisy, steps, context = (
        torch.randn(4, 12, 16, 16),
        torch.tensor([900, 500, 300, 20]),
        torch.randn(4, 77, nets.CONTEXT),
    )
    plain = model(noisy, steps, context).sample
    localized, places = LocalizedUNet(model), places_of_words(scenes, [scene.caption for scene in scenes])
    prediction, first = localized(noisy, steps, context, *places)
    assert torch.allclose(prediction, plain, atol=1e-5) and abs(first.item()) < 0.01, (
        "untrained attention knows no places"
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(12):
        optimizer.zero_grad()
        _, loss = localized(noisy, steps, context, *places)
        loss.backward()
        optimizer.step()
    assert loss.item() < first.item() - 0.02


def test_colours_of_chance_are_never_a_held_out_pair():
    chance, look = random.Random(0), TRAINING_LOOKS[0]
    figure = Figure("cat", look)
    for _ in range(300):
        palette = painted(chance, look)
        body, accent = nearest(palette[look.body]), nearest(palette[look.accent])
        assert not Look(body, accent, look.pattern, look.accessory).held_out
        assert torch.allclose(
            colours_of([figure], [palette])[0] * 255, torch.tensor([*palette[look.body], *palette[look.accent]]).float()
        )
    assert all(nearest(colour) == name for name, colour in COLOURS.items())


def test_labels_lie_where_subjects_are():
    scenes = [random_scene(random.Random(3)) for _ in range(20)]
    labels = labels_of(scenes)
    for b, scene in enumerate(scenes):
        covered = torch.from_numpy(masks(scene)).any(0).view(16, 2, 16, 2).any(3).any(1)
        assert torch.equal(labels["kind"][b] > 0, covered) and torch.equal(labels["body"][b] >= 0, covered)
        for subject, mask in zip(scene.subjects, torch.from_numpy(masks(scene)), strict=True):
            cells = mask.view(16, 2, 16, 2).any(3).any(1)
            figure = subject.figure
            assert (labels["kind"][b][cells] == ANSWERS["kind"].index(figure.kind)).all() and (
                labels["body"][b][cells] == ANSWERS["body"].index(figure.look.body)
            ).all()


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_exported_is_what_was_averaged(trained):
    state = torch.load(trained / "base" / "checkpoint.pt", weights_only=True)
    unet, texts = load_unet(trained / "files"), load_texts(trained / "files")
    first = next(iter(unet.state_dict().values()))
    assert torch.equal(first, state["average"][0].half().float()) and not torch.equal(
        first, state["modules"]["unet"][next(iter(state["modules"]["unet"]))].half().float()
    )
    table = texts.get_input_embeddings().weight
    assert table.shape == (files.VOCABULARY, nets.CONTEXT) and (table[list(known_ids())] != 0).any(1).all()
    unknown = torch.ones(files.VOCABULARY, dtype=torch.bool)
    unknown[list(known_ids())] = False
    assert not table[unknown].any()
    assert load_image_encoder(trained / "files").config.projection_dim == nets.VISION["projection_dim"]


@pytest.mark.slow
def test_a_word_that_the_world_does_not_know_stays_zero_in_training(trained):
    state = torch.load(trained / "base" / "checkpoint.pt", weights_only=True)
    table = state["modules"]["texts"][files.TABLE]
    assert not table[-1].any() and table[:-1].any(1).all()


@pytest.mark.slow
def test_a_whole_picture_is_painted_from_the_exported_files(trained):
    from troupe.rehearsal.training.sheet import sheet

    path = sheet(trained / "files", trained / "sheet.png", steps=1)
    from PIL import Image

    assert Image.open(path).size == (8 * 256, 2 * 256)


@pytest.mark.slow
def test_a_training_begins_with_exported_weights(trained, few_drawings, tmp_path):
    """Without a checkpoint, and with almost no step taken, the weights are the files'."""
    begin = {"minutes": 1e-9, "batch": 1, "start": trained / "files"}
    train_base(tmp_path / "base", compiled=False, **begin)
    train_encoder(tmp_path / "encoder", **begin)
    train_recogniser(tmp_path / "recogniser", **begin)
    train_clip(tmp_path / "clip", **begin)
    train_dino(tmp_path / "dino", **begin)
    for path in export.export_all(tmp_path, tmp_path / "files"):
        name = path.relative_to(tmp_path / "files").as_posix()
        ours, theirs = files.read(name, tmp_path / "files"), files.read(name, trained / "files")
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], value) for key, value in theirs.items()), (
            name
        )


@pytest.mark.slow
def test_the_card_tells_every_file_and_its_hash(trained):
    import hashlib

    text = write_card(trained, trained / "files", count=8).read_text(encoding="utf-8")
    for path in (trained / "files").rglob("*.safetensors"):
        name = path.relative_to(trained / "files").as_posix()
        assert f"| {name} | " in text and f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n" in text
    assert (
        all(file in text for found, _, _ in WHAT.values() for file in found)
        and "CC0-1.0" in text
        and "held-out looks: kind " in text
        and "highest cosine: caption " in text
        and "than to another one: other class " in text
    )


def test_a_card_keeps_what_other_checkpoints_say(tmp_path):
    """An export of one training leaves the rows of the others as they are, and what only their checkpoints can say."""
    card = tmp_path / CARD
    card.write_text((files.FOLDER / CARD).read_text(encoding="utf-8"), encoding="utf-8")
    before = card.read_text(encoding="utf-8").split("\n")
    after = write_card(tmp_path / "no checkpoints", tmp_path).read_text(encoding="utf-8").split("\n")
    kept = [line for line in before if line.startswith(("| ", "The image encoder, read out linearly"))]
    assert len(kept) == 14 and sorted(line for line in after if line in kept) == sorted(kept)
