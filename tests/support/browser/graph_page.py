"""The host's page as a test uses it: build a graph, find the editor of a node, draw, press keys, queue."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

READY = (
    "() => window.app?.graph && window.app.extensionManager?.workflow?.activeWorkflow && "
    "window.LiteGraph?.registered_node_types?.TroupePlaceSubjects"
)
FIND = """window.graphNode = (id) => {
  const search = (graph) => {
    for (const node of graph.nodes ?? graph._nodes) {
      const found = String(node.id) === String(id) ? node : node.subgraph && search(node.subgraph);
      if (found) return found;
    }
  };
  return search(window.app.rootGraph ?? window.app.graph);
};"""


class GraphPage:
    """`size`: (width, height) of the window.

    `block`: part of the addresses that are refused, so that a script is missing.
    """

    def __init__(
        self,
        browser: Any,
        server: Any,
        nodes2: bool = False,
        block: str = "",
        size: tuple[int, int] = (1400, 1000),
        settings: dict[str, Any] | None = None,
    ):
        self.server, self.nodes2 = server, nodes2
        self.errors: list[str] = []
        self.outside: list[str] = []
        for key, value in {
            "Comfy.TutorialCompleted": True,
            "Comfy.VueNodes.Enabled": nodes2,
            "Comfy.ColorPalette": "dark",
            **(settings or {}),
        }.items():
            self.post(f"/api/settings/{key}", value)
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, has_touch=True)
        self.page = self.context.new_page()
        self.page.route("**/*", lambda route: self._route(route, block))
        self.page.on("pageerror", lambda error: self.errors.append(getattr(error, "stack", None) or str(error)))
        self.page.on(
            "console",
            lambda message: (
                message.type in ("error", "warning")
                and self.errors.append(f"{message.text} {message.location.get('url', '')}")
            ),
        )
        self.page.goto(server.url, wait_until="domcontentloaded")
        self._prepare()

    def _prepare(self) -> None:
        self.page.wait_for_function(READY, timeout=90_000)
        assert bool(self.page.evaluate("() => !!window.LiteGraph.vueNodesMode")) == self.nodes2, (
            "the front end is not in the mode that is tested"
        )
        self.page.evaluate(FIND)
        self.settle(2500)  # newer front ends ask for the files of the workflow they begin with
        self.outside.clear()

    def reload(self) -> None:
        """As the browser's button does."""
        self.page.reload(wait_until="domcontentloaded")
        self._prepare()

    def close(self) -> None:
        self.context.close()

    def check(self) -> None:
        ours = [error for error in self.errors if "Troupe" in error]
        assert not ours, ours
        assert not self.outside, self.outside

    def _route(self, route: Any, block: str) -> None:
        url = route.request.url
        if not url.startswith((self.server.url, "data:", "blob:")):
            self.outside.append(url)
            route.abort()
        elif block and block in url:
            route.abort()
        else:
            route.continue_()

    def post(self, path: str, value: Any) -> Any:
        request = urllib.request.Request(
            self.server.url + path, json.dumps(value).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    # ---- graphs ------------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        empty = {
            "last_node_id": 0,
            "last_link_id": 0,
            "nodes": [],
            "links": [],
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }
        self.page.evaluate("async (graph) => { await window.app.loadGraphData(graph); }", empty)
        self.page.wait_for_function("() => window.app.graph._nodes.length === 0")
        self.outside.clear()  # newer front ends ask for the files of the workflow they begin with

    def evaluate(self, script: str, *given: Any) -> Any:
        return self.page.evaluate(script, list(given) if len(given) != 1 else given[0])

    def build(self, nodes: list[tuple], links: list[tuple] = ()) -> None:
        """nodes: (id, class, {widget: value}, (x, y)); links: (from id, output, to id, input name)."""
        self.evaluate(
            """([nodes, links]) => {
          const app = window.app;
          for (const [id, type, values, pos] of nodes) {
            const node = LiteGraph.createNode(type);
            node.id = id;
            app.graph.add(node);
            node.pos = [...pos];
            for (const [name, value] of Object.entries(values)) { const w = node.widgets.find((w) => w.name === name); w.value = value; w.callback?.(value); }
          }
          for (const [from, output, to, name] of links) {
            const target = app.graph.getNodeById(to);
            app.graph.getNodeById(from).connect(output, target, name ? target.inputs.findIndex((i) => i.name === name) : 0);
          }
          app.canvas.ds.scale = 0.9; app.canvas.ds.offset = [20, 60]; app.canvas.setDirty(true, true);
          app.graph.updateExecutionOrder(); // as after a click, so that an undo finds no other order
          const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
          (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
        }""",
            nodes,
            links,
        )

    def cast(
        self, *names: str, place: dict[str, Any] | None = None, at: tuple[int, int] = (420, 30), first: int = 1
    ) -> int:
        """A photo, one Add Subject for each name in a chain, and Place Subjects with these widgets and a Save Image;
        the id of Place Subjects.
        """
        ids = list(range(first, first + len(names) + 3))
        photo, *subjects, placing, save = ids
        nodes = [
            (photo, "LoadImage", {"image": "half_red.png"}, (-500, 30)),
            (placing, "TroupePlaceSubjects", place or {}, at),
            (save, "SaveImage", {}, (-500, 400)),
        ]
        links = [(placing, 2, save, "images")]
        for i, (id_, name) in enumerate(zip(subjects, names, strict=True)):
            nodes.append((id_, "TroupeAddSubject", {"name": name}, (0, 30 + 270 * i)))
            links.append((photo, 0, id_, "image"))
            links.append((id_, 0, subjects[i + 1] if i + 1 < len(subjects) else placing, "cast"))
        self.build(nodes, links)
        self.ready(placing)
        return placing

    def ready(self, id_: Any) -> None:
        """Waits until the editor of a node is on the screen and has looked at the graph."""
        self.page.wait_for_function(
            "(id) => { const e = window.graphNode(id)?.troupeBoxes?.editor; return e?.view && "
            "e.canvas.isConnected && e.canvas.getBoundingClientRect().width > 50; }",
            arg=id_,
            timeout=15_000,
        )
        self.settle()

    def settle(self, milliseconds: int = 450) -> None:
        """Longer than the editor's time between two looks at the graph, and than the host's for a change of the
        layout.
        """
        self.page.wait_for_timeout(milliseconds)

    # ---- the editor --------------------------------------------------------------------------------------------------

    def state(self, id_: Any) -> dict[str, Any]:
        """What the editor shows."""
        return self.evaluate(
            "(id) => { const e = window.graphNode(id).troupeBoxes.editor; return {...e.state, selected: "
            "e.selected, hint: e.hint.textContent, draft: e.draft}; }",
            id_,
        )

    def boxes(self, id_: Any) -> list[Any]:
        """The boxes in the node's text."""
        return json.loads(
            self.evaluate("(id) => window.graphNode(id).widgets.find((w) => w.name === 'boxes').value", id_)
        )

    def area(self, id_: Any) -> tuple[float, float, float, float]:
        """left, top, width, height of the canvas on the screen."""
        return tuple(
            self.evaluate(
                "(id) => { const r = "
                "window.graphNode(id).troupeBoxes.editor.canvas.getBoundingClientRect(); return [r.left, "
                "r.top, r.width, r.height]; }",
                id_,
            )
        )

    def at(self, id_: Any, x: float, y: float) -> tuple[float, float]:
        left, top, width, height = self.area(id_)
        return left + x * width, top + y * height

    def drag(self, id_: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self.page.mouse
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        mouse.move(*self.at(id_, *start))
        mouse.down()
        mouse.move(*self.at(id_, *middle), steps=3)
        mouse.move(*self.at(id_, *end), steps=3)
        mouse.up()
        self.settle(100)

    def draw(self, id_: Any, x: float, y: float, w: float, h: float) -> None:
        self.drag(id_, (x, y), (x + w, y + h))

    def click(self, id_: Any, x: float, y: float) -> None:
        self.page.mouse.click(*self.at(id_, x, y))
        self.settle(60)

    def tool(self, id_: Any, name: str) -> None:
        self.evaluate(
            "([id, name]) => window.graphNode(id).troupeBoxes.editor.tools[name].setAttribute('data-press', '')",
            id_,
            name,
        )
        self.page.click("[data-press]")
        self.evaluate(
            "([id, name]) => window.graphNode(id).troupeBoxes.editor.tools[name].removeAttribute('data-press')",
            id_,
            name,
        )
        self.settle(100)

    def key(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.settle(60)

    def undo(self, key: str = "Control+z") -> None:
        self.page.keyboard.press(key)
        self.settle(700)

    # ---- running -----------------------------------------------------------------------------------------------------

    def prompt(self) -> dict[str, Any]:
        """The graph as it would be sent."""
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def queue(self, completed: bool = True) -> dict[str, Any]:
        """Runs the graph by the page's own queue; the server's history entry of it. completed: whether it is to go
        well.
        """
        before = set(self._history())
        self.page.evaluate("async () => { await window.app.queuePrompt(0, 1); }")
        for _ in range(200):
            new = [entry for key, entry in self._history().items() if key not in before]
            if new:
                assert new[0]["status"]["completed"] == completed, new[0]["status"]
                self.settle()
                return new[0]
            time.sleep(0.1)
        raise AssertionError("the server ran nothing")

    def sent(self, entry: dict[str, Any]) -> list[Any]:
        """The boxes of Place Subjects that the server received."""
        return [
            json.loads(node["inputs"]["boxes"])
            for node in entry["prompt"][2].values()
            if node["class_type"] == "TroupePlaceSubjects"
        ]

    def _history(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.server.url}/history", timeout=60) as answer:
            return json.load(answer)
