"""The host's own executor in this process: graphs in the form of its API are validated and run, one after the other."""

from __future__ import annotations

import asyncio
import json
import os

import safetensors.torch

from .node_chains import prompt_executor

ADAPTER = "mine.safetensors"


class Server:
    """What the executor and our notices need of the host's web server."""

    client_id = last_node_id = last_prompt_id = None
    sockets_metadata: dict = {}

    def __init__(self):
        self.events, self.executed = [], {}

    def send_sync(self, event, data, *args):
        if event == "executed":
            self.executed[data["node"]] = data["output"]
        elif str(event).startswith("troupe"):
            self.events.append((event, data))

    def queue_updated(self):
        pass


def studio_with_our_nodes(base, monkeypatch) -> Studio:
    """A host with the pack's nodes and the primitives that the templates use."""
    import server
    from comfy_extras.nodes_primitive import Int, StringMultiline
    from troupe.nodes import NODES

    import nodes

    stand_in = Server()
    monkeypatch.setattr(server.PromptServer, "instance", stand_in, raising=False)
    for node in NODES:
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node.GET_SCHEMA().node_id, node)
    for node in (Int, StringMultiline):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node.GET_SCHEMA().node_id, node)
    return Studio(base, stand_in)


class Studio:
    """One host that stays up: files come and go, graphs run one after the other."""

    def __init__(self, base, server):

        executor = prompt_executor(server)
        self.models, self.server, self.executor, self.count = base / "models", server, executor, 0

    def save(self, state, name=ADAPTER, folder="ipadapter"):
        path = self.models / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(state, path)
        self._later(path)
        return path

    def overwrite(self, path, content: bytes):
        """Other content in the same file, as a copy over it does."""
        path.write_bytes(content)
        self._later(path)

    def _later(self, path):
        self.count += 1
        os.utime(path, ns=(10**18 + self.count * 10**9,) * 2)  # a clock that always moves, on any file system

    def messages(self, node) -> dict:
        """What the last run left on a node: {"warnings": [...], "done": [...]}."""
        [text] = self.server.executed[node]["troupe_messages"]
        return json.loads(text)

    def run(self, graph) -> str | None:
        """Validate and execute; None, or the first error's text as the front end shows it, or 'interrupted'."""
        import execution

        self.count += 1
        self.server.events.clear()
        self.server.executed.clear()
        valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt(str(self.count), graph, None))
        for found in node_errors.values():
            return "validation: " + found["errors"][0]["details"].partition(" - ")[2]  # after the input's name
        assert valid, error
        # newer hosts tell nobody, and keep nothing, of a kept result without one
        self.executor.execute(graph, str(self.count), {"client_id": "a browser"}, outputs)
        failures = [
            data.get("exception_message", "interrupted")
            for event, data in self.executor.status_messages
            if event in ("execution_error", "execution_interrupted")
        ]
        assert bool(failures) != self.executor.success
        return failures[0].strip() if failures else None
