"""The model files that any workflow names: where ComfyUI looks for them, which are missing, and where to get them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RunError
from ..pack import load_pack
from .findings import inputs_of, named_values
from .graph import ACTIVE, Graph, Node
from .job import LOAD
from .needed import ADAPTERS, CHOICES, EXTENSIONS, VISION, ModelFolders, Needed, model_roots, needed_models

if TYPE_CHECKING:
    from troupe.model_patches.checkpoints.catalogue import PublishedFile

# older folders that ComfyUI reads too
ALIASES = {"diffusion_models": ("unet",), "text_encoders": ("clip",), "controlnet": ("t2i_adapter",)}
FOLDERS = {  # loaders of ComfyUI, and IPAdapter_plus's, whose files lie in one folder
    **{kind: folder for kind, _, folder in CHOICES},
    "CheckpointLoader": "checkpoints",
    "unCLIPCheckpointLoader": "checkpoints",
    "ImageOnlyCheckpointLoader": "checkpoints",
    "VAELoader": "vae",
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "DualCLIPLoader": "text_encoders",
    "TripleCLIPLoader": "text_encoders",
    "QuadrupleCLIPLoader": "text_encoders",
    "CLIPVisionLoader": "clip_vision",
    "StyleModelLoader": "style_models",
    "ControlNetLoader": "controlnet",
    "DiffControlNetLoader": "controlnet",
    "GLIGENLoader": "gligen",
    LOAD: "clip_vision",
    "UpscaleModelLoader": "upscale_models",
    "HypernetworkLoader": "hypernetworks",
    "PhotoMakerLoader": "photomaker",
    "IPAdapterModelLoader": "ipadapter",
}
MOST_SPACES = 5  # of a file's name and folders; a text has more
# folder -> names that a running ComfyUI lists in it; None: it has no such folder
Listed = Callable[[str], list[str] | None]


@dataclass(frozen=True)
class Places(ModelFolders):
    """As ModelFolders, with the folders that ComfyUI reads under older names and those that extra_model_paths.yaml
    names one by one.
    """

    named: dict[str, tuple[Path, ...]] = field(default_factory=dict)

    def places(self, folder: str) -> list[Path]:
        """Return the existing folders of a kind, each once."""
        kinds = (folder, *ALIASES.get(folder, ()))
        found = [
            place
            for kind in kinds
            for place in (*super(Places, self).places(kind), *(p for p in self.named.get(kind, ()) if p.is_dir()))
        ]
        return list(dict.fromkeys(found))

    def find(self, folder: str, name: str) -> Path | None:
        """Return a file of a kind, or of any where the kind is not known ('')."""
        return next(
            (path for kind in ([folder] if folder else self.kinds()) if (path := super(Places, self).find(kind, name))),
            None,
        )

    def kinds(self) -> list[str]:
        """Return every kind that has a folder."""
        return sorted(
            {
                *self.named,
                *(child.name for root in self.roots if root.is_dir() for child in root.iterdir() if child.is_dir()),
            }
        )

    def as_extra_paths(self) -> dict[str, dict[str, str]]:
        """Return all folders in the form of ComfyUI's extra_model_paths.yaml."""
        return {
            "troupe_check": {kind: "\n".join(map(str, self.places(kind))) for kind in self.kinds() if self.places(kind)}
        }


def places_of(comfyui: Path | None) -> Places:
    """Return where that ComfyUI looks for model files."""
    roots = model_roots(comfyui, None).roots
    return Places(roots, _named_folders(comfyui / "extra_model_paths.yaml") if comfyui else {})


def _named_folders(path: Path) -> dict[str, tuple[Path, ...]]:
    """kind -> folders, as the user's extra_model_paths.yaml has them; {} if there is none."""
    try:
        import yaml

        sections = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (ImportError, OSError, ValueError):
        return {}
    found: dict[str, tuple[Path, ...]] = {}
    for section in (s for s in sections.values() if isinstance(s, dict)):
        base = path.parent / os.path.expandvars(os.path.expanduser(str(section.get("base_path") or ".")))
        for kind, lines in section.items():
            if kind not in ("base_path", "is_default", "custom_nodes") and isinstance(lines, str):
                found[kind] = (
                    *found.get(kind, ()),
                    *(base / line.strip() for line in lines.splitlines() if line.strip()),
                )
    return found


def wanted_files(graph: Graph, places: Places, info: dict[str, Any] | None = None) -> list[Needed]:
    """Return every model file that the active nodes name, or bring a link for; each once. Raises ImportError if
    torch is missing, which reads encoders.

    info: the host's /object_info, whose node classes say which of their values are choices from a list; None if
    there is no host.
    """
    links = {(m["directory"], m["name"]): m["url"] for m in _records(graph)}
    found = {(file.folder, file.name): file for file in _ours(graph, places)}
    for node in (node for node in graph.nodes.values() if node.mode == ACTIVE):
        for name in file_values(node, (info or {}).get(node.type)):
            folder = next((folder for folder, known in links if known == name), "") or FOLDERS.get(node.type, "")
            if not any(key[1] == name and folder in ("", key[0]) for key in found):
                found[folder, name] = _needed(folder, name, links.get((folder, name), ""), places)
    for (folder, name), link in links.items():
        if not any(key == (folder, name) or key[0] == folder and key[1].endswith(f"/{name}") for key in found):
            found[folder, name] = _needed(folder, name, link, places)
    return list(found.values())


