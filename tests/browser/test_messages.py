"""What a node has to say stands on it, in full, until the next run says otherwise; beside a name, whether it is in the
prompt.
"""

import json
from uuid import uuid4

import pytest
from support.browser.message_boxes import CLOSE, HEIGHT, SEEN, lines, put, texts
from support.browser.served_templates import get, pack_folder

START = "1_start_here_rehearsal"


def start(page, server):
    """Open the first template as a graph that has not run yet, on a host that has no results of it; {class: ids}."""
    page.post("/free", {"free_memory": True})
    saved = json.loads(get(server, f"/api/workflow_templates/{pack_folder(server)}/{START}.json")) | {
        "id": str(uuid4())
    }
    page.evaluate("async (graph) => { await window.app.loadGraphData(graph, true, true, null); }", saved)
    page.settle(900)
    page.outside.clear()  # newer front ends ask for the files of the workflow they begin with
    found = {}
    for node in saved["nodes"]:
        found.setdefault(node["type"], []).append(node["id"])
    return found


def test_a_run_leaves_its_messages_until_the_next(page, server):
    ids = start(page, server)
    first, encode, apply, preview = (
        ids[f"Troupe{kind}"][0] for kind in ("AddSubject", "EncodeSubjects", "ApplyImageAttention", "PreviewRelevance")
    )
    assert lines(page, apply) == []
    put(page, first, "name", "knight")
    page.queue()
    assert any("'knight'" in text and "change the name" in text for text in texts(page, apply, "warning"))
    assert any("2 subjects" in text and " MB" in text and "layers" in text for text in texts(page, apply, "done"))
    assert any("'knight' (" in text and "image tokens" in text for text in texts(page, encode, "done"))
    assert any("of the picture" in text for text in texts(page, preview, "done"))
    page.evaluate(CLOSE, apply)
    page.settle()
    seen = page.evaluate(SEEN, apply)
    assert len(seen) >= 2 and all(height > 10 and below and beside for height, below, beside in seen), (
        f"every line is readable in full: {seen}"
    )
    size = page.evaluate(HEIGHT, apply)
    put(page, first, "name", "cat")
    page.queue()
    assert texts(page, apply, "warning") == [] and len(texts(page, apply, "done")) >= 1
    assert page.evaluate(HEIGHT, apply) < size, "the node takes back the room"


def test_messages_outlive_a_reload(page, server):
    ids = start(page, server)
    apply = ids["TroupeApplyImageAttention"][0]
    put(page, apply, "weight", 0.0)
    put(page, apply, "weight", 0.9)
    page.queue()
    before = lines(page, apply)
    assert before
    graph = page.evaluate("() => window.app.graph.serialize()")
    page.reload()
    page.evaluate("async (graph) => { await window.app.loadGraphData(graph, true, true, null); }", graph)
    page.settle(900)
    page.outside.clear()
    assert lines(page, apply) == before
    [node] = [node for node in graph["nodes"] if node["id"] == apply]
    node["widgets_values"][0] = 0.5
    page.evaluate("async (graph) => { await window.app.loadGraphData(graph, true, true, null); }", graph)
    assert lines(page, apply) == [], "a file with other settings has not run yet"
    assert all("messages" not in node["inputs"] for node in page.prompt().values()), "they are not sent"


def settled(page, read):
    """What `read` gives once it has given it three times, a second apart; a busy page needs longer to lay out nodes."""
    found = [read()]
    while len(found) < 20 and (len(found) < 3 or found[-3:] != [found[-1]] * 3):
        page.settle(1000)
        found.append(read())
    return found[-1]


