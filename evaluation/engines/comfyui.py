"""An engine behind the API of a ComfyUI server, on this machine or another."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from ...model_patches.errors import TroupeError
from ...training.data.pictures import PictureFault
from ..tasks import Task, TaskSubject
from .comfyui_graph import Graph, Value, batched, build_graph, fill_template, photo_side, read_template, workflow_of
from .engine import EngineLostError
from .photos import framed_png, one_size

FOLDER = "troupe_evaluation"  # of uploaded photos, in the host's input folder
REQUEST_SECONDS = 60.0
POLL = (0.05, 0.5)  # seconds between questions, growing from the first to the second
BLIPS = 3  # questions in a row without an answer before the host counts as lost
QUEUES = ("queue_running", "queue_pending")
NOT_COMFYUI = (401, 403, 404, 405, 407, 429)
Square = tuple[int, str] | None  # side and framing; None: a photo is uploaded as it is


class HostError(TroupeError):
    """An error that a ComfyUI server reports about one task."""


class ComfyUIEngine:
    """A ComfyUI server that has the pack. It is asked by HTTP only: nothing of it needs to be on this machine."""

    def __init__(
        self,
        url: str,
        photos: Path,
        *,
        settings: Mapping[str, Value] | None = None,
        timeout: float = 600.0,
        slots: int = 1,
    ):
        """Remember where the server is; nothing is asked yet.

        url: e.g. "http://10.0.0.2:8188", with user:password@ if a proxy asks for them. photos: the folder to which the
        photos of tasks are relative. settings: for every method; a method's own count more; `workflow`: a workflow in
        API format with placeholders, in place of the pack's graph, with the number of subjects for "{subjects}" in its
        name. timeout: seconds that the server may work at one prompt; waiting behind others' prompts does not count.
        slots: how many tasks it gets at once; the second waits in its queue, which hides the transfer of pictures.
        Raises:
            HostError: the url is no address of a server.
        """
        address = _address(url)
        self.name = str(address.copy_with(username=None, password=None)).rstrip("/")
        self.slots = slots
        self._photos, self._settings, self._timeout = photos, dict(settings or {}), timeout
        self._templates: dict[Path, Graph] = {}
        self._client = httpx.Client(base_url=address, timeout=REQUEST_SECONDS)
        self._uploaded: dict[tuple[Path, Square], str] = {}
        self._squares: dict[tuple[Path, ...], bool] = {}  # whether photos of one batch have different sizes
        self._uploading = threading.Lock()

    def paint(self, task: Task) -> np.ndarray:
        """Return the picture, [H, W, 3] uint8 RGB.

        Raises:
            EngineLostError: the server does not answer, has forgotten the prompt, or takes longer than the timeout.
            HostError: it refuses the graph, a node fails, or it has not exactly one sound picture; in its own words.
            GraphError: no graph can be made for the task.
        """
        try:
            settings = {**self._settings, **task.method.settings}
            prompt_id = self._queue(self._graph(task, settings))
            return self._download(self._wait(prompt_id))
        except (httpx.RequestError, EngineLostError) as error:
            with self._uploading:  # it may come back with an empty input folder
                self._uploaded.clear()
            if isinstance(error, EngineLostError):
                raise
            raise self._lost(f"no answer ({type(error).__name__}: {error})") from error

    # ---- the steps ---------------------------------------------------------------------------------------------------

    def _graph(self, task: Task, settings: Mapping[str, Value]) -> Graph:
        template = self._template(workflow_of(settings, len(task.subjects)))
        photos = self._names(task, settings, batched(task, template))
        if template is None:
            return build_graph(task, photos, settings)
        return fill_template(template, task, photos, settings)

    def _template(self, path: Path | None) -> Graph | None:
        if path is None:
            return None
        if path not in self._templates:
            self._templates[path] = read_template(path)
        return self._templates[path]

    def _names(self, task: Task, settings: Mapping[str, Value], joined: Sequence[TaskSubject]) -> dict[str, str]:
        """The names of a task's photos for Load Image. joined: the subjects whose photos go through a batch."""
        names = {}
        square = photo_side(settings), str(settings.get("framing", "auto"))
        for one in task.subjects:
            how = square if one in joined and self._differ(one) else None
            names |= {photo: self._upload(self._photos / photo, how) for photo in one.photos}
        return names

    def _differ(self, subject: TaskSubject) -> bool:
        """Whether a subject's photos have different sizes."""
        photos = tuple(self._photos / photo for photo in subject.photos)
        if photos not in self._squares:
            try:
                self._squares[photos] = not one_size(photos)
            except PictureFault as fault:
                raise _unreadable(fault) from fault
        return self._squares[photos]

    def _upload(self, path: Path, square: Square) -> str:
        """The name of a photo for Load Image. Its content is in the name, so that no other upload can replace it."""
        with self._uploading:
            if (path, square) not in self._uploaded:
                content = self._content(path, square)
                suffix = ".png" if square else path.suffix.lower()
                name = f"{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
                files, fields = {"image": (name, content)}, {"type": "input", "subfolder": FOLDER}
                answer = self._json("POST", "/upload/image", ("name", "subfolder"), files=files, data=fields)
                self._uploaded[path, square] = f"{answer['subfolder']}/{answer['name']}"
            return self._uploaded[path, square]

    @staticmethod
    def _content(path: Path, square: Square) -> bytes:
        try:
            return path.read_bytes() if square is None else framed_png(path, *square)
        except OSError as error:
            raise HostError(f"a photo at {path}", f"'{error.strerror}'", "Give the suite's own folder.") from error
        except PictureFault as fault:
            raise _unreadable(fault) from fault

    def _queue(self, graph: Graph) -> str:
        answer = self._json("POST", "/prompt", ("prompt_id",), json={"prompt": graph})
        prompt_id = str(answer["prompt_id"])
        if answer.get("node_errors"):  # it would run the sound outputs and leave out the others
            self._cancel(prompt_id)
            raise self._failed(_refusal(answer))
        return prompt_id

    def _wait(self, prompt_id: str) -> dict[str, Any]:
        """The history of a prompt, when it is there."""
        running: object = None
        started, pause, blips = time.monotonic(), POLL[0], 0
        while True:
            try:
                entry, now_running = self._look(prompt_id)
                blips = 0
            except httpx.RequestError:
                blips += 1
                if blips == BLIPS:
                    raise
                entry, now_running = None, running
            if entry is not None:
                return entry
            if now_running != running:  # another prompt has begun: the clock starts anew
                running, started = now_running, time.monotonic()
            if time.monotonic() - started > self._timeout:
                self._cancel(prompt_id)
                raise self._lost(f"no picture after {self._timeout:g} seconds")
            time.sleep(pause)
            pause = min(pause * 1.2, POLL[1])

    def _look(self, prompt_id: str) -> tuple[dict[str, Any] | None, list[str]]:
        """(the history of a prompt or None, the ids of the prompts that are running)."""
        for _ in range(2):  # it may end between the two questions
            history = self._json("GET", f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id], []
            queue = self._json("GET", "/queue", QUEUES)
            running, pending = ([str(item[1]) for item in queue[name]] for name in QUEUES)
            if prompt_id in (*running, *pending):
                return None, running
        raise self._lost("no trace of the prompt: it has been restarted, or its queue was cleared")

    def _download(self, entry: Mapping[str, Any]) -> np.ndarray:
        _raise_error(self, entry)
        images = [image for outputs in entry["outputs"].values() for image in outputs.get("images", ())]
        saved = [image for image in images if image["type"] == "output"] or images
        if len(saved) != 1:
            raise self._failed(f"{len(saved)} pictures instead of one. Keep a single Save Image in the workflow")
        place = {name: saved[0][name] for name in ("filename", "subfolder", "type")}
        return self._decoded(self._request("GET", "/view", params=place).content)

    def _decoded(self, content: bytes) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(content)) as image:
                picture = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise self._failed(f"a file that is no whole picture ({error})") from error
        if (picture == picture[0, 0]).all():
            raise self._failed("a picture of one colour. If it is black, start ComfyUI with --fp32-vae")
        return picture

    def _cancel(self, prompt_id: str) -> None:
        try:
            self._request("POST", "/queue", json={"delete": [prompt_id]})
            self._request("POST", "/interrupt", json={"prompt_id": prompt_id})
        except (httpx.RequestError, TroupeError):
            pass  # it is lost anyhow

    # ---- asking ------------------------------------------------------------------------------------------------------

    def _json(self, method: str, path: str, keys: Sequence[str] = (), **body: Any) -> dict[str, Any]:
        """The answer's object, which has these keys."""
        answer = _object(self._request(method, path, **body))
        if answer is None or not answer.keys() >= set(keys):
            raise self._lost(f"no ComfyUI: {path} answers something else")
        return answer

    def _request(self, method: str, path: str, **body: Any) -> httpx.Response:
        answer = self._client.request(method, path, **body)
        if answer.is_success:
            return answer
        if path == "/view" and answer.status_code == 404:
            raise self._failed("no file of the picture any more")
        if answer.status_code in NOT_COMFYUI or not answer.is_client_error:
            raise self._lost(f"status {answer.status_code} for {path}")
        raise self._failed(_refusal(_object(answer) or {}) or f"status {answer.status_code} for {path}")

    def _lost(self, found: str) -> EngineLostError:
        return EngineLostError(f"ComfyUI at {self.name}", found, "Start it again, or leave it out.")

    def _failed(self, found: str) -> HostError:
        return HostError(f"a picture from {self.name}", found, "Its log may say more.")


