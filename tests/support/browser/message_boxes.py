"""Messages on nodes in the browser: what they say, where their links lead."""

LINES = """(id) => {
  const widget = window.graphNode(id).widgets.find((w) => w.type === "troupe_messages");
  return widget.hidden ? [] : [...widget.element.querySelectorAll("li")].map((li) => [li.classList[0].replace("troupe-", ""), li.textContent]);
}"""

LINKS = """(id) => {
  const widget = window.graphNode(id).widgets.find((w) => w.type === "troupe_messages");
  return [...widget.element.querySelectorAll("a")].map((link) => link.href);
}"""

SEEN = """(id) => {
  const widget = window.graphNode(id).widgets.find((w) => w.type === "troupe_messages"), around = widget.element.getBoundingClientRect();
  const lines = [...widget.element.querySelectorAll("li")].map((li) => li.getBoundingClientRect());
  return lines.map((line) => [line.height, line.bottom <= around.bottom + 1, line.right <= around.right + 1]);
}"""

HEIGHT = """(id) => document.querySelector(`[data-node-id="${id}"]`)?.getBoundingClientRect().height ?? window.graphNode(id).size[1]"""

CLOSE = """(id) => {
  const node = window.graphNode(id), {ds} = window.app.canvas;
  ds.scale = 1; ds.offset = [300 - node.pos[0], 340 - node.pos[1]];
  window.app.canvas.setDirty(true, true);
}"""


def lines(page, id_):
    """What stands on a node: [kind, text] of each line."""
    page.settle(900)
    return page.evaluate(LINES, id_)


def texts(page, id_, kind):
    return [text for each, text in lines(page, id_) if each == kind]


def links(page, id_):
    """The addresses that stand on a node as links."""
    return page.evaluate(LINKS, id_)


def put(page, id_, name, value):
    page.evaluate(
        "([id, name, value]) => { const w = window.graphNode(id).widgets.find((w) => w.name === name); "
        "w.value = value; w.callback?.(value); }",
        id_,
        name,
        value,
    )
