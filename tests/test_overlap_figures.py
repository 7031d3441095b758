"""The figures of the warning of two subjects in the same place say what the results say, and the results are of the
shipped models and of the rule of today.
"""

from __future__ import annotations

import json
import random
import re
import sys

import pytest
from troupe_tools.dev.markdown_pages import replace_passage
from troupe_tools.pack import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import overlap_check
import overlap_check_counts as counts
import overlap_check_page as page
from troupe.model_patches.attention.merges import MERGES
from troupe.model_patches.relevance.overlap_check import OVERLAP_FROM


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(overlap_check.RESULTS.read_text(encoding="utf-8"))


# ---- the results -----------------------------------------------------------------------------------------------------


def test_results_are_of_the_shipped_models(results):
    assert overlap_check.of_today(results) is results, "run: python benchmarks/overlap_check.py"


def test_results_of_other_models_are_measured_again(results):
    old = {**results, "models": {**results["models"], "unet.safetensors": "another"}}
    assert overlap_check.of_today(old) == {"models": results["models"], "trials": {}}


def test_the_counted_rule_is_that_of_the_pack():
    assert counts.RULES[counts.ONE_PLACE].limit == OVERLAP_FROM


def test_page_and_settings_are_made_of_the_results(results):
    assert page.PAGE.read_text(encoding="utf-8") == page.render(results["trials"])
    settings = page.SETTINGS.read_text(encoding="utf-8")
    assert replace_passage(settings, "places", page.warning_tables(results["trials"])) == settings


def test_pages_are_written_of_the_results_alone(tmp_path, monkeypatch):
    """Both files, as they are in the repository."""
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(page, "SETTINGS", tmp_path / "settings.md")
    page.SETTINGS.write_text("before\n<!-- places: old -->\nold\n<!-- end of places -->\nafter", encoding="utf-8")
    page.write_pages(overlap_check.RESULTS)
    assert page.PAGE.read_text(encoding="utf-8") == (ROOT / "benchmarks/OVERLAP_CHECK.md").read_text(encoding="utf-8")
    settings = page.SETTINGS.read_text(encoding="utf-8")
    assert "\nold" not in settings and settings.startswith("before\n") and settings.endswith("\nafter")


def test_nobody_is_counted_whom_a_threshold_was_chosen_on(results):
    for cast in counts.CASTS:
        seeds = set(map(int, results["trials"][cast]))
        assert set(counts.CHOOSING) < seeds and set(counts.held_out_trials(results["trials"], cast)).isdisjoint(
            counts.CHOOSING
        )


def test_every_named_picture_and_the_whole_sample_are_painted(results):
    """Each trial from the first counted seed on, without a gap: none was left out for what it shows."""
    limits = counts.thresholds(results["trials"])
    for cast in counts.CASTS:
        found = counts.held_out_trials(results["trials"], cast)
        assert sorted(found) == list(range(counts.FIRST, counts.FIRST + len(found))) and len(found) >= 200
        for seed, seen in found.items():
            by_warning = bool(counts.named_by_rule(seen, counts.ONE_PLACE, limits[counts.ONE_PLACE]))
            by_any = overlap_check.is_named(seen, limits)
            assert ("pictures" in seen) is (by_any or seed % counts.SAMPLE == 0), (cast, seed)
            assert len(seen.get("pictures", ())) == (5 if by_warning else 3 if by_any else int("pictures" in seen))


def test_results_are_saved_a_line_a_trial_and_read_back(results, tmp_path, monkeypatch):
    before = overlap_check.RESULTS.read_text(encoding="utf-8")
    monkeypatch.setattr(overlap_check, "RESULTS", tmp_path / "overlap_check.json")
    shuffled = {cast: dict(reversed(found.items())) for cast, found in reversed(results["trials"].items())}
    overlap_check.save({"models": results["models"], "trials": shuffled})
    assert overlap_check.RESULTS.read_text(encoding="utf-8") == before
    assert [path.name for path in tmp_path.iterdir()] == ["overlap_check.json"]


def brackets(cell: str) -> tuple[int, int]:
    """The interval of a table's cell."""
    low, high = re.findall(r"\[([+-]?\d+), ([+-]?\d+)\]", cell)[0]
    return int(low), int(high)


def test_the_settings_page_claims_what_the_figures_show(results):
    """Each claim of its list, and of the sentence: most such pictures mix looks or lack a subject, and boxes help."""
    trials = results["trials"]
    two, three = (
        {truth: counts.worth(trials, cast, counts.ONE_PLACE, counts.TRUTHS[truth]) for truth in page.SHOWN}
        for cast in counts.CASTS
    )
    missing, unlike = page.SHOWN
    assert two[unlike].right.low > 0.5 and two[unlike].warned.low > two[unlike].calm.high
    assert three[unlike].right.low > 0.5 and three[unlike].calm.low > 0.5
    assert two[missing].found.part < 0.5 and three[missing].found.part < 0.5
    for rule, truth in counts.CLAIMS[-2:]:
        others = [counts.worth(trials, cast, rule, counts.TRUTHS[truth]).right for cast in counts.CASTS]
        assert all(share.part < 0.5 for share in others)
    rows = [row.strip("| ").split(" | ") for row in page.warning_tables(trials).splitlines() if " to " in row]
    helped = {
        (cast, remedy, number)
        for cast, remedy, *cells in rows
        for number, (low, high) in enumerate(map(brackets, cells))
        if not low <= 0 <= high
    }
    assert len(rows) == 8 and helped == {("two classes", remedy, 2) for remedy in ("a box for each", "sharpness 3")}
    assert all(brackets(cells[2])[0] > 0 for cast, remedy, *cells in rows if (cast, remedy, 2) in helped)
    assert all(counts.warned_again(trials, cast).part > 0.2 for cast in counts.CASTS)


