"""A ComfyUI as far as the evaluation's engine asks it, for httpx.MockTransport."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import httpx
import numpy as np
from PIL import Image
from troupe.evaluation.engines.comfyui import ComfyUIEngine

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)


def png(picture: np.ndarray = PICTURE) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def engine_on(host: Callable[[httpx.Request], httpx.Response], *where: Any, **options: Any) -> ComfyUIEngine:
    """An engine whose HTTP client asks `host` in place of the network."""
    with mock.patch.object(httpx, "Client", partial(httpx.Client, transport=httpx.MockTransport(host))):
        return ComfyUIEngine(*where, **options)


class Host:
    """ComfyUI as far as the engine asks it. `waits`: questions before a prompt ends, each with the queue to show."""

    def __init__(self, waits=(), history=None, content=None, answers=None):
        self.waits, self.content = list(waits), png() if content is None else content
        self.answers = answers or {}  # path -> function of the request, or exception, asked first
        self.history = history or {"status": {"messages": []}, "outputs": {"9": {"images": [self.image()]}}}
        self.asked: list[tuple[str, str]] = []
        self.uploads: list[bytes] = []
        self.graphs: list[dict] = []
        self.bodies: dict[str, dict] = {}

    @staticmethod
    def image(name="x_00001_.png", kind="output"):
        return {"filename": name, "subfolder": "troupe_evaluation", "type": kind}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.asked.append((request.method, path))
        special = self.answers.get(path)
        if special is not None and (answer := special(request)) is not None:
            return answer
        if path == "/upload/image":
            self.uploads.append(request.read())
            name = request.read().split(b'filename="')[1].split(b'"')[0].decode()
            return httpx.Response(200, json={"name": name, "subfolder": "troupe_evaluation", "type": "input"})
        if path == "/prompt":
            self.graphs.append(json.loads(request.read())["prompt"])
            return httpx.Response(200, json={"prompt_id": "mine", "number": 1, "node_errors": {}})
        if path == "/history/mine":
            return httpx.Response(200, json={} if self.waits else {"mine": self.history})
        if path == "/queue" and request.method == "GET":
            running, pending = self.waits.pop(0)
            places = ([[0, name, {}, {}, []] for name in names] for names in (running, pending))
            return httpx.Response(200, json=dict(zip(("queue_running", "queue_pending"), places, strict=True)))
        if path == "/view":
            assert dict(request.url.params) == {k: self.image()[k] for k in ("filename", "subfolder", "type")}
            return httpx.Response(200, content=self.content)
        self.bodies[path] = json.loads(request.read())
        return httpx.Response(200)
