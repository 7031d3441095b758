"""The benchmark's own arithmetic: intervals that hold what they promise, the least possible cost, and a page that says
what was measured.
"""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from itertools import permutations
from math import comb
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from troupe_tools.dev.markdown_pages import replace_passage

FOLDER = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(FOLDER))

import fusers  # noqa: E402
import measure  # noqa: E402
import page  # noqa: E402
import rerun_page  # noqa: E402
from intervals import coverage_rank, interval  # noqa: E402
from measure import growth, peak_of, ratios, rounds, text_seconds  # noqa: E402
from runs import GATED, OURS, THEIRS, couples, paired_with_rival, pairs_of_growth, rival_of  # noqa: E402
from theory import gated_layer, gated_weights, layer  # noqa: E402

# ---- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "rank"), [(5, 0), (6, 1), (10, 2), (30, 10), (100, 40)])
def test_ranks_are_those_of_the_binomial_table(count, rank):
    assert coverage_rank(count) == rank


@given(st.integers(6, 200))
def test_ranks_cover_95_percent_and_the_next_would_not(count):
    k = coverage_rank(count)
    outside = [2 * sum(comb(count, i) for i in range(k)) / 2**count for k in (k, k + 1)]
    assert outside[0] <= 0.05 < outside[1]


def test_an_interval_of_known_values():
    found = interval([float(i) for i in range(30, 0, -1)])
    assert (found.median, found.low, found.high, found.count) == (15.5, 10.0, 21.0, 30)


def test_too_few_values_are_refused():
    with pytest.raises(ValueError, match="expected 6 values or more, found 5"):
        interval([1.0] * 5)


def test_intervals_hold_the_true_median_as_often_as_promised():
    torch.manual_seed(0)
    noise = torch.distributions.LogNormal(0.0, 1.0).sample((2000, 30))  # median 1
    held = sum((found := interval(row.tolist())).low <= 1.0 <= found.high for row in noise)
    assert 0.94 < held / 2000 < 0.99


# ---- rounds ----------------------------------------------------------------------------------------------------------


def test_every_run_stands_before_between_and_after_its_neighbours():
    calls = []
    steps = {name: (lambda name=name: calls.append(name)) for name in ("text", "a", "b", "c")}
    found = rounds(steps, [("a", "b"), ("c",)], 6)
    assert len(found) == 6 and all(set(seconds) == {"a", "b", "c"} for seconds in found)
    assert calls[:4] == ["text", "a", "b", "c"], "every run once before it counts"
    begun = calls[4:]
    assert [sorted(begun[i : i + 5], key="abctext".index) for i in range(0, 30, 5)] == [
        ["a", "b", "c", "text", "text"]
    ] * 6
    triples = [
        tuple(part[2:] if number % 2 == 0 else part[:3])
        for number, part in enumerate(begun[i : i + 5] for i in range(0, 30, 5))
    ]
    assert sorted(triples) == sorted(permutations(("text", "a", "b")))
    lone = [
        tuple(part[:2] if number % 2 == 0 else part[3:])
        for number, part in enumerate(begun[i : i + 5] for i in range(0, 30, 5))
    ]
    assert sorted(lone) == [("c", "text")] * 3 + [("text", "c")] * 3


def test_runs_that_need_more_pairs_get_them_with_their_neighbour(monkeypatch):
    calls = []
    monkeypatch.setattr(measure, "timed", lambda step: step() or float(len(calls)))  # no two alike
    steps = {name: (lambda name=name: calls.append(name)) for name in ("text", "a", "b", "c", "d")}
    found = rounds(steps, [("a", "b"), ("c", "d")], 2, often=("b",))
    assert (
        [len(ratios(found, name)) for name in "abcd"] == [6, 6, 2, 2]
        and len(growth(found, "a", "b", 1)) == 6
        and len(growth(found, "a", "c", 1)) == 2
    )
    triples = [tuple(calls[i : i + 3]) for i in range(5, len(calls), 3)]
    assert sorted(triple for triple in triples if "a" in triple) == sorted(permutations(("text", "a", "b")))
    assert len(text_seconds(found)) == calls.count("text") - 1 == 8