# ---- counted by hand -------------------------------------------------------------------------------------------------


def picture(*cells: list[int], looks: tuple[str, str] = ("rr", "rr")) -> dict:
    return {"cells": list(cells), "looks": list(looks)}


def test_only_clear_cases_are_known():
    one = picture([24], [], [9], [24, 9], [24, 10], [24, 12, 4], looks=("rrrrmr", "rrrsmr"))
    assert [counts.class_absent(one, i) for i in range(6)] == [False, True, None, False, False, False]
    assert [counts.twice(one, i) for i in range(6)] == [False, False, False, None, True, True]
    assert [counts.unlike(one, i) for i in range(6)] == [False, True, None, None, True, False]
    assert (
        counts.any_of(counts.class_absent, one, {0, 2}) is None
        and counts.any_of(counts.class_absent, one, {1, 2}) is True
    )
    assert counts.any_of(counts.class_absent, one, {0, 3}) is False


def trials(counted: dict[int, dict]) -> dict:
    """Results of two classes with these counted trials; nobody is named in those that thresholds are chosen on."""
    calm = {"overlaps": [0.2], "own": [0.9, 0.9], "apart": [0.1, 0.1]}
    three = {"overlaps": [0.2] * 3, "own": [0.9] * 3, "apart": [0.1] * 3}
    chosen = [{str(seed): one for seed in counts.CHOOSING} for one in (calm, three)]
    each = {str(seed): {**calm, **one} for seed, one in counted.items()}
    return {"two classes": {**chosen[0], **each}, "three subjects": chosen[1]}


THERE, GONE, TWO = picture([20], [20]), picture([20], []), picture([20, 20], [20])


def warned(as_it_is: dict, boxed: dict) -> dict:
    return {"overlaps": [0.8], "begun": 1, "pictures": {"as it is": as_it_is, "a box for each": boxed}}


TRIALS_SEEN = {
    20000: warned(GONE, THERE),
    20001: warned(GONE, GONE),
    20002: warned(THERE, TWO),
    20003: {},
    20004: {"pictures": {"as it is": GONE}},
    20005: {},
    20008: {"pictures": {"as it is": THERE}},
    20012: {"pictures": {"as it is": picture([20], [5])}},
    20013: warned(GONE, picture([20], [5])),
}


def test_a_warning_is_counted_for_what_is_known():
    found = counts.worth(trials(TRIALS_SEEN), "two classes", counts.ONE_PLACE, counts.class_absent)
    shares = [found.given, found.right, found.unsaid, found.warned, found.calm, found.found]
    assert [(round(share.part * share.count), share.count) for share in shares if share] == [
        (4, 9),  # warned of
        (3, 4),
        (1, 2),  # the fragment is not counted
        (3, 4),
        (1, 2),
        (1, 2),  # 20000 and 20004 of the sample lack a subject
    ]
    none = counts.worth(trials({}), "two classes", counts.ONE_PLACE, counts.class_absent)
    assert (none.given, none.right, none.calm) == (None, None, None)


def test_who_is_not_named_does_not_make_a_warning_right():
    """The third subject is missing; the first two are in the same place."""
    gone = picture([20], [20], [], looks=("rr-", "rr-"))
    seen = {"overlaps": [0.8, 0.1, 0.1], "own": [0.9] * 3, "apart": [0.1] * 3, "pictures": {"as it is": gone}}
    both = trials({})
    both["three subjects"]["20000"] = seen
    found = counts.worth(both, "three subjects", counts.ONE_PLACE, counts.class_absent)
    assert (found.right.part, found.warned.part, found.found.part) == (0, 1, 0)


def test_without_a_warning_the_nearest_to_one_is_looked_at():
    """The first two overlap most and are there; the third is missing."""
    gone = picture([20], [20], [], looks=("rr-", "rr-"))
    seen = {"overlaps": [0.5, 0.1, 0.1], "own": [0.9] * 3, "apart": [0.1] * 3, "pictures": {"as it is": gone}}
    both = trials({})
    both["three subjects"]["20000"] = seen
    found = counts.worth(both, "three subjects", counts.ONE_PLACE, counts.class_absent)
    assert (found.unsaid.part, found.calm.part, found.right) == (0, 1, None)


