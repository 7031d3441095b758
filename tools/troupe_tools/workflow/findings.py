"""What keeps a workflow from running: nodes that are not there, wires that do not fit, values that are not
allowed. One sentence each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..pack import load_pack
from .graph import ACTIVE, SEEDS, Graph, Node, active_upstream, can_be_wired
from .needed import ADAPTER_FOLDERS, EXTENSIONS, VISION, Needed
from .virtual import PACKS, is_virtual
from .wires import INSIDE, as_list

WIDGETS = ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN")
NUMBERS = {"INT": "a whole number", "FLOAT": "a number"}
# options of a list of the user's own pictures, videos, sounds
UPLOADS = ("image_upload", "video_upload", "audio_upload", "animated_image_upload")
# of IPAdapter_plus; the last one is in no version since March 2024
IPADAPTER = ("IPAdapter", "IPAdapterAdvanced", "IPAdapterApply")
ASKED_FOR = {  # sockets that our nodes cannot do without, though their schema says optional: see nodes/graph.py
    "TroupeApplyImageAttention": ("references",),
    "TroupeApplyGated": ("references",),
    "TroupeQuickSubjects": ("clip", "image_1"),
}
Info = dict[str, Any]  # the host's /object_info


@dataclass(frozen=True)
class Finding:
    """A finding. kind: node, file, wire, value; text: one sentence that says what was expected, what was found, and
    what to do.
    """

    kind: str
    text: str


@dataclass(frozen=True, eq=False)
class Input:
    """One input of a node class, as the host describes it; type: a socket's, or one of WIDGETS."""

    name: str
    type: str
    required: bool
    options: list[Any] | None
    extra: dict[str, Any]

    @property
    def is_widget(self) -> bool:
        """Whether the node shows a field for it."""
        return self.type in WIDGETS and not self.extra.get("forceInput")


def inputs_of(entry: dict[str, Any]) -> dict[str, Input]:
    """Return the inputs of a class by name, in the host's order."""
    found = {}
    for group in ("required", "optional"):
        for name, spec in ((entry.get("input") or {}).get(group) or {}).items():
            kind, *more = spec if isinstance(spec, (list, tuple)) and spec else [spec]
            extra = more[0] if more and isinstance(more[0], dict) else {}
            if isinstance(kind, list):
                kind, options = "COMBO", kind
            else:
                options = extra.get("options") if kind == "COMBO" else None
            found[name] = Input(name, str(kind), group == "required", options, extra)
    return found


