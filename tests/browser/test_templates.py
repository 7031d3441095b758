"""Every template opens in the browser on a fresh host, is converted there, and queued: files that are not there are the
only complaint.
"""

import json
import urllib.error
import urllib.request

import pytest
from support.browser.served_templates import NAMES, OTHER_PACKS, REGISTRY, REHEARSALS, WORKFLOWS, get, pack_folder

# widgets that name files to be downloaded
FILES = {"ckpt_name", "adapter_name", "clip_vision_name", "clip_name", "vae_name", "unet_name"}


def complaints(server, prompt):
    """(node type, widget, text) of everything that the host says against a prompt; its own sentence where it does not
    look at the nodes.
    """
    request = urllib.request.Request(
        server.url + "/prompt", json.dumps({"prompt": prompt}).encode(), {"Content-Type": "application/json"}
    )
    try:
        urllib.request.urlopen(request, timeout=60)
        return []
    except urllib.error.HTTPError as error:
        answer = json.loads(error.read())
    found = [
        (told["class_type"], e["extra_info"].get("input_name"), e["details"])
        for told in answer["node_errors"].values()
        for e in told["errors"]
    ]
    return found or [("", None, answer["error"]["message"])]


@pytest.mark.parametrize("name", NAMES)
def test_a_template_opens_and_lacks_nothing_but_files(name, page, server):
    folder = pack_folder(server)
    saved = json.loads(get(server, f"/api/workflow_templates/{folder}/{name}.json"))
    assert saved == json.loads((WORKFLOWS / f"{name}.json").read_text())
    assert get(server, f"/api/workflow_templates/{folder}/{name}.jpg")[:2] == b"\xff\xd8"
    page.page.evaluate("async (graph) => { await window.app.loadGraphData(graph); }", saved)
    page.settle()
    count = page.page.evaluate("() => window.app.graph._nodes.length")
    prompt = page.page.evaluate("async () => (await window.app.graphToPrompt()).output")
    links = {model["url"] for node in saved["nodes"] for model in node.get("properties", {}).get("models", [])}
    missing = {node["type"] for node in saved["nodes"] if node["type"] == OTHER_PACKS.get(name)}
    unknown = [id_ for id_, node in prompt.items() if not node["class_type"]]
    assert count == len(saved["nodes"]) and len(unknown) == len(missing) == (name in OTHER_PACKS)
    prompt = {
        id_: {
            **node,
            "inputs": {k: v for k, v in node["inputs"].items() if not (isinstance(v, list) and v[0] in unknown)},
        }
        for id_, node in prompt.items()
        if id_ not in unknown
    }
    told = [] if name in REHEARSALS else complaints(server, prompt)
    assert bool(told) != (name in REHEARSALS) and {widget for _, widget, _ in told} <= FILES, told
    page.settle(1500 if missing else 450)
    page.outside[:] = [url for url in page.outside if url.split("?")[0] not in links and not url.startswith(REGISTRY)]
    page.errors[:] = [error for error in page.errors if REGISTRY not in error]
    page.page.keyboard.press("Escape")
