"""Messages of the nodes: in the log, and on the node in the front end (web/messages.js)."""
from __future__ import annotations

import json
import logging
from typing import Any

log = logging.getLogger("troupe")
UI = "troupe_messages"  # key in a node's `ui` output
EVENT = "troupe.message"  # of the websocket: what a node has to say while its MODEL samples


class Messages:
    """What one execution of a node has to say: warnings, and what was done."""

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
        """The node's `ui` output; it replaces the messages of the execution before.

        A string, not a dictionary: newer hosts count dictionaries as pictures of the job.
        """
        return {UI: [json.dumps({"warnings": self.warnings, "done": self.dones})]}


def info(sentence: str) -> None:
    """Log a sentence."""
    log.info("Troupe: %s", sentence)


def tell(node_id: str | None, sentence: str, warning: bool, first: bool) -> None:
    """Show a message on a node while its MODEL samples. first: it replaces those of the last sampling run."""
    if node_id is None:
        return
    from server import PromptServer  # the host's web server; absent when a graph runs without one

    server: Any = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(EVENT, {"node": node_id, "text": sentence, "warning": warning, "first": first}, server.client_id)
