"""Relevance maps without a host: what a layer tells, how maps are averaged, measured, told and drawn."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from support.whole_heads import relevance
from troupe.model_patches.attention.decoupled import LayerTokens, image_delta
from troupe.model_patches.attention.merges import MERGES, Mixing
from troupe.model_patches.attention.relevance import limited_shares, relevance_of_heads, shares
from troupe.model_patches.errors import MismatchError
from troupe.model_patches.placement.palette import colour_of
from troupe.model_patches.relevance.maps import (
    NOBODY,
    NOT_SAMPLED,
    OTHER_LATENT,
    AppliedMaps,
    MapPart,
    RecordedRun,
    SubjectMap,
    averaged,
    map_overlap,
    mark_of,
    owns_next_to_nothing,
    report,
    share_inside,
    wanted,
)
from troupe.model_patches.relevance.pictures import DARK, EMPTY_SHEET, GAP, ROW_LONGEST, SHEET_TALLEST, draw_maps
from troupe.model_patches.subjects import Box


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---- what a layer tells ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limited", [False, True])
def test_owned_is_share_times_limit(limited):
    a, limits = uniform(2, 3, 4, 20), (uniform(1, 1, 4, 20, seed=1) - 0.3).clamp(min=0) if limited else None
    found = limited_shares(a, limits, 2.0)
    m = torch.ones(1, 1, 4, 20) if limits is None else limits
    claims = m * a**2
    total = claims.sum(2, keepdim=True)
    torch.testing.assert_close(found, torch.where(total > 0, m * claims / total, 0.0 * claims))
    assert not limited or bool((found.sum(2) < 0.99).any())


def test_a_lone_subject_is_where_its_name_is_looked_at_most():
    a = torch.tensor([[[0.1, 0.4, 0.2, 0.3]]])
    torch.testing.assert_close(limited_shares(a), torch.tensor([[[0.25, 1.0, 0.5, 0.75]]]))
    torch.testing.assert_close(limited_shares(a, sharpness=2.0), torch.tensor([[[0.0625, 1.0, 0.25, 0.5625]]]))
    torch.testing.assert_close(
        limited_shares(a, torch.tensor([1.0, 0.0, 1.0, 0.5])), torch.tensor([[[0.5, 0.0, 1.0, 0.75]]])
    )
    assert not limited_shares(a, torch.zeros(4)).any()


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("count", [1, 3])
def test_telling_changes_nothing_and_tells_the_names_attention(merge, count):
    g, b, n, c, heads = 2, 2, 24, 16, 4
    query = noise(g, b, n, c)
    segments = torch.block_diag(*[torch.full((1, 2), 0.5)] * count).expand(g, -1, -1)
    tokens = LayerTokens(
        noise(g, 4 * count, c, seed=1), noise(g, 4 * count, c, seed=2), noise(g, 2 * count, c, seed=3), segments
    )
    limits, strengths = uniform(1, 1, count, n, seed=4), torch.linspace(0.2, 1.0, count)
    told = []

    def tell(*seen):
        told.append(seen)

    mixing = Mixing(merge, sharpness=1.5, background=0.6)
    quiet = image_delta(query, tokens, strengths, heads, mixing, limits)
    assert torch.equal(image_delta(query, tokens, strengths, heads, mixing, limits, observe=tell), quiet)
    [(shares_seen, relevance_seen)] = told
    expected = relevance(query, tokens.name_keys, segments, heads)
    torch.testing.assert_close(relevance_seen, expected)
    torch.testing.assert_close(shares_seen, limited_shares(expected, limits, 1.5))
    assert shares_seen.shape == (g, b, count, n)


def test_the_published_merge_computes_nothing_twice(monkeypatch):
    from troupe.model_patches.attention import decoupled

    calls = []

    def counted(function):
        return lambda *args: calls.append(function.__name__) or function(*args)

    monkeypatch.setattr(decoupled, "relevance_of_heads", counted(relevance_of_heads))
    monkeypatch.setitem(MERGES, "relevance", replace(MERGES["relevance"], weights=counted(shares)))
    monkeypatch.setattr(decoupled, "limited_shares", lambda *args: pytest.fail("shares computed a second time"))
    tokens = LayerTokens(noise(1, 4, 8), noise(1, 4, 8), noise(1, 2, 8), torch.eye(2)[None])
    image_delta(noise(1, 1, 6, 8), tokens, torch.ones(2), 2, Mixing(), observe=lambda *told: None)
    assert calls == ["relevance_of_heads", "shares"]


# ---- which blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [(64, 64), (96, 64), (13, 21), (128, 104), (5, 9)])
def test_coarse_and_fine_part_the_blocks(latent):
    """The grids of SD1.5 (1, 1/2, 1/4 and 1/8 of the latent) and with them SDXL's (1/2 and 1/4)."""
    grids = [latent]
    while len(grids) < 4:
        grids.append(tuple(-(-side // 2) for side in grids[-1]))
    if latent != (5, 9):
        assert [wanted("coarse", grid, latent) for grid in grids] == [False, False, True, True]
    assert all(wanted("coarse", grid, latent) != wanted("fine", grid, latent) for grid in grids)
    assert wanted("fine", latent, latent) and all(wanted("all", grid, latent) for grid in grids)


# ---- averages --------------------------------------------------------------------------------------------------------


def test_every_look_counts_the_same():
    fine, coarse = uniform(2, 4, 6), uniform(2, 2, 3, seed=1)
    found = averaged([MapPart(fine * 3, torch.tensor([3.0, 3.0])), MapPart(coarse, torch.tensor([1.0, 1.0]))])
    large = torch.nn.functional.interpolate(coarse[None], (4, 6), mode="bilinear")[0]
    torch.testing.assert_close(found, (3 * fine + large) / 4)


def test_a_subject_is_averaged_over_its_own_steps():
    total = torch.stack((torch.full((2, 2), 1.5), torch.full((2, 2), 0.5), torch.zeros(2, 2)))
    found = averaged([MapPart(total, torch.tensor([3.0, 1.0, 0.0]))])
    assert found.flatten(1).tolist() == [[0.5] * 4, [0.5] * 4, [0.0] * 4]


def test_areas_stand_where_they_were_seen():
    whole, right = torch.full((1, 4, 8), 0.2), torch.full((1, 4, 4), 0.6)
    found = averaged([MapPart(whole, torch.ones(1)), MapPart(right, torch.ones(1), (0.0, 0.5, 1.0, 1.0))])
    torch.testing.assert_close(found, torch.cat((torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 0.4)), 2))
    alone = averaged([MapPart(right, torch.ones(1), (0.0, 0.5, 1.0, 1.0))])
    torch.testing.assert_close(alone, torch.cat((torch.zeros(1, 4, 4), right), 2))


# ---- numbers and words -----------------------------------------------------------------------------------------------


def halves(left=0.9, h=8, w=8):
    """Two subjects: the first has `left` of the left half and the rest of the right one."""
    first = torch.full((h, w), 1 - left)
    first[:, : w // 2] = left
    return first, 1 - first


def recorded(*subjects, **rest):
    return RecordedRun("all", (AppliedMaps("mine.safetensors", "relevance", subjects),), **rest)


def test_numbers():
    first, second = halves(0.75)
    assert share_inside(first, torch.eye(2).repeat_interleave(4, 0).repeat_interleave(4, 1)) == pytest.approx(0.5)
    assert map_overlap(first, second) == pytest.approx(0.5)
    assert (
        map_overlap(*halves(1.0)) == 0
        and map_overlap(first, first) == 1
        and map_overlap(first, first * 0.1) == pytest.approx(1)
    )


def test_the_report_of_two_subjects():
    first, second = halves(0.75)
    text = report(recorded(SubjectMap("red fox", first, box=Box(0.0, 0.0, 0.5, 1.0)), SubjectMap("cat", second * 0.5)))
    assert text.splitlines() == [
        "mine.safetensors, merge relevance, all blocks",
        "1 red fox: gets 50 % of the picture; 75 % of that is inside its own box.",
        "2 cat: gets 25 % of the picture.",
        "1 red fox and 2 cat overlap 75 %; up to 97 % is normal.",
    ]


def test_the_report_of_a_lone_subject_and_of_one_that_rested():
    region = torch.zeros(16, 16)
    region[:8] = 1
    text = report(recorded(SubjectMap("fox", torch.ones(4, 4), region=region)))
    assert text.endswith(
        "1 fox: the only subject, so it gets every share. The map shows where its name is relevant. 50 % of "
        "it is inside its own region."
    )
    text = report(recorded(SubjectMap("fox", torch.ones(4, 4)), SubjectMap("cat", None)))
    assert "2 cat: not active" in text and "overlap" not in text and "Warning" not in text


def test_who_owns_next_to_nothing_is_warned_of():
    some, little = torch.full((4, 4), 0.98), torch.full((4, 4), 0.02)
    assert owns_next_to_nothing(SubjectMap("cat", little), 2) and not owns_next_to_nothing(SubjectMap("fox", some), 2)
    assert not owns_next_to_nothing(SubjectMap("cat", little), 8), "an equal share is smaller among eight"
    small = torch.zeros(10, 10)
    small[:1, :1] = 1.0
    assert owns_next_to_nothing(SubjectMap("bee", small), 2) and not owns_next_to_nothing(
        SubjectMap("bee", small, box=Box(0.0, 0.0, 0.1, 0.1)), 2
    )
    text = report(recorded(SubjectMap("fox", some), SubjectMap("cat", little)))
    assert text.splitlines()[-1].startswith("Warning: subject 2 'cat' has almost no share of the picture")


def test_many_overlaps_are_cut_to_the_largest():
    maps = [SubjectMap(f"cat {i}", uniform(4, 4, seed=i)) for i in range(8)]
    lines = report(recorded(*maps)).splitlines()
    pairs = [
        float(re.search(r" overlap ([\d.]+) %", line)[1]) for line in lines if " overlap " in line and " and " in line
    ]
    assert len(pairs) == 10 and pairs == sorted(pairs, reverse=True) and lines[-1] == "The other 18 pairs overlap less."


def alike(first, second):
    """Two subjects that overlap 98 %."""
    return tuple(SubjectMap(name, values) for name, values in zip((first, second), halves(0.51), strict=True))


def test_two_that_cannot_be_told_apart_get_advice():
    text = report(recorded(*alike("astronaut", "cat")))
    assert text.endswith("1 astronaut and 2 cat overlap 98 %: the model cannot tell them apart. Give each a box.")
    assert "cannot tell" not in report(
        recorded(SubjectMap("astronaut", halves(0.52)[0]), SubjectMap("cat", halves(0.52)[1]))
    )
    equal = report(recorded(*alike("red  fox", "Red fox")))
    assert equal.endswith("cannot tell them apart. Give each a different name that is in the prompt, or a box.")
    little = report(recorded(SubjectMap("fox", torch.full((4, 4), 0.98)), SubjectMap("cat", torch.full((4, 4), 0.02))))
    assert "1 fox and 2 cat overlap 100 %." in little and "cannot tell" not in little, (
        "the warning about the cat says what to do"
    )


def test_what_is_said_where_nothing_was_recorded():
    assert report(None) == NOT_SAMPLED
    assert report(RecordedRun("all")) == NOBODY
    assert report(RecordedRun("all", notes=("No names.",))) == "No names."


def test_another_latent_is_told():
    latent = noise(1, 4, 16, 12)
    run = recorded(SubjectMap("fox", torch.ones(4, 4)), mark=mark_of(latent))
    assert OTHER_LATENT not in report(run, latent.clone()) and OTHER_LATENT not in report(run, noise(1, 16, 5, 8, 8))
    for other in (noise(1, 4, 16, 12, seed=1), latent.expand(2, -1, -1, -1)):
        assert report(run, other).endswith(OTHER_LATENT)


# ---- pictures --------------------------------------------------------------------------------------------------------


def rgb(index):
    return torch.tensor(list(bytes.fromhex(colour_of(index)[1:]))) / 255


def test_a_row_for_each_subject_in_its_colour():
    first, second = halves(1.0)
    sheet = draw_maps(recorded(SubjectMap("fox", first), SubjectMap("cat", second)), (64, 64))
    assert sheet.shape == (1, 2 * ROW_LONGEST + GAP, ROW_LONGEST, 3)
    upper, lower = sheet[0, :ROW_LONGEST], sheet[0, ROW_LONGEST + GAP :]
    dark = torch.full((3,), DARK / 255)
    for row, index, owns, not_ in ((upper, 0, 100, 412), (lower, 1, 412, 100)):
        assert torch.allclose(row[400, owns], rgb(index), atol=0.01) and torch.allclose(row[400, not_], dark, atol=0.01)
        assert torch.allclose(row[1, 1], rgb(index), atol=0.01), "its label"


def test_maps_have_one_scale():
    sheet = draw_maps(
        recorded(SubjectMap("fox", torch.full((4, 4), 0.5)), SubjectMap("cat", torch.full((4, 4), 0.25))), (64, 64)
    )
    dark = torch.full((3,), DARK / 255)
    assert torch.allclose(sheet[0, 400, 256], rgb(0), atol=0.01)
    assert torch.allclose(sheet[0, ROW_LONGEST + GAP + 400, 256], torch.lerp(dark, rgb(1), 0.5), atol=0.01)


def test_over_the_picture():
    picture = torch.full((2, 30, 40, 4), 0.5)
    sheet = draw_maps(recorded(SubjectMap("fox", halves(1.0)[0]), SubjectMap("cat", None)), (48, 64), picture)
    h, w = 384, 512
    assert sheet.shape == (1, 2 * h + GAP, 2 * w + GAP, 3)
    over = sheet[0, :h, w + GAP :]
    assert torch.allclose(over[300, 450], torch.full((3,), 0.5), atol=0.01), "where nobody owns anything"
    assert torch.allclose(over[300, 50], torch.lerp(torch.full((3,), 0.5), rgb(0), 0.8), atol=0.01)
    assert torch.allclose(sheet[0, h + GAP + 300, 50], torch.full((3,), DARK / 255), atol=0.01), "who rested has no map"


@pytest.mark.parametrize("count", [1, 8, 30])
@pytest.mark.parametrize("size", [(128, 128), (64, 128), (16, 128)])
def test_sizes(count, size):
    maps = [SubjectMap(f"subject {i}", uniform(*size, seed=i)) for i in range(count)]
    sheet = draw_maps(recorded(*maps), size)
    assert sheet.min() >= 0 and sheet.max() <= 1 and sheet.isfinite().all()
    assert 192 <= sheet.shape[2] <= 512 and sheet.shape[1] <= max(SHEET_TALLEST, 30 * 192) + count * GAP


def test_no_record_is_a_small_dark_picture():
    for run in (None, RecordedRun("all")):
        sheet = draw_maps(run, (64, 64), torch.rand(1, 8, 8, 3))
        assert sheet.shape == (1, *EMPTY_SHEET, 3) and (sheet == DARK / 255).all()


# ---- the table of merges ---------------------------------------------------------------------------------------------


def test_an_unknown_merge_is_refused_where_the_settings_are_made():
    with pytest.raises(MismatchError) as refused:
        Mixing("sum")
    assert str(refused.value) == (
        "Expected one of relevance, paper, uniform, joint, add as 'merge', found 'sum'. Choose one of them."
    )


def test_who_needs_relevance():
    needed = {
        (merge, subjects, background): Mixing(merge, background=background).needs_relevance(subjects)
        for merge in MERGES
        for subjects in (1, 2)
        for background in (0.5, 1.0)
    }
    assert [case for case, needs in needed.items() if case[1:] == (2, 1.0) and needs] == [
        ("relevance", 2, 1.0),
        ("paper", 2, 1.0),
    ]
    assert [case for case, needs in needed.items() if case[1:] == (1, 1.0) and needs] == [("paper", 1, 1.0)]
    assert {case[0] for case, needs in needed.items() if case[2] < 1 and not needs} == {"uniform"}


@pytest.mark.parametrize("merge", MERGES)
def test_weights_are_what_their_merge_promises(merge):
    """Shares sum to 1 over the subjects, weights of `above_one` have mean 1 over the positions, others are 1 each."""
    rule, a = MERGES[merge], uniform(2, 3, 4, 20)
    ones = torch.ones(1, 1, 4, 1)
    weights = rule.equal_weights(ones, None) if rule.weights is None else rule.weights(a, None, 2.0)
    if rule.above_one:
        torch.testing.assert_close(weights.mean(-1), torch.ones(2, 3, 4))
    elif rule.share_one:
        assert torch.equal(weights, ones)
    else:
        torch.testing.assert_close(weights.sum(2), torch.ones_like(weights[:, :, 0]))
    assert rule.above_one or bool((weights <= 1).all())
