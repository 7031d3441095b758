"""What tests of whole node chains share: running a node, photos, sizes of the tiny encoder that conftest's
`vision` is.
"""

from __future__ import annotations

import asyncio
import inspect

import torch

HIDDEN, POOLED = 32, 16  # of the tiny CLIP vision encoder


def run(node, **inputs):
    """Execute a node class as the host does; its outputs."""
    from comfy_api.latest import io

    clone = node.PREPARE_CLASS_CLONE(None) if hasattr(node, "PREPARE_CLASS_CLONE") else node
    out = clone.execute(**inputs)
    out = asyncio.run(out) if asyncio.iscoroutine(out) else out
    assert isinstance(out, io.NodeOutput)
    return out.result


def prompt_executor(server):
    """The host's executor of prompts; newer hosts want to be told how much they may keep."""
    import execution

    newer = "cache_args" in inspect.signature(execution.PromptExecutor).parameters
    return (
        execution.PromptExecutor(server, cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0})
        if newer
        else execution.PromptExecutor(server)
    )


def photo(h, w, seed):
    """A random IMAGE of one picture."""
    return torch.rand(1, h, w, 3, generator=torch.Generator().manual_seed(seed))
