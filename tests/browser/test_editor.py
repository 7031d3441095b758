"""The box editor on Place Subjects, drawn on by mouse, finger and keyboard on the page of a real ComfyUI."""

import json

import pytest
from pytest import approx
from support.browser.graph_page import GraphPage
from support.browser.message_boxes import put

FOX, CAT = (0.1, 0.2, 0.3, 0.5), (0.55, 0.1, 0.35, 0.8)


def sides(box):
    return None if box is None else [box[side] for side in "xywh"]


def near(box):
    """These sides, to a pixel of the screen."""
    return approx(list(box), abs=0.012)


def names(page, id_):
    return page.state(id_)["names"]


def set_widget(page, id_, name, value):
    put(page, id_, name, value)
    page.settle()


# ---- drawing ---------------------------------------------------------------------------------------------------------


def test_draw_save_reload_undo_and_run(page):
    """Two drawn boxes are in the text, in the file, come back, go and come with Ctrl+Z and Ctrl+Y, and are what the
    server receives.
    """
    place = page.cast("red fox", "cat")
    for box in (FOX, CAT):
        page.draw(place, *box)
    drawn = page.boxes(place)
    assert [sides(box) for box in drawn] == [near(FOX), near(CAT)] and [box["label"] for box in drawn] == [
        "red fox",
        "cat",
    ]
    assert page.evaluate("(id) => [...window.graphNode(id).pos]", place) == [420, 30], "drawing moved the node"

    page.undo()
    assert page.boxes(place) == drawn[:1]
    page.undo()
    assert page.boxes(place) == []
    page.undo("Control+y")
    page.undo("Control+y")
    page.ready(place)
    assert page.boxes(place) == drawn and page.state(place)["boxes"] == drawn

    saved = page.evaluate("() => JSON.parse(JSON.stringify(window.app.graph.serialize()))")
    values = next(node["widgets_values"] for node in saved["nodes"] if node["type"] == "TroupePlaceSubjects")
    assert values[:2] == [1024, 1024] and json.loads(values[2]) == drawn and values[3:] == ["none"]
    page.clear()
    page.evaluate("async (saved) => { await window.app.loadGraphData(saved); }", saved)
    page.ready(place)
    assert page.state(place)["boxes"] == drawn and names(page, place) == ["red fox", "cat"]

    inputs = page.prompt()[str(place)]["inputs"]
    assert set(inputs) == {"cast", "width", "height", "boxes", "layout"}
    assert page.sent(page.queue()) == [drawn]


def test_a_subject_s_photo_is_on_its_button_and_in_its_box(page):
    """The middle square of a photo that is red on its left half and black on its right one."""
    place = page.cast("red fox")
    page.draw(place, 0.2, 0.2, 0.7, 0.7)
    page.settle()
    shown, colours = page.evaluate(
        """(id) => {
      const { list, canvas, dots } = window.graphNode(id).troupeBoxes.editor, photo = list.querySelector("img"), side = 48 * dots;
      const [right, bottom] = [0.9 * canvas.width - 5 * dots, 0.9 * canvas.height - 5 * dots - side / 2];
      const at = (x) => [...canvas.getContext("2d").getImageData(x, bottom, 1, 1).data].slice(0, 3);
      return [photo.complete && photo.naturalWidth > 0 && photo.getBoundingClientRect().width > 4, [at(right - 0.8 * side), at(right - 0.2 * side)]];
    }""",
        place,
    )
    assert shown and colours == [[255, 0, 0], [0, 0, 0]]
    page.evaluate(
        "(id) => { const n = window.graphNode(id); n.disconnectInput(n.inputs.findIndex((x) => x.name === 'cast')); }",
        place,
    )
    page.settle()
    assert page.evaluate(
        "(id) => window.graphNode(id).troupeBoxes.editor.list.querySelector('img')?.hidden ?? true", place
    )


