"""The page of who is confused with whom says what the results say."""

from __future__ import annotations

import json
import re
import sys

import pytest
from troupe_tools.dev.markdown_pages import replace_passage
from troupe_tools.pack import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import confusion
import confusion_page
from troupe.rehearsal.engine.trials import GATED, IN_PROMPT, METHODS, METHODS_OF, RELEVANCE, WITHOUT
from troupe.rehearsal.engine.verdict import LETTERS

# ---- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(8, 10, 0.490, 0.943), (0, 20, 0.0, 0.161), (20, 20, 0.839, 1.0), (300, 600, 0.460, 0.540)],
)
def test_wilson(hits, count, low, high):
    """Values of the formula in Wilson (1927), as statsmodels gives them."""
    found = confusion_page.wilson(hits, count)
    assert (
        (found.part, found.count) == (hits / count, count)
        and found.low == pytest.approx(low, abs=5e-4)
        and found.high == pytest.approx(high, abs=5e-4)
    )


def test_a_share_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one case"):
        confusion_page.wilson(0, 0)


def cells(**right: int) -> dict:
    """Results of 100 pictures of two subjects for each method, that many subjects right by the recogniser, two more by
    colours, and half as many exact.
    """

    def letters(hits: int) -> str:
        return "r" * hits + "s" * (200 - hits)

    reads = {
        method: (letters(hits), letters(hits + 2), letters(hits // 2).replace("r", "x").replace("s", "."))
        for method, hits in right.items()
    }
    return {
        f"mip | {method} | two classes | 1": {str(i): [read[2 * i : 2 * i + 2] for read in three] for i in range(100)}
        for method, three in reads.items()
    }


def test_the_page_counts_and_says_where_relevance_loses():
    page = confusion_page.render(cells(uniform=60, add=180, relevance=150))
    assert "| relevance | 75 % [69, 80], 100 pictures | not measured | not measured |" in page
    assert "| relevance | 38 % [31, 44], 100 pictures | not measured | not measured |" in page.split("Exact:")[1]
    assert (
        "- mip, two classes: add 90 % [85, 93] against 75 % [69, 80] (beyond chance)" in page
        and "uniform 30 %" not in page.split("Where relevance is not best")[1]
    )
    assert (
        "the largest difference in a cell is 1.0 points." in page
        and "| relevance | 75 % | 25 % | 0 % | 0 % | 0 % |" in page
    )
    assert "nowhere: in every counted cell" in confusion_page.render(cells(uniform=60, add=140, relevance=150))


def test_every_row_of_a_table_has_the_cells_of_its_head():
    found = cells(uniform=60, add=140, relevance=150)
    # the reads differ
    found["mip | relevance | two classes | 1"] = {
        seed: [reads[0], "ss", reads[2]] for seed, reads in found["mip | relevance | two classes | 1"].items()
    }
    tables = re.findall(r"(?:^\|.*\|\n)+", confusion_page.render(found), re.M)
    assert len(tables) == 16 and "| mip, relevance, two classes | 75 % [69, 80] | 0 % [0, 2] | -75.0 |" in "".join(
        tables
    )
    for table in tables:
        assert len({line.count(" | ") for line in table.strip().split("\n")}) == 1, table


def test_tasks_are_what_the_page_shows():
    tasks = list(confusion.tasks(20, 10))
    assert len(tasks) == 2 * 3 * (2 * len(METHODS) - 1 + 8) + len(confusion.WEIGHTS) * len(confusion.CURVE) and len(
        set(tasks)
    ) == len(tasks)
    found = {"verdicts": {confusion.key(tasks[0]): {str(seed): ["rr", "rr", "x."] for seed in range(9)}}}
    assert not confusion.done(found, tasks[0])
    found["verdicts"][confusion.key(tasks[0])]["9"] = ["rr", "rr", "x."]
    assert confusion.done(found, tasks[0])
    assert all(re.fullmatch(r"[rsmc-]", letter) for letter in LETTERS.values())


def test_results_of_other_models_are_counted_again():
    """All of them if the base has changed; else those of the adapter that has."""
    cells = {f"{kind} | relevance | two classes | 1": {"0": []} for kind in ("mip", "ip", "umm")}
    before = {"unet.safetensors": "a", "rehearsal_mip_adapter.safetensors": "b"}
    results = {"models": before, "verdicts": cells}
    assert confusion.of_models(results, before) == results
    changed = {**before, "rehearsal_mip_adapter.safetensors": "c", "rehearsal_umm_diffusion.safetensors": "d"}
    assert confusion.of_models(results, changed) == {
        "models": changed,
        "verdicts": {"ip | relevance | two classes | 1": {"0": []}},
    }
    assert confusion.of_models(results, {**before, "unet.safetensors": "z"})["verdicts"] == {}
    assert confusion.of_models({}, before) == {"models": before, "verdicts": {}}


def test_who_puts_subjects_into_the_prompt_has_rows_of_its_own():
    found = cells(relevance=150)
    found["mip | without references | two classes | 1"] = found["mip | relevance | two classes | 1"]
    found["umm | in the prompt | two classes | 1"] = found["mip | relevance | two classes | 1"]
    page = confusion_page.render(found)
    umm = page.split("## UMM-Diffusion")[1].split("## ")[0]
    assert "| in the prompt | 75 %" in umm and "| without references | 75 %" in umm and "| relevance |" not in umm
    fast = page.split("## FastComposer")[1].split("## ")[0]
    assert "| without references | not measured" in fast, "it has a UNet of its own"
    assert "in the prompt |" not in page.split("## MIP-Adapter")[1].split("## ")[0]


def test_the_readme_gets_its_sentence():
    found = confusion_page.readme_passage(cells(uniform=60, add=140, relevance=150))
    assert (
        "| **relevance** | **75 % [69, 80]** (38 %) | not measured |\n| add (stacked IP-Adapters) | 70 % "
        "[63, 76] (35 %) | not measured |\n| uniform | 30 %" in found
    )
    assert "At least 100" in found


# ---- the shipped results ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(confusion.RESULTS.read_text(encoding="utf-8"))


def test_results_are_of_the_shipped_models(results):
    assert results["models"] == confusion.fingerprint(), "run: python benchmarks/confusion.py"


def test_the_pages_are_made_of_the_results(results):
    assert confusion.PAGE.read_text(encoding="utf-8") == confusion_page.render(results["verdicts"])
    readme = confusion.README.read_text(encoding="utf-8")
    assert replace_passage(readme, "confusion", confusion_page.readme_passage(results["verdicts"])) == readme
    training = confusion.TRAINING.read_text(encoding="utf-8")
    assert replace_passage(training, "trained", confusion_page.training_passage(results["verdicts"])) == training


def test_every_cell_is_counted(results):
    for task in confusion.tasks(confusion_page.LEAST, confusion.PER_TASK):
        assert confusion.done(results, task), task


def test_both_reads_of_every_row_agree(results):
    """Right-counts by the recogniser and by colours, over all casts that an adapter's method has painted."""
    rows: dict[tuple[str, str], dict] = {}
    for key, found in results["verdicts"].items():
        adapter, method, cast, weight = key.split(" | ")
        if weight == "1":
            rows.setdefault((adapter, method), {}).update({f"{cast} {seed}": reads for seed, reads in found.items()})
    for row, found in rows.items():
        assert (
            abs(confusion_page.right(found, 1).part - confusion_page.right(found, 0).part) * 100 <= confusion_page.AGREE
        ), row


PROMPT_CELLS = [("umm", IN_PROMPT), ("fastcomposer", IN_PROMPT), ("subject", GATED), ("mm", RELEVANCE)]
DIFFERING = 5  # of 48 verdicts that another processor's rounding may change


# ---- painted anew ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    """The shipped models and the recogniser."""
    from troupe.rehearsal.engine.paint import load_rehearsal
    from troupe.rehearsal.engine.recogniser import load_recogniser

    return load_rehearsal(in_prompt=True), load_recogniser()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["mip", "ip"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_paints_and_is_read(method, adapter, models):
    """Three steps with three subjects, the widest case: there are as many verdicts as subjects, by both reads."""
    from troupe.rehearsal.engine.trials import judge, paint_trial, trial
    from troupe.rehearsal.world import boxes

    one = trial("three subjects", 0)
    found = judge(
        models[1], one, paint_trial(models[0], adapter, METHODS[method], one, steps=3, places=boxes(one.scene))
    )
    assert [len(found.by_recogniser), len(found.by_colours), len(found.exact)] == [3, 3, 3] and {
        *found.by_recogniser,
        *found.by_colours,
    } <= set(LETTERS)


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "method"), PROMPT_CELLS)
def test_subjects_in_the_prompt_are_painted_and_read(adapter, method, models):
    """The references change the picture, and weights of the base model's own the one without them."""
    import torch
    from troupe.rehearsal.engine.trials import judge, paint_trial, trial
    from troupe.rehearsal.world import boxes

    def paint(kind: str, method: str) -> torch.Tensor:
        return paint_trial(models[0], kind, METHODS_OF[kind][method], one, steps=3, places=boxes(one.scene))

    one = trial("three subjects", 0)
    with_them, without, base = paint(adapter, method), paint(adapter, WITHOUT), paint("mip", WITHOUT)
    assert (with_them - without).abs().max() > 0.05
    assert torch.equal(without, base) is (adapter == "umm")
    assert len(judge(models[1], one, with_them).by_recogniser) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "method"), PROMPT_CELLS)
