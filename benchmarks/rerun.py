"""Edit, run again: does a picture depend on what was run before it? Ten edits and re-runs through a ComfyUI's own
server, each compared with a fresh start.

usage: python benchmarks/rerun.py [--comfyui DIR] [--ipadapter-plus DIR]

Two stacked nodes, ours or those of ComfyUI_IPAdapter_plus, on a small SD1.5 with random weights. What an artist does is
done by way of the server: a number is changed, the prompt runs again, the number is changed back. After each run the
latent is compared, bit by bit, with the one that a newly started server makes of the same prompt. Results are added to
benchmarks/rerun.json, to the page and to the README.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools")]

import torch  # noqa: E402
from rerun_page import OURS, THEIRS  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from troupe_tools.engine.comfyui import Host, find_comfyui, usable_host  # noqa: E402
from troupe_tools.engine.host_server import HostServer, link  # noqa: E402
from troupe_tools.engine.random_models import BASES, VISION, write_adapter  # noqa: E402
from troupe_tools.errors import RunError  # noqa: E402

RESULTS = HERE / "rerun.json"
BASE = "SD1.5, every block"  # IPAdapter_plus counts the real model's blocks
CHECKPOINT, ADAPTER, PHOTO = "random.safetensors", "ip-adapter_random.safetensors", "example.png"
Prompt = dict[str, Any]
Edit = Callable[[Prompt], None]


def ours() -> Prompt:
    """Return a prompt with two of our Apply nodes on one MODEL, one subject each."""
    nodes = _common()
    nodes["adapter"] = _node("TroupeLoadAdapter", adapter_name=f"ipadapter/{ADAPTER}", clip_vision_name="none")
    for n, weight in ((1, 0.5), (2, 0.6)):
        nodes[f"subject{n}"] = _node(
            "TroupeAddSubject",
            image=["photo", 0],
            name=("cat", "dog")[n - 1],
            weight=1.0,
            start_percent=0.0,
            end_percent=1.0,
        )
        nodes[f"references{n}"] = _node(
            "TroupeEncodeSubjects",
            adapter=["adapter", 0],
            cast=[f"subject{n}", 0],
            framing="auto",
            clip=["clip", 0],
            clip_vision=["vision", 0],
        )
        nodes[f"apply{n}"] = _node(
            "TroupeApplyImageAttention",
            model=["apply1", 0] if n == 2 else ["checkpoint", 0],
            references=[f"references{n}", 0],
            weight=weight,
            merge="auto",
            start_percent=0.0,
            end_percent=1.0,
            box_strength=1.0,
            box_end_percent=1.0,
            box_feather=0.05,
            sharpness=1.0,
            background=1.0,
        )
    return nodes


def rival_prompt() -> Prompt:
    """Return a prompt with two of IPAdapter_plus's Advanced nodes on one MODEL, as its users stack them for two
    subjects.
    """
    nodes = _common()
    nodes["adapter"] = _node("IPAdapterModelLoader", ipadapter_file=ADAPTER)
    for n, weight in ((1, 0.5), (2, 0.6)):
        nodes[f"apply{n}"] = _node(
            "IPAdapterAdvanced",
            model=["apply1", 0] if n == 2 else ["checkpoint", 0],
            ipadapter=["adapter", 0],
            image=["photo", 0],
            clip_vision=["vision", 0],
            weight=weight,
            weight_type="linear",
            combine_embeds="concat",
            start_at=0.0,
            end_at=1.0,
            embeds_scaling="V only",
        )
    return nodes


KINDS = {OURS: ours, THEIRS: rival_prompt}


def _common() -> Prompt:
    return {
        "checkpoint": _node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "clip": _node("TroupeToolRandomClip", base=BASE),
        "vision": _node("TroupeToolRandomClipVision", pooled=VISION["projection_dim"]),
        "photo": _node("LoadImage", image=PHOTO),
        "positive": _node("CLIPTextEncode", clip=["clip", 0], text="a cat and a dog"),
        "negative": _node("CLIPTextEncode", clip=["clip", 0], text=""),
        "latent": _node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": _node(
            "KSampler",
            model=["apply2", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=1,
            steps=2,
            cfg=5.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "save": _node("SaveLatent", samples=["sampler", 0], filename_prefix="latent"),
    }


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def _set(node: str, name: str, value: Any) -> Edit:
    return lambda prompt: prompt[node]["inputs"].update({name: value})


EDITS: tuple[tuple[str, Edit], ...] = (  # each is made on the prompt as the one before has left it
    ("the second node's weight is raised", _set("apply2", "weight", 0.8)),
    ("and set back", _set("apply2", "weight", 0.6)),
    ("another seed", _set("sampler", "seed", 2)),
    ("the seed is set back", _set("sampler", "seed", 1)),
    ("the first node's weight is lowered", _set("apply1", "weight", 0.3)),
    ("and set back", _set("apply1", "weight", 0.5)),
    ("the second node is taken out", _set("sampler", "model", ["apply1", 0])),
    ("and put back", _set("sampler", "model", ["apply2", 0])),
    ("another prompt", _set("positive", "text", "a cat")),
    ("the prompt is set back", _set("positive", "text", "a cat and a dog")),
)


@dataclass(frozen=True)
class Rerun:
    """One edit and re-run: what was done, the largest difference of its latent from a fresh start's, and by how much
    the edit changes a fresh start's.
    """

    edit: str
    difference: float
    effect: float


class Stage:
    """A base folder with a photo and random models, on which servers of one host are started."""

    def __init__(self, host: Host, base: Path, packs: Sequence[Path] = ()):
        self.host, self.base = host, base
        for pack in packs:
            link(pack, base / "custom_nodes" / pack.name)
        write_adapter(base / "models" / "ipadapter" / ADAPTER, BASES[BASE].host_widths, BASES[BASE].context_dim)
        (base / "input").mkdir(parents=True, exist_ok=True)
        (base / "input" / PHOTO).write_bytes((host.path / "input" / PHOTO).read_bytes())

    def server(self) -> HostServer:
        """Return a new server, to be started by `with`. The first one creates the checkpoint."""
        checkpoint = self.base / "models" / "checkpoints" / CHECKPOINT
        made = {} if checkpoint.exists() else {"TROUPE_RANDOM_CHECKPOINT": str(checkpoint), "TROUPE_RANDOM_BASE": BASE}
        return HostServer(
            self.host,
            self.base,
            {},
            say=lambda line: None,
            environment=made,
            arguments=("--deterministic", "--cache-classic"),
        )

    def latent(self, server: HostServer, prompt: Prompt) -> torch.Tensor:
        """Run the prompt and return the latent that it saves.

        Raises RunError if the host reused an earlier result of the sampler.
        """
        server.run(prompt)
        if "sampler" in server.cached:
            raise RunError("expected the sampler to run again, found that this ComfyUI kept its result")
        newest = max((self.base / "output").glob("latent*.latent"), key=lambda path: path.stat().st_mtime_ns)
        return load_file(newest)["latent_tensor"]


def rerun(stage: Stage, prompt: Prompt, edits: Sequence[tuple[str, Edit]] = EDITS) -> list[Rerun]:
    """Make the edits one after another in one server, and each resulting prompt once in a server of its own."""
    fresh: dict[str, torch.Tensor] = {}
    found: list[tuple[str, str, torch.Tensor]] = []
    prompts: dict[str, Prompt] = {}
    with stage.server() as server:
        first = _key(prompt)
        fresh[first] = stage.latent(server, prompt)
        for number, (said, edit) in enumerate(edits):
            edit(prompt)
            key = _key(prompt)
            prompts.setdefault(key, copy.deepcopy(prompt))
            found.append((said, key, stage.latent(server, _saved_anew(prompt, number))))
    for key, one in prompts.items():
        if key not in fresh:
            with stage.server() as server:
                fresh[key] = stage.latent(server, one)
    before = [first, *(key for _, key, _ in found)]
    return [
        Rerun(said, _most(latent, fresh[key]), _most(fresh[key], fresh[last]))
        for (said, key, latent), last in zip(found, before, strict=False)
    ]


def _most(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def _saved_anew(prompt: Prompt, number: int) -> Prompt:
    """The prompt with a file name of its own, so that each run saves."""
    changed = copy.deepcopy(prompt)
    changed["save"]["inputs"]["filename_prefix"] = f"latent_{number}"
    return changed


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="rerun.py",
        description="Ten edits and re-runs through a ComfyUI's server, each compared with a fresh start.",
    )
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="the host (default: the one that is found)")
    parser.add_argument(
        "--ipadapter-plus", type=Path, metavar="DIR", help="a checkout of ComfyUI_IPAdapter_plus, to be measured beside"
    )
    options = parser.parse_args(arguments)
    path = options.comfyui or find_comfyui()
    if path is None:
        print("error: no ComfyUI was found; give --comfyui", file=sys.stderr)
        return 1
    try:
        host, version = usable_host(path.resolve()), _version(path)
        for kind, make in KINDS.items():
            if kind == THEIRS and options.ipadapter_plus is None:
                continue
            with tempfile.TemporaryDirectory(prefix="troupe_rerun_") as folder:
                packs = [options.ipadapter_plus.resolve()] if kind == THEIRS else []
                found = rerun(Stage(host, Path(folder), packs), make())
            _record(version, kind, found)
            print(
                f"ComfyUI {version}, {kind}: {sum(one.difference == 0 for one in found)} of {len(found)} as "
                "after a fresh start",
                flush=True,
            )
            print(
                "\n".join(
                    f"  {one.edit}: differs by {one.difference:g}, the edit changes {one.effect:g}" for one in found
                ),
                flush=True,
            )
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _version(path: Path) -> str:
    line = next(
        line
        for line in (path / "comfyui_version.py").read_text(encoding="utf-8").splitlines()
        if line.startswith("__version__")
    )
    return line.split('"')[1]


def _record(version: str, kind: str, found: Sequence[Rerun]) -> None:
    records = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    from page import write_page
    from rerun_page import readme_sentence
    from troupe_tools.dev.markdown_pages import write_passage

    told = {f"{n}. {one.edit}": {"difference": one.difference, "effect": one.effect} for n, one in enumerate(found, 1)}
    records.setdefault(version, {})[kind] = told
    RESULTS.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n", encoding="utf-8")
    write_page(HERE / "results.json", HERE / "RESULTS.md")
    write_passage(HERE.parent / "README.md", "rerun", readme_sentence(records))


if __name__ == "__main__":
    sys.exit(main())