def test_growth_is_of_every_step_and_of_the_whole():
    runs = [
        "relevance 4x4",
        "relevance 1x4",
        "gated 1",
        "relevance 2x4",
        "relevance 2x4+regions",
        "gated 2",
        "add 2x4",
        "relevance 8x16",
    ]
    relevance = [
        ("relevance 1x4", "relevance 2x4"),
        ("relevance 2x4", "relevance 4x4"),
        ("relevance 1x4", "relevance 4x4"),
    ]
    assert pairs_of_growth(runs) == [*relevance, ("gated 1", "gated 2")]


def test_ours_and_theirs_of_the_same_size_are_neighbours_in_whatever_order_they_are_given():
    order = paired_with_rival(OURS, THEIRS) + GATED
    assert sorted(order) == sorted(OURS + THEIRS + GATED)
    for runs in (order, sorted(order), order[::-1]):
        found = couples(runs)
        assert sorted(run for couple in found for run in couple) == sorted(runs) and all(
            len(couple) == 2 for couple in found[:-1]
        )
        for ours, theirs in (
            ("relevance 2x4", "ipadapter-plus 2x4"),
            ("relevance 8x16", "ipadapter-plus 8x16"),
            ("relevance 2x4+regions", "ipadapter-plus 2x4+masks"),
        ):
            assert (ours, theirs) in found and rival_of(ours) == theirs
    assert order.index("ipadapter-plus 2x4") == order.index("relevance 2x4") + 1
    assert couples(["relevance 1x4", "relevance 2x4", "gated 1", "ipadapter-plus 2x4"]) == [
        ("relevance 2x4", "ipadapter-plus 2x4"),
        ("relevance 1x4", "gated 1"),
    ]


def test_a_step_of_text_that_serves_two_runs_counts_once():
    assert text_seconds(
        [{"a": (1.0, 1.1), "b": (1.0, 1.2), "c": (3.0, 3.1)}, {"a": (2.0, 2.2), "b": (2.0, 2.1), "c": (1.0, 1.1)}]
    ) == [1.0, 3.0, 2.0, 1.0]


def test_ratios_and_growth_are_of_the_same_round():
    found = [{"few": (1.0, 1.1), "many": (2.0, 2.6)}, {"few": (2.0, 2.0), "many": (1.0, 1.4)}]
    assert ratios(found, "many") == pytest.approx([1.3, 1.4])
    assert growth(found, "few", "many", 4) == pytest.approx([0.05, 0.1])


def test_the_peak_is_of_allocations_in_their_order():
    events = [{"name": "[memory]", "ts": t, "args": {"Bytes": b}} for t, b in ((3, -10), (1, 10), (2, 30), (4, 5))] + [
        {"name": "aten::mm", "ts": 0}
    ]
    assert peak_of(events) == 40


# ---- the least possible ----------------------------------------------------------------------------------------------


def test_the_least_arithmetic_is_what_torch_counts():
    """Of image attention and relevance as they are computed: nothing more is multiplied than must be."""
    from troupe.model_patches.attention.decoupled import LayerTokens, image_delta
    from troupe.model_patches.attention.merges import Mixing

    n, c, m, t, names = 96, 32, 3, 4, 6
    tokens = LayerTokens(
        torch.randn(1, m * t, c), torch.randn(1, m * t, c), torch.randn(1, names, c), torch.rand(1, m, names)
    )
    query = torch.randn(1, 1, n, c)
    image_delta(query, tokens, torch.ones(m), 4, Mixing())
    with FlopCounterMode(display=False) as counter:
        image_delta(query, tokens, torch.ones(m), 4, Mixing())
    means = 2 * m * names * n  # averaging each subject's names, which no formula of the papers counts
    assert counter.get_total_flops() == layer(n, c, m * t, names, False, 4).flops + means


def test_the_least_traffic_is_that_of_its_tensors():
    assert layer(100, 8, 4, 3, False, 2).bytes == 2 * (3 * 100 * 8 + 2 * 4 * 8 + 3 * 8)


