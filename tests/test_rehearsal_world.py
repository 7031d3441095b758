"""The rehearsal world: what it draws is what it says, its codec loses nothing, and verdicts on its own drawings are
right.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from troupe.rehearsal import codec
from troupe.rehearsal.cast import CAST, SECOND, called_for
from troupe.rehearsal.engine.recogniser import Sighting, load_recogniser
from troupe.rehearsal.engine.trials import CASTS, judge, trial
from troupe.rehearsal.engine.verdict import exact, followed, of_owners, verdicts, verdicts_by_colour
from troupe.rehearsal.sprites import SIDE, SPRITES
from troupe.rehearsal.training.vocabulary import BOS, EOS, LENGTH, known_ids, rows, tokens
from troupe.rehearsal.world import (
    ACCESSORIES,
    CELLS,
    CLASSES,
    COLOURS,
    PATTERNS,
    PLACES,
    TEST_LOOKS,
    TRAINING_LOOKS,
    VARIANTS,
    Figure,
    Look,
    background_cells,
    boxes,
    caption,
    draw,
    draw_cells,
    figure_cells,
    masks,
    place_figures,
    random_figures,
    random_scene,
    reference,
)


def scenes(count: int = 200, choice=TRAINING_LOOKS):
    chance = random.Random(4)
    return [random_scene(chance, choice) for _ in range(count)]


# ---- drawings --------------------------------------------------------------------------------------------------------


def test_the_split_keeps_colour_pairs_apart():
    """No pair of colours, in either order, is in both halves; every colour is in both."""
    pairs = [{frozenset((look.body, look.accent)) for look in half} for half in (TRAINING_LOOKS, TEST_LOOKS)]
    assert not pairs[0] & pairs[1] and len(pairs[0]) == 36 and len(pairs[1]) == 9
    assert all({colour for pair in half for colour in pair} == set(COLOURS) for half in pairs)
    assert len(TRAINING_LOOKS) + len(TEST_LOOKS) == 90 * len(PATTERNS) * len(ACCESSORIES)
    assert {subject.figure.look.held_out for scene in scenes() for subject in scene.subjects} == {False}
    assert {subject.figure.look.held_out for scene in scenes(50, TEST_LOOKS) for subject in scene.subjects} == {True}


def test_drawing_twice_is_the_same_and_silhouettes_differ():
    first, second = ([draw_cells(scene) for scene in scenes(30)] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    drawn = [figure_cells(Figure(kind, TEST_LOOKS[0]))[1] for kind in CLASSES]
    apart = [(a != b).sum() for i, a in enumerate(drawn) for b in drawn[:i]]
    assert min(apart) >= 12, "cells of 100 in which two classes' silhouettes differ"


@pytest.mark.parametrize(
    "variant, size", [("", (10, 10)), ("small", (8, 8)), ("tall", (14, 10)), ("with a hat", (14, 10))]
)
def test_every_figure_shows_its_look(variant, size):
    """Both colours are there in every class, pattern and accessory; the ribbon and the badge add white; sides
    are even.
    """
    for kind in CLASSES:
        for pattern in PATTERNS:
            plain = None
            for accessory in ACCESSORIES:
                cells, drawn = figure_cells(Figure(kind, Look("red", "cyan", pattern, accessory), variant))
                assert drawn.shape == size
                counts = {
                    name: (cells[drawn] == colour).all(-1).sum()
                    for name, colour in (
                        ("body", COLOURS["red"]),
                        ("accent", COLOURS["cyan"]),
                        ("white", (250, 250, 250)),
                    )
                }
                assert counts["body"] >= 6 and counts["accent"] >= 2
                plain = counts["white"] if plain is None else plain
                assert accessory == "none" or counts["white"] >= plain + 2


def test_sprites_are_complete():
    for kind, sprite in SPRITES.items():
        assert (
            len(sprite.rows) == SIDE
            and {len(row) for row in sprite.rows} == {SIDE}
            and set("".join(sprite.rows)) <= set(".#oxw")
        ), kind
        top, left = sprite.badge
        assert {sprite.rows[y][x] for y in (top, top + 1) for x in (left, left + 1)} == {"#"}, kind


def test_masks_and_boxes_are_exact():
    """A mask holds exactly the cells that differ from the background, unless a colour is the background's own; the box
    is the tightest even one around a plain figure.
    """
    for scene in scenes(60):
        changed = (draw_cells(scene) != background_cells(scene.place, scene.decoration)).any(-1)
        found = masks(scene)
        assert not (changed & ~found.any(0)).any() and (found.sum(0) <= 1).all(), (
            "nobody hides anybody, nothing is drawn outside"
        )
        for mask, subject, (x, y, w, h) in zip(found, scene.subjects, boxes(scene), strict=True):
            cells, drawn = figure_cells(subject.figure)
            assert mask.sum() == drawn.sum() and (draw_cells(scene)[mask] == cells[drawn]).all()
            ys, xs = np.nonzero(mask)
            assert (
                x * CELLS <= xs.min()
                and xs.max() < (x + w) * CELLS
                and y * CELLS <= ys.min()
                and ys.max() < (y + h) * CELLS
            )
            assert not any(value * CELLS % 2 for value in (x, y, w, h)), "on whole latent cells"


def test_captions_name_everybody_and_no_look():
    assert caption(["small cat", "robot with a hat"], "on grass") == "a small cat and a robot with a hat on grass"
    assert caption(["cat", "fish", "car"], "at night", plain=False) == "a picture of a cat, a fish and a car at night"
    for scene in scenes(100):
        text = scene.caption
        assert all(subject.figure.words in text for subject in scene.subjects) and scene.place in text
        assert not any(word in text.split() for word in (*COLOURS, *PATTERNS, *ACCESSORIES))


def test_two_of_one_class_can_be_told_apart():
    chance = random.Random(2)
    for _ in range(50):
        a, b = random_figures(chance, 2, same_class=True)
        assert a.kind == b.kind and a.variant != b.variant and a.variant and b.variant and a.look.body != b.look.body
        assert a.words != b.words and place_figures(chance, (a, b)).caption.count(a.kind) == 2


# ---- codec and words -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_codec_is_exact_on_drawings_and_has_unit_variance():
    pixels = torch.from_numpy(np.stack([draw(scene) for scene in scenes(300)])).permute(0, 3, 1, 2).float() / 127.5 - 1
    latent = codec.encode(pixels)
    assert latent.shape == (300, 12, 16, 16) and (codec.decode(latent) - pixels).abs().max() < 1e-5
    assert latent.mean((0, 2, 3)).abs().max() < 0.15 and abs(latent.var((0, 2, 3)).mean().item() - 1) < 0.1


def test_the_vocabulary_holds_every_caption():
    """Every token of every caption has a row; a foreign word has the row after the last; 77 tokens with BOS and EOS as
    CLIP's.
    """
    known = known_ids()
    assert known == tuple(sorted(known)) and {BOS, EOS} <= set(known) and len(known) < 64
    for scene in scenes(200):
        ids = tokens(scene.caption)
        assert len(ids) == LENGTH and ids[0] == BOS and ids[-1] == EOS and set(ids) <= set(known)
    assert max(rows(["a cat at night"])[0]) < len(known) and len(known) in rows(["a unicorn at night"])[0]


# ---- the cast --------------------------------------------------------------------------------------------------------


def test_the_cast_was_never_trained_on():
    assert list(CAST) and set(CAST) == set(CLASSES) == set(SECOND)
    assert all(
        figure.look.held_out and SECOND[kind].held_out and figure.look != SECOND[kind] for kind, figure in CAST.items()
    )


def test_a_prompt_calls_for_its_cast():
    words = [
        figure.words for figure in called_for("A picture of a small Cat, a robot with a hat and a caravan on grass")
    ]
    assert words == ["small cat", "robot with a hat"], "'car' in 'caravan' is no car"
    first, second = called_for("a small cat and a tall cat")
    assert (
        (first.variant, second.variant) == ("small", "tall")
        and first.look != second.look
        and called_for("a unicorn") == []
    )


# ---- trials and verdicts ---------------------------------------------------------------------------------------------


def sighting(figure: Figure, mask: np.ndarray) -> Sighting:
    """What a recogniser that is sure of itself makes of a figure."""
    colours = {
        part: {colour: 0.0 if colour == getattr(figure.look, part) else -9.0 for colour in COLOURS}
        for part in ("body", "accent")
    }
    return Sighting(figure.kind, figure.variant, figure.look, mask, colours)


def sightings(figures) -> list[Sighting]:
    """The figures as a perfect reader sees them, far apart."""
    found = []
    for i, figure in enumerate(figures):
        mask = np.zeros((16, 16), bool)
        mask[8:13, 5 * i : 5 * i + 5] = True
        found.append(sighting(figure, mask))
    return found


CAT, ROBOT = (
    Figure("cat", Look("red", "cyan", "plain", "none")),
    Figure("robot", Look("lime", "purple", "dots", "none")),
)


@pytest.mark.parametrize(
    "looks, expected",
    [
        ((CAT.look, ROBOT.look), ["right", "right"]),
        ((ROBOT.look, CAT.look), ["swapped", "swapped"]),
        ((CAT.look, CAT.look), ["right", "cloned"]),
        ((CAT.look, replace(ROBOT.look, accent="cyan")), ["right", "mixed"]),
        ((replace(ROBOT.look, accent="cyan"), ROBOT.look), ["mixed", "right"]),
        ((ROBOT.look, replace(CAT.look, accent="purple")), ["cloned", "mixed"]),
        ((CAT.look, replace(ROBOT.look, body="blue")), ["right", "right"]),
        ((CAT.look, replace(ROBOT.look, accent="blue")), ["right", "right"]),
        ((CAT.look, replace(CAT.look, body="blue")), ["right", "cloned"]),
        ((CAT.look, None), ["right", "missing"]),
        ((ROBOT.look, None), ["cloned", "missing"]),
    ],
)
def test_a_verdict_for_every_confusion(looks, expected):
    shown = [replace(figure, look=look) for figure, look in zip((CAT, ROBOT), looks, strict=True) if look is not None]
    assert verdicts((CAT, ROBOT), sightings(shown)) == expected


def test_two_of_a_class_are_told_by_their_variant():
    small, tall = replace(CAT, variant="small"), Figure("cat", ROBOT.look, "tall")
    assert verdicts((small, tall), sightings((tall, small))) == ["right", "right"]
    assert verdicts((small, tall), sightings((replace(small, look=tall.look), replace(tall, look=small.look)))) == [
        "swapped",
        "swapped",
    ]
    assert verdicts((small, tall), sightings((small, small))) == ["right", "missing"]


@pytest.mark.parametrize(
    ("asked", "shown", "expected"),
    [
        ((CAT, ROBOT), (ROBOT, CAT), [True, True]),
        ((CAT, ROBOT), (replace(CAT, look=ROBOT.look), replace(ROBOT, look=CAT.look)), [True, True]),
        ((CAT, ROBOT), (CAT, replace(ROBOT, variant="small")), [True, False]),
        ((CAT, ROBOT), (CAT, CAT, CAT), [True, False]),
        ((CAT, replace(CAT, look=ROBOT.look)), (CAT,), [True, False]),
        ((CAT, replace(CAT, variant="tall")), (CAT, CAT), [True, False]),
        ((CAT, ROBOT), (), [False, False]),
    ],
)
def test_a_prompt_is_followed_by_class_and_variant_and_nobody_counts_twice(asked, shown, expected):
    assert followed(asked, sightings(shown)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("cast", CASTS)
def test_trials_are_held_out_and_reads_of_perfect_pictures_agree(cast):
    """A drawing of the trial itself is right by both reads; with looks exchanged it is swapped by both."""
    for seed in range(40):
        one = trial(cast, seed)
        count = len(one.figures)
        assert all(figure.look.held_out for figure in one.figures) and trial(cast, seed) == one
        assert len({colour for figure in one.figures for colour in (figure.look.body, figure.look.accent)}) == 2 * count
        rotated = {
            figure: replace(figure, look=one.figures[(i + 1) % count].look) for i, figure in enumerate(one.figures)
        }
        for painted, expected in (
            (one.scene, "right"),
            (
                replace(one.scene, subjects=tuple(replace(s, figure=rotated[s.figure]) for s in one.scene.subjects)),
                "swapped",
            ),
        ):
            picture = torch.from_numpy(draw(painted)).permute(2, 0, 1).float() / 255
            found = [
                sighting(s.figure, mask.reshape(16, 2, 16, 2).any((1, 3)))
                for s, mask in zip(painted.subjects, masks(painted), strict=True)
            ]
            assert verdicts(one.figures, found) == [expected] * count == verdicts_by_colour(one.figures, found, picture)
            assert exact(one.figures, found) == [expected == "right"] * count


@pytest.mark.slow
def test_both_reads_know_whose_colours_are_drawn():
    """Noisy drawings in which each body and each accent is any reference's: each read finds both owners nearly
    always.
    """
    chance, generator, recogniser = random.Random(5), torch.Generator().manual_seed(5), load_recogniser()
    right, asked = [0, 0], 0
    for seed in range(40):
        one = trial(list(CASTS)[seed % 3], 500 + seed)
        owners = {
            figure: (chance.randrange(len(one.figures)), chance.randrange(len(one.figures))) for figure in one.figures
        }
        looks = {
            figure: replace(figure.look, body=one.figures[body].look.body, accent=one.figures[accent].look.accent)
            for figure, (body, accent) in owners.items()
        }
        painted = replace(
            one.scene,
            subjects=tuple(replace(s, figure=replace(s.figure, look=looks[s.figure])) for s in one.scene.subjects),
        )
        picture = torch.from_numpy(draw(painted)).permute(2, 0, 1).float() / 255
        judgement = judge(
            recogniser, one, (picture + 0.2 * torch.randn(picture.shape, generator=generator)).clamp(0, 1)
        )
        expected = of_owners([frozenset(both) for both in owners.values()])
        asked += len(expected)
        for i, read in enumerate((judgement.by_recogniser, judgement.by_colours)):
            right[i] += sum(a == b for a, b in zip(read, expected, strict=True))
    assert min(right) >= 0.97 * asked and asked > 80


def test_references_are_whole_pictures_on_paper():
    for kind in CLASSES:
        for variant in VARIANTS:
            picture = reference(Figure(kind, TEST_LOOKS[5], variant))
            assert (
                picture.shape == (128, 128, 3) and (picture[0] == 255).all() and (picture != 255).any(-1).mean() > 0.1
            )
    assert len(PLACES) == 6
