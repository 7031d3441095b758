"""tools/lay_out.py without a browser: nodes stacked by given heights."""

import re

import pytest
from troupe_tools.dev.lay_out import TALKING, restack
from troupe_tools.errors import RunError
from troupe_tools.pack import ROOT


def node(id_, x, y, w=300, h=100):
    return {"id": id_, "title": f"node {id_}", "pos": [x, y], "size": [w, h]}


def group(title, x, y, w, h):
    return {"title": title, "bounding": [x, y, w, h]}


@pytest.fixture
def workflow():
    """Two groups side by side, the first with two columns, and one below."""
    return {
        "nodes": [node(1, 0, 60), node(2, 0, 120), node(3, 340, 60), node(4, 700, 60), node("below", 0, 1000)],
        "groups": [
            group("left", -20, -20, 680, 500),
            group("right", 680, -20, 340, 300),
            group("below", -20, 900, 680, 300),
        ],
    }


def test_columns_are_stacked_by_the_measured_heights(workflow):
    restack(workflow, {"1": 156.4, "2": 130, "3": 500, "4": 90, "below": 101})
    assert [n["pos"] for n in workflow["nodes"]] == [[0, 60], [0, 270], [340, 60], [700, 60], [0, 670]]
    assert [g["bounding"] for g in workflow["groups"]] == [
        [-20, -20, 680, 570],
        [680, -20, 340, 570],
        [-20, 590, 680, 180],
    ]


def test_laying_out_twice_changes_nothing(workflow):
    heights = {"1": 156.4, "2": 130, "3": 500, "4": 90, "below": 101}
    restack(workflow, heights)
    before = repr(workflow)
    restack(workflow, heights)
    assert repr(workflow) == before


def test_a_node_outside_of_the_groups_is_named(workflow):
    workflow["nodes"][3]["pos"] = [2000, 60]
    with pytest.raises(RunError, match="found node 4 outside"):
        restack(workflow, {})


def test_room_is_left_for_the_messages_of_every_node_that_has_some():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "nodes").glob("*.py")]
    assert sorted(re.search(r'node_id="(\w+)"', source)[1] for source in sources if "messages.ui()" in source) == list(
        TALKING
    )
