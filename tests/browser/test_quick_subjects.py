"""Quick Subjects grows as photos are connected, in a real browser."""

import pytest
from support.browser.message_boxes import HEIGHT, put

NODE, PHOTO, VISION = 2, 1, 3
SOCKETS = "(id) => window.graphNode(id).inputs.filter((input) => !input.widget).map((input) => input.name)"
NAMES = "(id) => window.graphNode(id).widgets.filter((w) => w.name.startsWith('name_') && !w.hidden).map((w) => w.name)"
WIRES = """(id) => window.graphNode(id).inputs.flatMap((input, index) => {
  const link = input.link == null ? null : window.app.graph.getLink?.(input.link) ?? window.app.graph.links[input.link];
  return link ? [[input.name, link.target_slot === index, Number(link.origin_id)]] : [];
})"""
CONNECT = """([from, to, name]) => {
  const node = window.graphNode(to);
  window.graphNode(from).connect(0, node, node.inputs.findIndex((input) => input.name === name));
}"""
DISCONNECT = """([id, name]) => {
  const node = window.graphNode(id);
  node.disconnectInput(node.inputs.findIndex((input) => input.name === name));
}"""
SOCKET = """([id, name]) => {
  const { shape, tooltip, type, localized_name } = window.graphNode(id).inputs.find((input) => input.name === name);
  return JSON.stringify([shape, tooltip, type, localized_name]);
}"""
WIDGETS = "(id) => window.app.graph.serialize().nodes.find((node) => node.id === id).widgets_values"
AT_INPUT = """([id, name]) => {
  const node = window.graphNode(id), index = node.inputs.findIndex((input) => input.name === name);
  const element = document.querySelector(`[data-slot-key="${id}-in-${index}"]`)?.getBoundingClientRect();
  if (element) return [element.left + element.width / 2, element.top + element.height / 2];
  const [x, y] = node.getInputPos?.(index) ?? node.getConnectionPos(true, index);
  return window.app.canvasPosToClientPos?.([x, y]) ?? window.app.canvas.convertOffsetToCanvas([x, y]);
}"""
MODIFIED = "() => window.app.extensionManager.workflow.activeWorkflow.isModified"
ALL = ["image_1", "image_2", "image_3", "image_4"]


def photos(page) -> list[str]:
    """The photos' sockets, after the others have been found where they belong."""
    sockets = page.evaluate(SOCKETS, NODE)
    shown = [name for name in sockets if name.startswith("image_")]
    assert sockets == ["model", "positive", "negative", "clip", *shown, "clip_vision"]
    return shown


def connect(page, name) -> None:
    page.evaluate(CONNECT, PHOTO, NODE, name)
    page.settle(100)


def disconnect(page, name) -> None:
    page.evaluate(DISCONNECT, NODE, name)
    page.settle(100)


@pytest.fixture
def quick(page):
    """A page with Quick Subjects, a photo and a CLIP vision loader that is connected below the photos."""
    page.build(
        [
            (PHOTO, "LoadImage", {"image": "half_red.png"}, (-600, 0)),
            (NODE, "TroupeQuickSubjects", {}, (0, 0)),
            (VISION, "CLIPVisionLoader", {}, (-600, 500)),
        ],
        [(VISION, 0, NODE, "clip_vision")],
    )
    page.settle(700)
    return page


def test_the_next_socket_and_the_name_come_with_a_photo(quick):
    page = quick
    assert (photos(page), page.evaluate(NAMES, NODE)) == (ALL[:2], ["name_1"])
    heights = [page.evaluate(HEIGHT, NODE)]
    for number, shown in ((1, 2), (2, 3), (3, 4), (4, 4)):
        connect(page, f"image_{number}")
        assert photos(page) == ALL[:shown], number
        heights.append(page.evaluate(HEIGHT, NODE))
    page.settle(700)
    assert page.evaluate(NAMES, NODE) == ["name_1", "name_2", "name_3", "name_4"]
    assert heights[2] > heights[0] and heights[3] > heights[2]
    assert page.evaluate(WIRES, NODE) == [*([name, True, PHOTO] for name in ALL), ["clip_vision", True, VISION]]
    sockets = {page.evaluate(SOCKET, NODE, name).replace(name, "").replace(name[-1], "") for name in ALL}
    assert len(sockets) == 1, "a socket that comes back looks like the others"
    sent = page.prompt()[str(NODE)]["inputs"]
    assert [sent[name] for name in ALL] == [[str(PHOTO), 0]] * 4 and sent["clip_vision"] == [str(VISION), 0]


def test_sockets_go_when_their_photos_do(quick):
    page = quick
    for name in ALL[1:]:
        connect(page, name)
    disconnect(page, "image_2")
    assert photos(page) == ALL, "a connected socket is never hidden"
    disconnect(page, "image_4")
    assert photos(page) == ALL, "the next one of the last photo"
    disconnect(page, "image_3")
    assert photos(page) == ALL[:2]
    assert page.evaluate(WIRES, NODE) == [["clip_vision", True, VISION]]
    page.settle(700)
    assert page.evaluate(NAMES, NODE) == ["name_1"]


