"""Which rows of a block's query belong to which conditioning entry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe.model_patches.hosts.comfyui.sampling.rows import rows_from_options, rows_of_chunks, tiles_in


@pytest.mark.parametrize(
    "batch, indices, expected",
    [
        (2, [1, 0], ((0, 1), (1, 1))),
        (8, [1, 0], ((0, 4), (4, 4))),
        (1, [0], ((0, 1),)),
        (4, [1], ((0, 4),)),
        (3, [0, 0, 1], ((0, 1), (1, 1), (2, 1))),
        (3, [2, 1, 0], ((0, 1), (1, 1), (2, 1))),
    ],
)
def test_untouched_rows_are_equal_parts_in_the_calls_order(batch, indices, expected):
    assert rows_of_chunks(batch, batch, indices) == expected


def test_attention_couples_own_map_is_followed():
    """Two prompts for the left and right half: the cond chunk stands twice, uncond once, two pictures each."""
    assert rows_of_chunks(6, 4, [1, 0], repeated=[1, 0, 0]) == ((0, 2), (2, 4))


def test_a_map_with_two_cond_entries_shares_its_copies():
    assert rows_of_chunks(5, 3, [1, 0, 0], repeated=[1, 0, 0, 0, 0]) == ((0, 1), (1, 2), (3, 2))


def test_a_map_may_repeat_uncond_rows_too():
    assert rows_of_chunks(5, 2, [1, 0], repeated=[1, 1, 0, 0, 0]) == ((0, 2), (2, 3))


def test_without_a_map_the_conds_are_taken_to_be_repeated():
    assert rows_of_chunks(8, 4, [1, 0]) == ((0, 2), (2, 6))
    assert rows_of_chunks(3, 1, [0]) == ((0, 3),)


@pytest.mark.parametrize(
    "rows, batch, indices, repeated",
    [
        (3, 2, [1], None),  # only uncond, more rows
        (5, 4, [1, 0], None),  # not a whole number of pictures
        (4, 3, [1, 0], None),  # a batch that is not a whole number of chunks
        (6, 3, [1, 0, 0], None),  # five copies for two conds
        (1, 2, [1, 0], None),  # fewer rows than entries
        (6, 2, [1, 0], [1, 0, 0]),  # the map says three, there are six
        (0, 2, [1, 0], None),
        (3, 2, [1, 0], [0, 0, 0]),  # the map has no uncond
    ],
)
def test_rows_that_fit_no_pattern_are_given_up(rows, batch, indices, repeated):
    assert rows_of_chunks(rows, batch, indices, repeated) is None


@given(
    pictures=st.integers(1, 5), indices=st.lists(st.integers(0, 3), min_size=1, max_size=5), copies=st.integers(1, 4)
)
def test_found_rows_cover_the_query_once(pictures, indices, copies):
    rows = pictures * sum(1 if i == 1 else copies for i in indices)
    found = rows_of_chunks(rows, pictures * len(indices), indices)
    if found is None:
        assert all(i == 1 for i in indices) or copies > 1
        return
    assert [start for start, _ in found] == [sum(n for _, n in found[:i]) for i in range(len(found))]
    assert sum(n for _, n in found) == rows
    assert all(n == pictures * (1 if i == 1 else copies) for i, (_, n) in zip(indices, found, strict=True))


def test_the_hosts_options_hold_what_is_needed():
    options = {"activations_shape": [4, 320, 8, 8], "cond_or_uncond": [1, 0]}
    assert rows_from_options(4, options, 2) == ((0, 2), (2, 2))
    assert rows_from_options(6, {**options, "cond_or_uncond_hook_couple": [1, 0, 0]}, 2) == ((0, 2), (2, 4))


def test_tiles_repeat_the_chunks_of_a_call():
    assert [tiles_in(rows, 4) for rows in (4, 8, 12, 2, 6)] == [1, 2, 3, 1, 1]
    assert rows_from_options(8, {"activations_shape": [8, 320, 8, 8], "cond_or_uncond": [1, 0]}, 4) == (
        (0, 2),
        (2, 2),
        (4, 2),
        (6, 2),
    )
