"""The validation sheet is painted as users paint, at fixed seeds, and leaves the training as it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny_training as small
from troupe.model_patches.subjects import Photo
from troupe.rehearsal import files
from troupe.rehearsal.engine.paint import encode, load_rehearsal
from troupe.rehearsal.engine.paint import paint as rehearse
from troupe.training.config.schema import SheetConfig
from troupe.training.examples.drawn import DrawnSet
from troupe.training.examples.example import Example, ExampleSubject
from troupe.training.model.base import rehearsal_base
from troupe.training.sheet import (
    COLUMNS,
    INK,
    LEAST,
    LINE,
    MARGIN,
    PAPER,
    cast_of,
    paint,
    paint_sheet,
    swapped_references,
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return small.write_set(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def trained():
    """The shipped MIP-Adapter as a trainee."""
    return small.trainee("mip_adapter", rehearsal_base(), start=str(files.FOLDER / files.ADAPTERS["mip"]))


@pytest.mark.slow
def test_a_sheets_picture_is_what_the_engine_paints(trained):
    """The shipped adapter, through the trainee's export, against the rehearsal's own painting."""
    example, models = DrawnSet(3).get(0, random.Random(2)), load_rehearsal()
    assert len(example.subjects) > 1
    settings = SheetConfig(steps=4, seed=3)
    photos, names = [s.photo.image[None] for s in example.subjects], [s.name for s in example.subjects]
    painted = {}
    for kind, cast in (("with", cast_of(example)), ("without", None)):
        references = None if cast is None else encode(models, "mip", photos, names)
        painted[kind] = paint(trained.base, trained.adapter(), example.caption, cast, settings, 128)
        expected = rehearse(models, example.caption, 3, references, steps=4)
        torch.testing.assert_close(painted[kind], expected[0].permute(1, 2, 0), rtol=0, atol=1e-3)
    assert (painted["with"] - painted["without"]).abs().max() > 0.1


def subject(name, value):
    return ExampleSubject(name, Photo(torch.full((8, 8, 3), value)))


def test_references_are_exchanged():
    picture = torch.zeros(3, 8, 8)
    two = Example("a", picture, "a cat and a dog", (subject("cat", 0.1), subject("dog", 0.2)))
    one = Example("b", picture, "a cat", (subject("cat", 0.3),))

    def looks(cast):
        return [(s.name, round(s.photos[0].image.mean().item(), 2)) for s in cast.subjects]

    assert looks(swapped_references(two, one)) == [("cat", 0.2), ("dog", 0.1)]
    assert looks(swapped_references(one, two)) == [("cat", 0.1)]
    assert looks(cast_of(Example("c", picture, "nothing"))) == [("picture", 0.5)]


def cells_of(path, rows=1):
    """The sheet's pictures, row by row."""
    sheet, step, height = np.asarray(Image.open(path)), LEAST + MARGIN, LEAST + LINE + MARGIN
    assert sheet.shape == (LINE + rows * height + MARGIN, len(COLUMNS) * step + MARGIN, 3)
    tops = [2 * LINE + MARGIN + i * height for i in range(rows)]
    return [
        [sheet[top : top + LEAST, MARGIN + j * step : MARGIN + j * step + LEAST] for j in range(len(COLUMNS))]
        for top in tops
    ]


@pytest.mark.slow
def test_the_sheet_shows_every_column_and_changes_nothing(pictures, tmp_path):
    trainee = small.trainee("mip_adapter")
    draws = small.draws(pictures, 2)
    batch = trainee.prepare(draws)
    settings, examples, sheets = SheetConfig(steps=2), [draw.example for draw in draws], []
    for i in range(2):
        path = paint_sheet(trainee, examples, settings, small.SIDE, tmp_path / f"{i}" / "sheet.png")
        sheets.append(np.asarray(Image.open(path)))
        with torch.no_grad():  # leaves references of the batch on the UNet, which the next sheet must not see
            before = trainee.predict(batch)
    assert np.array_equal(*sheets)
    cells = cells_of(path, 2)[0]
    assert all(cell.std() > 1 for cell in cells)
    assert all(not np.array_equal(a, b) for i, a in enumerate(cells) for b in cells[:i])
    with torch.no_grad():
        assert torch.equal(trainee.predict(batch), before)


@pytest.mark.slow
def test_a_set_of_one_subject_has_nothing_to_exchange(tmp_path):
    """The last column would be the one before; the sheet says that there is no other reference instead."""
    trainee, path = small.trainee("mip_adapter"), tmp_path / "sheet.png"
    [alone] = [draw.example for draw in small.draws(small.write_set(tmp_path / "one", [("cat",)]), 1)]
    assert swapped_references(alone, alone).subjects[0].photos == cast_of(alone).subjects[0].photos
    paint_sheet(trainee, [alone], SheetConfig(steps=1), small.SIDE, path)
    *pictures, last = cells_of(path)[0]
    assert all(cell.std() > 1 for cell in pictures)
    assert last.min() < 2 * max(INK)
    rows = np.flatnonzero((last != PAPER).any((1, 2)))
    assert LEAST // 2 <= rows[0] < rows[-1] < LEAST // 2 + LINE, "one line of text"
    [pair] = [draw.example for draw in small.draws(small.write_set(tmp_path / "two", [("cat", "dog")]), 1)]
    paint_sheet(trainee, [pair], SheetConfig(steps=1), small.SIDE, path)
    *pictures, last = cells_of(path)[0]
    assert last.std() > 1 and not any(np.array_equal(last, cell) for cell in pictures)
    assert (last != PAPER).any((1, 2)).all(), "a picture, not a line of text"


@pytest.mark.slow
def test_subjects_in_the_prompt_wait_as_the_settings_say(pictures):
    """FastComposer's sheet: from the first step on, from the half on, or not before the end."""
    trainee = small.changed(small.trainee("fastcomposer"))
    [example] = [draw.example for draw in small.draws(pictures, 1)]
    trainee.finish()
    adapter, cast = trainee.adapter(), cast_of(example)

    def painted(start, given=cast):
        settings = SheetConfig(steps=4, start_percent=start)
        return paint(trainee.base, adapter, example.caption, given, settings, small.SIDE)

    without, whole, half, never = painted(0.0, None), painted(0.0), painted(0.5), painted(1.0)
    assert torch.equal(never, without)
    apart = [float((a - b).abs().max()) for a, b in ((whole, without), (half, without), (half, whole))]
    assert min(apart) > 1e-3, apart
