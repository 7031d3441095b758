"""The page of ablations says what the results say, and the results are of the settings of today."""

from __future__ import annotations

import json
import random
import sys

import pytest
import torch
from troupe_tools.pack import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import ablations
import ablations_page
import wrong_names
from troupe.training.examples.drawn import DrawnSet

RESULTS = json.loads(ablations.RESULTS.read_text(encoding="utf-8"))


def test_the_page_is_made_of_the_results():
    assert ablations.PAGE.read_text(encoding="utf-8") == ablations_page.render(RESULTS)


def test_every_variant_was_measured_with_its_settings():
    assert list(RESULTS) == [ablations.key(group, name) for group, name, _ in ablations.every()]
    for group, name, variant in ablations.every():
        found = RESULTS[ablations.key(group, name)]
        assert found["settings"] == ablations.settings_of(group, variant), "run: python benchmarks/ablations.py"
        assert len(found["losses"]) == ablations.PICTURES and len(found["verdicts"]) == ablations.TRIALS
        assert (found["pictures"] > 0) is variant.trained


def test_variants_of_a_group_are_trained_on_as_many_pictures():
    for group in ablations.GROUPS:
        found = {cell["pictures"] for key, cell in RESULTS.items() if key.startswith(f"{group} |")}
        assert len(found - {0}) == 1


def test_a_row_compares_the_same_pictures():
    """Worked by hand: losses 1 and 3 against 0.5 and 2 differ by 0.75 on average, with a standard error of 0.25."""
    assert ablations_page.difference([1.0, 3.0], [0.5, 2.0]) == "+0.7500 [+0.2600, +1.2400]"
    first = {"losses": [[0.5, 0.6], [2.0, 2.1]], "verdicts": {"0": "rr", "1": "rs"}, "pictures": 64}
    other = {"losses": [[1.0, 1.0], [3.0, 3.0]], "verdicts": {"0": "rs", "1": "rs"}, "pictures": 64}
    page = ablations_page.render({"A | one": first, "A | two": other})
    assert "| one | 1.2500 |  | +0.1000 [+0.1000, +0.1000] | 75 % [30, 95] |  |" in page
    two = next(line for line in page.split("\n") if line.startswith("| two |"))
    assert two.startswith("| two | 2.0000 | +0.7500 [+0.2600, +1.2400] | +0.0000 [+0.0000, +0.0000] | 50 % [15, 85]")
    assert two.endswith("| -25 [-74, +24] |")
    assert "64 training pictures, 2 held-out pictures, 2 painted pictures." in page


def test_an_exchange_gives_every_subject_the_next_ones_reference():
    example = next(
        found for n in range(50) if len((found := DrawnSet(3, alone=0.0).get(n, random.Random(n))).subjects) == 3
    )
    exchanged = ablations.exchanged_in(example)
    for i in range(3):
        assert torch.equal(exchanged.subjects[i].photo.image, example.subjects[(i + 1) % 3].photo.image)
        assert exchanged.subjects[i].name == example.subjects[i].name
    assert torch.equal(exchanged.pixels, example.pixels)


@pytest.mark.slow
def test_a_variant_is_trained_and_measured(tmp_path, monkeypatch):
    """Two steps of the one that a reader would doubt first: with one merge for all, nobody's reference is anybody's."""
    settings = (*ablations.GROUPS["MIP-Adapter"].settings, "training.steps=2", "training.batch=4", "training.warmup=0")
    variants = ablations.GROUPS["MIP-Adapter"].variants
    monkeypatch.setitem(ablations.GROUPS, "MIP-Adapter", ablations.Group(settings, variants))
    monkeypatch.setattr(ablations, "PICTURES", 32)
    monkeypatch.setattr(ablations, "TRIALS", 1)
    found = {
        name: ablations.train_and_measure("MIP-Adapter", variants[name], tmp_path)
        for name in ("as in the recipe", "trained and painted with merge uniform")
    }
    rises = [sum(exchanged - own for own, exchanged in cell["losses"]) / len(cell["losses"]) for cell in found.values()]
    assert rises[0] > 1e-3 and abs(rises[1]) < 1e-5
    assert all(cell["pictures"] == 8 and len(cell["verdicts"]["0"]) == 2 for cell in found.values())


@pytest.mark.slow
def test_wrong_names_are_those_of_another_subject_of_the_picture():
    right, found = DrawnSet(), wrong_names.WrongNames(DrawnSet())
    changed = several = 0
    for n in range(200):
        before, (after, is_wrong) = right.get(n, random.Random(n)), found.marked(n, random.Random(n))
        pairs = list(zip(before.subjects, after.subjects, strict=True))
        assert sum(old.name != new.name for old, new in pairs) == 2 * is_wrong
        assert sorted(old.name for old, _ in pairs) == sorted(new.name for _, new in pairs)
        assert all(torch.equal(old.photo.image, new.photo.image) for old, new in pairs)
        assert torch.equal(before.pixels, after.pixels) and before.caption == after.caption
        changed, several = changed + is_wrong, several + (len(pairs) > 1)
    assert 0.35 < changed / several < 0.65


@pytest.mark.slow
def test_the_object_quality_filter_leaves_few_wrong_names(monkeypatch):
    monkeypatch.setattr(wrong_names, "COMPARED", 300)
    found = wrong_names.WrongNames(DrawnSet())
    filtered = wrong_names.QualityFiltered(found)
    assert set(filtered.thresholds) == {1, 2, 3}
    assert wrong_names.share_of_wrong(found, 200) > 0.25
    assert wrong_names.share_of_wrong(filtered, 100) < 0.12


def test_a_crop_for_the_score_is_the_subjects_box():
    example = DrawnSet(alone=0.0).get(3, random.Random(3))
    for subject, crop in zip(example.subjects, wrong_names.crops(example, example.subjects), strict=True):
        rows, columns = (subject.mask.any(i).nonzero() for i in (1, 0))
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        pixels = (example.pixels[:, top:bottom, left:right] + 1) * 127.5
        assert crop.size == (right - left, bottom - top)
        assert (torch.tensor(list(crop.getdata())).view(*crop.size[::-1], 3).movedim(2, 0) - pixels).abs().max() < 0.51