def file_values(node: Node, entry: dict[str, Any] | None = None) -> Iterator[str]:
    """Yield the values of a node that name model files, with forward slashes. Our adapters, which have several folders,
    are not among them.

    entry: the host's description of the class, by which texts are distinguished from choices; without one a text is
    known by its socket or by what no file name has.
    """
    named = named_values(node, entry) if entry else _saved_values(node)
    texts = (
        {name for name, one in inputs_of(entry).items() if one.type == "STRING"}
        if entry
        else {name for name, slot in node.inputs.items() if slot.get("type") == "STRING"}
    )
    for widget, value in named.items():
        name = (
            value.replace("\\", "/") if isinstance(value, str) and widget not in texts and not _is_text(value) else ""
        )
        # our loaders' first widget
        adapter = node.type in dict(ADAPTERS) and (widget == dict(ADAPTERS)[node.type] or widget == 0)
        if name.lower().endswith(EXTENSIONS) and not adapter:
            yield name


def _saved_values(node: Node) -> dict[Any, Any]:
    """A node's saved values by widget, as far as the file names them, else by their place."""
    values = node.raw.get("widgets_values") or []
    if isinstance(values, dict):
        return values
    names = {place: name for name, place in node.widget_places().items()}
    wired = {name for name, slot in node.inputs.items() if slot.get("link") is not None}
    return {names.get(place, place): value for place, value in enumerate(values) if names.get(place) not in wired}


def _is_text(value: str) -> bool:
    """Whether a value is prose, or an address, that merely ends in a file's name."""
    return (
        "\n" in value
        or "://" in value
        or any(mark in value for mark in (", ", ". ", ": ", "; "))
        or value.count(" ") > MOST_SPACES
    )


def is_missing(file: Needed, listed: Listed | None) -> bool:
    """Return whether neither this machine's folders nor the running ComfyUI have the file."""
    names = [name.replace("\\", "/") for name in (listed(file.folder) or [])] if listed and file.folder else []
    return file.path is None and not any(name == file.name or name.endswith(f"/{file.name}") for name in names)


def _needed(folder: str, name: str, link: str, places: Places) -> Needed:
    load_pack()
    from troupe.model_patches.checkpoints.catalogue import published_file

    known = published_file(name)
    known = known if known and folder in ("", known.folder) else None
    path = places.find(folder, name) or _encoder(known, places)
    return Needed(
        name,
        folder or (known.folder if known else ""),
        link or (known.link if known else ""),
        known.size if known else "",
        path,
    )


def _encoder(known: PublishedFile | None, places: Places) -> Path | None:
    """The file that holds a published encoder under whatever name."""
    from troupe.model_patches.checkpoints.catalogue import ENCODERS
    from troupe.model_patches.checkpoints.clip_vision import best_encoder

    encoder = next((e for e in ENCODERS if e.file == known), None)
    return (
        best_encoder(places.files(VISION), lambda widths: widths == (encoder.hidden, encoder.pooled))
        if encoder
        else None
    )


def _records(graph: Graph) -> list[dict[str, str]]:
    """The workflow's own records of models, of nodes that act."""
    entries = [
        m
        for node in graph.nodes.values()
        if node.mode == ACTIVE
        for m in (node.raw.get("properties") or {}).get("models") or []
    ]
    return [m for m in [*(graph.workflow.get("models") or []), *entries] if {"directory", "name", "url"} <= set(m)]


def _ours(graph: Graph, places: Places) -> list[Needed]:
    """What our own loaders need: adapters, encoders, what belongs beside a file."""
    kinds, others = dict(ADAPTERS), {kind for kind, _, _ in CHOICES}
    unknown = {
        node.id for node in graph.nodes.values() if node.type in kinds and not _has_value(graph, node, kinds[node.type])
    }
    kept = [node.raw for node in graph.nodes.values() if node.type not in others and node.id not in unknown]
    ids = {raw["id"] for raw in kept}
    gone = {link[0] for link in graph.links.values() if not {link[1], link[3]} <= ids}
    part: dict[str, Any] = {
        "nodes": kept,
        "links": [link for link in graph.links.values() if link[0] not in gone],
        "models": _records(graph),
    }
    return needed_models(Graph(part), places) if any(raw["type"] in kinds for raw in kept) else []


def _has_value(graph: Graph, node: Node, widget: str) -> bool:
    try:
        return isinstance(graph.value(node, widget), str)
    except RunError:
        return False