def test_a_file_dropped_on_the_page_brings_its_boxes(page):
    place = page.cast("red fox", "cat")
    page.draw(place, *CAT)
    saved = page.evaluate("() => JSON.stringify(window.app.graph.serialize())")
    drawn = page.boxes(place)
    page.clear()
    page.evaluate(
        "async (text) => { await window.app.handleFile(new File([text], 'w.json', {type: 'application/json'})); }",
        saved,
    )
    page.ready(place)
    assert page.state(place)["boxes"] == drawn


def test_move_resize_and_the_edge_of_the_picture(page):
    place = page.cast("red fox")
    page.draw(place, *FOX)
    page.drag(place, (0.2, 0.4), (0.4, 0.5))
    assert sides(page.boxes(place)[0]) == near((0.3, 0.3, 0.3, 0.5))
    page.drag(place, (0.6, 0.8), (0.8, 0.9))  # the lower right handle
    assert sides(page.boxes(place)[0]) == near((0.3, 0.3, 0.5, 0.6))
    page.drag(place, (0.55, 0.3), (0.7, 0.1))  # the upper one: only the height changes
    assert sides(page.boxes(place)[0]) == near((0.3, 0.1, 0.5, 0.8))
    page.drag(place, (0.5, 0.5), (1.4, 0.5))
    assert sides(page.boxes(place)[0]) == near((0.5, 0.1, 0.5, 0.8))


def test_a_corner_of_a_box_that_is_not_chosen_resizes_it(page):
    place = page.cast("red fox", "cat")
    page.draw(place, *FOX)
    page.click(place, 0.9, 0.9)
    assert page.state(place)["selected"] == -1
    page.drag(place, (FOX[0] + FOX[2], FOX[1] + FOX[3]), (0.6, 0.9))
    assert sides(page.boxes(place)[0]) == near((*FOX[:2], 0.6 - FOX[0], 0.9 - FOX[1]))
    assert page.state(place)["selected"] == 0


def test_the_hint_is_readable_in_full(page):
    place = page.cast("red fox")
    page.draw(place, *FOX)
    page.evaluate("(id) => { window.graphNode(id).widgets.find((w) => w.name === 'layout').value = 'row'; }", place)
    page.settle()
    page.click(place, 0.9, 0.9)
    assert "every subject has one" in page.state(place)["hint"]
    whole, visible = page.page.evaluate(
        "() => { const hint = document.querySelector('.troupe-hint'); "
        "return [[hint.scrollWidth, hint.scrollHeight], [hint.clientWidth, hint.clientHeight]]; }"
    )
    assert whole[0] <= visible[0] and whole[1] <= visible[1] + 1


def test_a_click_chooses_and_draws_nothing(page):
    place = page.cast("red fox", "cat")
    page.draw(place, *FOX)
    before = page.boxes(place)
    page.click(place, 0.9, 0.9)
    assert page.state(place)["selected"] == -1 and page.boxes(place) == before
    page.click(place, 0.2, 0.4)
    assert page.state(place)["selected"] == 0 and page.boxes(place) == before


def test_no_more_boxes_than_subjects(page):
    place = page.cast("red fox")
    page.draw(place, *FOX)
    page.draw(place, *CAT)
    assert len(page.boxes(place)) == 1 and "Every subject has a box" in page.state(place)["hint"]


def test_a_box_inside_of_another(page):
    """With Ctrl, or when a subject without a box has been chosen, a drag draws also where a box is."""
    place = page.cast("wall", "cat", "dog")
    page.draw(place, 0.0, 0.0, 1.0, 1.0)
    page.page.keyboard.down("Control")
    page.draw(place, 0.3, 0.3, 0.2, 0.2)
    page.page.keyboard.up("Control")
    page.page.locator(".troupe-subject").nth(2).click()
    page.draw(place, 0.6, 0.6, 0.2, 0.2)
    assert [sides(box) for box in page.boxes(place)] == [
        near((0, 0, 1, 1)),
        near((0.3, 0.3, 0.2, 0.2)),
        near((0.6, 0.6, 0.2, 0.2)),
    ]
    page.drag(place, (0.4, 0.4), (0.5, 0.4))  # the small box is the one that is taken
    assert sides(page.boxes(place)[1]) == near((0.4, 0.3, 0.2, 0.2)) and sides(page.boxes(place)[0]) == near(
        (0, 0, 1, 1)
    )