def named_values(node: Node, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the saved value of every widget that no wire overrides, by name; older files save no names, so their
    values go by the host's order.
    """
    values = node.raw.get("widgets_values") or []
    if isinstance(values, dict):
        named = dict(values)
    else:
        places = node.widget_places()
        order = places if _covers(places, values) else _places_by_order(entry, values)
        named = {name: values[place] for name, place in order.items() if place < len(values)}
    return {name: value for name, value in named.items() if (node.inputs.get(name) or {}).get("link") is None}


def _covers(places: dict[str, int], values: list[Any]) -> bool:
    """Whether the saved names reach the last value, or the one before an extra one after a seed."""
    return bool(places) and len(values) - max(places.values()) <= 2


def _places_by_order(entry: dict[str, Any], values: list[Any]) -> dict[str, int]:
    places, at = {}, 0
    for name, one in inputs_of(entry).items():
        if not one.is_widget:
            continue
        places[name] = at
        seed = one.type == "INT" and (one.extra.get("control_after_generate") or name in SEEDS)
        at += 2 if seed and at + 1 < len(values) and isinstance(values[at + 1], (str, bool)) else 1
    return places


# ---- nodes -----------------------------------------------------------------------------------------------------------


def missing_nodes(graph: Graph, info: Info) -> list[Finding]:
    """Return one finding for each class that the host does not have."""
    groups: dict[str, list[Node]] = {}
    for node in graph.nodes.values():
        if (
            node.mode == ACTIVE
            and node.type not in info
            and not is_virtual(node.type)
            and not _front_end_of_a_pack(node, info)
        ):
            groups.setdefault(node.type, []).append(node)
    return [_missing_node(kind, nodes) for kind, nodes in groups.items()]


def packs_named(graph: Graph) -> list[str]:
    """Return the packs that the workflow says its nodes come from, without ComfyUI itself."""
    return sorted(
        {
            pack
            for node in graph.nodes.values()
            if node.mode == ACTIVE and (pack := _pack(node)) not in ("", "comfy-core")
        }
    )


def _pack(node: Node) -> str:
    properties = node.raw.get("properties") or {}
    return str(properties.get("cnr_id") or properties.get("aux_id") or "")


def _missing_node(kind: str, nodes: list[Node]) -> Finding:
    pack = next(filter(None, map(_pack, nodes)), "")
    where = f"{nodes[0].label}" + (f" and {len(nodes) - 1} more" if len(nodes) > 1 else "")
    if pack == "comfy-core":
        what, remedy = "a node of ComfyUI itself", "update ComfyUI"
    elif kind.startswith("Troupe"):
        what, remedy = "a node of Troupe", "install or update Troupe"
    elif pack:
        source = (
            f"https://github.com/{pack}"
            if "/" in pack
            else f"'{pack}' in ComfyUI Manager, or run `comfy node install {pack}`,"
        )
        what, remedy = f"a node of the pack {pack}", f"install {source} and restart ComfyUI"
    else:
        what, remedy = (
            f"the node {kind} of some pack",
            "search for this name in ComfyUI Manager (the file does not say which pack has it)",
        )
    if kind in IPADAPTER:
        remedy += ", or rewrite it with --from-ipadapter"
    return Finding("node", f"{where}: expected {what}, found no {kind} in this ComfyUI; {remedy}.")


def browser_packs(graph: Graph, info: Info) -> list[str]:
    """Return the packs whose nodes in the workflow work in the browser alone, and which this host does not seem to
    have.
    """
    named = {
        PACKS[node.type]
        for node in graph.nodes.values()
        if node.mode == ACTIVE and node.type in PACKS and node.type not in info
    }
    modules = {_squeezed(str(entry.get("python_module", "")).rpartition(".")[2]) for entry in info.values()}
    return sorted(name for name, part in named if not any(part in module for module in modules))


def _front_end_of_a_pack(node: Node, info: Info) -> bool:
    """A node that only the browser has, of a pack that is installed."""
    name = _squeezed(_pack(node).rpartition("/")[2])
    return bool(name) and any(
        name == _squeezed(str(entry.get("python_module", "")).rpartition(".")[2]) for entry in info.values()
    )


def _squeezed(name: str) -> str:
    """A pack's name without what registry, folder and repository write differently."""
    return "".join(c for c in name.lower().removeprefix("comfyui-").removeprefix("comfyui_") if c.isalnum())


def no_output(graph: Graph, info: Info) -> list[Finding]:
    """Return a finding if nothing is saved or shown, because the host then runs nothing."""
    acting = [node for node in graph.nodes.values() if node.mode == ACTIVE and not is_virtual(node.type)]
    if not acting or any(node.type not in info or info[node.type].get("output_node") for node in acting):
        return []
    return [Finding("node", "the workflow: expected an active output node, found none; add one, such as Save Image.")]


# ---- wires -----------------------------------------------------------------------------------------------------------


def broken_links(workflow: dict[str, Any]) -> list[Finding]:
    """Return wires of a saved file that an input names, and that come from nothing, or join sockets whose types differ
    in the file itself.
    """
    if not isinstance(workflow.get("links"), list):
        return []
    links = {link[0]: link for link in map(as_list, filter(None, workflow["links"]))}
    nodes = {str(raw["id"]): Node(raw) for raw in workflow["nodes"]}
    found = []
    for node in nodes.values():
        for slot in node.raw.get("inputs") or []:
            link = links.get(slot.get("link"))
            if link is None or str(link[1]) == str(INSIDE):
                continue
            source, out = nodes.get(str(link[1])), link[2]
            outputs = (source.raw.get("outputs") if source else None) or []
            if source is None or out >= len(outputs):
                lost = f"expected output {out} of node {link[1]} at its end, found nothing there"
                found.append(
                    Finding(
                        "wire",
                        f"link {link[0]} into '{slot.get('name')}' of {node.label}: {lost}; open the "
                        "workflow, wire it again and save.",
                    )
                )
            elif not can_be_wired(outputs[out].get("type"), slot.get("type")):
                found.append(_misfit(node, slot.get("name"), slot.get("type"), source, outputs[out].get("type")))
    return found


def wrong_wires(graph: Graph, info: Info) -> Iterator[Finding]:
    """Yield wires between sockets that do not fit, outputs that a class no longer has, and required sockets without a
    wire.
    """
    sockets = {kind for entry in info.values() for kind in entry.get("output") or [] if isinstance(kind, str)}
    for node in _reached(graph, info):
        for one in inputs_of(info[node.type]).values():
            slot = node.inputs.get(one.name) or {}
            source = graph.source(node, one.name) if slot.get("link") is not None else None
            if source is None:
                if (
                    (one.required or one.name in ASKED_FOR.get(node.type, ()))
                    and not one.is_widget
                    and one.type in sockets
                    and "widget" not in slot
                ):
                    found = "a wire from a muted node" if slot.get("link") is not None else "none"
                    yield Finding(
                        "wire",
                        f"{node.label}: expected a wire of type {one.type} in '{one.name}', found {found}; wire it.",
                    )
                continue
            given = _output(*source, info)
            if given is None:
                yield Finding(
                    "wire",
                    f"{node.label}: expected output {source[1]} of {source[0].label} in '{one.name}', found "
                    "fewer; the node has changed, wire it again.",
                )
            elif not can_be_wired(given, one.type):
                yield _misfit(node, one.name, one.type, source[0], given)


def _output(source: Node, slot: int, info: Info) -> str | None:
    if source.type not in info:
        return "*"
    outputs = info[source.type].get("output") or []
    return None if slot >= len(outputs) else "COMBO" if isinstance(outputs[slot], list) else str(outputs[slot])


def _misfit(node: Node, name: Any, wanted: Any, source: Node, given: Any) -> Finding:
    return Finding(
        "wire",
        f"{node.label}: expected {wanted} in '{name}', found {given} from {source.label}; wire an output of "
        f"type {wanted} into it.",
    )


# ---- values ----------------------------------------------------------------------------------------------------------


def wrong_values(graph: Graph, info: Info, files: list[Needed]) -> Iterator[Finding]:
    """Yield the widget values outside their options or range.

    Model files that are missing anyway (`files`) are not reported twice.
    """
    gone = {file.name for file in files}
    for node in _reached(graph, info):
        values = named_values(node, info[node.type])
        for one in (one for one in inputs_of(info[node.type]).values() if one.is_widget):
            if one.name not in values:
                if one.required and one.name not in node.inputs and graph.workflow.get("api"):
                    yield Finding(
                        "value",
                        f"{node.label}: expected a value for '{one.name}', found none; open the workflow in "
                        "ComfyUI and export it again.",
                    )
                continue
            wrong = _wrong(one, values[one.name], gone)
            if wrong:
                yield Finding(
                    "value",
                    f"{node.label}: expected {wrong[0]} in '{one.name}', found {_quoted(values[one.name])}; "
                    f"{wrong[1]}.",
                )


def _wrong(one: Input, value: Any, gone: set[str]) -> tuple[str, str] | None:
    """(what was expected, what to do), or None."""
    if one.type == "COMBO":
        return _not_offered(one, value, gone)
    if one.type in NUMBERS:
        try:
            number = int(value) if one.type == "INT" else float(value)
        except (TypeError, ValueError):
            return NUMBERS[one.type], "type one in"
        low, high = one.extra.get("min"), one.extra.get("max")
        if low is not None and number < low or high is not None and number > high:
            return f"{NUMBERS[one.type]} from {low} to {high}", "set it within that range"
    if one.type == "STRING" and not isinstance(value, (str, int, float)):
        return "a text", "type it in again"
    return None


def _not_offered(one: Input, value: Any, gone: set[str]) -> tuple[str, str] | None:
    if one.name == "adapter_name" and str(value).startswith("("):  # the placeholder of an empty list
        return "an adapter file", "choose one"
    if one.options is None or value in one.options or one.extra.get("multiselect") or one.extra.get("remote"):
        return None
    text = str(value).replace("\\", "/")
    if any(text == name or text.endswith(f"/{name}") for name in gone) or text in (
        str(option).replace("\\", "/") for option in one.options
    ):
        return None
    if any(one.extra.get(key) for key in UPLOADS):
        return (
            None
            if "/" in text or text.endswith("]")
            else ("a file in ComfyUI's input folder", "choose one of yours, or put it there")
        )
    if text.lower().endswith(EXTENSIONS):
        if one.name in ("adapter_name", "clip_vision_name") and _found_otherwise(text, one.options):
            return None
        same = next(
            (
                option
                for option in one.options
                if str(option).replace("\\", "/").rpartition("/")[2] == text.rpartition("/")[2]
            ),
            None,
        )
        return (
            "a file that ComfyUI lists",
            f"choose '{same}'" if same else "put the file into its folder and press R, or choose another",
        )
    offered = ", ".join(map(str, one.options[:8])) + (", ..." if len(one.options) > 8 else "")
    return f"one of {offered or 'nothing (the list is empty)'}", "choose one of them"


def _found_otherwise(text: str, options: Sequence[Any]) -> bool:
    """Whether our loaders find a file that is not listed under this value: an adapter's of an older workflow, with its
    folder, or an encoder under another name.
    """
    load_pack()
    from troupe.model_patches.checkpoints.catalogue import published_file

    folder, _, rest = text.partition("/")
    if folder in ADAPTER_FOLDERS:
        return rest in (str(option).replace("\\", "/") for option in options)
    known = published_file(text)
    return known is not None and known.folder == VISION  # a missing one is reported as a file


def _reached(graph: Graph, info: Info) -> list[Node]:
    """The known nodes that an output needs: the host looks at no others. What is unknown may be an output."""
    acting = [node for node in graph.nodes.values() if node.mode == ACTIVE and not is_virtual(node.type)]
    outputs = [node for node in acting if node.type not in info or info[node.type].get("output_node")]
    ids = {node.id for node in outputs} | {node.id for output in outputs for node in active_upstream(graph, output)}
    return [node for node in acting if node.id in ids and node.type in info]


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
