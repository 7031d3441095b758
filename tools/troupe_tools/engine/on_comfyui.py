"""The ComfyUI engine: a saved workflow through the host's own server, with real model files or with random ones.

The conversion from the save format to an API prompt is comfy-cli's, fed with the server's own /object_info. The front
end's graphToPrompt would be the only other one, and it needs a browser.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import RunError
from ..workflow.adapter_kinds import GLIGEN, MM_DIFF, SUBJECT_DIFFUSION, UMM, kind_of
from ..workflow.any_workflow import as_prompt, flatten_workflow, for_the_host
from ..workflow.edit import Edited
from ..workflow.graph import MUTED, Graph
from ..workflow.job import ENCODE, FACES, LOAD, QUICK
from ..workflow.needed import ModelFolders, adapter_file
from ..workflow.virtual import is_virtual
from .comfyui import Host
from .host_server import OURS, HostServer
from .random_faces import RANDOM_FACES
from .random_models import BASES, base_of, vision_of, write_adapter, write_gligen
from .result import Result, Say, StepsDone

REFERENCES = {ENCODE: 0, QUICK: 3}  # class -> the output slot with the references
FAR_FROM_NATIVE = "Generate near "  # how the pack's warning about the size begins; random models are small on purpose
LAYERS = re.compile(r"(\d+) (?:gated )?layers of ")
CLIP_OUTPUT = 1  # of CheckpointLoaderSimple


def convert(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """Convert a workflow to an API prompt.

    Raises RunError if comfy-cli is missing, a node is unknown, or the workflow cannot be converted.
    """
    workflow = for_the_host(flatten_workflow(workflow))
    unknown = sorted(
        {node.type for node in Graph(workflow).nodes.values() if node.mode == 0 and not is_virtual(node.type)}
        - object_info.keys()
    )
    if unknown:
        raise RunError(
            f"The workflow needs nodes that this ComfyUI run does not have: {', '.join(unknown)}. Only the "
            "host's own nodes and this pack's are loaded here."
        )
    if workflow.get("api"):
        return as_prompt(workflow)
    try:
        from comfy_cli.workflow_to_api import WorkflowConversionError, convert_ui_to_api
    except ImportError:
        raise RunError(
            "A saved workflow is converted by comfy-cli for ComfyUI, and comfy-cli is not installed. Run: "
            "pip install comfy-cli (or use --engine embedded)."
        ) from None
    try:
        return convert_ui_to_api(workflow, object_info)
    except WorkflowConversionError as error:
        raise RunError(
            f"comfy-cli could not convert the workflow: {error}. Open it in ComfyUI and save it again."
        ) from error


def with_random_encoders(prompt: dict[str, Any], base: str) -> dict[str, Any]:
    """Return the prompt with the helper pack's text and image encoders in the places of the checkpoint's CLIP and of
    the CLIP vision file.

    GLIGEN's photos share a space with its phrases: where it is loaded, the image encoder gives vectors of the text's
    width.
    """
    clips = [[id_, CLIP_OUTPUT] for id_, node in prompt.items() if node["class_type"] == "CheckpointLoaderSimple"]
    changed: dict[str, Any] = {}
    for id_, node in prompt.items():
        changed[id_] = {
            **node,
            "inputs": {name: ["random_clip", 0] if value in clips else value for name, value in node["inputs"].items()},
        }
    for node in changed.values():
        if node["class_type"] in REFERENCES:
            node["inputs"]["clip_vision"] = ["random_clip_vision", 0]
    changed["random_clip"] = {"class_type": "TroupeToolRandomClip", "inputs": {"base": base}}
    adapters = [str(node["inputs"]["adapter_name"]) for node in prompt.values() if "adapter_name" in node["inputs"]]
    pooled = max((vision_of(name, BASES[base].context_dim)["projection_dim"] for name in adapters), default=0)
    changed["random_clip_vision"] = {"class_type": "TroupeToolRandomClipVision", "inputs": {"pooled": pooled}}
    for node in changed.values():
        if node["class_type"] == FACES:
            node["class_type"], node["inputs"] = (
                "TroupeToolRandomFaces",
                {name: value for name, value in node["inputs"].items() if name.startswith("image")},
            )
    return changed


def without_analysers(workflow: dict[str, Any]) -> dict[str, Any]:
    """Return a copy in which the nodes of other packs that find faces are muted: random faces need none."""
    graph = Graph(workflow)
    for faces in graph.of_type(FACES):
        found = graph.source(faces, "analysis")
        if found:
            found[0].raw["mode"] = MUTED
            faces.inputs["analysis"]["link"] = None
    return graph.workflow


def with_reports(prompt: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return the prompt with a report node on every node that makes references, and how many there are."""
    sources = [id_ for id_, node in prompt.items() if node["class_type"] in REFERENCES]
    reports = {
        f"report_{n}": {
            "class_type": OURS,
            "inputs": {"references": [id_, REFERENCES[prompt[id_]["class_type"]]], "number": n},
        }
        for n, id_ in enumerate(sources, 1)
    }
    return {**prompt, **reports}, len(sources)


