"""Bypassed nodes (Ctrl+B): which input each output hands on, by the front end's rule. tests/browser/test_bypass.py asks
the front end itself.
"""

from __future__ import annotations

import copy
import json

import pytest
from troupe_tools.pack import ROOT
from troupe_tools.workflow.graph import BYPASSED, Graph, can_be_wired, passed_on
from troupe_tools.workflow.job import read_job

CONTRACT = json.loads((ROOT / "tests" / "golden" / "node_contract.json").read_text())["nodes"]
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
WIDGETS = {"COMBO", "STRING", "FLOAT", "INT", "BOOLEAN"}
CARRIED = {"MODEL", "CLIP", "CONDITIONING", "TROUPE_CAST", "LATENT", "INT", "STRING"}
OWN = {"second positive": "middle"}  # output -> the input of the same meaning, where the names differ


def as_added(id: str) -> dict:
    """A node as the front end adds it from the menu: sockets first, required before optional, then the widgets."""
    entries = sorted(
        CONTRACT[id]["inputs"],
        key=lambda e: (e["type"] in WIDGETS and not e.get("forceInput"), e.get("optional", False)),
    )
    return {"inputs": [{"name": e["id"], "type": e["type"]} for e in entries], "outputs": CONTRACT[id]["outputs"]}


def check_hand_on(raw: dict) -> int:
    """Every carried output hands on the input of its own name. Returns how many outputs have one."""
    names, count = [one["name"] for one in raw["inputs"]], 0
    for slot, output in enumerate(raw["outputs"]):
        own = OWN.get(output["name"], output["name"])
        if output["type"] in CARRIED and own in names:
            assert passed_on(raw, slot, output["type"])["name"] == own, (output, names)
            count += 1
    return count


def test_every_node_hands_on_its_own_inputs():
    found = {id: check_hand_on(as_added(id)) for id in CONTRACT}
    assert {id: n for id, n in found.items() if n} == {
        "TroupeApplyWeights": 2,
        "TroupeAddSubject": 1,
        "TroupeKeepBest": 1,
        "TroupePlaceSubjects": 5,
        "TroupeApplyImageAttention": 4,
        "TroupeApplyGated": 4,
        "TroupeRecordRelevance": 1,
        "TroupeQuickSubjects": 3,
    }


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_saved_node_of_a_template_hands_on_its_own_inputs(path):
    nodes = [node for node in json.loads(path.read_text())["nodes"] if node["type"].startswith("Troupe")]
    assert nodes
    for node in nodes:
        check_hand_on(node)


@pytest.mark.parametrize(
    ("slot", "kind", "expected"),
    [
        (0, "MODEL", "model"),
        (1, "CONDITIONING", "first"),  # slot 1 is an image, so the first input of the type
        (3, "CONDITIONING", "second"),  # the same slot number wins over the first of the type
        (2, "MASK", "any"),  # nothing has the type: the first that takes it
        (4, "LATENT", "any"),
        (1, "*", "image"),  # a socket that takes anything gets the same slot number, whatever is in it
        (9, "*", "model"),
    ],
)
def test_the_front_ends_rule(slot, kind, expected):
    inputs = [
        ("model", "MODEL"),
        ("image", "IMAGE"),
        ("first", "CONDITIONING"),
        ("second", "CONDITIONING"),
        ("any", "*"),
    ]
    outputs = ["MODEL", "CONDITIONING", "MASK", "CONDITIONING", "LATENT"]
    raw = {
        "inputs": [{"name": name, "type": type} for name, type in inputs],
        "outputs": [{"name": type, "type": type} for type in outputs],
    }
    assert passed_on(raw, slot, kind)["name"] == expected
    raw["inputs"].pop()
    assert expected != "any" or passed_on(raw, slot, kind) is None


def test_types_fit_as_in_the_front_end():
    assert (
        can_be_wired("*", "MODEL")
        and can_be_wired("MODEL", "")
        and can_be_wired("IMAGE,MASK", "mask")
        and not can_be_wired("IMAGE,MASK", "LATENT")
    )


def with_bypassed(workflow: dict, type: str, outputs: tuple[str, ...], inputs: tuple[str, ...]) -> dict:
    """The workflow with a bypassed node before the positive and negative of Apply Image Attention."""
    changed = copy.deepcopy(workflow)
    apply = next(node for node in changed["nodes"] if node["type"] == "TroupeApplyImageAttention")
    new = {
        "id": 900,
        "type": type,
        "mode": BYPASSED,
        "widgets_values": [],
        "inputs": [{"name": name, "type": "CONDITIONING", "link": None} for name in inputs],
        "outputs": [{"name": name, "type": "CONDITIONING", "links": []} for name in outputs],
    }
    changed["nodes"].append(new)
    for name in ("positive", "negative"):
        at = next(i for i, one in enumerate(apply["inputs"]) if one["name"] == name)
        link = next(link for link in changed["links"] if link[0] == apply["inputs"][at]["link"])
        link[3], link[4] = 900, inputs.index(name)
        new["inputs"][inputs.index(name)]["link"] = link[0]
        number = max(link[0] for link in changed["links"]) + 1
        changed["links"].append([number, 900, outputs.index(name), apply["id"], at, "CONDITIONING"])
        apply["inputs"][at]["link"] = number
    return changed


@pytest.mark.parametrize("inputs", [("positive", "negative"), ("negative", "positive")])
def test_the_embedded_engine_reads_past_a_bypassed_control_net(inputs):
    """Same slot first, so with inputs in the other order the prompts are exchanged, as in the front end."""
    workflow = json.loads((ROOT / "workflows" / "4_two_subjects.json").read_text())
    plain = read_job(workflow)
    job = read_job(with_bypassed(workflow, "ControlNetApplyAdvanced", ("positive", "negative"), inputs))
    expected = (plain.prompt, plain.negative) if inputs[0] == "positive" else (plain.negative, plain.prompt)
    assert plain.prompt != plain.negative and (job.prompt, job.negative) == expected


def test_a_bypassed_apply_node_gives_the_sampler_its_own_prompts():
    workflow = json.loads((ROOT / "workflows" / "4_two_subjects.json").read_text())
    next(node for node in workflow["nodes"] if node["type"] == "TroupeApplyImageAttention")["mode"] = BYPASSED
    graph = Graph(workflow)
    sampler = graph.of_type("KSampler")[0]
    texts = [graph.value(graph.source(sampler, name)[0], "text") for name in ("positive", "negative")]
    job = read_job(json.loads((ROOT / "workflows" / "4_two_subjects.json").read_text()))
    record = graph.source(sampler, "model")[0]
    assert (
        texts == [job.prompt, job.negative]
        and record.type == "TroupeRecordRelevance"
        and graph.source(record, "model")[0].type == "CheckpointLoaderSimple"
    )
