"""Ctrl+B in the real front end: every output of a bypassed node hands on the input of its own name, and the tools read
saved files by the same rule.
"""

import json

import pytest
from troupe_tools.pack import ROOT
from troupe_tools.workflow.graph import BYPASSED, MUTED, Graph

TEXTS = {"positive": 3, "negative": 4, "middle": 5}  # prompt -> id of the node that encodes it
SINKS = {
    "MODEL": ("KSampler", "model"),
    "CLIP": ("CLIPTextEncode", "clip"),
    "CONDITIONING": ("ConditioningZeroOut", "conditioning"),
    "TROUPE_CAST": ("TroupePlaceSubjects", "cast"),
    "LATENT": ("KSampler", "latent_image"),
    "INT": ("EmptyLatentImage", "width"),
    "STRING": ("CLIPTextEncode", "text"),
}
OWN = {"second positive": "middle"}
CARRYING = {  # node -> what it hands on
    "TroupeApplyImageAttention": ("model", "positive", "negative", "middle"),
    "TroupeApplyGated": ("model", "positive", "negative", "middle"),
    "TroupeQuickSubjects": ("model", "positive", "negative"),
    "TroupeApplyWeights": ("model", "clip"),
    "TroupeRecordRelevance": ("model",),
    "TroupeAddSubject": ("cast",),
    "TroupePlaceSubjects": ("cast", "boxes", "latent", "width", "height"),
}
NODE, CAST = 10, 6
OTHERS = {
    "boxes": (7, "PrimitiveString", {"value": "[]"}),
    "latent": (8, "EmptyLatentImage", {}),
    "width": (9, "PrimitiveInt", {"value": 640}),
    "height": (11, "PrimitiveInt", {"value": 448}),
}  # input -> id, class and widgets of the node that feeds it
REGISTRY = "https://api.comfy.org/"


def build(page, type, mode):
    """The node with a source at each of these inputs, and a node that takes each of its outputs; {output name: (id,
    input) that takes it}.
    """
    page.clear()
    page.build(
        [
            (1, "CheckpointLoaderSimple", {}, (0, 0)),
            (NODE, type, {}, (600, 0)),
            (CAST, "TroupeAddSubject", {"name": "cat"}, (0, 900)),
            *((id_, kind, values, (0, 1200 + 200 * id_)) for id_, kind, values in OTHERS.values()),
            *((id_, "CLIPTextEncode", {"text": name}, (300, 200 * id_)) for name, id_ in TEXTS.items()),
        ]
    )
    sockets = page.evaluate(
        "(id) => { const n = window.graphNode(id); return [n.inputs, n.outputs].map((all) => all.map((s) => "
        "[s.name, s.type])); }",
        NODE,
    )
    sources = {
        "model": (1, 0),
        "clip": (1, 1),
        "cast": (CAST, 0),
        **{name: (id_, 0) for name, (id_, *_) in OTHERS.items()},
        **{name: (id_, 0) for name, id_ in TEXTS.items()},
    }
    links = [(*sources[name], NODE, name) for name, _ in sockets[0] if name in sources]
    sinks, taken = [], {}
    for slot, (name, kind) in enumerate(sockets[1]):
        if kind in SINKS:
            id_, (sink, into) = 20 + slot, SINKS[kind]
            sinks.append((id_, sink, {}, (1100, 200 * slot)))
            links.append((NODE, slot, id_, into))
            taken[OWN.get(name, name)] = (str(id_), into)
    page.build(sinks, links)
    page.evaluate("([id, mode]) => { window.graphNode(id).mode = mode; }", NODE, mode)
    return sources, taken


@pytest.mark.parametrize("type", CARRYING)
def test_a_bypassed_node_hands_on_its_own_inputs(type, page):
    sources, taken = build(page, type, BYPASSED)
    assert tuple(taken) == CARRYING[type]
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert {name: prompt[id_]["inputs"].get(into) for name, (id_, into) in taken.items()} == {
        name: [str(sources[name][0]), sources[name][1]] for name in taken
    }
    graph = Graph(page.evaluate("() => window.app.graph.serialize()"))
    assert graph.nodes[NODE].mode == BYPASSED
    for name, (id_, into) in taken.items():
        source, slot = graph.source(graph.nodes[int(id_)], into)
        assert (source.id, slot) == sources[name]


@pytest.mark.parametrize("type", CARRYING)
def test_a_muted_node_hands_on_nothing(type, page):
    _, taken = build(page, type, MUTED)
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert not any(isinstance(prompt[id_]["inputs"].get(into), list) for id_, into in taken.values()), (
        "no wire; a field may have its own value"
    )
    graph = Graph(page.evaluate("() => window.app.graph.serialize()"))
    assert all(graph.source(graph.nodes[int(id_)], into) is None for id_, into in taken.values())


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "workflows").glob("*.json"))])
def test_a_template_with_its_troupe_nodes_bypassed_gives_its_own_prompts(name, page):
    """Each of them alone: what the samplers get by name stays theirs."""
    saved = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    for raw in saved["nodes"]:
        if raw["type"] in ("TroupeApplyImageAttention", "TroupeApplyGated", "TroupeQuickSubjects"):
            page.page.evaluate("async (graph) => { await window.app.loadGraphData(graph); }", saved)
            page.evaluate("(id) => { window.graphNode(id).mode = 4; }", raw["id"])
            prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
            links = {link[0]: link for link in saved["links"]}
            given = {one["name"]: one["link"] for one in raw["inputs"]}
            for slot, output in enumerate(raw["outputs"]):
                own = OWN.get(output["name"], output["name"])
                for number in output.get("links") or [] if given.get(own) is not None else []:
                    target = next(node for node in saved["nodes"] if node["id"] == links[number][3])
                    into = target["inputs"][links[number][4]]["name"]
                    if str(target["id"]) in prompt:
                        assert prompt[str(target["id"])]["inputs"][into] == [
                            str(links[given[own]][1]),
                            links[given[own]][2],
                        ], (raw["title"], output["name"], slot)
    page.page.keyboard.press("Escape")
    # newer front ends ask for the files that a template names, and all of them for a node that is not there
    page.outside.clear()
    page.errors[:] = [error for error in page.errors if REGISTRY not in error]
