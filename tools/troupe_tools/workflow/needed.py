"""Which model files a workflow asks for, where they are, and where to get the ones that are missing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..pack import load_pack
from .adapter_kinds import GLIGEN, IP_ADAPTER, kind_of
from .graph import MUTED, Graph
from .job import LOAD, QUICK

CHOICES = (
    ("CheckpointLoaderSimple", "ckpt_name", "checkpoints"),
    ("LoraLoader", "lora_name", "loras"),
    ("LoraLoaderModelOnly", "lora_name", "loras"),
)
ADAPTERS = ((LOAD, "adapter_name"), (QUICK, "adapter_name"))
VISION = "clip_vision"
SHIPPED = "rehearsal"  # in an adapter's value: it comes with the pack
ADAPTER_FOLDERS = ("ipadapter", "gligen", "subject_adapters")
EXTENSIONS = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt", ".gguf")


@dataclass(frozen=True)
class Needed:
    """One model file: name below `folder` of ComfyUI's models folder, what it is for, link and size where known, and
    its path where it was found.
    """

    name: str
    folder: str
    link: str = ""
    size: str = ""
    path: Path | None = None

    def describe(self) -> str:
        """Return two lines: what is missing and what to do, or where it is."""
        if self.path is not None:
            return f"  found    {self.folder}/{self.name}\n           {self.path}"
        get = f"download {self.link}" if self.link else "no link is known: look at the page you have the workflow from"
        size = f" ({self.size})" if self.size else ""
        return (
            f"  missing  {self.folder}/{self.name}{size}\n           {get}\n           and save it as "
            f"models/{self.folder}/{self.name}"
        )


@dataclass(frozen=True)
class ModelFolders:
    """The places of model files: roots with one folder a kind, as ComfyUI/models."""

    roots: tuple[Path, ...]

    def places(self, folder: str) -> list[Path]:
        """Return the existing folders of a kind."""
        return [root / folder for root in self.roots if (root / folder).is_dir()]

    def find(self, folder: str, name: str) -> Path | None:
        """Return a file by its relative name, or by its bare name in a subfolder."""
        exact = (place / name for place in self.places(folder))
        return next((path for path in exact if path.is_file()), None) or next(
            (p for p in self.files(folder) if p.name == name.rpartition("/")[2]), None
        )

    def files(self, folder: str) -> Iterator[Path]:
        """Yield all weight files of a kind."""
        for place in self.places(folder):
            yield from sorted(path for path in place.rglob("*") if path.suffix.lower() in EXTENSIONS)

    def as_extra_paths(self) -> dict[str, dict[str, str]]:
        """Return the roots in the form of ComfyUI's extra_model_paths.yaml."""
        kinds = sorted(
            {child.name for root in self.roots if root.is_dir() for child in root.iterdir() if child.is_dir()}
        )
        return {"troupe_run": {kind: "\n".join(map(str, self.places(kind))) for kind in kinds}}


def needed_models(graph: Graph, folders: ModelFolders) -> list[Needed]:
    """Return every model file that the active nodes of a workflow name, with its encoder; each once."""
    load_pack()
    links = _links(graph)
    found: dict[tuple[str, str], Needed] = {}
    for kind, widget, folder in CHOICES:
        for node in graph.of_type(kind):
            _add(found, links, folders, folder, str(graph.value(node, widget)))
    for kind, widget in ADAPTERS:
        for node in graph.of_type(kind):
            folder, name = adapter_file(str(graph.value(node, widget)), folders, links)
            if folder == SHIPPED or name.startswith("("):  # none is chosen
                continue
            _add(found, links, folders, folder, name)
            _add_matrix(found, folder, name)
            _add_set(found, links, folders, folder, name)
            if graph.source(node, VISION) is None:
                _add_encoder(found, links, folders, name)
    return list(found.values())


def adapter_file(
    value: str, folders: ModelFolders | None = None, links: Iterable[tuple[str, str]] = ()
) -> tuple[str, str]:
    """Return folder and path in it of an adapter's value, which is the path alone, or in older workflows both.

    Of a path alone, the folder is that of `folders` which has the file, else the one in `links`, (folder, name) as a
    workflow records them, else the published one, else what the name says.
    """
    load_pack()
    from troupe.model_patches.checkpoints.catalogue import published_file

    value = value.replace("\\", "/")
    folder, _, name = value.partition("/")
    if name and folder in (*ADAPTER_FOLDERS, SHIPPED):
        return folder, name
    holding = [
        kind
        for kind in ADAPTER_FOLDERS
        for place in (folders.places(kind) if folders else ())
        if (place / value).is_file()
    ]
    holding += [kind for kind, name in links if name == value and kind in ADAPTER_FOLDERS]
    known = published_file(value)
    said = {IP_ADAPTER: "ipadapter", GLIGEN: "gligen"}.get(kind_of(value), "subject_adapters")
    return holding[0] if holding else known.folder if known else said, value


