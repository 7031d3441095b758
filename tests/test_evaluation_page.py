"""The tables of docs/evaluation.md are those of benchmarks/evaluation.csv, whose pictures can be painted again."""

from __future__ import annotations

import sys

import pytest
from troupe.evaluation import run
from troupe.evaluation.results import read_table
from troupe.evaluation.settings import read_settings
from troupe.evaluation.tables import methods_of
from troupe_tools.pack import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import evaluation

NUMBERS = ("clip_i", "clip_t", "colours", "ip_sim", "subjects_right_colours")


@pytest.fixture(scope="module")
def rows():
    return read_table(evaluation.RESULTS)


@pytest.mark.slow
def test_the_page_is_what_the_file_says():
    page = evaluation.PAGE.read_text(encoding="utf-8")
    assert evaluation.with_tables(page) == page


def test_every_cell_is_there(rows):
    settings = read_settings(evaluation.EXAMPLE)
    assert methods_of(rows) == [method.name for method in settings.methods]
    cases = {row["case"] for row in rows}
    assert len(rows) == len({row["key"] for row in rows}) == len(cases) * len(settings.methods)
    assert {case.rpartition(" ")[0] for case in cases} == {"two classes", "one class"}


def test_the_noise_is_compared_with_its_own_picture():
    rows = read_table(evaluation.NOISE_RESULTS)
    methods = [method.name for method in read_settings(evaluation.NOISE_EXAMPLE).methods]
    assert methods_of(rows) == methods and len(rows) == len({row["case"] for row in rows}) * len(methods)
    assert not [row for row in rows if row["method"] == "relevance" and row["object_relevance"]]
    found = {row["case"] for row in rows if row["object_relevance"]}
    assert len(found) > 20
    assert all(bool(row["object_relevance"]) == (row["case"] in found) for row in rows if row["method"] != "relevance")


@pytest.mark.slow
def test_the_first_case_again(rows, tmp_path):
    """The same pictures on this machine: the same truth in all but one of ten, and scores that are close."""
    settings = read_settings(evaluation.EXAMPLE, ["suite.seeds=1", f'output.folder="{tmp_path.as_posix()}"'])
    run.evaluate(settings)
    again = read_table(tmp_path / "scores.csv")
    stored = {row["key"]: row for row in rows}
    assert len(again) == 10 and [row["key"] for row in again] == [row["key"] for row in rows[:10]]
    assert sum(row["truth_verdicts"] != stored[row["key"]]["truth_verdicts"] for row in again) <= 1
    for column in NUMBERS:
        differences = [abs(float(row[column]) - float(stored[row["key"]][column])) for row in again]
        assert sorted(differences)[len(differences) // 2] < 0.01, column
