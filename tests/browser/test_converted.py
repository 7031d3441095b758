"""A workflow converted from IPAdapter_plus opens on the names of its subjects."""

from support.ipadapter_workflows import Regional
from troupe_tools.workflow.from_ipadapter import from_ipadapter

NAMES = """() => {
  const canvas = window.app.canvas, area = canvas.canvas.getBoundingClientRect();
  return window.app.graph._nodes.filter((node) => node.type === "TroupeAddSubject").map((node) => {
    const widget = node.widgets.find((w) => w.name === "name");
    const [x, y] = [0, widget.last_y ?? widget.y ?? 0].map((v, i) => (node.pos[i] + v + canvas.ds.offset[i]) * canvas.ds.scale);
    return { name: widget.value, inside: x > 0 && y > 0 && x + node.size[0] * canvas.ds.scale < area.width && y < area.height };
  });
}"""
OVERLAPS = """() => {
  const nodes = window.app.graph._nodes.map((node) => ({ node, box: node.boundingRect ?? node.getBounding() }));
  const apart = (a, b) => a[0] >= b[0] + b[2] || b[0] >= a[0] + a[2] || a[1] >= b[1] + b[3] || b[1] >= a[1] + a[3];
  const ours = ({ node }) => node.type.startsWith("Troupe") || node.type === "ConditioningSetMask" || node.title === "From IPAdapter to Troupe";
  return nodes.flatMap((a, i) => nodes.slice(i + 1).filter((b) => (ours(a) || ours(b)) && !apart(a.box, b.box)).map((b) => [a.node.title, b.node.title]));
}"""


def test_it_opens_on_the_names(page):
    new = from_ipadapter(Regional().saved).workflow
    page.page.evaluate("async (graph) => { await window.app.loadGraphData(graph); }", new)
    page.settle(1500)
    page.page.keyboard.press("Escape")
    page.settle()
    assert page.page.evaluate("() => window.app.graph._nodes.length") == len(new["nodes"])
    assert page.page.evaluate(NAMES) == [{"name": name, "inside": True} for name in ("knight", "owl", "subject 3")]
    assert page.page.evaluate(OVERLAPS) == []
    assert abs(page.page.evaluate("() => window.app.canvas.ds.scale") - new["extra"]["ds"]["scale"]) < 1e-6
    page.outside.clear()  # links of the files that are not there
    page.errors[:] = [error for error in page.errors if "Troupe" in error and "api.comfy.org" not in error]