def _unreadable(fault: PictureFault) -> HostError:
    return HostError("photos that open", f"{fault.reason}: {fault.detail}", "Download them again.")


def _raise_error(engine: ComfyUIEngine, entry: Mapping[str, Any]) -> None:
    """Raise what went wrong while a prompt ran, in the host's words."""
    for event, facts in (entry.get("status") or {}).get("messages", ()):
        if event == "execution_interrupted":
            raise engine._failed("that somebody interrupted it")
        if event == "execution_error":
            message = str(facts.get("exception_message", "")).strip()
            raise engine._failed(f"that {facts.get('node_type')} (node {facts.get('node_id')}) failed: {message}")


def _address(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        address = httpx.URL()
    if address.scheme not in ("http", "https") or not address.host:
        raise HostError("the address of a ComfyUI", f"'{url}'", "Write it as http://127.0.0.1:8188.")
    return address


def _object(answer: httpx.Response) -> dict[str, Any] | None:
    try:
        found = answer.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _refusal(answer: Mapping[str, Any]) -> str:
    """Why a graph is not taken; empty: the answer does not say."""
    error = answer.get("error")
    reasons = [error["message"]] if isinstance(error, dict) and error.get("message") else []
    for node_id, node in (answer.get("node_errors") or {}).items():
        reasons += [f"{node['class_type']} (node {node_id}): {e['message']}: {e['details']}" for e in node["errors"]]
    return "that it refuses the workflow: " + "; ".join(reasons) if reasons else ""
