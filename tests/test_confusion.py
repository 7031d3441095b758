"""The page of who is confused with whom says what the results say."""
from __future__ import annotations

import re
import sys

import pytest
from graph import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import confusion  # noqa: E402
import confusion_page  # noqa: E402
from troupe.rehearsal.engine.trials import METHODS  # noqa: E402
from troupe.rehearsal.engine.verdict import LETTERS  # noqa: E402

# ---- the page ----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("hits", "count", "low", "high"), [(8, 10, 0.490, 0.943), (0, 20, 0.0, 0.161), (20, 20, 0.839, 1.0), (300, 600, 0.460, 0.540)])
def test_wilson(hits, count, low, high):
    """Values of the formula in Wilson (1927), as statsmodels gives them."""
    found = confusion_page.wilson(hits, count)
    assert (found.part, found.count) == (hits / count, count) and found.low == pytest.approx(low, abs=5e-4) and found.high == pytest.approx(high, abs=5e-4)


def test_a_share_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one case"):
        confusion_page.wilson(0, 0)


def cells(**right: int) -> dict:
    """Results of 100 pictures of two subjects for each method, that many subjects right by the recogniser and two more by colours."""
    def letters(hits: int) -> str:
        return "r" * hits + "s" * (200 - hits)

    return {f"mip | {method} | two classes | 1": {str(i): [letters(n)[2 * i:2 * i + 2] for n in (hits, hits + 2)] for i in range(100)} for method, hits in right.items()}


def test_the_page_counts_and_says_where_relevance_loses():
    page = confusion_page.render(cells(uniform=60, add=180, relevance=150))
    assert "| relevance | 75 % [69, 80], 100 pictures | not measured | not measured |" in page
    assert "- mip, two classes: add 90 % [85, 93] against 75 % [69, 80] (beyond chance)" in page and "uniform 30 %" not in page.split("Where relevance does not win")[1]
    assert "The largest difference in a cell is 1.0 points." in page and "| relevance | 75 % | 25 % | 0 % | 0 % | 0 % | 0 % |" in page
    assert "Nowhere: in every cell" in confusion_page.render(cells(uniform=60, add=140, relevance=150))


def test_tasks_are_what_the_page_shows():
    tasks = list(confusion.tasks(20, 10))
    assert len(tasks) == 2 * 2 * 3 * len(METHODS) + len(confusion.WEIGHTS) * len(confusion.CURVE) and len(set(tasks)) == len(tasks)
    found = {"verdicts": {confusion.key(tasks[0]): {str(seed): ["rr", "rr"] for seed in range(9)}}}
    assert not confusion.done(found, tasks[0])
    found["verdicts"][confusion.key(tasks[0])]["9"] = ["rr", "rr"]
    assert confusion.done(found, tasks[0])
    assert all(re.fullmatch(r"[rsmco-]", letter) for letter in LETTERS.values())


def test_the_readme_gets_its_sentence():
    readme = f"before\n{confusion_page.MARKS[0]}\nold\n{confusion_page.MARKS[1]}\nafter\n"
    found = confusion_page.in_readme(readme, cells(uniform=60, add=140, relevance=150))
    assert found.startswith("before\n") and found.endswith("\nafter\n") and "old" not in found
    assert "two subjects of two classes: relevance 75 % [69, 80], add 70 % [63, 76], uniform 30 % [24, 37]" in found and "at least 100 pictures each" in found
    assert confusion_page.in_readme("no marks", {}) == "no marks"


# ---- painted anew ------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def models():
    """The shipped models and the recogniser."""
    from troupe.rehearsal.engine.paint import load_rehearsal
    from troupe.rehearsal.engine.recogniser import load_recogniser

    return load_rehearsal(), load_recogniser()


@pytest.mark.parametrize("adapter", ["mip", "ip"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_paints_and_is_read(method, adapter, models):
    """Three steps with three subjects, the widest case: there are as many verdicts as subjects, by both reads."""
    from troupe.rehearsal.engine.trials import judge, paint_trial, trial

    one = trial("three subjects", 0)
    found = judge(models[1], one, paint_trial(models[0], adapter, METHODS[method], one, steps=3))
    assert [len(verdicts) for verdicts in found] == [3, 3] and all(verdict in LETTERS for verdicts in found for verdict in verdicts)