def test_a_finger_draws_and_its_drag_is_one_step_for_undo(page):
    place = page.cast("red fox", "cat")
    page.draw(place, *CAT)
    touch = page.context.new_cdp_session(page.page)
    start, end = page.at(place, 0.05, 0.1), page.at(place, 0.45, 0.6)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": start[0], "y": start[1]}]})
    for part in (0.3, 0.7, 1.0):
        touch.send(
            "Input.dispatchTouchEvent",
            {
                "type": "touchMove",
                "touchPoints": [
                    {"x": start[0] + part * (end[0] - start[0]), "y": start[1] + part * (end[1] - start[1])}
                ],
            },
        )
    assert len(page.boxes(place)) == 1, "written before the finger is up"
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.settle()
    assert sides(page.boxes(place)[1]) == near((0.05, 0.1, 0.4, 0.5))
    page.undo()
    assert len(page.boxes(place)) == 1


def test_a_pen_draws_too(page):
    place = page.cast("red fox")
    pen = page.context.new_cdp_session(page.page)
    note = (
        "window.graphNode(id).troupeBoxes.editor.canvas.addEventListener('pointerdown', (e) => "
        "window.penKinds.push(e.pointerType));"
    )
    page.page.evaluate("(id) => { window.penKinds = []; " + note + " }", place)
    start, end = page.at(place, 0.1, 0.2), page.at(place, 0.6, 0.7)
    for kind, (x, y), buttons in (("mousePressed", start, 1), ("mouseMoved", end, 1), ("mouseReleased", end, 0)):
        pen.send(
            "Input.dispatchMouseEvent",
            {"type": kind, "x": x, "y": y, "button": "left", "buttons": buttons, "clickCount": 1, "pointerType": "pen"},
        )
    page.settle()
    kinds = page.page.evaluate("() => window.penKinds")
    assert kinds == ["pen"] and sides(page.boxes(place)[0]) == near((0.1, 0.2, 0.5, 0.5))


def test_escape_ends_a_drag_without_a_trace(page):
    place = page.cast("red fox")
    page.page.mouse.move(*page.at(place, 0.1, 0.1))
    page.page.mouse.down()
    page.page.mouse.move(*page.at(place, 0.5, 0.5), steps=3)
    assert page.state(place)["draft"] and page.boxes(place) == []
    page.key("Escape")
    page.page.mouse.up()
    assert page.boxes(place) == [] and page.state(place)["draft"] is None


# ---- the keyboard and the tools --------------------------------------------------------------------------------------


def test_delete_writes_null_and_leaves_the_node(page):
    place = page.cast("red fox", "cat")
    for box in (FOX, CAT):
        page.draw(place, *box)
    cat = page.boxes(place)[1]
    page.click(place, 0.2, 0.4)
    page.key("Delete")
    assert page.boxes(place) == [None, cat]
    page.key("Delete", "Backspace")  # with nothing chosen: still no key for the host, which would delete the node
    assert page.boxes(place) == [None, cat] and page.evaluate("() => window.app.graph._nodes.length") == 5
    page.draw(place, 0.0, 0.0, 0.3, 0.3)
    assert sides(page.boxes(place)[0]) == near((0, 0, 0.3, 0.3)) and page.boxes(place)[1] == cat