@pytest.mark.slow
def test_the_least_arithmetic_of_a_gated_layer_is_what_torch_counts():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    n, m, c = 64, 6, 320
    fuser, x, objects = fusers.layers(64, m, 768, torch.float32, torch.device("cpu"))[0]
    projected = fuser.project(objects)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fuser(x, projected)
    assert counter.get_total_flops() == 2 * gated_layer(n, c, m, 4).flops
    assert gated_layer(n, c, m, 2).bytes == 2 * (4 * n * c + 2 * m * c) and gated_weights(c, 4) == sum(
        4 * w.numel() for name, w in fuser.named_parameters() if w.ndim == 2 and name.startswith(("attn", "ff"))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pixels", "tokens", "zeros"), [(64, 5, False), (64, 40, False), (64, 40, True), (300, 7, True)]
)
def test_the_published_form_is_ours(pixels, tokens, zeros):
    work = fusers.layers(pixels, tokens, 768, torch.float32, torch.device("cpu"), zeros)[::5]
    assert zeros is not bool(work[0][2][0].any())
    for fuser, x, objects in work:
        projected = replace(fuser.project(objects), equal=(True, False) if zeros else ())
        torch.testing.assert_close(fuser(x, projected), fusers.published(fuser, x, objects), rtol=1e-4, atol=1e-4)


# ---- the page --------------------------------------------------------------------------------------------------------


def results() -> list[dict]:
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def test_the_page_is_what_the_results_say():
    assert page.render(results(), reruns()) == (FOLDER / "RESULTS.md").read_text(encoding="utf-8")


def test_the_readme_has_the_two_figures_of_the_results():
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    sentence = page.readme_sentence(results())
    assert sentence and replace_passage(readme, "speed", sentence) == readme


def measured(low: float, high: float) -> dict[str, float]:
    return {"median": (low + high) / 2, "low": low, "high": high, "count": 30}


def table(**ratios) -> dict:
    counts = {"operators": 1, "scalars": 0, "launches": None, "waits": None, "peak": 0, "kept": 0}
    rows = {
        name.replace("_", " "): {
            "ratio": measured(*ratio),
            "seconds": measured(1, 1),
            "counts": counts,
            "first": 1.0,
            "held": 0,
        }
        for name, ratio in ratios.items()
    }
    machine = {
        "device": "CPU, 2 threads",
        "cpu": "x",
        "comfyui": "1",
        "torch": "1",
        "python": "3",
        "date": "2026-01-01",
    }
    text = {"seconds": measured(1, 1), "counts": counts, "first": 1.0, "held": 0}
    what = {"kind": "steps", "base": "sd15-thin", "pixels": 256, "dtype": "float32", "pairs": 30}
    return {**what, "machine": machine, "rates": {"flops": 1.0, "bytes": 1.0}, "rows": {"text": text, **rows}}


def kept(tables: list[dict], words: str) -> bool | None:
    (found,) = (t.kept for t in page.targets(tables) if words in t.promise)
    return found


def test_a_target_is_judged_by_the_upper_end():
    words = "2x4 adds at most 5 %"
    assert kept([table(relevance_2x4=(1.01, 1.049))], words) is True
    assert kept([table(relevance_2x4=(1.01, 1.051))], words) is False
    assert kept([], words) is None


def test_half_of_the_other_pack_is_judged_round_by_round():
    mine = table(relevance_2x4=(1.01, 1.02))
    for low, high, verdict in ((-0.03, -0.001, True), (-0.03, 0.001, False)):
        mine["rows"]["relevance 2x4"]["beyond_half"] = measured(low, high)
        assert kept([mine], "half of what ipadapter-plus 2x4") is verdict


@pytest.mark.parametrize(("key", "words"), [("scalars", "no number is read"), ("kept", "no allocation grows")])
def test_one_run_that_waits_or_grows_is_enough(key, words):
    good = table(relevance_2x4=(1.0, 1.0), gated_2=(1.0, 1.0))
    assert kept([good], words) is True
    bad = copy.deepcopy(good)
    bad["rows"]["gated 2"]["counts"][key] = 1
    bad["rows"]["relevance 2x4"]["counts"] = {**bad["rows"]["relevance 2x4"]["counts"], key: -5}
    assert kept([bad], words) is False


