"""What the host is executing: the node that runs now, and the graph that it is in."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any

from comfy_execution.utils import get_executing_context

_said: deque[Hashable] = deque(maxlen=64)


def first_time(what: Hashable) -> bool:
    """Return whether the node that runs now has not asked this before in its prompt, as it does for each of an
    upscaler's tiles; always True outside of one.
    """
    context = get_executing_context()
    if context is None:
        return True
    key = (context.prompt_id, context.node_id.partition(".")[0], what)
    if key in _said:
        return False
    _said.append(key)
    return True


def executing() -> tuple[Mapping[str, Any] | None, str]:
    """Return the API prompt that the host's queue is running and the id of the node that runs in it; (None, '') where
    either is not known, as in scripts.
    """
    context = get_executing_context()
    server = sys.modules.get("server")
    queue = getattr(getattr(getattr(server, "PromptServer", None), "instance", None), "prompt_queue", None)
    if context is None or queue is None:
        return None, ""
    # the other one copies every waiting prompt
    current = getattr(queue, "get_current_queue_volatile", queue.get_current_queue)
    running = (item for item in current()[0] if item[1] == context.prompt_id)
    found = next(running, None)
    return (found[2], str(context.node_id)) if found else (None, "")
