"""On a fresh host, every file that a template needs is offered by the front end, with its folder and a download from
its link.
"""

import json

import pytest
from support.browser.served_templates import NAMES, REGISTRY, REHEARSALS, get, pack_folder

TEXTS = "(selector) => [...document.querySelectorAll(selector)].map((found) => found.innerText).join('\\n')"
# older front ends list missing models in a dialog, newer ones in a panel behind a button
DIALOG = ".p-dialog, [role=dialog]"
DOWNLOADS = """() => {
  const asked = [], {click} = HTMLAnchorElement.prototype, {open} = window;
  HTMLAnchorElement.prototype.click = function () { asked.push(this.href); };
  window.open = (url) => { asked.push(String(url)); };
  for (const button of document.querySelectorAll("button"))
    if (/^Download(?! all)/.test(button.innerText.trim())) {
      asked.push(button.title); // an older front end's; without the hub it goes to the page of the repository instead
      button.click();
    }
  Object.assign(HTMLAnchorElement.prototype, {click});
  window.open = open;
  return asked;
}"""


def offered(page) -> str:
    """What the front end says about the missing models of the workflow that was just opened."""
    for _ in range(40):
        page.settle(250)
        if "Missing Models" in (text := page.page.evaluate(TEXTS, DIALOG)):
            return text
        details = page.page.get_by_text("View details")
        if details.count() and details.first.is_visible():
            details.first.click()
        if "Missing Models" in (text := page.page.evaluate(TEXTS, "body")):
            return text
    return ""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REHEARSALS])
def test_every_missing_file_is_offered(name, page, server):
    page.outside.clear()
    saved = json.loads(get(server, f"/api/workflow_templates/{pack_folder(server)}/{name}.json"))
    page.page.evaluate("async (graph) => { await window.app.loadGraphData(graph, true, true, null); }", saved)
    text = offered(page)
    downloads = set(page.page.evaluate(DOWNLOADS))
    page.page.keyboard.press("Escape")
    page.settle(700)
    # the links are asked how large the files are; test_templates.py looks at what else is asked for
    page.outside.clear()
    page.errors[:] = [error for error in page.errors if REGISTRY not in error]
    assert saved["models"], "a template without files"
    lines = text.split("\n")
    for model in saved["models"]:
        place = next((i for i, line in enumerate(lines) if model["name"] in line), None)
        assert place is not None, f"{model['name']} is not offered: {text}"
        entry = "\n".join(lines[place : place + 3])
        assert model["directory"] in entry and "Download" in entry, entry
    assert {model["url"] for model in saved["models"]} <= downloads
