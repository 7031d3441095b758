"""Lay out the templates so that no node covers another, also where the front end draws nodes taller (Nodes 2.0)."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

from ..engine.comfyui import Host, find_comfyui
from ..engine.host_server import HostServer
from ..errors import RunError
from ..pack import WORKFLOWS
from .screenshots import FLAGS, READY, find_browser

TITLE, GAP, ROW_GAP, GRID = 30, 50, 40, 10  # a title lies above its node's `pos`
GROUP_HEAD, GROUP_FOOT = 50, 20  # of a group, above the first node's title and below the last node
# Every node's outer rectangle in the canvas's units: of its element in Nodes 2.0, else of what the canvas draws.
RECTANGLES = """() => {
  const canvas = window.app.canvas, {scale, offset} = canvas.ds, area = canvas.canvas.getBoundingClientRect();
  return window.app.graph._nodes.map((node) => {
    const box = window.LiteGraph.vueNodesMode && document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
    const [x, y, w, h] = box
      ? [(box.left - area.left) / scale - offset[0], (box.top - area.top) / scale - offset[1], box.width / scale, box.height / scale]
      : [node.pos[0], node.pos[1] - 30, node.size[0], node.size[1] + 30];
    return {id: node.id, title: node.title, drawn: !window.LiteGraph.vueNodesMode || !!box, x, y, w, h};
  });
}"""
OPEN = """async (graph) => {
  await window.app.loadGraphData(graph);
  const nodes = window.app.graph._nodes, canvas = window.app.canvas, area = canvas.canvas.getBoundingClientRect();
  const left = Math.min(...nodes.map((n) => n.pos[0])) - 40, top = Math.min(...nodes.map((n) => n.pos[1])) - 80;
  const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0])), bottom = Math.max(...nodes.map((n) => n.pos[1] + n.size[1]));
  canvas.ds.scale = Math.min(area.width / (right - left + 40), area.height / (bottom - top + 200));
  canvas.ds.offset = [-left, -top];
  canvas.setDirty(true, true);
}"""
SPEAK = """([types, text]) => {
  const output = {troupe_messages: [JSON.stringify(text ? {done: [text], warnings: [text.slice(0, 110)]} : {})]};
  const lost = {troupe_messages: [JSON.stringify(text ? {error: text.repeat(3).slice(0, 330)} : {})]};
  const other = {troupe_messages: [JSON.stringify(text ? {warnings: [text.slice(0, 90)]} : {})]};
  for (const node of window.app.graph._nodes) {
    const kind = node.comfyClass ?? node.type;
    if (kind === "TroupeLoadAdapter") node.onExecuted?.(lost);
    else if (kind === "TroupeAddSubject") node.onExecuted?.(other);
    else if (types.includes(kind)) node.onExecuted?.(output);
  }
}"""
TALKING = (  # classes that have a message after every run, in the node
    "TroupeApplyGated",
    "TroupeApplyImageAttention",
    "TroupeApplyWeights",
    "TroupeEncodePrompt",
    "TroupeEncodeSubjects",
    "TroupeFaces",
    "TroupeKeepBest",
    "TroupePlaceSubjects",
    "TroupePreviewRelevance",
    "TroupeQuickSubjects",
    "TroupeScoreSubjects",
)
MESSAGE = "2 subjects encoded: 'astronaut' (16 image tokens, 1 name token), 'cat' (16 image tokens, 1 name token)."
SPREAD = 1.5  # how much further apart nodes lie while they are measured
SETTLE = 1500  # milliseconds until the front end has drawn a graph and its messages


def restack(workflow: dict[str, Any], heights: Mapping[str, float]) -> None:
    """Stack the nodes of each column of each group by their outer heights, and fit the groups; rows of groups stay
    rows.

    Arguments:
        workflow: a workflow in which every node lies in one group; changed in place.
        heights: of every node by its id as text, with its title.
    Raises:
        RunError: a node lies in no group.
    """
    rows: dict[float, list[dict[str, Any]]] = {}
    for group in sorted(workflow["groups"], key=lambda g: (g["bounding"][1], g["bounding"][0])):
        rows.setdefault(group["bounding"][1], []).append(group)
    inside = {id(group): [node for node in workflow["nodes"] if _lies_in(node, group)] for group in workflow["groups"]}
    grouped = {node["id"] for nodes in inside.values() for node in nodes}
    if outside := [node.get("title") for node in workflow["nodes"] if node["id"] not in grouped]:
        raise RunError(
            f"Expected every node in a group, found {', '.join(map(str, outside))} outside. Enlarge a group."
        )
    top = min(rows, default=0)
    for groups in rows.values():
        bottom = max(_stack(inside[id(group)], top + GROUP_HEAD, heights) for group in groups) + GROUP_FOOT
        for group in groups:
            group["bounding"][1], group["bounding"][3] = top, bottom - top
        top = bottom + ROW_GAP


def _lies_in(node: dict[str, Any], group: dict[str, Any]) -> bool:
    x, y, w, h = group["bounding"]
    return x <= node["pos"][0] < x + w and y <= node["pos"][1] < y + h


def _stack(nodes: list[dict[str, Any]], top: float, heights: Mapping[str, float]) -> float:
    """Move the nodes of one group; the lowest bottom."""
    lowest = top
    for x in {node["pos"][0] for node in nodes}:
        y = top
        for node in sorted((n for n in nodes if n["pos"][0] == x), key=lambda n: n["pos"][1]):
            node["pos"][1] = y + TITLE
            y += GRID * ceil(heights[str(node["id"])] / GRID) + GAP
        lowest = max(lowest, y - GAP)
    return lowest


@contextmanager
def opened(host: Path, front_end: Path | None, nodes2: bool) -> Iterator[Any]:
    """Open a page of a local ComfyUI with the pack, in Nodes 2.0 or on the canvas."""
    from playwright.sync_api import sync_playwright

    arguments = ["--front-end-root", str(front_end)] if front_end else []
    with (
        tempfile.TemporaryDirectory() as folder,
        HostServer(Host(host, sys.executable, gpu=False), Path(folder), {}, print, arguments=arguments) as server,
        sync_playwright() as playwright,
    ):
        for key, value in {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": nodes2}.items():
            url = f"{server.url}/api/settings/{key}"
            request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})  # noqa: S310 (our own server)
            urllib.request.urlopen(request, timeout=60).close()  # noqa: S310 (our own server)
        browser = playwright.chromium.launch(executable_path=find_browser(), headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 1900, "height": 1100})
        page.route(
            "**/*",
            lambda route: (
                route.continue_() if route.request.url.startswith((server.url, "data:", "blob:")) else route.abort()
            ),
        )
        page.goto(server.url, wait_until="domcontentloaded")
        page.wait_for_function(READY, timeout=90_000)
        yield page
        browser.close()


def measure_heights(page: Any, workflow: dict[str, Any]) -> dict[str, float]:
    """Return each node's outer height on the page, where nothing below limits its messages."""
    spread = [{**node, "pos": [node["pos"][0], SPREAD * node["pos"][1]]} for node in workflow["nodes"]]
    page.evaluate(OPEN, {**workflow, "nodes": spread})
    page.evaluate(SPEAK, [TALKING, MESSAGE])
    page.wait_for_timeout(SETTLE)
    return {str(found["id"]): found["h"] for found in page.evaluate(RECTANGLES)}