def test_the_narrowest_interval_is_the_judge_and_a_gpu_has_none():
    sure, wide = table(relevance_2x4=(1.0, 1.06)), table(relevance_2x4=(0.95, 1.04))
    words = "2x4 adds at most 5 %"
    assert kept([sure], words) is kept([sure, wide], words) is kept([wide, sure], words) is False
    assert kept([wide], words) is True
    for name, value in (("device", "NVIDIA X"), ("dtype", "float16")):
        other = copy.deepcopy(sure)
        for row in other["rows"].values():
            row["counts"] |= {"launches": 9, "waits": 0}
        (other["machine"] if name == "device" else other)[name] = value
        assert kept([other, wide], words) is True
        assert kept([other], words) is None


def test_the_sentence_is_of_one_machine():
    names = ("relevance_2x4", "relevance_8x16", "ipadapter-plus_2x4", "ipadapter-plus_8x16")
    whole = table(**dict.fromkeys(names, (1.0, 1.1)))
    assert "ComfyUI 1 on a CPU" in page.readme_sentence([whole])
    assert page.readme_sentence([table(**dict.fromkeys(some, (1.0, 1.1))) for some in (names[:2], names[2:])]) == ""
    whole["machine"]["device"] = "NVIDIA X"
    assert page.readme_sentence([whole]) == ""


def test_launches_and_waits_of_a_gpu_are_shown_and_judged():
    mine, words = table(relevance_2x4=(1.0, 1.0)), "no step waits"
    assert kept([mine], words) is None
    mine["machine"]["device"] = "NVIDIA X"
    mine["rows"]["text"]["counts"] |= {"launches": 100, "waits": 3}
    for waits, verdict in ((3, True), (4, False)):
        mine["rows"]["relevance 2x4"]["counts"] = {**mine["rows"]["text"]["counts"], "launches": 118, "waits": waits}
        assert kept([mine], words) is verdict
        assert f"| 118 | {waits} |" in page.render([mine]) and "kernel launches | waits |" in page.render([mine])


def test_a_table_takes_the_place_of_an_older_one_alone(tmp_path):
    first, other, second = table(relevance_2x4=(1.0, 1.1)), table(gated_2=(1.0, 1.5)), table(relevance_2x4=(1.0, 1.02))
    other["pixels"] = 512
    script = (
        f"import sys, json; sys.path[:0] = [{str(FOLDER)!r}]; import run; from pathlib import Path; "
        "[run.keep(made, Path('r.json')) for made in json.load(sys.stdin)]"
    )
    tables = json.dumps([first, other, second])
    subprocess.run([sys.executable, "-c", script], input=tables, text=True, check=True, cwd=tmp_path)
    assert json.loads((tmp_path / "r.json").read_text()) == [other, second]


def test_what_no_machine_measured_is_said():
    text = page.render([table(relevance_2x4=(1.0, 1.0))])
    assert "to SDXL at 1024 px, on a GPU | not measured | not measured |" in text
    assert "Kernel launches, waits and memory of a GPU: not measured." in text
    assert (
        "| sdxl | 1024 px | bfloat16 | a GPU | not measured |" in text
        and "| sd15-thin | 256 px | float32 | CPU | yes |" in text
    )
    assert "--lowvram | " in text and text.count("| not measured |\n") > 7


