"""The look at the subjects' places after a third of the steps: its rule, and runs of the embedded engine."""

from __future__ import annotations

import pytest
import torch
from support.overlap_runs import CALM, ON_BOTH, run
from troupe.model_patches.relevance.overlap_check import OverlapCheck, checked_grid, checked_step, overlap_warnings
from troupe.model_patches.subjects import Box, ReferenceSubject

GRID = (8, 8)


def peak(*cells: tuple[int, int]) -> torch.Tensor:
    """A relevance that sums to 1, nearly all of it in these cells."""
    a = torch.full(GRID, 0.1)
    for y, x in cells:
        a[y, x] = 50.0
    return (a / a.sum()).flatten()


def subject(name: str, **place) -> ReferenceSubject:
    return ReferenceSubject(name, None, None, **place)


def warnings(*pictures: list[torch.Tensor], subjects=None, acting=None) -> list[str]:
    """The sentences for pictures of relevance maps, each seen by two layers."""
    count = len(pictures[0])
    check = OverlapCheck(count, len(pictures), GRID, torch.device("cpu"))
    for _ in range(2):
        check.add(torch.stack([torch.stack(maps) for maps in pictures]))
    subjects = subjects or [subject(name) for name in ("cat", "robot", "fish")[:count]]
    return overlap_warnings(check.overlaps(), subjects, acting or [True] * count)


LEFT, RIGHT = peak((3, 1), (3, 2), (4, 1)), peak((3, 5), (3, 6), (4, 5))


def test_two_in_one_place_are_named():
    [sentence] = warnings([LEFT, RIGHT, LEFT])
    assert "subject 1 ('cat') and subject 3 ('fish') in the same place" in sentence
    assert "robot" not in sentence and sentence.startswith("stop and give each subject a box: after a third")
    assert "another seed" not in sentence  # which changed nothing that benchmarks/OVERLAP_CHECK.md could show


def test_two_in_two_places_are_fine():
    assert warnings([LEFT, RIGHT]) == []


def test_the_threshold():
    """Three of four cells are shared, or one."""
    most, least = peak((3, 1), (3, 2), (4, 1), (4, 2)), peak((3, 1), (6, 6), (6, 7), (7, 7))
    assert len(warnings([LEFT, most])) == 1 and warnings([LEFT, least]) == []


def test_maps_spread_over_the_picture_show_no_place():
    even = torch.full((64,), 1 / 64)
    assert warnings([even, even]) == []
    assert warnings([even, LEFT]) == []


def test_the_picture_of_a_batch_is_named():
    found = warnings([LEFT, RIGHT], [RIGHT, RIGHT])
    assert len(found) == 1 and "in picture 2 of the batch" in found[0]


def test_who_does_not_act_is_in_nobodys_way():
    assert warnings([LEFT, LEFT], acting=[True, False]) == []


def test_two_with_places_of_their_own_are_kept_apart_by_them():
    box, region = Box(0.0, 0.0, 0.5, 1.0), torch.ones(1, 8, 8)
    both = [subject("cat", box=box), subject("robot", region=region)]
    assert warnings([LEFT, LEFT], subjects=both) == []
    assert len(warnings([LEFT, LEFT], subjects=[both[0], subject("robot")])) == 1


def test_layers_of_other_sizes_are_passed_over():
    check = OverlapCheck(2, 1, GRID, torch.device("cpu"))
    check.add(torch.rand(2, 2, 64))
    check.add(torch.rand(1, 2, 16))
    assert not check.total.any()


@pytest.mark.parametrize(("steps", "expected"), [(1, None), (2, None), (3, 1), (4, 1), (20, 6), (30, 10)])
def test_the_step(steps, expected):
    assert checked_step(steps) == expected


def test_the_grid_rounds_up():
    assert checked_grid((64, 64)) == (32, 32) and checked_grid((13, 21)) == (7, 11)


# ---- the embedded engine ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    from troupe.rehearsal.engine.paint import load_rehearsal

    return load_rehearsal()


@pytest.mark.slow
def test_a_run_warns_after_a_third_of_its_steps_and_paints_the_same(models):
    told = []
    latent = run(models, ON_BOTH, lambda *said: told.append(said))
    assert [(step, "'small mug'" in text and "'small tree'" in text) for step, text in told] == [(6, True)]
    assert torch.equal(latent, run(models, ON_BOTH))


@pytest.mark.slow
def test_a_run_with_two_places_says_nothing(models):
    told = []
    run(models, CALM, lambda *said: told.append(said))
    assert told == []


@pytest.mark.slow
def test_a_merge_without_relevance_says_nothing(models):
    told = []
    run(models, ON_BOTH, lambda *said: told.append(said), merge="add")
    assert told == []