def main(arguments: list[str] | None = None) -> int:
    """Lay out the named templates, or all, and return the exit status."""
    parser = argparse.ArgumentParser(description="Lay out the templates by the heights that ComfyUI draws.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--front-end", type=Path)
    given = parser.parse_args(arguments)
    paths = [path for path in sorted(WORKFLOWS.glob("*.json")) if not given.names or path.stem in given.names]
    workflows = {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    heights: dict[Path, dict[str, float]] = {
        path: {str(node["id"]): node["size"][1] + TITLE for node in workflow["nodes"]}
        for path, workflow in workflows.items()
    }
    try:
        host = given.comfyui or find_comfyui()
        if host is None:
            raise RunError("Expected a ComfyUI, found none. Give --comfyui.")
        for front_end, nodes2 in [
            (None, False),
            *([(given.front_end, False), (given.front_end, True)] if given.front_end else []),
        ]:
            with opened(Path(host), front_end, nodes2) as page:
                for path, workflow in workflows.items():
                    for id_, height in measure_heights(page, workflow).items():
                        heights[path][id_] = max(heights[path][id_], height)
        for path, workflow in workflows.items():
            restack(workflow, heights[path])
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    for path, workflow in workflows.items():
        path.write_text(json.dumps(workflow, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)
    return 0
