"""Means, intervals and agreement of an evaluation, against scipy, torchmetrics and counting by hand."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torchmetrics.functional.classification import binary_auroc
from troupe.evaluation import statistics
from troupe.evaluation.report import tables_text
from troupe.evaluation.statistics import auc, mean_of_groups, preference, rank_correlation
from troupe.evaluation.tables import LOOKS, PROMPT, agreement_table, score_table

CHANCE = np.random.default_rng(5)
GROUPS = {
    f"case {i}": [(float(np.round(CHANCE.random(), 1)), float(CHANCE.integers(0, 3) / 2)) for _ in range(1 + i % 4)]
    for i in range(30)
}
PAIRS = [pair for pictures in GROUPS.values() for pair in pictures]


def test_groups_count_alike():
    found = mean_of_groups({"a": [1.0, 1.0, 1.0, 1.0], "b": [0.0]})
    assert (found.value, found.pictures) == (0.5, 5)
    assert math.isnan(found.low) and str(found) == "0.500", "no interval of two groups"
    assert str(mean_of_groups({})) == "none"


@pytest.mark.slow
def test_the_interval_holds_the_mean_19_times_in_20():
    chance, held = np.random.default_rng(1), 0
    for _ in range(200):
        found = mean_of_groups({str(i): [value] for i, value in enumerate(chance.normal(3, 1, 40))})
        held += found.low <= 3 <= found.high
    assert 180 <= held <= 198


def test_the_same_figures_give_the_same_interval():
    values = {str(i): [value] for i, value in enumerate(CHANCE.random(12))}
    assert mean_of_groups(values) == mean_of_groups(values)
    assert mean_of_groups({key: [0.25] for key in values}).low == 0.25


def test_auc():
    scores, truth = (torch.tensor(part) for part in zip(*PAIRS, strict=True))
    found = auc(GROUPS)
    assert found.value == pytest.approx(binary_auroc(scores, (truth >= 1).int()).item(), abs=1e-6)
    assert found.low < found.value < found.high and found.pictures == len(PAIRS)
    assert math.isnan(auc({"a": [(0.1, 1.0)], "b": [(0.2, 1.0)]}).value)


@pytest.mark.slow
def test_rank_correlation():
    found = rank_correlation(GROUPS)
    assert found.value == pytest.approx(spearmanr(*zip(*PAIRS, strict=True)).statistic)
    assert rank_correlation({str(i): [(float(i), i / 9)] for i in range(10)}).value == pytest.approx(1)
    assert math.isnan(rank_correlation({str(i): [(1.0, i / 9)] for i in range(10)}).value)


def test_preference():
    wins = pairs = 0
    for pictures in GROUPS.values():
        for one, other in combinations(pictures, 2):
            better, worse = sorted((one, other), key=lambda pair: -pair[1])
            if better[1] != worse[1]:
                pairs += 1
                wins += 1 if better[0] > worse[0] else 0.5 if better[0] == worse[0] else 0
    found = preference(GROUPS)
    assert found.value == pytest.approx(wins / pairs) and found.pictures == pairs
    assert math.isnan(preference({"a": [(0.1, 1.0), (0.2, 1.0)]}).value)


def row(case, method, score, truth):
    head = {"key": f"{case}{method}", "suite": "s", "group": case, "case": case, "method": method, "seed": "0"}
    return {
        **head,
        "prompt": "p",
        "subjects": "a",
        "file": "f",
        "clip_i": score,
        "scr_0.4": score,
        "truth_right": truth,
    }


@pytest.mark.slow
def test_tables():
    rows = [
        *(
            row(f"c{i}", method, f"{0.1 * i + bonus:.3f}", "1" if bonus else "0")
            for i in range(6)
            for method, bonus in (("a", 0.0), ("b", 0.5))
        ),
        row("c6", "a", "", "0"),
    ]
    lines = score_table(rows, ["clip_i", "truth_right"]).splitlines()
    assert lines[0] == "| method | pictures | clip_i | truth_right |"
    assert lines[2].startswith("| a | 7 | 0.250 [0.") and "] (6) | 0.000" in lines[2]
    assert lines[3].startswith("| b | 6 | 0.750 [0.") and "(6)" not in lines[3]
    agreement = agreement_table(rows, ["clip_i", "scr_0.4", "truth_right"]).splitlines()
    assert len(agreement) == 4 and agreement[2].endswith("| 1.000 [1.000, 1.000] | 6 |")
    assert agreement[3].endswith("| 0.000 [0.000, 0.000] | 6 |"), "of a rate, the lower is the better"
    assert agreement_table([{key: value for key, value in one.items() if key != "truth_right"} for one in rows]) == ""


def test_each_score_is_compared_with_the_truth_that_it_is_about(monkeypatch):
    """Those of the prompt with the prompt's subjects, whoever's looks they have."""
    rows = [
        {**row(f"c{i}", method, f"{bonus}", str(bonus)), "truth_prompt": str(1 - bonus)}
        for i in range(6)
        for method, bonus in (("a", 0), ("b", 1))
    ]
    rows = [{**one, "scr_0.4": "", "clip_t": one["clip_i"], "object_quality": one["clip_i"]} for one in rows]
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    tables = [agreement_table(rows, ["clip_i", "clip_t", "object_quality"], truth) for truth in (LOOKS, PROMPT)]
    right, wrong = ("1.000 [1.000, 1.000] | 6 |", "0.000 [0.000, 0.000] | 6 |")
    for table, names, end in zip(
        tables, (["clip_i", "object_quality"], ["clip_t", "object_quality"]), (right, wrong), strict=True
    ):
        lines = table.splitlines()[2:]
        assert [line.split(" | ")[0] for line in lines] == [f"| {name}" for name in names]
        assert all(line.endswith(end) for line in lines)
    text = tables_text(rows, "rehearsal")
    assert all(table in text for table in tables)
    assert agreement_table(rows, ["clip_i"], PROMPT) == ""
