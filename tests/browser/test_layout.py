"""No node of a template covers another, on the canvas and in Nodes 2.0, which draws nodes taller, before a run and with
the messages after it.
"""

import json

import pytest
from support.browser.overlaps import overlaps
from support.browser.served_templates import OTHER_PACKS, REGISTRY
from troupe_tools.dev.lay_out import MESSAGE, OPEN, RECTANGLES, SETTLE, SPEAK, TALKING
from troupe_tools.pack import ROOT

WORKFLOWS = ROOT / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
REHEARSALS = [name for name in NAMES if "rehearsal" in name]  # they run on a fresh host

SCROLLED = """() => [...document.querySelectorAll(".troupe-messages ul")]
  .filter((list) => list.scrollHeight > list.clientHeight + 1).map((list) => list.textContent)"""


def opened(page, name):
    """Open a template, all of it in view; its rectangles."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    page.page.evaluate(OPEN, workflow)
    page.settle(SETTLE + 1000 * (name in OTHER_PACKS))
    found = page.page.evaluate(RECTANGLES)
    page.page.keyboard.press("Escape")
    page.errors[:] = [error for error in page.errors if REGISTRY not in error]
    assert len(found) == len(workflow["nodes"]) and all(
        one["drawn"] and one["w"] > 50 and one["h"] > 30 for one in found
    ), found
    return found


@pytest.fixture(autouse=True)
def links(page):
    """The links are asked how large the missing files are, at any time; test_templates.py looks at what else is asked
    for.
    """
    yield
    known = {
        model["url"]
        for name in NAMES
        for model in json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))["models"]
    }
    page.outside[:] = [url for url in page.outside if url.split("?")[0] not in known and not url.startswith(REGISTRY)]


@pytest.mark.parametrize("name", NAMES)
def test_no_node_of_a_template_covers_another(name, page):
    assert overlaps(opened(page, name)) == []
    if not page.nodes2:  # zoomed out, the canvas shows no messages; its nodes are the lower ones
        return
    before = page.page.evaluate(RECTANGLES)
    page.evaluate(SPEAK, TALKING, MESSAGE)
    page.settle(SETTLE)
    after, scrolled = page.page.evaluate(RECTANGLES), page.page.evaluate(SCROLLED)
    page.evaluate(SPEAK, TALKING, "")
    assert any(now["h"] > then["h"] + 20 for then, now in zip(before, after, strict=True)), "the messages are shown"
    assert scrolled == [], "a message and a warning fit in without scrolling"
    assert overlaps(after) == []


@pytest.mark.parametrize("name", REHEARSALS)
def test_none_does_after_a_run(name, page):
    """Pictures and reports are then in the nodes."""
    opened(page, name)
    page.queue()
    page.settle(SETTLE)
    found = page.page.evaluate(RECTANGLES)
    assert all(one["drawn"] for one in found) and overlaps(found) == []


def test_overlaps_are_found(page):
    """The measure itself: two nodes 20 pixels into each other, by what is drawn, and two side by side."""
    page.build(
        [
            (1, "CheckpointLoaderSimple", {}, (0, 0)),
            (2, "EmptyLatentImage", {}, (0, 400)),
            (3, "EmptyLatentImage", {}, (700, 0)),
        ]
    )
    page.settle(SETTLE)
    first = next(one for one in page.page.evaluate(RECTANGLES) if str(one["id"]) == "1")
    page.evaluate(
        "([y]) => { const node = window.graphNode(2); node.pos = [0, y]; window.app.canvas.setDirty(true, true); }",
        [first["y"] + first["h"] + 30 - 20],
    )
    page.settle(SETTLE)
    [(a, b, width, height)] = overlaps(page.page.evaluate(RECTANGLES))
    assert width > 100 and abs(height - 20) <= 2