def test_cost_is_shown_by_the_size_of_the_picture():
    small, large, elsewhere = (
        table(relevance_2x4=(1.02, 1.04), gated_2=(1.4, 1.6)),
        table(relevance_2x4=(1.0, 1.02)),
        table(relevance_2x4=(1.2, 1.4)),
    )
    large["pixels"], elsewhere["pixels"], elsewhere["dtype"] = 512, 1024, "float16"
    small["rows"]["relevance 2x4"]["seconds"] = measured(2.06, 2.06)
    wide = table(relevance_2x4=(1.0, 1.5))
    wide["pairs"] = 7
    text = page.render([wide, large, elsewhere, small])
    section = text[text.index("## How cost grows") : text.index("## sd15-thin")]
    place = "| sd15-thin, float32, CPU, 2 threads | relevance 2x4 | "
    assert [line for line in section.splitlines() if line.startswith("| sd15")] == [
        f"{place}256 px | +3.0 % [+2.0, +4.0] | 60 ms |",
        f"{place}512 px | +1.0 % [+0.0, +2.0] | 10 ms |",
    ]
    assert "## How cost grows" not in page.render([small, elsewhere])


def test_growth_is_judged_from_the_least_to_the_most():
    mine = table(relevance_1x4=(1.0, 1.0), relevance_4x4=(1.0, 1.0), relevance_8x4=(1.0, 1.0))
    words = "each further subject of 4 tokens"
    assert kept([mine], words) is None
    for high, verdict in ((0.014, True), (0.016, False)):
        mine["rows"]["relevance 8x4"]["growth"] = {
            "relevance 4x4": measured(-1, 1),
            "relevance 1x4": measured(0.0, high),
        }
        assert kept([mine], words) is verdict
    assert "| relevance 1x4 | relevance 8x4 | +0.8 % [+0.0, +1.6] |" in page.render([mine])


@pytest.mark.parametrize(("low", "part"), [(1.001, " (20%)"), (0.999, "")])
def test_a_share_of_the_least_is_shown_where_anything_is_added(low, part):
    mine = table(relevance_2x4=(low, 2 * 1.25 - low))
    mine["rows"]["relevance 2x4"] |= {
        "seconds": measured(1.25, 1.25),
        "theory": {"flops": 50_000_000, "bytes": 3_000_000},
    }
    mine["rates"] = {"flops": 1e9, "bytes": 1e9}
    assert f"| 0.05 | 3 | 50 ms of 250 ms{part} |" in page.render([mine])


@pytest.mark.parametrize("told", [True, False])
def test_a_table_of_older_order_says_so(told):
    mine = table(relevance_2x4=(1.0, 1.0)) | ({"orders": "all"} if told else {})
    assert ("text alone was always timed between" in page.render([mine])) is not told


# ---- edits and re-runs -----------------------------------------------------------------------------------------------


def reruns() -> dict:
    return json.loads((FOLDER / "rerun.json").read_text(encoding="utf-8"))


def test_the_readme_has_the_sentence_of_the_reruns():
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    said = rerun_page.readme_sentence(reruns())
    assert said and replace_passage(readme, "rerun", said) == readme


def ten(wrong: int) -> dict[str, dict[str, float]]:
    return {f"{n}. edit": {"difference": float(n <= wrong), "effect": 2.0} for n in range(1, 11)}


def test_the_reruns_count_what_differs_on_the_newest_host():
    records = {
        "0.9.0": {rerun_page.OURS: ten(0), rerun_page.THEIRS: ten(0)},
        "0.33.0": {rerun_page.OURS: ten(1), rerun_page.THEIRS: ten(4)},
    }
    said = rerun_page.readme_sentence(records)
    assert "ComfyUI 0.33.0, **9 of 10** pictures" in said and "6 of 10 are" in said and "older" not in said, (
        "ours differ too"
    )
    text = rerun_page.section(records)
    assert (
        "| nodes | ComfyUI 0.9.0 | ComfyUI 0.33.0 |" in text
        and "| two Apply Image Attention | 10 of 10 as after a fresh start | 9 of 10" in text
    )
    assert text.count("| 1. edit | 1 | 2 |") == 2 and "| 4. edit | 1 | 2 |" in text and "5. edit" not in text
    assert "as on 1 older version;" in rerun_page.readme_sentence(
        {**records, "0.33.0": {rerun_page.OURS: ten(0), rerun_page.THEIRS: ten(4)}}
    )
    assert rerun_page.readme_sentence({"0.9.0": {rerun_page.OURS: ten(0)}}) == rerun_page.section({}) == ""