def test_a_remedy_is_compared_with_the_same_pictures():
    [(remedy, pictures)] = counts.remedies(trials(TRIALS_SEEN), "two classes", counts.ONE_PLACE).items()
    assert (remedy, len(pictures)) == ("a box for each", 4)
    assert counts.changed(pictures, counts.class_absent).startswith("2 to 1 of 3: -33 [")  # 20013 is not known
    assert counts.changed(pictures, counts.twice).startswith("0 to 1 of 4: +25 [")
    assert counts.changed([], counts.twice) == "none"
    assert "| a box for each | 2 to 1 of 3: -33 [" in page.warning_tables(trials(TRIALS_SEEN))


def test_how_often_the_next_seeds_are_warned_of_too():
    again = {**warned(GONE, GONE), "begun": counts.MOST_SEEDS}
    once = warned(GONE, GONE)
    share = counts.warned_again(trials({20000: once, 20001: again, 20002: once, 20004: {}}), "two classes")
    assert (share.part, share.count) == (1 / 3, 3)
    assert counts.warned_again(trials({}), "two classes") is None


def test_a_remedy_that_some_pictures_of_a_warning_lack_is_not_counted():
    other = {"overlaps": [0.8], "pictures": {"as it is": GONE}}
    assert counts.remedies(trials({20000: warned(GONE, THERE), 20001: other}), "two classes", counts.ONE_PLACE) == {}


def test_own_looks_are_compared_of_subjects_that_are_known_in_both():
    """The second of three is swapped and then right; the third is read in two ways."""
    one, other = (picture([20], [20], [20], looks=looks) for looks in (("rsr", "rsm"), ("srr", "srr")))
    assert counts.own_looks(one, other) == (0.5, 0.5)
    assert counts.own_looks(picture([20], [5]), picture([5], [20])) is None
    assert counts.own_looks(GONE, THERE) == (0.5, 1.0)


def test_a_gain_is_the_mean_over_pictures():
    """Worked by hand: ten times +50 and +0 points, 25 from their mean each: a standard error of 25 / sqrt(9)."""
    assert counts.gain([(0.5, 1.0), (0.5, 0.5)] * 5) == "50 % to 75 % of 10: +25 [+9, +41]"
    assert counts.gain([(0.5, 1.0)] * 9) == "too few"


def test_a_threshold_names_the_given_share_of_the_subjects():
    some = trials({})
    for number, seed in enumerate(counts.CHOOSING):
        one = {"overlaps": [0.2], "own": [0.9, number / 1000], "apart": [0.1, 0.2 + number / 1000]}
        some["two classes"][str(seed)] = one
    limits = counts.thresholds(some)
    for rule in (counts.NO_PLACE, counts.FAR_APART):
        told = [counts.named_by_rule(seen, rule, limits[rule]) for found in some.values() for seen in found.values()]
        assert sum(map(len, told)) == counts.NAMED * 500 and {i for each in told for i in each} == {1}


def pairs(both: int, before: int, after: int, neither: int) -> list[tuple[bool, bool]]:
    kinds = ((True, True), both), ((True, False), before), ((False, True), after), ((False, False), neither)
    return [kind for kind, count in kinds for _ in range(count)]


@pytest.mark.parametrize(
    ("table", "low", "high"), [((36, 12, 2, 0), -0.3404, -0.0569), ((20, 12, 2, 16), -0.3292, -0.0562)]
)
def test_the_interval_of_a_difference(table, low, high):
    """Values of method 10 in Newcombe (1998), table II, whose difference has the other sign."""
    found = counts.share_difference(pairs(*table))
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_the_interval_holds_the_true_difference_as_often_as_promised():
    chance, hits = random.Random(1), 0
    for _ in range(1000):
        drawn = [
            (before, chance.random() < (0.7 if before else 0.2))
            for before in (chance.random() < 0.4 for _ in range(40))
        ]
        found = counts.share_difference(drawn)
        hits += found.low <= 0.4 * 0.7 + 0.6 * 0.2 - 0.4 <= found.high
    assert hits >= 940


# ---- measured anew ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trials_are_still_measured_as_they_were(results):
    """The first trial that is warned of and the first calm one of the sample, of each cast: what is seen after a third
    of the steps, and how many parts of each class the finished picture has.
    """
    painter, limits, merges = overlap_check.Painter(), counts.thresholds(results["trials"]), dict(MERGES)
    for cast in counts.CASTS:
        found = counts.held_out_trials(results["trials"], cast)
        told = {seed: counts.named_by_rule(seen, counts.ONE_PLACE, 0.8) for seed, seen in found.items()}
        calm = next(seed for seed in found if len(found[seed].get("pictures", ())) == 1)
        for seed in (next(seed for seed in told if told[seed]), calm):
            now = overlap_check.measured(painter, cast, seed, limits)
            for key in ("overlaps", "own", "apart"):
                assert now[key] == pytest.approx(found[seed][key], abs=0.02), (cast, seed, key)
            assert now["pictures"].keys() == found[seed]["pictures"].keys()
            read, before = (one["pictures"][counts.AS_IT_IS]["cells"] for one in (now, found[seed]))
            differing = sum(abs(sum(a) - sum(b)) for a, b in zip(read, before, strict=True))
            assert differing <= 4, (cast, seed, read, before)
    assert merges == MERGES