def test_subjects_in_the_prompt_still_have_the_looks_that_were_counted(adapter, method, models, results, monkeypatch):
    """The first pictures, painted anew."""
    monkeypatch.setattr(confusion, "MODELS", models[0], raising=False)
    monkeypatch.setattr(confusion, "RECOGNISER", models[1], raising=False)
    monkeypatch.setattr(confusion, "PER_TASK", 8)
    task = (adapter, method, "two classes", 1.0, 0)
    counted = results["verdicts"][confusion.key(task)]
    _, found = confusion.work(task)
    pairs = [pair for seed in found for pair in zip(found[seed][0], counted[seed][0], strict=True)]
    assert len(pairs) == 16 and sum(a != b for a, b in pairs) <= DIFFERING / 3


@pytest.mark.slow
def test_boxes_lie_around_what_the_seed_paints(models):
    """The box of each found figure holds its mask and at most one latent cell more on each side; of one that is not
    found it is the drawing's.
    """
    import numpy as np
    from troupe.rehearsal.engine.recogniser import recognise
    from troupe.rehearsal.engine.trials import WITHOUT, paint_trial, places_painted, trial
    from troupe.rehearsal.engine.verdict import sighting_of
    from troupe.rehearsal.world import boxes

    seen = 0
    for seed in range(3):
        one = trial("two classes", seed)
        places = places_painted(*models, one)
        found = sighting_of(
            one.figures, recognise(models[1], paint_trial(models[0], "ip", METHODS[WITHOUT], one)[None])[0]
        )
        for place, sighting, number in zip(places, found, one.scene.mentioned, strict=True):
            if sighting is None:
                assert place == boxes(one.scene)[number]
                continue
            (top, left), (bottom, right) = np.argwhere(sighting.mask).min(0), np.argwhere(sighting.mask).max(0) + 1
            x, y, w, h = (16 * value for value in place)
            assert (x, y, x + w, y + h) == (max(left - 1, 0), max(top - 1, 0), min(right + 1, 16), min(bottom + 1, 16))
            seen += 1
    assert seen >= 4


