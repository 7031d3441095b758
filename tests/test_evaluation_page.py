"""The tables of docs/evaluation.md are those of benchmarks/evaluation.csv, whose pictures can be painted again."""

from __future__ import annotations

import json
import sys

import pytest
from troupe.evaluation import run
from troupe.evaluation.results import read_table
from troupe.evaluation.settings import read_settings
from troupe.evaluation.tables import methods_of
from troupe_tools.dev.markdown_pages import replace_passage
from troupe_tools.pack import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import hosts

import evaluation

NUMBERS = ("clip_i", "clip_t", "colours", "ip_sim", "subjects_right_colours")


@pytest.fixture(scope="module")
def rows():
    return read_table(evaluation.RESULTS)


@pytest.mark.slow
def test_the_page_is_what_the_file_says():
    page = evaluation.PAGE.read_text(encoding="utf-8")
    assert evaluation.with_tables(page) == page


def test_the_page_of_hosts_is_what_their_file_says():
    results = json.loads(hosts.RESULTS.read_text(encoding="utf-8"))
    page = hosts.PAGE.read_text(encoding="utf-8")
    assert replace_passage(page, "hosts", hosts.table(results)) == page
    assert {len(rounds) for rounds in results["rounds"].values()} == {5}


def test_a_table_of_hosts_by_hand():
    """Rounds of 8 pictures in 8 and 4 s: 60 and 120 a minute; two servers need half the time of the same round."""
    rounds = {"one server": [[8.0, 8.0], [4.0, 4.0]], "two servers": [[4.0, 6.0], [2.0, 3.0]]}
    text = hosts.table({"rounds": rounds, "load": 1.25, "cores": 2, "pictures": 8, "steps": 20})
    assert "| one server | 90.0 (60.0 to 120.0) |  | 1.00 (1.00 to 1.00) | 0.75 (0.50 to 1.00) |" in text
    assert "| two servers | 180.0 (120.0 to 240.0) | 2.00 (2.00 to 2.00) | 1.50 (1.50 to 1.50) |" in text


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
