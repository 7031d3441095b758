"""What a node says before it runs about its own values and wires, and what its messages do about the nodes below."""

import json

from support.browser.message_boxes import CLOSE, HEIGHT, lines, put, texts
from support.browser.overlaps import overlaps
from troupe_tools.dev.lay_out import RECTANGLES

LIST = """(id) => {
  const list = window.graphNode(id).widgets.find((w) => w.type === "troupe_messages").element.querySelector("ul");
  return [list.clientHeight, list.scrollHeight, list.tabIndex, list.title];
}"""
SAY = "([id, output]) => window.graphNode(id).onExecuted(output)"


def unplug(page, id_, name):
    page.evaluate(
        "([id, name]) => { const n = window.graphNode(id); "
        "n.disconnectInput(n.inputs.findIndex((x) => x.name === name)); }",
        id_,
        name,
    )


def small_graph(page):
    """A photo that is a robot's, its subject, and an Apply node."""
    page.build(
        [
            (1, "TroupeRehearsal", {}, (-900, 0)),
            (2, "TroupeAddSubject", {"name": "a tall Robot"}, (-400, 0)),
            (3, "TroupeEncodeSubjects", {}, (0, 0)),
            (4, "TroupeApplyImageAttention", {}, (400, 0)),
        ],
        [(1, 6, 2, "image"), (2, 0, 3, "cast"), (1, 4, 3, "adapter"), (3, 0, 4, "references"), (1, 0, 4, "model")],
    )


def test_what_has_no_effect_says_so(page):
    small_graph(page)
    said = lambda id_: texts(page, id_, "missing")  # noqa: E731
    assert said(2) == [] and said(4) == []
    put(page, 2, "weight", 0)
    put(page, 4, "start_percent", 0.6)
    put(page, 4, "end_percent", 0.4)
    assert said(2) == ["weight is 0, so this subject's photos have no effect: raise it, or bypass the node"]
    assert said(4) == ["start_percent (0.6) is not below end_percent (0.4), so the references have no effect"]
    put(page, 2, "weight", 1)
    put(page, 4, "end_percent", 1)
    assert said(2) == [] and said(4) == []
    unplug(page, 4, "references")
    assert said(4) == ["Connect 'references' of Encode Subject References"]
    page.evaluate("() => { window.graphNode(4).mode = 4; }")
    assert said(4) == [], "a bypassed node has no effect on purpose"
    assert texts(page, 4, "earlier") == ["Bypassed: the references have no effect"]
    page.evaluate("() => { window.graphNode(2).mode = 2; }")
    assert lines(page, 2) == [["earlier", "Muted: this subject is left out"]]


def test_a_subject_without_a_photo_or_with_another_ones(page):
    small_graph(page)
    said = lambda id_: texts(page, id_, "missing")  # noqa: E731
    put(page, 1, "subject_2", "bird")
    other = "The photo shows a bird, the name is 'a tall Robot': connect the right photo, or change the name"
    assert said(2) == [other]
    page.build([(5, "ImageScaleBy", {}, (-650, 500))], [(1, 6, 5, "image"), (5, 0, 2, "image")])
    assert said(2) == [other], "through a node that hands the picture on"
    put(page, 2, "name", "bird")
    assert said(2) == []
    unplug(page, 2, "image")
    assert said(2) == ["Connect this subject's photo to 'image'"]


def test_a_bypassed_encode_says_what_follows(page):
    small_graph(page)
    page.evaluate("() => { window.graphNode(3).mode = 4; }")
    assert lines(page, 3) == [
        ["earlier", "Bypassed: the subjects are not encoded, so the Apply node after it has no 'references'"]
    ]


def test_a_fresh_subject_says_how_to_begin(page):
    page.build([(1, "TroupeAddSubject", {}, (0, 0))])
    begin = (
        "Connect this subject's photo to 'image', and 'cast' to the next Add Subject or to Encode Subject References"
    )
    assert texts(page, 1, "missing") == [begin]


def test_one_word_for_two_subjects_is_not_enough(page):
    """Also where both have boxes, and in Quick Subjects."""
    small_graph(page)
    page.build(
        [
            (5, "TroupeAddSubject", {"name": "robot"}, (-200, 300)),
            (6, "TroupePlaceSubjects", {}, (0, 600)),
            (7, "PrimitiveStringMultiline", {"value": "two robots on grass"}, (-900, 500)),
            (8, "TroupeQuickSubjects", {"name_1": "robot", "name_2": "Robot"}, (0, 1400)),
            (9, "CLIPTextEncode", {}, (-400, 1400)),
        ],
        [
            (2, 0, 5, "cast"),
            (1, 6, 5, "image"),
            (5, 0, 6, "cast"),
            (6, 0, 3, "cast"),
            (7, 0, 3, "prompt"),
            (7, 0, 9, "text"),
            (1, 6, 8, "image_1"),
            (1, 6, 8, "image_2"),
            (9, 0, 8, "positive"),
        ],
    )
    put(page, 2, "name", "robot")
    told = "Two subjects are called 'robot', but it is only once in your prompt: write 'a robot and another robot'"
    said = lambda id_: [text for text in texts(page, id_, "missing") if "subjects are called" in text]  # noqa: E731
    assert said(2) == said(5) == [told] and said(8) == [told, told.replace("robot", "Robot")]
    put(page, 7, "value", "a robot and another robot on grass")
    assert said(2) == said(5) == said(8) == []
    assert "'robot' is in your prompt" in texts(page, 2, "tick")


