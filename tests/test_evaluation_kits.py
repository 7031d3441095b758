"""The settings for published benchmarks and models: each is read, and runs on a made-up folder with small random models
that score and a ComfyUI that is not there.
"""

from __future__ import annotations

import csv
import zipfile
from functools import partial
from pathlib import Path

import pytest
from support import fake_benchmarks as fake
from support import tiny_annotators as tiny
from support.fake_comfyui import Host, engine_on
from troupe.evaluation import making, run
from troupe.evaluation.engines import comfyui
from troupe.evaluation.scores.making import PRESETS
from troupe.evaluation.settings import read_settings
from troupe_tools.pack import ROOT

MIP_NEGATIVE = "monochrome, lowres, bad anatomy, worst quality, low quality"
MIP = [  # checkpoint, adapter, weight, steps, cfg, negative
    ("sd_xl_base_1.0.safetensors", "model_sdxl.bin", 0.75, 30, 5.0, MIP_NEGATIVE),
    ("RealVisXL_V1.0.safetensors", "model_sdxl_plus.bin", 0.65, 30, 5.0, MIP_NEGATIVE),
]
PLUS_NEGATIVE = "deformed, ugly, wrong proportion, low res, bad anatomy, worst quality, low quality"
KITS = {  # file -> maker of its benchmark, preset, first seed and seeds, values of its graphs by method
    "concept101_mip_adapter": (fake.concept101, "mip_adapter", (420, 1), MIP),
    "dreambench_subject_diffusion": (
        *(fake.dreambench, "dreambooth", (0, 6)),
        [("v2-1_512-ema-pruned.safetensors", "subject_diffusion.safetensors", None, 50, 7.5, ""), MIP[1]],
    ),
    "dreambench_pairs": (fake.dreambench, "dreambooth", (0, 6), [*MIP, MIP[1]]),
    "dreambench_plus": (
        *(fake.dreambench_plus, "dreambench++", (42, 1)),
        [
            ("sd_xl_base_1.0.safetensors", f"{adapter}.safetensors", 0.6, 100, 7.5, PLUS_NEGATIVE)
            for adapter in ("ip-adapter-plus_sdxl_vit-h", "ip-adapter_sdxl")
        ],
    ),
    "xverse": (
        *(fake.xverse, "xverse", (0, 4)),
        [MIP[1], ("v1-5-pruned-emaonly-fp16.safetensors", "fastcomposer.bin", None, 50, 5.0, "")],
    ),
}
ONE_SUBJECT = {"dreambench_subject_diffusion", "dreambench_plus"}  # of which none can take another one's looks
REHEARSAL = {"rehearsal", "object_relevance"}


def test_there_is_a_kit_for_every_published_suite():
    assert {path.stem for path in (ROOT / "evaluation").glob("*.toml")} == {*KITS, *REHEARSAL}


@pytest.fixture(scope="module")
def scoring(tmp_path_factory):
    """A small random model for each part."""
    place = tmp_path_factory.mktemp("models")
    makers = {"clip": tiny.save_clip, "dino": tiny.save_dino, "dinov2": tiny.save_dinov2}
    makers["detector"] = tiny.save_grounding_dino
    return {name: make(place / name).as_posix() for name, make in makers.items()}


def values_of(graph: dict) -> tuple:
    """Checkpoint, adapter, weight, steps, cfg and negative prompt of a graph."""
    nodes = {node["class_type"]: node["inputs"] for node in graph.values()}
    steps = nodes.get("KSampler") or nodes["BasicScheduler"]
    cfg = nodes.get("KSampler") or nodes["TroupeSubjectGuider"]
    return (
        nodes["CheckpointLoaderSimple"]["ckpt_name"],
        nodes["TroupeLoadAdapter"]["adapter_name"],
        nodes.get("TroupeApplyImageAttention", {}).get("weight"),
        *(steps["steps"], cfg["cfg"]),
        graph["negative"]["inputs"]["text"],
    )


@pytest.mark.slow
@pytest.mark.parametrize("kit", KITS)
def test_a_kit_runs_on_a_folder(kit, tmp_path, scoring, monkeypatch):
    make, preset, seeds, values = KITS[kit]
    monkeypatch.chdir(ROOT)  # where the command is started
    monkeypatch.setattr(comfyui, "POLL", (0.001, 0.002))
    host, benchmark = Host(), make(tmp_path / "benchmark")
    monkeypatch.setattr(making, "ComfyUIEngine", partial(engine_on, host))
    file, folder = ROOT / "evaluation" / f"{kit}.toml", tmp_path / "results"
    asked = read_settings(file)
    assert (asked.scores.preset, asked.suite.first_seed, asked.suite.seeds) == (preset, *seeds)
    assert asked.engine.kind == "comfyui" and asked.output.zip and Path(asked.output.folder).name.startswith(kit)
    overrides = [f"suite.folder={benchmark.as_posix()}", f"output.folder={folder.as_posix()}", "suite.cases=1"]
    overrides.append("engine.servers=http://ann:secret@one:8188, https://bob:p@ss@two:8189")
    read = [part for part in scoring if part in PRESETS[preset] or getattr(asked.scores, part)]
    overrides += ["suite.seeds=1", *(f"scores.{part}={scoring[part]}" for part in read)]
    if asked.suite.crops:
        overrides.append(f"suite.crops={fake.concept_boxes(tmp_path / 'boxes', benchmark).as_posix()}")
    settings = read_settings(file, overrides)
    report = run.evaluate(settings).read_text(encoding="utf-8")
    count = len(values)
    assert f"{count} of {count} pictures are painted and scored." in report
    assert sorted(map(values_of, host.graphs), key=str) == sorted(values, key=str)  # of two servers
    for graph in host.graphs:
        [seed] = [
            node["inputs"].get("seed", node["inputs"].get("noise_seed"))
            for node in graph.values()
            if node["class_type"] in ("KSampler", "RandomNoise")
        ]
        assert seed == seeds[0]
    rows = list(csv.DictReader((folder / "scores.csv").open(encoding="utf-8")))
    assert [row["method"] for row in rows] == [method.name for method in settings.methods]
    assert all(row["clip_i"] and row["clip_t"] for row in rows)
    assert kit != "xverse" or {"ip_sim", "ip_sim_dinov2"} < rows[0].keys() and "ip_sim_dino" not in rows[0]
    assert kit in ONE_SUBJECT or all(0 <= float(row["scr_0.5"]) <= 1 for row in rows)
    with zipfile.ZipFile(folder / "results.zip") as archive:
        assert {"report.md", "scores.csv", "settings.json", "sheet.png"} == set(archive.namelist())
        attached = b"".join(map(archive.read, archive.namelist()))
    assert b"http://one:8188, https://two:8189" in attached
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert not any(word in found for word in (b"secret", b"p@ss", b"ann:", b"bob") for found in (attached, kept))