def run_on_comfyui(
    host: Host, edited: Edited, folders: ModelFolders, random: bool, say: Say, progress: StepsDone
) -> Result:
    """Run an edited workflow on a server that is started for it. Raises RunError."""
    said: list[str] = []
    with tempfile.TemporaryDirectory(prefix="troupe_run_") as temporary:
        base = Path(temporary)
        environment = _write_random_files(edited.workflow, base) if random else {}

        def heard(line: str) -> None:
            if not (random and line.startswith(FAR_FROM_NATIVE)):
                said.append(line)
                say(line)

        say(f"starting ComfyUI ({host.path}, {'GPU' if host.gpu else 'CPU'})")
        with HostServer(host, base, {} if random else folders.as_extra_paths(), heard, progress, environment) as server:
            for name, path in edited.photos.items():
                shutil.copy(path, base / "input" / name)
            prompt = convert(without_analysers(edited.workflow) if random else edited.workflow, server.object_info())
            if random:
                if any(node["class_type"] == FACES for node in prompt.values()):
                    heard(RANDOM_FACES)
                prompt = with_random_encoders(prompt, environment["TROUPE_RANDOM_BASE"])
            prompt, reports = with_reports(prompt)
            say("running the workflow")
            pictures = server.run(prompt)
            return _collect(pictures, base / "output", reports, said)


def _write_random_files(workflow: dict[str, Any], base: Path) -> dict[str, str]:
    """Write the adapters; returns the environment that makes the helper pack write the checkpoint."""
    graph = Graph(workflow)
    names = [str(graph.value(node, "adapter_name")) for node in graph.of_type(LOAD, QUICK)]
    loaders = graph.of_type("CheckpointLoaderSimple")
    if not names or not loaders:
        raise RunError(
            "Random models are made for workflows with a Load Checkpoint and a subject adapter; this one "
            "lacks one of them. Put the real files in place."
        )
    family = base_of(names[0])
    for name in names:
        write_random((base / "models").joinpath(*adapter_file(name)), name, family)
    checkpoint = base / "models" / "checkpoints" / str(graph.value(loaders[0], "ckpt_name")).replace("\\", "/")
    return {"TROUPE_RANDOM_CHECKPOINT": str(checkpoint), "TROUPE_RANDOM_BASE": family}


def write_random(path: Path, name: str, family: str) -> Path:
    """Write a random file of the kind that an adapter's name says, for the host's random model of a family (a key of
    BASES).
    """
    from .random_prompt_files import clip_text, write_mm_diff, write_subject_diffusion, write_umm

    sizes, text, kind = BASES[family], BASES[family].context_dim, kind_of(name)
    if kind == GLIGEN:
        return write_gligen(path, sizes.host_places, text, text)
    if kind == MM_DIFF:
        return write_mm_diff(path, sizes.host_widths, {"l": 768, "g": 1280})
    if kind == UMM:
        return write_umm(path, vision_of(name, text)["projection_dim"], text)
    if kind == SUBJECT_DIFFUSION:
        return write_subject_diffusion(
            path, sizes.host_places, sizes.host_unet["model_channels"], clip_text(text, 64), text
        )
    return write_adapter(path, sizes.host_widths, text, vision=vision_of(name, text))


def _collect(pictures: list[Path], output: Path, reports: int, said: list[str]) -> Result:
    if not pictures:
        raise RunError("The workflow ran, but saved no picture. Add a Save Image node.")
    folders = [output / f"references_{number}" for number in range(1, reports + 1)]
    facts = tuple(json.loads((folder / "facts.json").read_text()) for folder in folders)
    seen = [
        path
        for folder in folders
        for path in sorted(folder.glob("reference_*.png"), key=lambda path: int(path.stem.rpartition("_")[2]))
    ]
    acted = [int(found[1]) for line in said if (found := LAYERS.search(line))]
    acted += [
        fact["layers"]
        for fact in facts
        if fact["places"].startswith("text encoder")
        and any(f"{fact['adapter']}: '" in line and "at token" in line for line in said)
    ]
    reached = [next((layers for layers in acted if layers == fact["layers"]), 0) for fact in facts]
    return Result(tuple(map(_open, pictures)), tuple(map(_open, seen)), facts, tuple(reached), tuple(said))


def _open(path: Path) -> Image.Image:
    """A picture in memory, its file closed."""
    with Image.open(path) as picture:
        return picture.convert("RGB")
