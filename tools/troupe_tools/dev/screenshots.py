"""The README's pictures: templates as a running ComfyUI shows them in Chromium."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..engine.comfyui import Host, find_comfyui
from ..engine.host_server import HostServer
from ..errors import RunError
from ..pack import ROOT, WORKFLOWS

PICTURES = {  # file -> (workflow, type of the node that fills the picture or None for the whole graph, window)
    "two_subjects_graph.jpg": ("4_two_subjects", None, (1920, 1080)),
    "box_editor.jpg": ("6_boxes_and_relevance", "TroupePlaceSubjects", (1400, 1000)),
}
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.ColorPalette": "dark",
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.UseNewMenu": "Disabled",
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,
    "Comfy.Minimap.Visible": False,
}
# the host's own menu, which lies over the graph
HIDDEN = ".comfy-menu, .comfy-menu-hamburger { display: none !important; }"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types?.TroupePlaceSubjects"
SHOW = """([type, margin]) => {
  const canvas = window.app.canvas, nodes = window.app.graph._nodes.filter((node) => !type || node.type === type);
  const left = Math.min(...nodes.map((n) => n.pos[0])), top = Math.min(...nodes.map((n) => n.pos[1] - 40));
  const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0])), bottom = Math.max(...nodes.map((n) => n.pos[1] + n.size[1]));
  const area = canvas.canvas.getBoundingClientRect();
  const scale = Math.min((area.width - 2 * margin) / (right - left), (area.height - 2 * margin) / (bottom - top), 1.4);
  canvas.ds.scale = scale;
  canvas.ds.offset = [area.width / scale / 2 - (left + right) / 2, area.height / scale / 2 - (top + bottom) / 2];
  canvas.setDirty(true, true);
  return [(right - left) * scale, (bottom - top) * scale, area.width, area.height, area.left, area.top];
}"""


def main(arguments: list[str] | None = None) -> int:
    """Make every picture; 0 if that went well."""
    parser = argparse.ArgumentParser(description="Make the README's pictures from a running ComfyUI.")
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--to", type=Path, default=ROOT / "web" / "docs")
    given = parser.parse_args(arguments)
    host = given.comfyui or find_comfyui()
    try:
        if host is None:
            raise RunError("Expected a ComfyUI, found none. Give --comfyui.")
        browser = find_browser()
        with (
            tempfile.TemporaryDirectory() as folder,
            HostServer(Host(Path(host), sys.executable, gpu=False), Path(folder), {}, print) as server,
        ):
            take(server.url, browser, given.to)
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def find_browser() -> str:
    """Return Chromium's file. Raises RunError if there is none."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    browser = next((found for name in names if name and (found := shutil.which(name))), None)
    if browser is None:
        raise RunError("Expected a Chromium, found none. Set CHROMIUM to its file.")
    return browser


def take(url: str, browser: str, to: Path) -> None:
    """Take all pictures from the page at `url`."""
    from playwright.sync_api import sync_playwright

    for key, value in SETTINGS.items():
        body, headers = json.dumps(value).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/api/settings/{key}", body, headers)  # noqa: S310 (our own server)
        urllib.request.urlopen(request, timeout=60).close()  # noqa: S310 (our own server)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, headless=True, args=FLAGS)
        for file, (workflow, kind, (width, height)) in PICTURES.items():
            page = chromium.new_page(viewport={"width": width, "height": height})
            page.route(
                "**/*",
                lambda route: (
                    route.continue_() if route.request.url.startswith((url, "data:", "blob:")) else route.abort()
                ),
            )
            page.goto(url, wait_until="domcontentloaded")
            page.wait_for_function(READY, timeout=90_000)
            page.evaluate("async (graph) => { await window.app.loadGraphData(graph); }", without_models(workflow))
            page.add_style_tag(content=HIDDEN)
            page.wait_for_timeout(3000)
            page.keyboard.press("Escape")
            shown = page.evaluate(SHOW, [kind, 30])
            page.wait_for_timeout(2500)
            cut(page.screenshot(), shown, 30).save(to / file, quality=88)
            print(f"{to / file}")
            page.close()
        chromium.close()


def without_models(name: str) -> dict[str, Any]:
    """Return a template that asks for no missing file."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        node.get("properties", {}).pop("models", None)
    return workflow


def cut(screenshot: bytes, shown: list[float], margin: int) -> Image.Image:
    """Cut out the part of the window where the nodes are, with a margin."""
    width, height, area_width, area_height, left, top = shown
    x, y = left + (area_width - width) / 2 - margin, top + (area_height - height) / 2 - margin
    picture = Image.open(BytesIO(screenshot)).convert("RGB")
    return picture.crop(
        (
            max(0, round(x)),
            max(0, round(y)),
            min(picture.width, round(x + width + 2 * margin)),
            min(picture.height, round(y + height + 2 * margin)),
        )
    )
