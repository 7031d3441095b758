"""A whole graph in the host's own executor: a sampled batch, its record, its scores, and the best picture."""

from __future__ import annotations

import copy
import json
import re

import pytest
from support.host.host_executor import studio_with_our_nodes
from troupe_tools.dev.best_thumbnail import paint_scored
from troupe_tools.pack import ROOT
from troupe_tools.workflow.any_workflow import as_prompt, flatten_workflow, for_the_host

PROMPT = "a cat and a robot on grass"


@pytest.fixture
def studio(host, base_folder, monkeypatch):
    return studio_with_our_nodes(base_folder, monkeypatch)


def graph(batch: int, scores: tuple[str, int] = ("12", 0)) -> dict:
    steps = {"start_percent": 0.0, "end_percent": 1.0}
    subject = {"weight": 1.0, **steps}
    box = {"box_strength": 1.0, "box_end_percent": 1.0, "box_feather": 0.05, "sharpness": 1.0, "background": 1.0}
    sampler = {"seed": 3, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    made = {
        "1": ("TroupeRehearsal", {"adapter": "mip_adapter", "subject_1": "cat", "subject_2": "robot"}),
        "2": ("TroupeAddSubject", {"image": ["1", 5], "name": "cat", **subject}),
        "3": ("TroupeAddSubject", {"image": ["1", 6], "name": "robot", "cast": ["2", 0], **subject}),
        "4": ("TroupeEncodeSubjects", {"adapter": ["1", 4], "cast": ["3", 0], "framing": "auto", "clip": ["1", 1]}),
        "5": ("CLIPTextEncode", {"clip": ["1", 1], "text": PROMPT}),
        "6": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
        "7": (
            "TroupeApplyImageAttention",
            {
                "model": ["1", 0],
                "references": ["4", 0],
                "positive": ["5", 0],
                "negative": ["6", 0],
                "weight": 1.0,
                "merge": "relevance",
                **steps,
                **box,
            },
        ),
        "8": ("TroupeRecordRelevance", {"model": ["7", 0], "blocks": "all"}),
        "9": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": batch}),
        "10": (
            "KSampler",
            {"model": ["8", 0], "positive": ["7", 1], "negative": ["7", 2], "latent_image": ["9", 0], **sampler},
        ),
        "11": ("VAEDecode", {"samples": ["10", 0], "vae": ["1", 2]}),
        "12": (
            "TroupeScoreSubjects",
            {
                "image": ["11", 0],
                "encoder": "clip_vision",
                "threshold": 0.2,
                "prompt": PROMPT,
                "references": ["4", 0],
                "record": ["8", 1],
                "clip": ["1", 1],
            },
        ),
        "13": (
            "TroupeKeepBest",
            {"image": ["11", 0], "scores": list(scores), "keep": 1, "latent": ["10", 0]},
        ),
        "14": ("PreviewImage", {"images": ["13", 0]}),
    }
    made["1"][1]["subject_3"] = "bird"
    return {id_: {"class_type": kind, "inputs": inputs} for id_, (kind, inputs) in made.items()}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("slot", [0, 1], ids=["scores", "score"])
def test_the_best_of_what_was_sampled(studio, batch, slot):
    """By the JSON, and by the list of numbers."""
    assert studio.run(graph(batch, ("12", slot))) is None
    said = studio.messages("12")
    text = studio.server.executed["12"]["text"][0]
    assert text.count("subjects right, score") == batch and "No CLIP-T" in text
    assert ["mean of its pictures" in line for line in said["warnings"]].count(True) == (batch > 1)
    assert len(studio.server.executed["12"]["images"]) == batch
    assert len(studio.server.executed["14"]["images"]) == 1
    [done] = studio.messages("13")["done"]
    assert done.startswith("Kept picture ")
    best = max(float(re.search(r"score (\d\.\d+)", line)[1]) for line in text.splitlines() if "subjects right" in line)
    assert done.endswith(f"({best:.2f}).")
    json.dumps(studio.server.executed)


def test_the_template_keeps_the_picture_that_its_thumbnail_frames(studio, monkeypatch):
    """As it is saved, in the host's executor; both engines choose the same one."""
    from troupe.rehearsal import files

    monkeypatch.setattr(files, "FOLDER", ROOT / "rehearsal" / "files")
    workflow = json.loads((ROOT / "workflows" / "9_rehearsal_keep_best.json").read_text(encoding="utf-8"))
    ids = {node["type"]: str(node["id"]) for node in workflow["nodes"]}
    assert studio.run(as_prompt(for_the_host(flatten_workflow(copy.deepcopy(workflow))))) is None
    expected = paint_scored(workflow)
    [done] = studio.messages(ids["TroupeKeepBest"])["done"]
    best = expected.scores.pictures[expected.best]
    assert done == f"Kept picture {expected.best + 1} ({best.score:.2f})."
    said = studio.messages(ids["TroupeScoreSubjects"])
    assert sum("2 of 2 subjects right" in line for line in said["done"]) == sum(
        one.all_right for one in expected.scores.pictures
    )
    assert len(studio.server.executed[ids["SaveImage"]]["images"]) == 1


def test_a_run_without_subjects_ends_with_a_sentence(studio):
    made = graph(1)
    del made["12"]["inputs"]["references"]
    made["12"]["inputs"]["clip_vision"] = ["1", 3]
    assert studio.run(made).startswith("Expected subjects to compare the picture with, found none. Connect")