def test_messages_take_no_room_in_the_saved_graph(page, server):
    """So a node is as tall after each change of the tab, and after an undo, as it was."""
    ids = start(page, server)
    watched = [ids[f"Troupe{kind}"][0] for kind in ("AddSubject", "EncodeSubjects", "ApplyImageAttention")]
    sizes = "() => Object.fromEntries(window.app.graph.serialize().nodes.map((node) => [node.id, [...node.size]]))"
    page.queue()
    page.evaluate(CLOSE, watched[0])
    page.settle(900)
    heights = settled(page, lambda: [page.evaluate(HEIGHT, id_) for id_ in watched])
    saved = page.page.evaluate(sizes)
    for _ in range(3):
        graph = page.page.evaluate("() => window.app.graph.serialize()")
        page.evaluate("async (graph) => { await window.app.loadGraphData(graph, true, true, null); }", graph)
        page.settle(900)  # the front end restores the view that was saved
        page.evaluate(CLOSE, watched[0])
        assert all(settled(page, lambda: [lines(page, id_) for id_ in watched]))
    page.outside.clear()
    assert settled(page, lambda: [page.evaluate(HEIGHT, id_) for id_ in watched]) == heights
    assert {key: page.page.evaluate(sizes)[key] for key in map(str, watched)} == {
        key: saved[key] for key in map(str, watched)
    }


def test_an_error_stands_on_its_node_until_the_node_runs(page, server):
    ids = start(page, server)
    apply = ids["TroupeApplyImageAttention"][0]
    encode = ids["TroupeEncodeSubjects"][0]
    clip = page.evaluate(
        "(id) => { const n = window.graphNode(id), i = n.inputs.findIndex((x) => x.name === 'clip'); const "
        "l = n.graph.getLink?.(n.inputs[i].link) "
        "?? n.graph.links.get(n.inputs[i].link); n.disconnectInput(i); return [l.origin_id, l.origin_slot]; }",
        encode,
    )
    page.queue(completed=False)
    assert any("names" in text and "clip" in text for text in texts(page, apply, "error")), lines(page, apply)
    page.page.keyboard.press("Escape")
    page.settle()
    page.evaluate(
        "([id, from, slot]) => { const n = window.graphNode(id); window.graphNode(from).connect(slot, n, "
        "n.inputs.findIndex((x) => x.name === 'clip')); }",
        encode,
        *clip,
    )
    page.queue()
    assert texts(page, apply, "error") == []


def test_messages_of_an_earlier_run_say_so_once_the_graph_has_changed(page, server):
    ids = start(page, server)
    first, apply, sampler = ids["TroupeAddSubject"][0], ids["TroupeApplyImageAttention"][0], ids["KSampler"][0]
    kinds = lambda: [kind for kind, _ in lines(page, apply)]  # noqa: E731
    page.queue()
    fresh = kinds()
    assert "done" in fresh and "earlier" not in fresh
    put(page, sampler, "seed", 12345)
    assert kinds() == fresh, "a sampler is after the node"
    put(page, first, "weight", 0.7)
    assert kinds() == ["earlier", *fresh], "a value upstream"
    put(page, first, "weight", 1.0)
    assert kinds() == fresh, "changed back"
    page.evaluate(
        "(id) => { const n = window.graphNode(id); n.disconnectInput(n.inputs.findIndex((i) => i.name === "
        "'negative')); }",
        apply,
    )
    assert kinds()[:2] == ["missing", "earlier"], "a wire, which the sampler needs"


def test_a_seed_that_changes_after_each_run_makes_no_message_old(page, server):
    """Also where it comes from a node of its own, as in the comparison of all merges."""
    graph = json.loads(get(server, f"/api/workflow_templates/{pack_folder(server)}/2_rehearsal_compare.json"))
    graph["id"] = str(uuid4())
    page.evaluate("async (graph) => { await window.app.loadGraphData(graph, true, true, null); }", graph)
    page.settle(900)
    page.outside.clear()
    previews = [node["id"] for node in graph["nodes"] if node["type"] == "TroupePreviewRelevance"]
    page.queue()
    kinds = [kind for id_ in previews for kind, _ in lines(page, id_)]
    assert len(previews) > 1 and "done" in kinds and "earlier" not in kinds


