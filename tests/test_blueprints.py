"""The subgraph blueprints as files: whole inside, with our nodes as they are, and a graph that tools/run.py can
read.
"""

from __future__ import annotations

import json
import subprocess

import pytest
from support.shipped_templates import CHECKPOINTS, OUTPUTS, SOCKETS, WIDGETS
from troupe.model_patches.checkpoints.catalogue import published_file
from troupe_tools.pack import ROOT
from troupe_tools.workflow.any_workflow import flatten_workflow
from troupe_tools.workflow.graph import Graph

FILES = sorted((ROOT / "subgraphs").iterdir())
OUTSIDE = {"inputNode": -10, "outputNode": -20}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def blueprint(request) -> dict:
    """One blueprint: a workflow of one subgraph node."""
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_there_are_two():
    assert [path.name for path in FILES] == ["Troupe Subjects in Boxes.json", "Troupe Two Subjects.json"]


def test_one_node_shows_the_subgraph_s_sockets(blueprint):
    [node], [inside] = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert node["type"] == inside["id"] and node["title"] == inside["name"] and inside["description"]
    for side in ("inputs", "outputs"):
        assert [(slot["name"], slot["type"]) for slot in node[side]] == [
            (slot["name"], slot["type"]) for slot in inside[side]
        ]
    assert not blueprint["links"] and all(slot["link"] is None for slot in node["inputs"])


def test_every_link_is_known_at_both_ends(blueprint):
    [inside] = blueprint["definitions"]["subgraphs"]
    nodes = {node["id"]: node for node in inside["nodes"]}
    assert {key: inside[key]["id"] for key in OUTSIDE} == OUTSIDE
    for link in inside["links"]:
        if link["origin_id"] == -10:
            assert (
                link["id"] in inside["inputs"][link["origin_slot"]]["linkIds"]
                and inside["inputs"][link["origin_slot"]]["type"] == link["type"]
            )
        else:
            output = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in output["links"] and output["type"] == link["type"]
        if link["target_id"] == -20:
            assert link["id"] in inside["outputs"][link["target_slot"]]["linkIds"]
        else:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
    ids = {link["id"] for link in inside["links"]}
    used = {slot["link"] for node in nodes.values() for slot in node["inputs"]} - {None}
    used |= {id_ for node in nodes.values() for slot in node["outputs"] for id_ in slot["links"] or ()}
    used |= {id_ for side in ("inputs", "outputs") for slot in inside[side] for id_ in slot["linkIds"]}
    assert used == ids and max(ids) == inside["state"]["lastLinkId"] and max(nodes) == inside["state"]["lastNodeId"]


def test_nodes_inside_are_the_contract_s(blueprint):
    [inside] = blueprint["definitions"]["subgraphs"]
    for node in inside["nodes"]:
        assert [slot["widget"]["name"] for slot in node["inputs"] if "widget" in slot] == WIDGETS[node["type"]]
        assert len(node["widgets_values"]) == len(WIDGETS[node["type"]])
        if node["type"] in SOCKETS:
            assert [slot["name"] for slot in node["inputs"] if "widget" not in slot] == SOCKETS[node["type"]] and len(
                node["outputs"]
            ) == OUTPUTS[node["type"]]
        for model in node["properties"].get("models", ()):
            assert (
                published_file(model["name"]).link if model["name"] not in CHECKPOINTS else CHECKPOINTS[model["name"]]
            ) == model["url"]


def test_the_widgets_outside_have_names_that_say_whose_they_are(blueprint):
    """Names, prompt and negative prompt are inputs of the subgraph ("-1"), since a node's own widgets keep the names
    that two nodes share.
    """
    [inside] = blueprint["definitions"]["subgraphs"]
    promoted = blueprint["nodes"][0]["properties"]["proxyWidgets"]
    by_id = {str(node["id"]): node for node in inside["nodes"]}
    wired = {(id_, slot["name"]) for id_, node in by_id.items() for slot in node["inputs"] if slot["link"] is not None}
    own = [(id_, name) for id_, name in promoted if id_ != "-1"]
    assert own and all(name in WIDGETS[by_id[id_]["type"]] and (id_, name) not in wired for id_, name in own)
    named = {slot["name"]: slot["linkIds"] for slot in inside["inputs"]}
    links = {link["id"]: link for link in inside["links"]}
    ends = [by_id[str(links[id_]["target_id"])] for _, name in promoted if name in named for id_ in named[name]]
    assert [node["title"] for node in ends] == ["Subject 1", "Subject 2", "Prompt", "Negative"]
    assert len(blueprint["nodes"][0]["widgets_values"]) == len(promoted)


def test_the_tools_lay_it_open(blueprint):
    graph = Graph(flatten_workflow(blueprint))
    [apply] = graph.of_type("TroupeApplyImageAttention")
    encode = graph.source(apply, "references")[0]
    assert graph.source(encode, "adapter")[0].type == "TroupeLoadAdapter"
    names = {node.raw["title"]: node.raw["widgets_values"][0] for node in graph.of_type("TroupeAddSubject")}
    assert names == {"Subject 1": "astronaut", "Subject 2": "cat"}
    boxed = graph.source(encode, "cast")[0].type == "TroupePlaceSubjects"
    assert boxed == ("boxes" in blueprint["nodes"][0]["title"])


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
def test_the_registry_gets_them():
    """What is published is what git has without .comfyignore's; neither list of patterns keeps the folder out."""
    files = [*map(str, FILES), *map(str, (ROOT / "samples").iterdir())]

    def kept_out(options: list[str], names: list[str]) -> str:
        command = ["git", *options, "check-ignore", "--no-index", *names]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout

    published_file = ["-c", f"core.excludesFile={ROOT / '.comfyignore'}"]
    assert kept_out([], files) == kept_out(published_file, files) == ""
    assert kept_out(published_file, ["tests/conftest.py"]) == "tests/conftest.py\n"  # that is, the patterns are read