def test_what_was_typed_is_not_hidden(quick):
    page = quick
    connect(page, "image_2")
    connect(page, "image_3")
    page.settle(700)
    put(page, NODE, "name_3", "cat")
    disconnect(page, "image_3")
    disconnect(page, "image_2")
    page.settle(700)
    assert (photos(page), page.evaluate(NAMES, NODE)) == (ALL[:3], ["name_1", "name_3"])
    assert page.evaluate(WIDGETS, NODE)[2:6] == ["", "", "cat", ""]
    sent = page.prompt()[str(NODE)]["inputs"]
    assert [sent[f"name_{n}"] for n in (1, 2, 3, 4)] == ["", "", "cat", ""], "hidden names are sent too"


def test_a_wire_can_be_drawn_to_the_new_socket_and_moved(quick):
    """By the mouse: moving a wire takes it off one socket and puts it on another in one gesture."""
    page = quick
    connect(page, "image_1")
    connect(page, "image_2")
    connect(page, "image_3")
    page.evaluate(
        "() => { const c = window.app.canvas; c.ds.scale = 1; c.ds.offset = [650, 60]; c.setDirty(true, true); }"
    )
    page.settle(700)
    mouse = page.page.mouse
    start, end = page.evaluate(AT_INPUT, NODE, "image_3"), page.evaluate(AT_INPUT, NODE, "image_4")
    mouse.move(*start)
    mouse.down()
    mouse.move(start[0] - 40, start[1] + 5, steps=4)
    mouse.move(*end, steps=6)
    mouse.up()
    page.settle(700)
    assert page.evaluate(WIRES, NODE) == [
        ["image_1", True, PHOTO],
        ["image_2", True, PHOTO],
        ["image_4", True, PHOTO],
        ["clip_vision", True, VISION],
    ]
    assert photos(page) == ALL


def test_a_saved_graph_has_the_same_wires_again_and_counts_as_unchanged(quick):
    page = quick
    connect(page, "image_1")
    connect(page, "image_2")
    before = page.prompt(), photos(page), page.evaluate(WIRES, NODE)
    saved = page.evaluate("() => window.app.graph.serialize()")
    page.clear()
    page.evaluate("async (graph) => { await window.app.loadGraphData(graph); }", saved)
    assert photos(page) == ALL[:3], "at once, or the host takes it for a change by hand"
    page.page.mouse.click(700, 950)
    page.settle(700)
    assert (page.prompt(), photos(page), page.evaluate(WIRES, NODE)) == before
    assert not page.evaluate(MODIFIED)


def test_an_unconnected_node_has_its_sockets_before_the_host_keeps_the_loaded_graph(page):
    """Later, the host would take it for a change by hand."""
    page.build([(NODE, "TroupeQuickSubjects", {}, (0, 0))])
    page.settle(700)
    script = """([sockets, id]) => {
      const { graph } = window.app;
      graph.configure(graph.serialize());
      return eval(sockets)(id);
    }"""
    assert page.evaluate(script, SOCKETS, NODE) == ["model", "positive", "negative", "clip", *ALL[:2], "clip_vision"]


def test_a_graph_from_before_this_script_loads(quick):
    """Such a file has all sockets, whatever is connected."""
    page = quick
    for name in (ALL[0], ALL[1], ALL[2]):
        connect(page, name)
    saved = page.evaluate("() => window.app.graph.serialize()")
    node = next(node for node in saved["nodes"] if node["id"] == NODE)
    inputs = {slot["name"]: slot for slot in node["inputs"]}
    link = inputs["image_3"]["link"]
    inputs["image_3"]["link"], inputs["image_4"]["link"] = None, link
    where = node["inputs"].index(inputs["image_4"])
    saved["links"] = [[*row[:4], where, *row[5:]] if row[0] == link else row for row in saved["links"]]
    page.clear()
    page.evaluate("async (graph) => { await window.app.loadGraphData(graph); }", saved)
    page.settle(700)
    assert photos(page) == ALL
    assert [row[:2] for row in page.evaluate(WIRES, NODE)] == [
        ["image_1", True],
        ["image_2", True],
        ["image_4", True],
        ["clip_vision", True],
    ]


def test_one_undo_takes_a_photo_and_its_sockets_back(quick):
    page = quick
    connect(page, "image_1")
    check = (
        "() => { const t = window.app.extensionManager.workflow.activeWorkflow.changeTracker; "
        "(t.captureCanvasState ?? t.checkState).call(t); }"
    )
    page.evaluate(check)
    page.settle(700)
    connect(page, "image_2")
    page.evaluate(check)
    page.settle(700)
    assert photos(page) == ALL[:3]
    page.page.mouse.click(700, 950)
    page.undo()
    assert (photos(page), [row[0] for row in page.evaluate(WIRES, NODE)]) == (ALL[:2], ["image_1", "clip_vision"])
    page.undo("Control+y")
    assert (photos(page), [row[0] for row in page.evaluate(WIRES, NODE)]) == (
        ALL[:3],
        ["image_1", "image_2", "clip_vision"],
    )