def test_what_the_host_refuses_to_run_is_on_the_node(page):
    page.build(
        [
            (1, "TroupeLoadAdapter", {"adapter_name": "gone.safetensors"}, (-600, 0)),
            (2, "TroupeAddSubject", {"name": "cat"}, (-600, 400)),
            (3, "TroupeEncodeSubjects", {}, (0, 0)),
            (4, "TroupeApplyImageAttention", {}, (400, 0)),
            (5, "TroupeRecordRelevance", {}, (800, 0)),
            (6, "TroupePreviewRelevance", {}, (800, 300)),
            (7, "EmptyLatentImage", {}, (400, 600)),
            (8, "KSampler", {}, (1200, 0)),
            (9, "SaveLatent", {}, (1600, 0)),
        ],
        [
            (1, 0, 3, "adapter"),
            (2, 0, 3, "cast"),
            (3, 0, 4, "references"),
            (4, 0, 8, "model"),
            (7, 0, 8, "latent_image"),
            (8, 0, 9, "samples"),
        ],
    )
    page.evaluate("async () => { await window.app.queuePrompt(0, 1); }")
    page.page.keyboard.press("Escape")
    [refused] = texts(page, 1, "error")
    assert "gone.safetensors" in refused and "adapter_name - " not in refused
    assert texts(page, 2, "error") == ["Connect 'image'"] and texts(page, 4, "error") == ["Connect 'model'"]


def test_a_cast_that_cannot_come_out_as_meant_says_so_before_it_runs(page):
    page.build(
        [
            (1, "LoadImage", {"image": "half_red.png"}, (-600, 0)),
            (2, "TroupeAddSubject", {"name": "cat"}, (-200, 0)),
            (3, "TroupeAddSubject", {"name": "Cat "}, (-200, 400)),
            (4, "TroupeEncodeSubjects", {}, (200, 0)),
            (5, "TroupeAddSubject", {"name": "owl"}, (-200, 800)),
            (6, "CheckpointLoaderSimple", {}, (-600, 500)),
            (7, "TroupeQuickSubjects", {"name_1": "fox", "name_2": "fox"}, (600, 0)),
        ],
        [
            (1, 0, 2, "image"),
            (1, 0, 3, "image"),
            (1, 0, 5, "image"),
            (2, 0, 3, "cast"),
            (3, 0, 4, "cast"),
            (6, 1, 4, "clip"),
            (1, 0, 7, "image_1"),
            (1, 0, 7, "image_2"),
            (1, 0, 7, "image_3"),
        ],
    )
    said = lambda id_: texts(page, id_, "missing")  # noqa: E731
    assert [[text.partition(":")[0] for text in said(id_)] for id_ in (2, 3)] == [
        ["Another subject is called 'cat' too"],
        ["Another subject is called 'Cat' too"],
    ]
    assert [text.partition(":")[0] for text in said(5)] == ["This subject is not in the picture"]
    assert [text.partition(":")[0] for text in said(7)] == [
        "The subject in image_3 has no name yet",
        "Another subject is called 'fox' too",
    ]
    put(page, 3, "name", " ")
    assert [text.partition(":")[0] for text in said(3)] == ["The subject has no name yet"]
    put(page, 3, "name", "dog")
    assert said(2) == said(3) == []


@pytest.mark.parametrize("positive", [True, False])
def test_a_tick_beside_each_name_follows_the_prompt(page, positive):
    page.build(
        [
            (1, "LoadImage", {"image": "half_red.png"}, (-600, 0)),
            (2, "TroupeAddSubject", {"name": "cat"}, (-200, 0)),
            (3, "TroupeAddSubject", {"name": "dog"}, (-200, 400)),
            (4, "TroupeEncodeSubjects", {}, (200, 0)),
            (5, "TroupeApplyImageAttention", {}, (600, 0)),
            (6, "CLIPTextEncode", {}, (200, 400)),
            (7, "PrimitiveString", {"value": "a cat"}, (-200, 800)),
            (8, "KSampler", {}, (1000, 0)),
        ],
        [
            (1, 0, 2, "image"),
            (1, 0, 3, "image"),
            (2, 0, 3, "cast"),
            (3, 0, 4, "cast"),
            (4, 0, 5, "references"),
            (7, 0, 6, "text"),
            (5, 0, 8, "model"),
            (6, 0, *((5, "positive") if positive else (8, "positive"))),
        ],
    )
    assert [lines(page, id_) for id_ in (2, 3)] == [
        [["tick", "'cat' is in your prompt"]],
        [["missing", "'dog' is not in your prompt: add it, or change the name"]],
    ]
    put(page, 7, "value", "a dog")
    assert [lines(page, id_)[0][0] for id_ in (2, 3)] == ["missing", "tick"]
    page.evaluate(
        "() => { const n = window.graphNode(6); n.disconnectInput(n.inputs.findIndex((x) => x.name === 'text')); }"
    )
    put(page, 6, "text", "cat, dog")
    assert [lines(page, id_)[0][0] for id_ in (2, 3)] == ["tick", "tick"]


