"""A ComfyUI server that is started for one run: on the loopback, with a base folder of its own and the pack linked
into it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from ..errors import RunError
from ..pack import ROOT
from .comfyui import Host

HELPER = Path(__file__).parent / "helper_pack"
OURS = "TroupeToolReport"  # a node that only a server of ours has
START_SECONDS = 180
PROGRESS = re.compile(r"(\d+)/(\d+) \[")
SAID = re.compile(r"Troupe: (.*)")
BASE_FOLDERS = (
    "custom_nodes",
    "input",
    "output",
    "user",
    "temp",
    "models/checkpoints",
    "models/ipadapter",
    "models/gligen",
    "models/subject_adapters",
    "models/clip_vision",
)


class HostServer:
    """`with HostServer(...) as server:` starts ComfyUI and stops it; `run` executes an API prompt."""

    def __init__(
        self,
        host: Host,
        base: Path,
        extra_paths: dict[str, Any],
        say: Callable[[str], None],
        progress: Callable[[int, int], None] = lambda done, of: None,
        environment: dict[str, str] | None = None,
        arguments: Sequence[str] = (),
    ):
        self.host, self.base, self._say, self._progress, self._arguments = host, base, say, progress, arguments
        self._environment = {**os.environ, "TROUPE_TOOLS": str(ROOT / "tools"), **(environment or {})}
        self._log: list[str] = []
        self.cached: list[str] = []  # ids of the nodes whose results the last run has kept from an earlier one
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        for folder in BASE_FOLDERS:
            (base / folder).mkdir(parents=True, exist_ok=True)
        link(ROOT, base / "custom_nodes" / "ComfyUI-Troupe")
        link(HELPER, base / "custom_nodes" / "troupe_tool_helper")
        (base / "extra_paths.yaml").write_text(json.dumps(extra_paths), encoding="utf-8")  # JSON is YAML

    def __enter__(self) -> HostServer:
        command = [
            self.host.python,
            "main.py",
            *([] if self.host.gpu else ["--cpu"]),
            "--listen",
            "127.0.0.1",
            "--port",
            str(self._port),
            "--base-directory",
            str(self.base),
            "--extra-model-paths-config",
            str(self.base / "extra_paths.yaml"),
            "--disable-auto-launch",
            "--disable-api-nodes",
            "--database-url",
            "sqlite:///:memory:",
            *self._arguments,
        ]
        self._process = subprocess.Popen(  # noqa: S603 (no shell; ComfyUI's own main.py)
            command,
            cwd=self.host.path,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        self._output = cast(BufferedReader, self._process.stdout)  # of a pipe without text mode
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._wait_until_ours()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        self._output.close()

    def object_info(self) -> dict[str, Any]:
        """Return every node's schema."""
        return self._get("/object_info")

    def run(self, prompt: dict[str, Any]) -> list[Path]:
        """Execute and return the picture files, in the order of their nodes.

        Raises RunError with the host's own words.
        """
        answer = self._post("/prompt", {"prompt": prompt})
        # the host takes a prompt of which some outputs are sound, and leaves the others out
        if answer.get("node_errors"):
            raise RunError(refusal(answer, prompt))
        id_ = answer["prompt_id"]
        while id_ not in (history := self._get(f"/history/{id_}")):
            self._check_alive()
            time.sleep(0.3)
        entry = history[id_]
        self.cached = [id_ for m in entry["status"]["messages"] if m[0] == "execution_cached" for id_ in m[1]["nodes"]]
        failed = next((m[1] for m in entry["status"]["messages"] if m[0] == "execution_error"), None)
        if failed:
            raise RunError(
                f"{failed['node_type']} (node {failed['node_id']}) failed: {failed['exception_message'].strip()}"
            )
        images = [
            image
            for outputs in entry["outputs"].values()
            for image in outputs.get("images", ())
            if image["type"] == "output"
        ]
        return [self.base / "output" / image["subfolder"] / image["filename"] for image in images]

    # ---- its parts ---------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Follow the server's output: progress, and what Troupe says."""
        line = b""
        while part := self._output.read1(4096):
            *lines, line = re.split(rb"[\r\n]", line + part)
            for text in (raw.decode(errors="replace").strip() for raw in lines):
                if text:
                    self._take(text)

    def _take(self, text: str) -> None:
        step, spoken = PROGRESS.search(text), SAID.search(text)
        if step:
            self._progress(int(step[1]), int(step[2]))
        if spoken:  # it may stand behind a progress bar that has not ended its line
            self._say(spoken[1])
        if not step:
            self._log.append(text)

    def _wait_until_ours(self) -> None:
        """A port may belong to another ComfyUI: ours is the one that has our helper's node."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            self._check_alive()
            try:
                if OURS in self._get(f"/object_info/{OURS}"):
                    return
                raise RunError(
                    "ComfyUI started without the pack: "
                    f"{self._last('IMPORT FAILED') or self._last('Traceback') or 'see its log'}."
                )
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        raise RunError(
            f"ComfyUI did not answer within {START_SECONDS} seconds. Its last line: "
            f"{self._log[-1] if self._log else 'none'}"
        )

    def _check_alive(self) -> None:
        if self._process.poll() is not None:
            self._reader.join(2)
            raise RunError(
                "ComfyUI ended (exit status {}). Its last lines:\n  {}".format(
                    self._process.returncode, "\n  ".join(self._log[-6:])
                )
            )

    def _last(self, words: str) -> str:
        return next((line for line in reversed(self._log) if words in line), "")

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as answer:  # noqa: S310 (our own server)
            return json.load(answer)

    def _post(self, path: str, body: Any) -> Any:
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers)  # noqa: S310 (our own server)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 (our own server)
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RunError(refusal(json.load(error), body["prompt"])) from None


def refusal(answer: dict[str, Any], prompt: dict[str, Any]) -> str:
    """Return the host's reasons for not taking a prompt, one line a node."""
    lines = [
        f"  {entry['class_type']} (node {id_}): {e['message']}: {e['details']}"
        for id_, entry in answer.get("node_errors", {}).items()
        for e in entry["errors"]
    ]
    return "\n".join(
        [
            f"ComfyUI refuses the workflow: {answer.get('error', {}).get('message', 'some of its nodes cannot run')}.",
            *lines,
        ]
    )


def link(source: Path, target: Path) -> None:
    """Link to a folder, or copy it if the system has no links."""
    if target.exists():
        return
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git", ".venv", "output", "__pycache__"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
