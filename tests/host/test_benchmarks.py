"""The benchmark on the real host, small: runs held open side by side, what is counted, and a page from it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.usefixtures("host")
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(FOLDER))
LATENT = (1, 4, 16, 16)


@pytest.fixture
def contenders(tmp_path):
    from bases import base
    from contenders import Contenders

    return Contenders(base("micro", torch.float32), torch.float32, tmp_path)


def test_a_step_of_a_run_held_open_is_that_of_a_run_alone(contenders):
    from live import hold

    names, alone, together = ["text", "relevance 2x4", "relevance 2x4+regions", "gated 2", "core-gligen 2"], {}, {}
    with torch.inference_mode():
        wired = {}
        for number, name in enumerate(names):
            torch.manual_seed(number)
            wired[name] = contenders.wired(name)
            hold({name: wired[name]}, LATENT, lambda steps, name=name: alone.update({name: steps[name]().clone()}))
        hold(
            wired,
            LATENT,
            lambda steps: together.update({name: step().clone() for name, step in reversed(steps.items())}),
        )
    for name in names:
        assert torch.equal(together[name], alone[name]), name
    for name in names[1:]:
        assert (together[name] - together["text"]).abs().max() > 1e-3 * together["text"].abs().max(), (
            "nothing acts, so nothing is timed"
        )


def test_what_waits_and_what_grows_is_seen(contenders):
    from live import hold
    from measure import counts, kept_by
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        compilers = torch.zeros(4)  # has no numbers, and no place that could be asked for
    model, positive, negative = contenders.wired("relevance 2x4")
    bad, heap = model.clone(), []
    bad.set_model_attn2_patch(
        lambda n, context, value, options: (heap.append(torch.zeros(1000)), float(n.sum()), n, context, value)[2:]
    )
    found = {}

    def measure(steps):
        found.update({name: (counts(step), kept_by(step, 5)) for name, step in steps.items()})

    with torch.inference_mode():
        hold({"good": (model, positive, negative), "bad": (bad, positive, negative)}, LATENT, measure)
    (good, kept), (waiting, grown) = found["good"], found["bad"]
    assert compilers.shape == (4,) and (good.scalars, kept) == (0, 0) and waiting.scalars > 0 and grown >= 5 * 4000
    assert waiting.operators > good.operators > 100 and good.peak > 1000 and good.launches is None


def test_the_least_cost_takes_the_layers_where_they_are(contenders):
    from theory import added, layer

    found = added(contenders.blocks, LATENT, "relevance 2x4", 4)
    positions = [16 * 16 if block.level == 0 else 8 * 8 for block in contenders.blocks]
    assert {block.level for block in contenders.blocks} == {0, 1}
    assert found.flops == 2 * sum(
        layer(n, block.width, 8, 6, True, 4).flops for n, block in zip(positions, contenders.blocks, strict=True)
    )


def test_a_whole_benchmark_writes_its_page(tmp_path):
    command = [
        sys.executable,
        str(FOLDER / "run.py"),
        "--base",
        "micro",
        "--pixels",
        "64",
        "--pairs",
        "6",
        "--threads",
        "1",
        "--out",
        str(tmp_path),
    ]
    if pack := os.environ.get("TROUPE_IPADAPTER_PLUS"):
        command += ["--ipadapter-plus", pack]
    runs = ["relevance 1x4", "relevance 2x4", "gated 1"] + (["ipadapter-plus 2x4"] if pack else [])
    subprocess.run([*command, "--runs", *runs], check=True, timeout=300)
    (table,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (
        list(table["rows"]) == ["text", *runs]
        and table["pairs"] == table["rows"]["relevance 1x4"]["ratio"]["count"] == 6
    )
    assert all(table["rows"][run]["ratio"]["count"] == (18 if pack else 6) for run in runs if run.endswith("2x4")), (
        "beside the other pack more is to be told"
    )
    assert set(table["rows"]["relevance 2x4"]["growth"]) == {"relevance 1x4"}
    assert (
        0
        < table["rows"]["relevance 1x4"]["held"]
        <= table["rows"]["relevance 2x4"]["held"]
        < 1.1 * table["rows"]["relevance 1x4"]["held"]
    ), "weights are there once"
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "## micro, 64 px, float32, CPU, 1 threads, 6 rounds" in page and all(f"| {run} | " in page for run in runs)
