"""What a beginner meets first: lists without a file of their own, and nodes with more settings than they need."""

import pytest
from support.browser.message_boxes import links, texts

VALUE = "([id, name]) => window.graphNode(id).widgets.find((widget) => widget.name === name).value"
FOLDED = """(id) => {
  const widgets = window.graphNode(id).widgets.filter((widget) => widget.name && widget.type !== "troupe_messages");
  const labels = [...document.querySelectorAll(`[data-node-id="${id}"] *`)]
    .filter((element) => !element.children.length && element.offsetParent).map((element) => element.textContent.trim());
  return [
    widgets.filter((widget) => widget.options?.advanced).map((widget) => widget.name),
    widgets.filter((widget) => labels.includes(widget.label ?? widget.name)).map((widget) => widget.name),
  ];
}"""


def test_a_list_without_files_says_what_is_missing(page):
    """The placeholder is a sentence, and so is what a run says on the node."""
    page.build([(1, "TroupeLoadAdapter", {}, (0, 0)), (2, "PreviewAny", {}, (500, 0))], [(1, 0, 2, "source")])
    assert page.evaluate(VALUE, 1, "adapter_name") == "(no adapter file yet)"
    page.evaluate("async () => { await window.app.queuePrompt(0, 1); }")
    page.settle(1500)
    page.page.keyboard.press("Escape")
    [refused] = texts(page, 1, "error")
    assert refused.startswith("Expected an adapter file, found none in models/ipadapter")
    [link] = links(page, 1)
    assert link.startswith("https://huggingface.co/") and link.rsplit("/", 1)[1] in refused
    assert "undefined" not in refused and "Traceback" not in refused


def test_settings_that_beginners_never_touch_are_folded(page, setting):
    """Where the host has such settings and Nodes 2.0 draws them."""
    page.build([(1, "TroupeApplyImageAttention", {}, (0, 0))])
    page.settle(1500)
    folded, visible = page.evaluate(FOLDED, 1)
    if not folded or not setting.endswith("nodes2"):
        pytest.skip("THIS COMFYUI, OR ITS CANVAS, FOLDS NO WIDGETS")
    assert set(visible) == {"weight", "merge", "end_percent", "sharpness"} and not set(folded) & set(visible)