def test_arrows_move_by_a_cell_of_the_latent(page):
    place = page.cast("red fox", place={"width": 1024, "height": 512})
    page.draw(place, *FOX)
    x, y, w, h = sides(page.boxes(place)[0])
    page.key("ArrowRight", "ArrowDown")
    assert sides(page.boxes(place)[0]) == approx([x + 8 / 1024, y + 8 / 512, w, h], abs=2e-4)
    page.key("Shift+ArrowLeft")
    assert sides(page.boxes(place)[0]) == approx([max(x - 72 / 1024, 0), y + 8 / 512, w, h], abs=2e-4)
    page.key("Control+ArrowRight")
    assert sides(page.boxes(place)[0])[2] == approx(w + 8 / 1024, abs=2e-4)
    page.undo()
    page.ready(place)
    assert sides(page.boxes(place)[0])[2] == approx(w, abs=2e-4)
    page.key("ArrowUp")  # undo made a new node: the same box is chosen and has the keyboard
    assert sides(page.boxes(place)[0])[1] == approx(y, abs=2e-4)


def test_a_locked_box_stays(page):
    place = page.cast("red fox", "cat")
    page.draw(place, *FOX)
    page.key("l")
    locked = page.boxes(place)
    assert locked[0]["locked"] is True
    page.key("ArrowRight", "Delete")
    assert page.boxes(place) == locked and "locked" in page.state(place)["hint"]
    page.drag(place, (0.15, 0.3), (0.35, 0.6))  # over the locked box: the next subject is drawn
    assert page.boxes(place)[0] == locked[0] and sides(page.boxes(place)[1]) == near((0.15, 0.3, 0.2, 0.3))
    page.click(place, 0.12, 0.25)
    page.tool(place, "lock")
    assert "locked" not in page.boxes(place)[0]
    assert page.sent(page.queue()) == [page.boxes(place)]


def test_the_server_takes_locked_boxes(page):
    place = page.cast("red fox")
    page.draw(place, *FOX)
    page.tool(place, "lock")
    assert page.sent(page.queue())[0][0]["locked"] is True


def test_duplicate_is_for_the_next_subject(page):
    place = page.cast("red fox", "cat", "dog")
    page.draw(place, *FOX)
    page.key("Control+d")
    page.tool(place, "copy")
    boxes = page.boxes(place)
    assert [box["label"] for box in boxes] == ["red fox", "cat", "dog"] and len(
        {(box["w"], box["h"]) for box in boxes}
    ) == 1
    assert len({(box["x"], box["y"]) for box in boxes}) == 3


def test_snap_to_the_grid_and_its_place_in_the_file(page):
    place = page.cast("red fox")
    page.tool(place, "grid")
    page.draw(place, 0.11, 0.2, 0.31, 0.5)
    assert sides(page.boxes(place)[0]) == [0.125, 0.1875, 0.3125, 0.5]
    saved = page.evaluate("() => JSON.parse(JSON.stringify(window.app.graph.serialize()))")
    page.clear()
    page.evaluate("async (saved) => { await window.app.loadGraphData(saved); }", saved)
    page.ready(place)
    assert page.evaluate("(id) => window.graphNode(id).troupeBoxes.editor.grid", place) == 64


# ---- what is known of the graph --------------------------------------------------------------------------------------


def test_names_are_those_of_the_cast_as_it_is_now(page):
    place = page.cast("red fox", "cat", "dog")
    assert names(page, place) == ["red fox", "cat", "dog"] and page.state(place)["count"] == 3
    set_widget(page, 3, "name", "lynx")
    assert names(page, place) == ["red fox", "lynx", "dog"]
    page.evaluate("() => { window.graphNode(2).mode = 4; }")  # bypassed
    page.settle()
    assert names(page, place) == ["lynx", "dog"]
    # muted: its cast does not come
    page.evaluate("() => { window.graphNode(2).mode = 0; window.graphNode(3).mode = 2; }")
    page.settle()
    assert names(page, place) == ["dog"]
    page.draw(place, *FOX)
    assert page.boxes(place)[0]["label"] == "dog"