def test_a_fresh_quick_subjects_says_how_to_begin(page):
    page.build([(1, "TroupeQuickSubjects", {}, (0, 0))])
    assert texts(page, 1, "missing") == ["Connect a photo to 'image_1', and type its word from your prompt in 'name_1'"]


def test_a_refusal_is_marked_once_the_graph_has_changed(page):
    page.build(
        [(1, "TroupeLoadAdapter", {"adapter_name": "gone.safetensors"}, (0, 0)), (2, "PreviewAny", {}, (500, 0))],
        [(1, 0, 2, "source")],
    )
    page.evaluate("async () => { await window.app.queuePrompt(0, 1); }")
    page.page.keyboard.press("Escape")
    assert [kind for kind, _ in lines(page, 1)] == ["error"]
    put(page, 1, "adapter_name", "other.safetensors")
    assert lines(page, 1)[0] == ["earlier", "From your last try, before you changed the graph:"]
    put(page, 1, "adapter_name", "gone.safetensors")
    assert [kind for kind, _ in lines(page, 1)] == ["error"]


def test_messages_are_drawn_when_nothing_else_changes(page):
    """The page is still when they come, so nobody else asks the canvas to draw."""
    page.build([(1, "TroupeRecordRelevance", {}, (0, 0))])
    page.evaluate(CLOSE, 1)
    page.settle(2500)
    said = {"troupe_messages": [_json({"done": ["A sentence."]})]}
    page.evaluate(f"([id, output]) => {{ ({SAY})([id, output]); window.app.canvas.setDirty = () => {{}}; }}", 1, said)
    try:
        page.settle(1500)
        assert page.evaluate(LIST, 1)[0] > 0
    finally:
        page.evaluate("() => { delete window.app.canvas.setDirty; }")


def test_messages_never_cover_the_node_below(page):
    page.build(
        [(1, "TroupeRecordRelevance", {}, (0, 0)), (2, "PreviewAny", {}, (0, 900)), (3, "PreviewAny", {}, (900, 0))]
    )
    page.evaluate(CLOSE, 1)
    page.settle(900)
    top = page.evaluate(HEIGHT, 1) + 30 + 120
    page.evaluate("(y) => { window.graphNode(2).pos = [0, y]; window.app.canvas.setDirty(true, true); }", top)
    many = [f"Line {i}: a long sentence that needs more than one row in a node of this width." for i in range(12)]
    page.evaluate(SAY, 1, {"troupe_messages": [_json({"done": many})]})
    page.settle(1500)
    assert overlaps(page.page.evaluate(RECTANGLES)) == []
    visible, whole, reachable, tooltip = page.evaluate(LIST, 1)
    assert 60 < visible < whole and reachable == 0, "the rest is reached by scrolling"
    assert tooltip == "\n".join(many), "and by resting on the list"
    page.evaluate(SAY, 1, {"troupe_messages": [_json({"done": many[:1]})]})
    page.settle(1500)
    visible, whole, reachable, tooltip = page.evaluate(LIST, 1)
    assert visible == whole and reachable == -1 and not tooltip


def _json(messages):
    return json.dumps({"warnings": [], "done": [], "run": [], **messages})


def test_a_prompt_that_the_sampler_takes_from_a_node_without_one(page):
    small_graph(page)
    page.build(
        [(5, "KSampler", {}, (800, 0)), (6, "TroupeQuickSubjects", {}, (400, 700)), (7, "KSampler", {}, (800, 700))],
        [(4, 0, 5, "model"), (6, 0, 7, "model"), (6, 1, 7, "positive")],
    )
    told = "Connect a prompt to '{}': the next node takes it from here, and does not run without it"
    said = lambda id_: [text for text in texts(page, id_, "missing") if "a prompt to" in text]  # noqa: E731
    assert said(4) == [] and said(6) == [told.format("positive")]
    page.build([(8, "CLIPTextEncode", {"text": "a robot"}, (0, 400))], [(4, 1, 5, "positive"), (4, 2, 5, "negative")])
    assert said(4) == [told.format("positive"), told.format("negative")]
    page.build([], [(8, 0, 4, "positive"), (8, 0, 6, "positive")])
    assert said(4) == [told.format("negative")] and said(6) == []


def test_an_empty_prompt_and_a_muted_neighbour(page):
    small_graph(page)
    page.build(
        [
            (5, "TroupeAddSubject", {"name": "cat"}, (-200, 300)),
            (7, "PrimitiveStringMultiline", {"value": " "}, (-900, 500)),
        ],
        [(2, 0, 5, "cast"), (1, 5, 5, "image"), (5, 0, 3, "cast"), (7, 0, 3, "prompt")],
    )
    assert texts(page, 5, "missing") == ["Your prompt is empty: write one with 'cat' in it"]
    put(page, 7, "value", "a cat and a tall robot")
    assert texts(page, 5, "missing") == []
    page.evaluate("() => { window.graphNode(5).mode = 2; }")
    assert "This subject is not in the picture: the node after it is muted" in texts(page, 2, "missing")


def test_quick_subjects_knows_what_the_rehearsal_photos_show(page):
    page.build(
        [(1, "TroupeRehearsal", {}, (-500, 0)), (2, "TroupeQuickSubjects", {"name_1": "cat", "name_2": "dog"}, (0, 0))],
        [(1, 5, 2, "image_1"), (1, 6, 2, "image_2")],
    )
    wrong = "The photo in image_2 shows a robot, the name is 'dog': connect the right photo, or change the name"
    assert texts(page, 2, "missing") == [wrong]
    put(page, 2, "name_2", "")
    assert [text for text in texts(page, 2, "missing") if "shows" in text] == [], "an empty name has its own line"
