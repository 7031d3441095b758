"""From an empty ComfyUI to the first picture by clicks alone, against the clock."""

import json
import sys
import time
import urllib.request

import pytest
from conftest import FRONT_END, need
from troupe_tools.engine.comfyui import Host, find_comfyui
from troupe_tools.engine.host_server import HostServer

MINUTE = 60
START = "1_start_here_rehearsal"
READY = "() => window.app?.graph && window.app.extensionManager"
OPENED = "() => window.app.graph._nodes.some((node) => node.type === 'TroupeRehearsal')"


@pytest.mark.parametrize(
    "front_end", ["", *([FRONT_END] if FRONT_END else [])], ids=lambda root: "given" if root else "own"
)
def test_the_first_picture_takes_less_than_a_minute(front_end, browser, tmp_path):
    """With an empty folder and a browser that was never here: the start of ComfyUI, its page, the gallery, the first
    template and Run, without a download of a model.
    """
    path = find_comfyui()
    need(path is not None, "COMFYUI (COMFYUI_PATH, or ~/comfy/ComfyUI)")
    arguments = ["--front-end-root", front_end] if front_end else []
    began = time.monotonic()
    host = Host(path, sys.executable, gpu=False)
    with HostServer(host, tmp_path, {}, lambda sentence: None, arguments=arguments) as server:
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        try:
            page.goto(server.url)
            page.wait_for_function(READY)
            gallery = page.get_by_text("ComfyUI-Troupe").first
            page.wait_for_timeout(3000)  # newer front ends open the gallery by themselves for a newcomer
            if not gallery.is_visible():
                page.get_by_role("button", name="Templates").first.click()
            gallery.click()
            page.get_by_text(START, exact=True).first.click()
            page.wait_for_function(OPENED)
            page.get_by_role("button", name="Run", exact=True).first.click()
            entry = finished(server, began + MINUTE)
            seconds = time.monotonic() - began
        finally:
            page.close()
    assert entry is not None, "no picture within a minute"
    assert entry["status"]["status_str"] == "success"
    saved = [node for node, out in entry["outputs"].items() if out.get("images", [{}])[0].get("type") == "output"]
    assert len(saved) == 1 and seconds < MINUTE and not list(tmp_path.rglob("*.safetensors"))
    # for the commands of the README
    assert {"ipadapter", "gligen", "subject_adapters"} <= {path.name for path in (tmp_path / "models").iterdir()}


def finished(server, end):
    """The entry of the first job in the history, None where there is none before `end`, a time of time.monotonic()."""
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{server.url}/history", timeout=30) as answer:
            entries = list(json.load(answer).values())
        if entries:
            return entries[0]
        time.sleep(0.2)
    return None