def test_names_through_reroutes_and_from_a_primitive(page):
    place = page.cast("red fox", "cat")
    page.build(
        [(20, "Reroute", {}, (250, 500)), (21, "PrimitiveString", {"value": "grey cat"}, (-300, 500))],
        [(3, 0, 20, ""), (21, 0, 3, "name")],
    )
    page.evaluate(
        "(id) => { const target = window.graphNode(id); window.graphNode(20).connect(0, target, "
        "target.inputs.findIndex((i) => i.name === 'cast')); }",
        place,
    )
    page.settle()
    assert names(page, place) == ["red fox", "grey cat"]


def test_a_name_that_only_a_run_knows(page):
    place = page.cast("red fox", "cat")
    page.build(
        [(21, "StringConcatenate", {"string_a": "tab", "string_b": "by", "delimiter": ""}, (-300, 500))],
        [(21, 0, 3, "name")],
    )
    page.settle()
    assert names(page, place) == ["red fox", ""]
    page.queue()
    assert names(page, place) == ["red fox", "tabby"]


def test_layouts_are_shown_and_can_be_kept(page):
    place = page.cast("red fox", "cat", place={"layout": "row"})
    assert [sides(box) for box in page.state(place)["ghosts"]] == [[0.02, 0.02, 0.47, 0.96], [0.51, 0.02, 0.47, 0.96]]
    assert page.boxes(place) == []
    run = page.queue()
    assert page.sent(run) == [[]]
    page.tool(place, "keep")
    assert [sides(box) for box in page.boxes(place)] == [[0.02, 0.02, 0.47, 0.96], [0.51, 0.02, 0.47, 0.96]]


def test_the_canvas_has_the_proportions_of_the_picture(page):
    place = page.cast("red fox", place={"width": 512, "height": 1024})

    def ratio():
        page.settle()
        _, _, width, height = page.area(place)
        return width / height

    assert ratio() == approx(0.5, abs=0.02)
    set_widget(page, place, "width", 2048)
    assert ratio() == approx(2.0, abs=0.04)
    page.build([(20, "EmptyLatentImage", {"width": 768, "height": 1024}, (-300, 500))], [(20, 0, place, "latent")])
    assert ratio() == approx(0.75, abs=0.02)
    page.build(
        [
            (21, "LatentUpscaleBy", {"scale_by": 1.0}, (-300, 700)),
            (22, "EmptyLatentImage", {"width": 256, "height": 512}, (-300, 800)),
        ],
        [(22, 0, 21, "samples"), (21, 0, place, "latent")],
    )
    page.queue()
    assert page.state(place)["size"] == [256, 512] and ratio() == approx(0.5, abs=0.02)


def test_the_background_is_under_the_boxes(page):
    """A file at once, another node's picture after a run: left half red, right half black."""
    place = page.cast("red fox")
    page.build(
        [(20, "LoadImage", {"image": "half_red.png"}, (-300, 500)), (21, "ImageInvert", {}, (-300, 700))],
        [(20, 0, place, "background"), (20, 0, 21, "image")],
    )
    colours = """(id) => { const { canvas } = window.graphNode(id).troupeBoxes.editor;
      return [0.25, 0.75].map((x) => [...canvas.getContext('2d').getImageData(x * canvas.width, 0.5 * canvas.height, 1, 1).data]); }"""
    page.settle(800)
    assert page.evaluate(colours, place) == [[255, 0, 0, 255], [0, 0, 0, 255]]
    page.evaluate(
        "(id) => { const target = window.graphNode(id); window.graphNode(21).connect(0, target, "
        "target.inputs.findIndex((i) => i.name === 'background')); }",
        place,
    )
    page.queue()
    page.settle(800)
    assert page.evaluate(colours, place) == [[0, 255, 255, 255], [255, 255, 255, 255]]


