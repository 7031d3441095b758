"""Verdicts of Score Subjects on drawn pictures in which the truth is known, by the functions that the node calls."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from troupe.model_patches.scores import verdicts
from troupe.model_patches.scores.choice import best, numbers_of
from troupe.model_patches.scores.colours import ColourPictures
from troupe.model_patches.scores.finding import Found, Wanted, regions_in
from troupe.model_patches.scores.report import score_report, to_json
from troupe.model_patches.scores.scoring import ClipPictures, looks_of_cast, score_pictures
from troupe_tools.pack import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import scores as scores_script
import scores_page

CASES = 30  # drawings of each kind
THRESHOLD = 0.2  # the node's default


@pytest.fixture(scope="module")
def encoder():
    from troupe.model_patches.hosts.diffusers.encoders import ClipImages
    from troupe.rehearsal.engine.load import load_image_encoder

    return ClipPictures(ClipImages(load_image_encoder()))


def scored(encoder, cases, by):
    """The scores of drawn cases, each a picture of its own. by: masks or boxes, as a detector gives them."""
    from troupe.rehearsal.engine.trials import cast_of
    from troupe.rehearsal.world import PIXELS

    found = []
    for case in cases:
        names = [figure.kind if i == 0 else f"other {figure.kind}" for i, figure in enumerate(case.figures)]
        where = Found(**scores_script.wired_places(case.masks, "bounding_boxes" if by == "boxes" else by))
        regions = regions_in([Wanted(name) for name in names], where, 1, (PIXELS, PIXELS))
        looks = looks_of_cast(cast_of(case.figures), encoder)
        found.append(score_pictures(case.picture[None], looks, regions, encoder, THRESHOLD))
    return found


def agreement(encoder, case, one_class, by):
    """The part of subjects whose verdict is the truth."""
    from drawn_cases import drawn_case

    cases = [drawn_case(case, one_class, seed) for seed in range(CASES)]
    pairs = [
        (verdict.word, truth)
        for scores, one in zip(scored(encoder, cases, by), cases, strict=True)
        for verdict, truth in zip(scores.pictures[0].verdicts, one.verdicts, strict=True)
    ]
    return sum(found == truth for found, truth in pairs) / len(pairs)


CLEAR = ("right", "swapped", "cloned", "missing", "twice", "background")


@pytest.fixture(scope="module")
def counted():
    """What the node in a ComfyUI gave, by encoder, input, cast and kind: true verdicts, and all."""
    return json.loads(scores_script.RESULTS.read_text(encoding="utf-8"))["drawn"]


@pytest.mark.slow
@pytest.mark.parametrize("one_class", [True, False], ids=["one class", "two classes"])
@pytest.mark.parametrize("case", CLEAR)
@pytest.mark.parametrize("by", ["encoder", "colours"])
def test_clear_cases_get_the_true_verdict(encoder, counted, by, case, one_class):
    """And as many as in the stored results."""
    found = agreement(ColourPictures() if by == "colours" else encoder, case, one_class, "masks")
    cast = "one class" if one_class else "two classes"
    true, asked = counted["colours" if by == "colours" else "clip_vision"]["masks"][cast][case]
    assert found >= 0.95 and asked == 2 * CASES and abs(found * asked - true) < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("one_class", [True, False], ids=["one class", "two classes"])
def test_colours_know_most_mixed_looks(counted, one_class):
    found = agreement(ColourPictures(), "mixed", one_class, "masks")
    true, asked = counted["colours"]["masks"]["one class" if one_class else "two classes"]["mixed"]
    assert found >= 0.65 and asked == 2 * CASES and abs(found * asked - true) < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("one_class", [True, False], ids=["one class", "two classes"])
def test_with_boxes_the_background_costs_some(encoder, counted, one_class):
    stored = counted["clip_vision"]["bounding_boxes"]["one class" if one_class else "two classes"]
    found = [agreement(encoder, case, one_class, "boxes") for case in CLEAR]
    assert found[-1] >= 0.9 and sum(found) / len(found) >= 0.95
    assert all(abs(part * 2 * CASES - stored[case][0]) < 1.5 for part, case in zip(found, CLEAR, strict=True))


@pytest.mark.parametrize("one_class", [True, False], ids=["one class", "two classes"])
def test_the_drawings_have_what_they_say(one_class):
    from drawn_cases import drawn_case

    for seed in range(20):
        twice, background = (drawn_case(case, one_class, seed) for case in ("twice", "background"))
        assert len(twice.masks) == 3 and len(background.masks) == 4
        for one in (twice, background):
            assert one.masks.flatten(1).any(1).all() and one.masks.sum(0).max() == 1, "no place meets another"
        first, _, second = (twice.picture[mask.bool()] for mask in twice.masks)
        assert torch.equal(first, second)
        figures = background.picture[background.masks[:2].any(0)].unique(dim=0)
        assert len(figures) > 2, "two figures of two colours"


def test_the_page_has_the_stored_figures():
    page = scores_page.PAGE.read_text(encoding="utf-8")
    found = json.loads(scores_script.RESULTS.read_text(encoding="utf-8"))
    assert scores_page.with_verdicts(page, found) == page and page.count(scores_page.verdict_list(found)) == 1


@pytest.mark.slow
def test_the_limit_is_the_lowest_at_which_clear_verdicts_are_true():
    stored = json.loads(scores_script.RESULTS.read_text(encoding="utf-8"))["limits"]
    parts = {float(limit): found["clear"][0] / found["clear"][1] for limit, found in stored.items()}
    assert tuple(parts) == scores_script.LIMITS and scores_script.LIMITS_FROM >= scores_script.PAINTED_FROM + 1000
    assert min(limit for limit, part in parts.items() if part >= 0.95) == verdicts.FOREIGN


def test_a_right_picture_is_the_best_of_a_batch(encoder):
    from drawn_cases import CASES, drawn_case

    for seed in range(5):
        one = drawn_case("right", True, seed)
        others = [drawn_case(case, True, seed) for case in CASES[1:4]]
        numbers = numbers_of([to_json(scores) for scores in scored(encoder, [*others, one], "masks")])
        assert best(numbers, 2)[0] == 3 and all(0 <= number <= 1 for number in numbers)


def test_the_report_names_the_subject_and_says_what_to_do(encoder):
    from drawn_cases import drawn_case

    case = drawn_case("swapped", True, 0)
    (scores,) = scored(encoder, [case], "masks")
    name = case.figures[0].kind
    lines = score_report(scores)
    assert lines[0].text == f"Picture 1: 0 of 2 subjects right, score {scores.pictures[0].score:.2f}."
    assert lines[1].warning and lines[1].text.startswith(f"1 {name}: swapped, it has the looks of 2 {name}, which has")
    assert lines[1].text.endswith("try another seed.")
    plain = json.loads(to_json(scores))
    own = scores.pictures[0].likeness.diagonal().clamp(0, 1)
    assert scores.pictures[0].score == pytest.approx(float(own.mean()) / 3, abs=1e-5)
    assert plain["pictures"][0]["subjects"][1]["verdict"] == "swapped" and not plain["pictures"][0]["all_right"]
    assert plain["pictures"][0]["subjects"][0]["place"]["from"] == "mask"
    (right,) = scored(encoder, [drawn_case("right", True, 0)], "masks")
    own = right.pictures[0].likeness.diagonal().clamp(0, 1)
    assert right.pictures[0].score == pytest.approx((2 + float(own.mean())) / 3, abs=1e-5)
    (gone,) = scored(encoder, [drawn_case("missing", True, 0)], "boxes")
    assert "missing, nothing found in the picture. Move its name" in score_report(gone)[2].text
    assert json.loads(to_json(gone))["pictures"][0]["subjects"][1]["likeness"] == [None, None]


def test_a_batch_has_a_line_for_each_picture_and_says_what_to_do_once(encoder):
    from drawn_cases import drawn_case

    cases = [drawn_case(case, False, 1) for case in ("right", "swapped", "swapped", "missing")]
    found = [one.pictures[0] for one in scored(encoder, cases, "boxes")]
    (scores,) = scored(encoder, cases[:1], "boxes")
    lines = [line for line in score_report(replace(scores, pictures=tuple(found))) if "cannot tell" not in line.text]
    assert [line.text.split(" subjects")[0] for line in lines[:4]] == [
        f"Picture {n}: {picture.right} of 2" for n, picture in enumerate(found, 1)
    ]
    assert [line.warning for line in lines[:4]] == [picture.right < 2 for picture in found]
    for line, picture in zip(lines, found, strict=False):
        wrong = [(i, v) for i, v in enumerate(picture.verdicts) if v.word != "right"]
        assert all(f"{i + 1} {scores.names[i]} {verdict.word}" in line.text for i, verdict in wrong)
        assert all(f"{owner + 1} {scores.names[owner]}" in line.text for _, v in wrong for owner in v.owners)
    wrong = dict.fromkeys(v.word for picture in found for v in picture.verdicts if v.word != "right")
    assert len(wrong) > 1 and [line.text.split(":")[0] for line in lines[4:]] == [f"If a subject is {w}" for w in wrong]
    assert not any(line.warning for line in lines[4:])


def test_who_has_a_box_is_not_told_to_get_one(encoder):
    from drawn_cases import drawn_case

    (found,) = scored(encoder, [drawn_case("swapped", True, 0)], "boxes")
    for source, advised in (("bounding box", True), ("box", False), ("region", False)):
        regions = tuple(replace(region, source=source) for region in found.pictures[0].regions)
        lines = score_report(replace(found, pictures=(replace(found.pictures[0], regions=regions),)))[1:3]
        assert all("swapped" in line.text and ("a box" in line.text) is advised for line in lines)


def test_a_batch_is_scored_as_its_pictures_are_alone(encoder):
    from drawn_cases import drawn_case
    from troupe.rehearsal.engine.trials import cast_of

    cases = [drawn_case(case, False, 1) for case in ("right", "swapped")]
    looks = looks_of_cast(cast_of(cases[0].figures), encoder)
    wanted = [Wanted(figure.kind) for figure in cases[0].figures]
    masks, pictures = torch.cat([case.masks for case in cases]), torch.stack([case.picture for case in cases])
    regions = regions_in(wanted, Found(masks=masks), 2, (128, 128))
    both = score_pictures(pictures, looks, regions, encoder, THRESHOLD)
    for i, one in enumerate(both.pictures):
        alone = score_pictures(pictures[i : i + 1], looks, regions[i : i + 1], encoder, THRESHOLD).pictures[0]
        assert (
            torch.allclose(one.likeness, alone.likeness, atol=1e-5) and one.verdicts[0].word == alone.verdicts[0].word
        )
        assert abs(one.clip_i - alone.clip_i) < 1e-5
