"""Saying things to the artist: in the log, and on the node where the host can show text there."""
from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger("troupe")


def notifier(node_id: str | None) -> Callable[[str], None]:
    """A function that warns with one sentence; several sentences of one execution stand below each other on the node."""
    said: list[str] = []

    def warn(sentence: str) -> None:
        log.warning("Troupe: %s", sentence)
        said.append(sentence)
        show(node_id, "\n".join(said))

    return warn


def show(node_id: str | None, text: str) -> None:
    """Put text on the node, in place of what stood there."""
    if node_id is None:
        return
    from server import PromptServer  # the host's web server; absent when a graph runs without one

    server = getattr(PromptServer, "instance", None)
    if hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node_id)
