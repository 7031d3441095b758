"""Regions and boxes on the grid of an attention layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from troupe.model_patches.attention.limits import WHOLE, box_map, limit_map, region_map

grids = st.tuples(st.integers(1, 64), st.integers(1, 64))


@st.composite
def intervals(draw):
    low, high = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    return low, high


@st.composite
def windows(draw):
    """A part of the picture of at least a tenth of each side."""
    top, left = draw(st.floats(0, 0.9)), draw(st.floats(0, 0.9))
    return top, left, draw(st.floats(top + 0.1, 1)), draw(st.floats(left + 0.1, 1))


def overlap(a, b, c, d):
    return max(0.0, min(b, d) - max(a, c))


# ---- boxes -----------------------------------------------------------------------------------------------------------


@given(x=intervals(), y=intervals(), grid=grids)
@settings(deadline=None)
def test_coverage_sums_to_the_boxs_area(x, y, grid):
    covered = box_map((x[0], y[0], x[1] - x[0], y[1] - y[0]), grid)
    assert covered.shape == grid and covered.dtype == torch.float32 and covered.min() >= 0 and covered.max() <= 1
    assert float(covered.double().sum()) / (grid[0] * grid[1]) == pytest.approx((x[1] - x[0]) * (y[1] - y[0]), abs=1e-5)


@given(x=intervals(), y=intervals(), grid=grids, window=windows())
@settings(deadline=None)
def test_coverage_in_a_window_is_the_part_that_lies_in_it(x, y, grid, window):
    top, left, bottom, right = window
    covered = box_map((x[0], y[0], x[1] - x[0], y[1] - y[0]), grid, window=window)
    area = overlap(*x, left, right) * overlap(*y, top, bottom) / ((right - left) * (bottom - top))
    assert float(covered.double().mean()) == pytest.approx(area, abs=1e-5)


@given(x=intervals(), grid=grids, feather=st.floats(0, 0.5))
@settings(deadline=None)
def test_feather_neither_adds_nor_takes_inside_the_picture(x, grid, feather):
    """The ramp is centred on the edge: what is lost inside is gained outside, as long as both are in the picture and
    ramps do not meet.
    """
    low, high = 0.25 + x[0] / 2, 0.25 + x[1] / 2
    feather = min(feather, 2 * (high - low))
    covered = box_map((low, 0.0, high - low, 1.0), grid, feather)
    flat = box_map((low, 0.0, high - low, 1.0), grid, feather)[grid[0] // 2]
    assert covered.min() >= 0 and covered.max() <= 1
    assert float(flat.double().mean()) <= (high - low) + 1e-5


@pytest.mark.parametrize("feather", [0.05, 0.2])
def test_a_feathered_edge_is_one_half_at_the_edge_and_a_straight_ramp(feather):
    row = box_map((0.5, -1.0, 2.0, 3.0), (1, 1000), feather)[0]
    at = (torch.arange(1000) + 0.5) / 1000
    torch.testing.assert_close(row, ((at - 0.5) / feather + 0.5).clamp(0, 1), atol=2e-3, rtol=0)


def test_whole_cells_are_exactly_in_or_out():
    covered = box_map((0.25, 0.5, 0.5, 0.25), (4, 4))
    expected = torch.zeros(4, 4)
    expected[2, 1:3] = 1
    assert torch.equal(covered, expected)


def test_a_box_half_way_into_a_cell_covers_half_of_it():
    assert box_map((0.0, 0.0, 0.5, 1.0), (1, 3))[0].tolist() == pytest.approx([1, 0.5, 0])


def test_a_box_outside_the_picture_or_without_area_covers_nothing():
    for box in ((1.5, 0.0, 0.5, 1.0), (-0.5, 0.0, 0.5, 1.0), (0.3, 0.3, 0.0, 0.5)):
        assert box_map(box, (7, 5)).max() < 1e-12


def test_a_box_larger_than_the_picture_covers_all_of_it():
    assert box_map((-1.0, -1.0, 3.0, 3.0), (5, 7)).min() == 1


# ---- regions ---------------------------------------------------------------------------------------------------------


@given(grid=grids, times=st.integers(1, 4), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_a_region_of_whole_cells_keeps_its_area(grid, times, seed):
    region = torch.rand(grid[0] * times, grid[1] * times, generator=torch.Generator().manual_seed(seed)).round()
    assert float(region_map(region, grid).mean()) == pytest.approx(float(region.mean()), abs=1e-5)


@given(grid=grids, h=st.integers(1, 90), w=st.integers(1, 90), window=windows())
@settings(deadline=None, max_examples=80)
def test_complementary_regions_stay_complementary(grid, h, w, window):
    region = torch.rand(h, w, generator=torch.Generator().manual_seed(h * 100 + w)).round()
    first, second = region_map(region, grid, window), region_map(1 - region, grid, window)
    assert first.shape == grid and first.min() >= 0
    torch.testing.assert_close(first + second, torch.ones(grid))


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (8, 8), (13, 21)])
def test_full_and_empty_regions_are_exact(grid):
    for value in (0.0, 1.0):
        assert torch.equal(region_map(torch.full((50, 30), value), grid), torch.full(grid, value))


def test_a_mask_smaller_than_the_grid_is_enlarged():
    assert region_map(torch.tensor([[1.0, 0.0]]), (4, 4)).tolist() == [[1, 1, 0, 0]] * 4


def test_a_window_shows_its_part_of_the_region():
    region = torch.arange(8.0).repeat(8, 1)
    assert region_map(region, (1, 4), (0.0, 0.5, 1.0, 1.0))[0].tolist() == [4, 5, 6, 7]
    assert region_map(region, (1, 8), WHOLE)[0].tolist() == list(range(8))


# ---- both ------------------------------------------------------------------------------------------------------------


def test_nothing_limits_where_there_is_neither():
    assert limit_map(None, None, 1.0) is None
    assert limit_map(None, torch.ones(2, 2), 0.0) is None


@pytest.mark.parametrize("strength, expected", [(1.0, [0.0, 1.0]), (0.25, [0.75, 1.0]), (0.0, None)])
def test_box_strength_blends_the_box_away(strength, expected):
    limit = limit_map(None, torch.tensor([0.0, 1.0]), strength)
    assert limit is expected if expected is None else limit.tolist() == expected


def test_region_and_box_multiply():
    assert limit_map(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 0.0]), 0.5).tolist() == [0.5, 0.5]
    region = torch.rand(3, 3)
    assert limit_map(region, torch.zeros(3, 3), 0.0) is region


def test_an_edge_on_the_pictures_border_does_not_fade():
    assert (box_map((0.0, 0.0, 1.0, 1.0), (7, 9), 0.2) == 1).all()
    corner = box_map((0.0, 0.0, 0.5, 0.5), (100, 100), 0.2)
    assert corner[0, 0] == 1 and corner[20, 20] == 1 and corner[45, 0] < 1