def test_text_that_is_no_list_of_boxes_is_not_touched(page):
    place = page.cast("red fox")
    set_widget(page, place, "boxes", '[{"x": 0.1]')
    page.draw(place, *FOX)
    assert page.prompt()[str(place)]["inputs"]["boxes"] == '[{"x": 0.1]' and "not JSON" in page.state(place)["hint"]
    set_widget(page, place, "boxes", '[{"x": 0.1, "y": 0.2, "w": 0.3, "h": 0.4}]')
    assert page.state(place)["fault"] == "" and sides(page.state(place)["boxes"][0]) == [0.1, 0.2, 0.3, 0.4]


def test_the_text_can_be_shown_written_into_and_hidden(page):
    place = page.cast("red fox")
    text = page.page.locator("textarea:visible")
    assert text.count() == 0
    page.tool(place, "text")
    page.settle()
    assert text.count() == 1
    text.fill('[{"x": 0.5, "y": 0.5, "w": 0.25, "h": 0.25}]')
    page.settle()
    assert sides(page.state(place)["boxes"][0]) == [0.5, 0.5, 0.25, 0.25]
    page.tool(place, "text")
    page.settle()
    assert text.count() == 0 and sides(page.boxes(place)[0]) == [0.5, 0.5, 0.25, 0.25]


def test_boxes_from_a_wire_are_shown_and_not_drawn_on(page):
    """A drag changes neither the text nor the wire; the run gets what the wire brings."""
    place = page.cast("red fox", "cat")
    wired = [{"x": 0.5, "y": 0.5, "w": 0.25, "h": 0.25}]
    page.build([(20, "PrimitiveStringMultiline", {"value": json.dumps(wired)}, (-300, 500))], [(20, 0, place, "boxes")])
    page.settle()
    assert page.state(place)["boxes"] == wired and "wired" in page.state(place)["hint"]
    page.draw(place, *FOX)
    page.drag(place, (0.6, 0.6), (0.3, 0.3))
    assert page.state(place)["boxes"] == wired and page.boxes(place) == []
    page.queue()
    assert page.state(place)["ghosts"] == [wired[0], None]


def test_without_a_cast_it_says_what_to_wire_and_draws_all_the_same(page):
    page.build([(1, "TroupePlaceSubjects", {}, (420, 30))])
    page.ready(1)
    assert "Add Subject" in page.state(1)["hint"] and page.state(1)["count"] is None
    page.draw(1, *FOX)
    page.draw(1, *CAT)
    assert [sides(box) for box in page.boxes(1)] == [near(FOX), near(CAT)]


def test_the_graph_is_zoomed_and_moved_over_the_editor(page):
    place = page.cast("red fox")
    scene = "() => [window.app.canvas.ds.scale, ...window.app.canvas.ds.offset]"
    scale, *_ = page.evaluate(scene)
    x, y = page.at(place, 0.5, 0.5)
    page.page.mouse.move(x, y)
    page.page.mouse.wheel(0, -120)
    page.settle()
    larger, left, top = page.evaluate(scene)
    assert larger > scale
    x, y = page.at(place, 0.5, 0.5)
    page.page.mouse.move(x, y)
    page.page.mouse.down(button="middle")
    page.page.mouse.move(x + 50, y + 30, steps=3)
    page.page.mouse.up(button="middle")
    assert page.evaluate(scene) == approx([larger, left + 50 / larger, top + 30 / larger], abs=1.5)
    page.settle()
    page.draw(place, *FOX)  # exact at this zoom too
    assert [sides(box) for box in page.boxes(place)] == [near(FOX)]


# ---- several editors, subgraphs --------------------------------------------------------------------------------------


def test_two_editors_do_not_meddle(page):
    first = page.cast("red fox", at=(420, 30), first=1)
    second = page.cast("cat", at=(840, 30), first=10)
    page.draw(first, *FOX)
    page.draw(second, *CAT)
    assert [sides(box) for box in page.boxes(first)] == [near(FOX)] and [sides(box) for box in page.boxes(second)] == [
        near(CAT)
    ]
    assert names(page, first) == ["red fox"] and names(page, second) == ["cat"]
    page.key("Delete")
    assert page.boxes(second) == [None] and len(page.boxes(first)) == 1
    copy = page.evaluate(
        "(id) => { const n = window.graphNode(id).clone(); window.app.graph.add(n); n.pos = [840, 700]; return n.id; }",
        first,
    )
    assert page.boxes(copy) == page.boxes(first)