def test_quick_subjects_has_a_tick_for_each_photo(page):
    page.build(
        [
            (1, "LoadImage", {"image": "half_red.png"}, (-600, 0)),
            (2, "TroupeQuickSubjects", {"name_1": "cat", "name_2": "dog", "name_3": "owl"}, (0, 0)),
            (3, "CLIPTextEncode", {"text": "a cat in the rain"}, (-600, 500)),
        ],
        [(1, 0, 2, "image_1"), (1, 0, 2, "image_2"), (3, 0, 2, "positive")],
    )
    assert [kind for kind, _ in lines(page, 2)] == ["missing", "tick", "missing"]
    assert lines(page, 2)[0][1] == "'owl' has no photo: connect one to 'image_3', or clear 'name_3'"


def test_quick_subjects_shows_the_maps(page):
    page.build(
        [
            (1, "TroupeRehearsal", {}, (-900, 0)),
            (2, "CLIPTextEncode", {"text": "a cat and a robot on grass"}, (-500, 0)),
            (3, "CLIPTextEncode", {"text": ""}, (-500, 300)),
            (
                4,
                "TroupeQuickSubjects",
                {"adapter_name": "rehearsal/rehearsal_mip_adapter.safetensors", "name_1": "cat", "name_2": "robot"},
                (0, 0),
            ),
            (5, "EmptyLatentImage", {"width": 128, "height": 128}, (0, 900)),
            (6, "KSampler", {"steps": 2}, (500, 0)),
            (7, "VAEDecode", {}, (900, 0)),
            (8, "PreviewImage", {}, (1200, 0)),
        ],
        [
            (1, 0, 4, "model"),
            (1, 1, 2, "clip"),
            (1, 1, 3, "clip"),
            (1, 1, 4, "clip"),
            (1, 5, 4, "image_1"),
            (1, 6, 4, "image_2"),
            (2, 0, 4, "positive"),
            (3, 0, 4, "negative"),
            (4, 0, 6, "model"),
            (4, 1, 6, "positive"),
            (4, 2, 6, "negative"),
            (5, 0, 6, "latent_image"),
            (6, 0, 7, "samples"),
            (1, 2, 7, "vae"),
            (7, 0, 8, "images"),
        ],
    )
    page.queue()
    page.evaluate(CLOSE, 4)
    assert [kind for kind, _ in lines(page, 4)][:2] == ["tick", "tick"]
    shown = page.evaluate(
        """(id) => {
      const widget = window.graphNode(id).widgets.find((w) => w.type === "troupe_messages"), img = widget.element.querySelector("img");
      return [img.naturalWidth, img.naturalHeight, img.getBoundingClientRect().bottom <= widget.element.getBoundingClientRect().bottom + 1, img.hidden];
    }""",
        4,
    )
    assert shown == [512, 512 * 2 + 4, True, False]


