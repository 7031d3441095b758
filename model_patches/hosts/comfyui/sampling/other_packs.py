"""Who else works in a model call, for sentences that name both sides."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

OURS = __name__.partition("model_patches")[0]
# the host loads a pack's folder under its path, with dots as _x_
PACK = re.compile(r"(?:.*[/\\]|(?:custom_nodes|comfy_extras)\.)([^/\\.]+)")


def pack_of(patch: Any) -> str | None:
    """Return the name of the custom node pack (or of the host's own module of extra nodes) that a patch or wrapper
    comes from, or None if unknown.
    """
    while isinstance(patch, functools.partial):
        patch = patch.func
    found = PACK.match(getattr(patch, "__module__", None) or "")
    return found and found[1].replace("_x_", ".")


def named(patches: Iterable[Any]) -> str:
    """Return the subject of a sentence about the packs that left these patches: 'Some-Pack', 'one of Some-Pack and
    Other', or 'another pack'. Ours are passed over.
    """
    others = (patch for patch in patches if not (getattr(patch, "__module__", None) or "").startswith(OURS))
    names = sorted({name for patch in others if (name := pack_of(patch))})
    return (
        "another pack"
        if not names
        else names[0]
        if len(names) == 1
        else f"one of {', '.join(names[:-1])} and {names[-1]}"
    )


def patches_of(options: dict[str, Any], *kinds: str) -> list[Any]:
    """Return all patches of these kinds in a call's `transformer_options`."""
    lists = options.get("patches", {})
    return [patch for kind in kinds for patch in lists.get(kind, ())]