def _links(graph: Graph) -> dict[tuple[str, str], str]:
    """(folder, name) -> link, from the workflow's own records."""
    entries = [
        m
        for node in graph.nodes.values()
        if node.mode != MUTED
        for m in (node.raw.get("properties") or {}).get("models") or []
    ]
    return {(m["directory"], m["name"]): m["url"] for m in [*(graph.workflow.get("models") or []), *entries]}


def _add(found: dict, links: dict, folders: ModelFolders, folder: str, name: str) -> None:
    from troupe.model_patches.checkpoints.catalogue import published_file

    name = name.replace("\\", "/")
    known = published_file(name)
    link = links.get((folder, name)) or (known.link if known else "")
    found.setdefault(
        (folder, name), Needed(name, folder, link, known.size if known else "", folders.find(folder, name))
    )


def _add_matrix(found: dict, folder: str, name: str) -> None:
    """The projection matrix beside a GLIGEN file that reads photos."""
    from troupe.model_patches.checkpoints.catalogue import PROJECTION_MATRIX, published_file
    from troupe.model_patches.checkpoints.files import read_shapes
    from troupe.model_patches.families.gligen.layout import reads_photos
    from troupe.model_patches.families.gligen.matrix import matrix_file

    path, known = found[folder, name].path, published_file(name)
    if folder != PROJECTION_MATRIX.folder or not (known.encoder if known else path and reads_photos(read_shapes(path))):
        return
    matrix = "/".join([*name.split("/")[:-1], PROJECTION_MATRIX.name])
    found.setdefault(
        (folder, matrix),
        Needed(matrix, folder, PROJECTION_MATRIX.link, PROJECTION_MATRIX.size, path and matrix_file(path)),
    )


def _add_set(found: dict, links: dict, folders: ModelFolders, folder: str, name: str) -> None:
    """MM-Diff's other files beside one of them."""
    from troupe.model_patches.families.mm_diff.layout import MEMBERS as MM_DIFF

    place, _, file = name.replace("\\", "/").rpartition("/")
    stem, dot, extension = file.rpartition(".")
    for member in MM_DIFF if stem in MM_DIFF else ():
        _add(found, links, folders, folder, f"{place}/{member}{dot}{extension}".lstrip("/"))


def _add_encoder(found: dict, links: dict, folders: ModelFolders, adapter: str) -> None:
    """The CLIP vision encoder of a known adapter, which may lie there under any name."""
    from troupe.model_patches.checkpoints.catalogue import ENCODERS, published_file
    from troupe.model_patches.checkpoints.clip_vision import best_encoder

    known = published_file(adapter)
    encoder = next((e for e in ENCODERS if known and e.name == known.encoder), None)
    if encoder is None:
        return
    path = best_encoder(folders.files(VISION), lambda widths: widths == (encoder.hidden, encoder.pooled))
    file = encoder.file
    found.setdefault(
        (VISION, file.name), Needed(file.name, VISION, links.get((VISION, file.name), file.link), file.size, path)
    )


def model_roots(comfyui: Path | None, given: Path | None) -> ModelFolders:
    """Return the given folder first, then ComfyUI's own and those of its extra_model_paths.yaml."""
    roots = [given] if given else []
    if comfyui is not None:
        roots += [comfyui / "models", *_extra_roots(comfyui / "extra_model_paths.yaml")]
    return ModelFolders(tuple(roots))


def _extra_roots(path: Path) -> Sequence[Path]:
    """Base folders in the user's extra_model_paths.yaml whose kinds lie in it under ComfyUI's own names."""
    try:
        import yaml

        sections = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (ImportError, OSError, ValueError):
        return []
    bases = [
        Path(os.path.expandvars(os.path.expanduser(section["base_path"])))
        for section in sections.values()
        if isinstance(section, dict) and section.get("base_path")
    ]
    return [place for base in bases for place in (base, base / "models") if place.is_dir()]