def test_one_subgraph_used_for_two_subjects_does_not_share_its_own_name(page):
    """The node inside is one node with two names, one for each use."""
    page.build(
        [
            (1, "LoadImage", {"image": "half_red.png"}, (-600, 0)),
            (2, "TroupeAddSubject", {"name": "owl"}, (-200, 0)),
            (3, "PrimitiveString", {"value": "cat"}, (-200, 400)),
            (4, "PrimitiveString", {"value": "dog"}, (200, 400)),
            (5, "TroupeAddSubject", {}, (200, 0)),
            (6, "TroupeEncodeSubjects", {}, (1000, 0)),
        ],
        [(1, 0, 2, "image"), (1, 0, 5, "image"), (2, 0, 5, "cast"), (3, 0, 5, "name"), (5, 0, 6, "cast")],
    )
    names = page.evaluate("""() => {
      const { graph } = window.app, at = (node, name) => node.inputs.findIndex((slot) => slot.name === name);
      graph.convertToSubgraph(new Set([window.graphNode(5)]));
      const first = graph._nodes.find((node) => node.subgraph), second = first.clone();
      graph.add(second);
      window.graphNode(1).connect(0, second, at(second, "image"));
      window.graphNode(4).connect(0, second, at(second, "name"));
      first.connect(0, second, at(second, "cast"));
      second.connect(0, window.graphNode(6), at(window.graphNode(6), "cast"));
      return second.inputs.map((slot) => slot.name);
    }""")
    assert {"image", "name", "cast"} <= set(names)
    page.settle()
    inside = """() => [...window.app.graph._nodes.find((node) => node.subgraph).subgraph._nodes[0].widgets
      .find((widget) => widget.name === "messages").element.querySelectorAll("li")].map((line) => line.textContent)"""
    assert [line for line in page.evaluate(inside) if "too" in line] == []
    page.evaluate("() => { window.graphNode(2).widgets.find((widget) => widget.name === 'name').value = 'dog'; }")
    page.settle()
    assert [text.partition(":")[0] for text in texts(page, 2, "missing")] == ["Another subject is called 'dog' too"]


NOTICES = """() => [...document.querySelectorAll('.p-toast-message, [data-toast-kind]')]
  .map((notice) => notice.textContent)"""


TWO_WARNINGS = """async (id) => {
  const { api } = window.comfyAPI.api, outer = window.app.graph._nodes.find((node) => node.subgraph);
  const send = (type, detail) => api.dispatchEvent(new CustomEvent(type, { detail }));
  send("execution_start", {});
  send("troupe.message", { node: `${outer.id}:${id}`, warning: true, text: "First warning of a step", first: true });
  send("troupe.message", { node: `${outer.id}:${id}`, warning: true, text: "Second warning of a step", first: false });
  await new Promise((done) => setTimeout(done, 300));
}"""


def test_a_warning_inside_of_a_subgraph_is_a_notice(page, server):
    """Once, as long as it stays the same; a node on the screen shows its own."""
    ids = start(page, server)
    [apply] = ids["TroupeApplyImageAttention"]
    put(page, ids["TroupeAddSubject"][0], "name", "knight")
    page.queue()
    assert any("'knight'" in text for text in texts(page, apply, "warning"))
    assert not any("'knight'" in notice for notice in page.evaluate(NOTICES))
    page.evaluate(
        "(id) => { const { graph } = window.app; graph.convertToSubgraph(new Set([window.graphNode(id)])); }", apply
    )
    put(page, ids["TroupeAddSubject"][0], "name", "wizard")
    page.queue()
    page.settle()
    found = [notice for notice in page.evaluate(NOTICES) if "'wizard'" in notice]
    assert len(found) == 1 and "change the name" in found[0]
    put(page, apply, "weight", 0.5)  # it runs again, and warns again
    page.queue()
    page.settle()
    assert len([notice for notice in page.evaluate(NOTICES) if "'wizard'" in notice]) == 1
    for _ in range(2):  # two runs
        page.evaluate(TWO_WARNINGS, apply)
    found = [notice for notice in page.evaluate(NOTICES) if "warning of a step" in notice]
    assert len(found) == 2, "each once"
    page.evaluate(
        "() => document.querySelectorAll('.p-toast-close-button, [data-toast-kind] button').forEach((it) => it.click())"
    )
