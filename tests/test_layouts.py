"""Places for subjects that were given none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from troupe.model_patches.placement.layouts import LAYOUTS, MARGIN, box_overlap, fill, grid_columns, places
from troupe.model_patches.subjects import MAX_SUBJECTS, Box

PRESETS = [name for name in LAYOUTS if name != "none"]
counts = st.integers(1, MAX_SUBJECTS)
presets = st.sampled_from(PRESETS)
aspects = st.floats(1 / 128, 128)


@st.composite
def boxes(draw):
    x, y = draw(st.floats(0, 0.9)), draw(st.floats(0, 0.9))
    return Box(x, y, draw(st.floats(0.01, 1 - x)), draw(st.floats(0.01, 1 - y)))


casts = st.lists(st.none() | boxes(), min_size=0, max_size=MAX_SUBJECTS)


@given(layout=presets, count=counts, aspect=aspects)
@settings(deadline=None)
def test_places_lie_in_the_picture_and_apart(layout, count, aspect):
    found = places(layout, count, aspect)
    assert len(found) == count
    for box in found:
        assert min(box.w, box.h) > 0.012  # thirty side by side
        assert min(box.x, box.y) >= MARGIN - 1e-4 and max(box.x + box.w, box.y + box.h) <= 1 - MARGIN + 2e-4
    for a, b in itertools.combinations(found, 2):
        assert box_overlap(a, b) == 0
        gap = max(a.x - b.x - b.w, b.x - a.x - a.w, a.y - b.y - b.h, b.y - a.y - a.h)
        assert gap >= MARGIN - 3e-4


@given(given=casts, layout=st.sampled_from(LAYOUTS), aspect=aspects)
@settings(deadline=None)
def test_given_boxes_stay_and_the_others_get_places(given, layout, aspect):
    before = list(given)
    found = fill(given, layout, aspect)
    assert given == before and fill(given, layout, aspect) == found
    assert [box for box, own in zip(found, given, strict=True) if own is not None] == [
        own for own in given if own is not None
    ]
    new = [box for box, own in zip(found, given, strict=True) if own is None]
    if layout == "none":
        assert new == [None] * len(new)
    else:
        assert all(new) and all(box_overlap(a, b) == 0 for a, b in itertools.combinations(new, 2))
        slots = places(layout, len(given), aspect) if given else []
        assert [slot for slot in slots if slot in new] == new  # in the layout's order


@given(layout=presets, count=counts, aspect=aspects)
@settings(deadline=None)
def test_without_given_boxes_everybody_gets_his_own_place(layout, count, aspect):
    assert fill([None] * count, layout, aspect) == places(layout, count, aspect)


@pytest.mark.slow
@given(given=casts.filter(len), layout=presets)
@settings(deadline=None)
def test_a_free_place_is_taken_before_a_covered_one(given, layout):
    """The chosen places are covered as little as any choice of as many."""
    found = fill(given, layout)
    own = [box for box in given if box is not None]
    cover = [sum(box_overlap(slot, box) for box in own) for slot in places(layout, len(given))]
    lacking = sum(box is None for box in given)
    chosen = sum(
        sum(box_overlap(box, other) for other in own) for box, was in zip(found, given, strict=True) if was is None
    )
    assert chosen == pytest.approx(sum(sorted(cover)[:lacking]), abs=1e-4)


def test_the_free_half_is_taken():
    on_the_right = Box(0.6, 0.1, 0.3, 0.8)
    assert fill([on_the_right, None], "row")[1].x == MARGIN
    assert fill([None, on_the_right], "row")[0].x == MARGIN
    assert fill([Box(0.1, 0.1, 0.3, 0.8), None], "row")[1].x > 0.5


def test_of_equally_free_places_each_takes_its_own():
    in_a_corner = Box(0.0, 0.0, 0.01, 0.01)
    assert fill([in_a_corner, None, None], "row")[1:] == places("row", 3)[1:]
    assert fill([None, None, in_a_corner], "row")[:2] == places("row", 3)[:2]


def test_row_and_column():
    assert places("row", 2) == [Box(0.02, 0.02, 0.47, 0.96), Box(0.51, 0.02, 0.47, 0.96)]
    assert places("column", 2) == [Box(0.02, 0.02, 0.96, 0.47), Box(0.02, 0.51, 0.96, 0.47)]


def test_thirds_are_filled_left_right_middle_under_the_upper_line():
    found = places("thirds", 3)
    assert [round(box.x * 3) for box in found] == [0, 2, 1]
    assert all(
        box.y == pytest.approx(1 / 3 + MARGIN, abs=1e-4) and box.y + box.h == pytest.approx(1 - MARGIN, abs=2e-4)
        for box in found
    )
    assert places("thirds", 2) == found[:2] and places("thirds", 1) == found[:1]
    five = places("thirds", 5)
    assert {box.y for box in five[:3]} == {MARGIN} and {round(box.y, 2) for box in five[3:]} == {0.51}


@pytest.mark.parametrize(
    ("count", "aspect", "columns"),
    [
        (1, 1.0, 1),
        (2, 1.0, 2),
        (2, 0.5, 1),
        (2, 2.0, 2),
        (3, 1.0, 2),
        (4, 1.0, 2),
        (5, 1.0, 3),
        (5, 768 / 1344, 2),
        (6, 1.5, 3),
        (9, 1.0, 3),
        (4, 16.0, 4),
        (4, 1 / 16, 1),
        (16, 1.0, 4),
    ],
)
def test_grid_cells_come_nearest_to_squares(count, aspect, columns):
    assert grid_columns(count, aspect) == columns


def test_the_last_row_of_a_grid_is_centred():
    found = places("grid", 5)
    assert [box.y for box in found[:3]] == [MARGIN] * 3
    middle = (found[3].x + found[4].x + found[4].w) / 2
    assert middle == pytest.approx(0.5, abs=1e-3) and found[3].w == found[0].w
