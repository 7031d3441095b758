"""Messages of the nodes: in the log, and on the node in the front end (web/messages.js)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import folder_paths
import torch
from PIL import Image

log = logging.getLogger("troupe")
UI = "troupe_messages"  # key in a node's `ui` output
EVENT = "troupe.message"  # of the websocket: what a node has to say while its MODEL samples
PICTURE = "troupe.picture"  # of the websocket: a picture for a node, after a run


class Messages:
    """The messages of one execution of a node: warnings, and what was done."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.dones: list[str] = []

    def warn(self, sentence: str) -> None:
        """Log a warning, and keep it for the node."""
        log.warning("Troupe: %s", sentence)
        self.warnings.append(sentence)

    def done(self, sentence: str) -> None:
        """Log what was done, and keep it for the node; '' is nothing."""
        if sentence:
            info(sentence)
            self.dones.append(sentence)

    def ui(self) -> dict[str, list[str]]:
        """Return the node's `ui` output; it replaces the messages of the execution before.

        A string, not a dictionary: newer hosts count dictionaries as pictures of the job.
        """
        return {UI: [json.dumps({"warnings": self.warnings, "done": self.dones})]}


def info(sentence: str) -> None:
    """Log a sentence."""
    log.info("Troupe: %s", sentence)


def tell(node_id: str | None, sentence: str, warning: bool, first: bool) -> None:
    """Show a message on a node while its MODEL samples. first: it replaces those of the last sampling run."""
    server = None if node_id is None else _server()
    if server is not None:
        server.send_sync(
            EVENT, {"node": node_id, "text": sentence, "warning": warning, "first": first}, server.client_id
        )


def is_watched(node_id: str | None) -> bool:
    """Return whether a browser waits for what this run shows on the node."""
    return node_id is not None and getattr(_server(), "client_id", None) is not None


def show(node_id: str, picture: torch.Tensor) -> None:
    """Show a picture [1, H, W, 3] (0..1) on a node, as a file in the host's temporary folder."""
    folder, name, count, subfolder, _ = folder_paths.get_save_image_path(
        "Troupe_relevance", folder_paths.get_temp_directory()
    )
    file = f"{name}_{count:05}_.png"
    Image.fromarray((picture[0].clamp(0, 1) * 255).byte().cpu().numpy()).save(Path(folder) / file, compress_level=1)
    server = _server()
    server.send_sync(
        PICTURE,
        {"node": node_id, "picture": {"filename": file, "subfolder": subfolder, "type": "temp"}},
        server.client_id,
    )


def _server() -> Any:
    """The host's web server; None when a graph runs without one."""
    from server import PromptServer

    return getattr(PromptServer, "instance", None)
