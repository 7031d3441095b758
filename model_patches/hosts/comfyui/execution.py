"""What the host is executing: the node that runs now, and the graph that it is in."""
from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from comfy_execution.utils import get_executing_context


def executing() -> tuple[Mapping[str, Any] | None, str]:
    """The API prompt that the host's queue is running and the id of the node that runs in it; (None, '') where either is not known, as in scripts."""
    context = get_executing_context()
    server = sys.modules.get("server")
    queue = getattr(getattr(getattr(server, "PromptServer", None), "instance", None), "prompt_queue", None)
    if context is None or queue is None:
        return None, ""
    running = (item for item in queue.get_current_queue()[0] if item[1] == context.prompt_id)
    found = next(running, None)
    return (found[2], str(context.node_id)) if found else (None, "")
