"""What a node can learn from the graph around it: literal prompt texts upstream, and outputs that nothing was wired
for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from comfy_execution.graph_utils import ExecutionBlocker

from ..model_patches.errors import MismatchError
from ..model_patches.prompt.graph_text import literal_texts
from ..model_patches.prompt.graph_wires import samplers_past
from ..model_patches.prompt.names import missing_warnings
from ..model_patches.subjects import References

T = TypeVar("T")


def warn_about_missing_names(
    references: References, hidden: Any, inputs: Sequence[str], warn: Callable[[str], None]
) -> None:
    """Warn about subjects whose name is not in the literal prompt text that feeds any of this node's `inputs`."""
    texts = literal_texts(hidden.prompt, hidden.unique_id, inputs)
    for sentence in missing_warnings([s.name for s in references.subjects if s.name_tokens is not None], texts):
        warn(sentence)


def warn_about_wires_past(node: str, hidden: Any, warn: Callable[[str], None]) -> None:
    """Warn about samplers that take this node's prompts, and a MODEL that has not passed it. node: display name."""
    for id_, type in samplers_past(hidden.prompt, hidden.unique_id):
        remedy = f"Connect 'model' of {node} to {type} (node {id_}), directly or through LoRA and other nodes"
        warn(f"{remedy}: it uses a prompt of {node} with another MODEL, so the references have no effect.")


def used_from(hidden: Any, type: str, output: int) -> bool:
    """Return whether anything in this node's graph is wired to that output of a node of that class; True if the
    graph is not known.
    """
    graph = hidden.prompt or {}
    ids = {id_ for id_, node in graph.items() if node.get("class_type") == type}
    links = [
        value
        for node in graph.values()
        for value in node.get("inputs", {}).values()
        if isinstance(value, list) and len(value) == 2
    ]
    return not graph or any(str(source) in ids and slot == output for source, slot in links)


def blocked_unless_wired(node: str, model: Any, positive: Any, negative: Any, middle: Any) -> tuple[Any, ...]:
    """Return the outputs; one whose input is not wired is a blocker that says so."""
    named = (("positive", positive), ("negative", negative), ("second positive", middle))
    return (model, *(unless_wired(node, name, value, "prompt") for name, value in named))


def needed(value: T | None, node: str, name: str, source: str) -> T:
    """Return a required input, or raise MismatchError if it is missing. It is optional in the schema, so that the
    prompts come before it: a bypassed node then hands on each by its own slot.

    source: where its wire usually comes from. Raises MismatchError if nothing is wired in.
    """
    if value is None:
        raise MismatchError(f"a wire in '{name}' of {node}", "none", f"Wire '{name}' from {source}.")
    return value


def unless_wired(node: str, name: str, value: Any, what: str) -> Any:
    """Return an output, or a blocker with a message if it is None, because its input is not wired. what: the thing to
    wire, in a word.
    """
    if value is not None:
        return value
    return ExecutionBlocker(
        f"'{name}' of {node} is used, but its '{name}' input is not connected. Connect the {what} to it, or "
        f"use the {what} directly."
    )
