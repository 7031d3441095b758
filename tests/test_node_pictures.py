"""The pictures on the help pages show the nodes as they are."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
from troupe_tools.dev.node_pictures import CONTRACT, DOCS, USUAL, WIDGETS, picture, pictures
from troupe_tools.pack import ROOT

NODES = json.loads(CONTRACT.read_text(encoding="utf-8"))["nodes"]
OURS = {node["display_name"]: node for node in NODES.values()}


def words_of(svg: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_the_pictures_are_those_of_the_contract():
    drawn = pictures()
    assert {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.svg")} == drawn, (
        "run python tools/node_pictures.py"
    )
    assert set(USUAL) == set(NODES)


@pytest.mark.parametrize("id", sorted(NODES))
def test_a_page_shows_its_picture_before_the_inputs(id):
    page = (ROOT / "web" / "docs" / f"{id}.md").read_text(encoding="utf-8")
    assert 0 < page.index(f"![The node {NODES[id]['display_name']}]({id}.svg)\n") < page.index("## Inputs\n")


@pytest.mark.parametrize("id", NODES)
def test_a_page_has_its_parts(id):
    """What the node does, its inputs, its outputs, and what people get wrong, in this order."""
    page = (ROOT / "web" / "docs" / f"{id}.md").read_text(encoding="utf-8")
    heads = [page.index(head) for head in ("\n## Inputs\n", "\n## Output", "\n## Common mistakes\n")]
    assert len(page[: heads[0]]) > 150 and sorted(heads) == heads and page[heads[2] :].count("\n- **") >= 3


@pytest.mark.parametrize("id", NODES)
def test_a_picture_names_every_input_and_output(id):
    words = words_of(picture(id, NODES[id]))
    assert words[0] == NODES[id]["display_name"]
    for entry in NODES[id]["inputs"]:
        assert entry.get("shown_as", entry["id"]) in words
        if entry["type"] in WIDGETS and entry.get("default") not in (None, ""):
            assert str(entry["default"]) in words
    for entry in NODES[id]["outputs"]:
        assert entry["name"] in words


@pytest.mark.parametrize("id", NODES)
def test_what_is_wired_fits(id):
    """Sockets that the picture wires exist, and a wire between two of ours is possible by its type."""
    before, after = USUAL[id]
    inputs, outputs = (
        {e["id"]: e["type"] for e in NODES[id]["inputs"]},
        {e["name"]: e["type"] for e in NODES[id]["outputs"]},
    )
    assert set(before) <= set(inputs) and set(after) <= set(outputs)
    assert all(
        {e["type"] for e in OURS[node]["outputs"]} & set(inputs[name].split(","))  # an input may take several types
        for name, node in before.items()
        if node in OURS
    )
    assert all(
        outputs[name] in {kind for e in OURS[node]["inputs"] for kind in e["type"].split(",")}
        for name, node in after.items()
        if node in OURS
    )


@pytest.mark.parametrize("id", NODES)
def test_a_picture_loads_nothing_and_runs_nothing(id):
    svg = picture(id, NODES[id])
    assert svg.count("http") == 1 and not {"script", "href", "style", "image"} & {
        element.tag.split("}")[1] for element in ElementTree.fromstring(svg).iter()
    }
