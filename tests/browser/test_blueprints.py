"""The subgraph blueprints in the front end: one node with its widgets outside, and all of the graph inside."""
import json

import pytest
from graph import ROOT

FILES = sorted((ROOT / "subgraphs").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_blueprint_opens_with_its_widgets_outside(path, page):
    saved = json.loads(path.read_text(encoding="utf-8"))
    [inside] = saved["definitions"]["subgraphs"]
    page.page.evaluate("async (graph) => { await window.app.loadGraphData(graph); }", saved)
    page.settle(1200)
    page.outside.clear()  # the links are asked how large the missing files are
    [node] = page.page.evaluate("""() => window.app.graph._nodes.map((n) => ({
      inputs: (n.inputs ?? []).filter((i) => !i.widget).map((i) => i.name), outputs: n.outputs.map((o) => o.name),
      widgets: (n.widgets ?? []).map((w) => [String(w.label ?? w.name), w.value]), inside: n.subgraph.nodes.map((m) => m.type)}))""")
    assert node["outputs"] == [slot["name"] for slot in saved["nodes"][0]["outputs"]]
    assert node["inputs"] == [slot["name"] for slot in saved["nodes"][0]["inputs"]]
    assert sorted(node["inside"]) == sorted(one["type"] for one in inside["nodes"])
    values = [value for _, value in node["widgets"]]
    assert "astronaut" in values and "cat" in values and any("astronaut and a cat" in str(value) or "astronaut on the left" in str(value) for value in values)
    sent = page.page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert sorted(one["class_type"] for one in sent.values()) == sorted(node["inside"])
    page.page.keyboard.press("Escape")