@pytest.mark.slow
def test_subjects_still_keep_their_own_looks(models, results):
    """The page's seeds painted anew: relevance is right within the recorded interval, uniform below it, and nearly
    every subject has the verdict that the results have.
    """
    from troupe.rehearsal.engine.trials import judge, paint_trial, trial

    recorded, found = {}, {}
    for method in ("relevance", "uniform"):
        cell, before, now = results["verdicts"][f"mip | {method} | two classes | 1"], {}, {}
        for seed in confusion_page.CHECKED:
            one = trial("two classes", seed)
            judgement = judge(models[1], one, paint_trial(models[0], "mip", METHODS[method], one))
            before[str(seed)] = cell[str(seed)]
            now[str(seed)] = ["".join(LETTERS[verdict] for verdict in judgement.by_recogniser)]
        differing = [seed for seed in before for a, b in zip(before[seed][0], now[seed][0], strict=True) if a != b]
        assert len(differing) <= DIFFERING * len(confusion_page.CHECKED) / 24, (
            f"{method}, seeds {differing}: the results are of other code; run: python benchmarks/confusion.py"
        )
        recorded[method], found[method] = confusion_page.right(before), confusion_page.right(now)
    least, most = recorded["relevance"].low, recorded["relevance"].high
    assert least <= found["relevance"].part <= most and found["uniform"].part < least, (found, recorded)
