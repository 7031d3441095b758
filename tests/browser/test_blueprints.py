"""The subgraph blueprints in the front end: one node with all of the graph inside, and its widgets outside where the
front end can show them there.
"""

import json
import urllib.error
import urllib.request

import pytest
from troupe_tools.pack import ROOT

FILES = sorted((ROOT / "subgraphs").glob("*.json"))


def serves_blueprints(server):
    try:
        with urllib.request.urlopen(server.url + "/global_subgraphs", timeout=30):
            return True
    except urllib.error.HTTPError:
        return False


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_blueprint_opens_with_its_widgets_outside(path, page, server, front_end):
    saved = json.loads(path.read_text(encoding="utf-8"))
    [inside] = saved["definitions"]["subgraphs"]
    page.page.evaluate("async (graph) => { await window.app.loadGraphData(graph); }", saved)
    page.settle(1200)
    page.outside.clear()  # the links are asked how large the missing files are
    [node] = page.page.evaluate("""() => window.app.graph._nodes.map((n) => ({
      inputs: (n.inputs ?? []).filter((i) => !i.widget).map((i) => i.name), outputs: n.outputs.map((o) => o.name),
      widgets: (n.widgets ?? []).map((w) => [String(w.label ?? w.name), w.value]), inside: n.subgraph.nodes.map((m) => m.type)}))""")
    assert node["outputs"] == [slot["name"] for slot in saved["nodes"][0]["outputs"]]
    assert node["inputs"] == [slot["name"] for slot in saved["nodes"][0]["inputs"] if "widget" not in slot]
    assert sorted(node["inside"]) == sorted(one["type"] for one in inside["nodes"])
    labels = ["name of subject 1", "name of subject 2", "prompt", "negative prompt"]
    assert [label for label, _ in node["widgets"]][:4] == labels and [value for _, value in node["widgets"]][:2] == [
        "astronaut",
        "cat",
    ]
    values = [value for _, value in node["widgets"]]
    if front_end or serves_blueprints(server):  # the front end of an older host shows no widgets of a subgraph outside
        assert len(values) >= len(saved["nodes"][0]["properties"]["proxyWidgets"]) and {"astronaut", "cat"} <= {
            value for value in values if isinstance(value, str)
        }
    sent = page.page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert sorted(one["class_type"] for one in sent.values()) == sorted(node["inside"])
    assert sorted(one["inputs"]["name"] for one in sent.values() if one["class_type"] == "TroupeAddSubject") == [
        "astronaut",
        "cat",
    ]
    page.page.keyboard.press("Escape")
    page.page.evaluate("""() => {
      const widget = window.app.graph._nodes[0].widgets[1];
      widget.value = "robot";
      widget.callback?.("robot");
    }""")
    sent = page.page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert sorted(one["inputs"]["name"] for one in sent.values() if one["class_type"] == "TroupeAddSubject") == [
        "astronaut",
        "robot",
    ], "what is typed outside is sent"