def test_inside_a_subgraph(page):
    place = page.cast("red fox", "cat")
    page.draw(place, *FOX)
    page.evaluate(
        "(id) => { const { graph } = window.app; graph.convertToSubgraph(new Set([graph.getNodeById(id)])); }", place
    )
    page.settle()
    inner = page.evaluate("""() => {
      const { app } = window, outer = app.graph._nodes.find((n) => n.subgraph);
      app.canvas.openSubgraph(outer.subgraph, outer);
      const node = outer.subgraph._nodes.find((n) => n.type === 'TroupePlaceSubjects');
      app.canvas.ds.scale = 0.9; app.canvas.ds.offset = [300 - node.pos[0], 100 - node.pos[1]]; app.canvas.setDirty(true, true);
      return node.id;
    }""")
    page.ready(inner)
    page.evaluate("""() => { const { canvas } = window.app, node = canvas.graph._nodes.find((n) => n.type === 'TroupePlaceSubjects');
      canvas.ds.scale = 0.9; canvas.ds.offset = [300 - node.pos[0], 100 - node.pos[1]]; canvas.setDirty(true, true); }""")
    page.settle()
    assert names(page, inner) == ["red fox", "cat"] and sides(page.state(inner)["boxes"][0]) == near(FOX)
    page.draw(inner, *CAT)
    assert [sides(box) for box in page.boxes(inner)] == [near(FOX), near(CAT)]
    assert page.sent(page.queue()) == [page.boxes(inner)]


# ---- when it breaks --------------------------------------------------------------------------------------------------


def test_a_throw_in_the_editor_leaves_the_text(page):
    place = page.cast("red fox")
    page.draw(place, *FOX)
    before = page.boxes(place)
    page.evaluate(
        "(id) => { window.graphNode(id).troupeBoxes.editor.show = () => { throw new Error('broken on purpose'); }; }",
        place,
    )
    set_widget(page, place, "width", 512)
    assert page.page.locator("textarea:visible").count() == 1
    assert "broken on purpose" in page.page.locator(".troupe-stopped").inner_text()
    assert page.boxes(place) == before and page.sent(page.queue()) == [before]
    said = [error for error in page.errors if "the box editor stopped" in error]
    assert len(said) == 1
    page.errors[:] = [error for error in page.errors if error not in said]


@pytest.mark.parametrize("blocked", ["place_subjects.js", "/editor/draw.js"])
def test_without_the_script_there_is_a_text_to_write_into(setting, server, browser, blocked):
    page = GraphPage(browser, server, nodes2=setting.endswith("nodes2"), block=blocked)
    try:
        page.clear()
        page.build(
            [
                (1, "LoadImage", {"image": "half_red.png"}, (-500, 30)),
                (2, "TroupeAddSubject", {"name": "red fox"}, (0, 30)),
                (3, "TroupePlaceSubjects", {}, (420, 30)),
                (4, "SaveImage", {}, (840, 30)),
            ],
            [(1, 0, 2, "image"), (2, 0, 3, "cast"), (3, 2, 4, "images")],
        )
        page.settle()
        boxes = [{"label": "red fox", "x": 0.1, "y": 0.2, "w": 0.3, "h": 0.5}]
        page.page.locator("textarea:visible").fill(json.dumps(boxes))
        page.settle()
        inputs = page.prompt()["3"]["inputs"]
        assert set(inputs) == {"cast", "width", "height", "boxes", "layout"}
        assert page.sent(page.queue()) == [boxes]
        assert page.page.locator(".troupe-editor").count() == 0
    finally:
        page.close()
