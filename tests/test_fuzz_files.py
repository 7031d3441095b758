"""Every loader on damaged, renamed, misshapen and hostile files: a right load or a sentence that names the file;
nothing is run, nothing hangs, nothing is reserved beyond what a file holds.

A format's layouts share its mutations. TROUPE_FUZZ=2000 makes 2000 of each format instead of 200 (100 of FastComposer,
whose file of 700 tensors takes ten times as long: two of each kind); TROUPE_FUZZ_FROM=2000 starts behind the first
2000; TROUPE_FUZZ_REPORT=file appends counts by outcome.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as read_safetensors
from support.file_mutations import CANARY, Bag, classes, mutated
from support.side_effects import SLACK, outcome, starved, watched
from support.small_checkpoints import FORMATS, Folder
from troupe.model_patches.adapter import Adapter, GatedSpec
from troupe.model_patches.checkpoints.files import read_metadata, read_shapes
from troupe.model_patches.errors import CheckpointError
from troupe.model_patches.families.registry import read_adapter

MUTATIONS = int(os.environ.get("TROUPE_FUZZ", "0"))
FROM = int(os.environ.get("TROUPE_FUZZ_FROM", "0"))
REPORT = os.environ.get("TROUPE_FUZZ_REPORT")
KINDS = (
    "IP-Adapter",
    "plus",
    "full face",
    "MIP",
    "GLIGEN text",
    "GLIGEN photos",
    "project",
    "in parts",
    "Subject-Diffusion",
    "MM-Diff",
    "UMM-Diffusion",
    "FastComposer",
)
State = dict[str, torch.Tensor]
CLAIM = re.compile(
    r"Expected (?:the tensor |finite numbers in |floating-point numbers in )?'(?P<tensor>[^']+)' "
    r"(?:of|in) '(?:(?P<member>\w+) of )?[^']+'(?! to be).*?, found (?P<found>.*?)\. "
)
SHAPE = re.compile(r"(?:the shape )?(\[[\d, ]*\])")
pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def folder(name: str) -> Folder:
    return FORMATS[name]()


def written(files: dict[str, Bag], root: Path) -> None:
    for name, bag in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bag.bytes())


def prints(tensor: torch.Tensor) -> tuple:
    """Equal for tensors that are equal to the bit."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return tuple(tensor.shape), tensor.dtype, hashlib.sha256(raw).digest()


def held(adapter: Adapter) -> State:
    """Every tensor of a loaded adapter."""
    places = list(adapter.spec.part(GatedSpec).block_widths) if adapter.spec.has(GatedSpec) else []
    rooms = {
        "projection": adapter.projection,
        "layers": adapter.layers,
        "gated": adapter.gated,
        "fusion": adapter.fusion,
    }
    found = {
        f"{room}.{name}": tensor
        for room, module in rooms.items()
        if module is not None
        for name, tensor in module.state_dict().items()
    }
    found = {
        re.sub(r"(?<=^gated\.fusers\.)\d+", lambda match: places[int(match[0])], name): tensor
        for name, tensor in found.items()
    }
    weights = adapter.weights
    for kind in ("unet", "text", "vision"):
        found |= {f"{kind}:{name}": tensor for name, tensor in getattr(weights, kind).items()}
    pairs = {f"lora:{name}": pair for name, pair in weights.unet_lora.items()}
    pairs |= {
        f"lora:{stream}:{name}": pair for stream, loras in weights.text_lora.items() for name, pair in loras.items()
    }
    return found | {f"{name}.{end}": getattr(pair, end) for name, pair in pairs.items() for end in ("down", "up")}


def pieces(state: State) -> Iterable[tuple[str, torch.Tensor]]:
    """What a loader may make of a tensor: itself, its transpose, a part of a convolution for one input, or a third of
    an open_clip attention.
    """
    for name, tensor in state.items():
        yield name, tensor
        if tensor.ndim == 2:
            yield f"{name} T", tensor.T
        if tensor.ndim == 4 and tensor.shape[1] == 5:
            yield f"{name} [:4]", tensor[:, :4]
            yield f"{name} [4]", tensor[:, 4:]
        if "in_proj" in name and tensor.ndim and len(tensor) and not len(tensor) % 3:
            yield from ((f"{name} {i}", part) for i, part in enumerate(tensor.chunk(3)))


def flattened(tree: object, prefix: str = "") -> State:
    if isinstance(tree, torch.Tensor):
        return {prefix.removesuffix(".") or "tensor": tree}
    return (
        {name: tensor for key, value in tree.items() for name, tensor in flattened(value, f"{prefix}{key}.").items()}
        if isinstance(tree, dict)
        else {}
    )


def plainly_read(path: Path, bag: Bag) -> State:
    """A file's tensors by the libraries alone; those it had before its mutation where they cannot read it (settings of
    OmegaConf, say).
    """
    data = path.read_bytes()
    try:
        return (
            read_safetensors(data)
            if data[8:9] == b"{"
            else flattened(torch.load(path, map_location="cpu", weights_only=True))
        )
    except Exception:
        return bag.state


class Stage:
    """One format's files on the disk, what each place of its adapter was loaded from, and the check of every other
    load.
    """

    def __init__(self, name: str, root: Path):
        self.name, self.root, self.folder = name, root, folder(name)
        self.target = self.folder.files[self.folder.target]
        written(self.folder.files, root)
        self.others = {
            prints(tensor)
            for file, bag in self.folder.files.items()
            if file != self.folder.target
            for _, tensor in pieces(bag.state)
        }
        source = {prints(tensor): name for name, tensor in pieces(self.target.state)}
        self.source = {
            place: source.get(prints(tensor)) for place, tensor in held(read_adapter(root / self.folder.chosen)).items()
        }
        assert any(self.source.values()) or "text_encoder" in name
        self.labels = {Path(name).name for name in (self.folder.chosen, self.folder.target)} | {
            Path(name).parent.name for name in (self.folder.chosen, self.folder.target)
        } - {""}
        self.labels |= {
            f"{member} of" for member in ("unet", "mlp", "proj", "clip_text", "clip_visual", "unet_adapter_weights")
        }
        warm_up(root)

    def check(self, kind: str, seed: str) -> str:
        """The outcome of loading one mutation: 'loaded', or 'refused'. AssertionError where it is neither."""
        path = self.root / self.folder.target
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path.write_bytes(data := mutated(self.target, kind, seed))
            with watched(reserve=SLACK + 4 * len(data)) as seen:
                adapter, error = outcome(lambda: read_adapter(self.root / self.folder.chosen))
                shapes, texts = read_shapes(path) if self.headers(seed) else {}, read_metadata(path)
            assert not seen, f"it did {seen}"
            assert not list(self.root.rglob(f"*{CANARY}*")) and not Path(CANARY).exists(), "code was run"
            assert not starved(error), f"more memory than the file: {error!r} of {error and error.__cause__!r}"
            assert all(
                isinstance(name, str) and all(type(size) is int and size >= 0 for size in shape)
                for name, shape in shapes.items()
            ), shapes
            assert all(isinstance(text, str) for pair in texts.items() for text in pair), texts
            if error is None:
                self.check_load(adapter, plainly_read(path, self.target))
                return "loaded"
        assert type(error) is CheckpointError, f"{type(error).__name__}: {error}"
        text = checked_text(error)
        assert any(label in text for label in self.labels), f"no file is named: {text}"
        self.check_claim(kind, text, path)
        return "refused"

    def check_claim(self, kind: str, text: str, path: Path) -> None:
        """Where a sentence names a tensor, the file is as it says; where a tensor's numbers are no good, it
        names one.
        """
        claim = CLAIM.match(text)
        if kind not in ("poisoned", "cast") and (not claim or "…" in claim["tensor"]):
            return
        state = plainly_read(path, Bag({}))
        if claim and (member := claim["member"]):  # of a bundle
            state = {
                name.removeprefix(f"{member}."): tensor
                for name, tensor in state.items()
                if name.startswith(f"{member}.")
            } or state
        assert claim or kind not in ("poisoned", "cast") or not state, f"no tensor is named: {text}"
        if not claim or not state or "…" in claim["tensor"]:
            return
        said = claim["tensor"].removeprefix("proj.")  # a member of several is told by its name before the tensor's
        named = [tensor for name, tensor in state.items() if f".{name}".endswith(f".{said}")]
        found = claim["found"]
        if found == "no such tensor":
            assert claim["tensor"] not in state, f"it is there: {text}"
        elif found.startswith("NaN"):
            assert not all(bool(tensor.float().isfinite().all()) for tensor in named), f"its numbers are finite: {text}"
        elif shape := SHAPE.fullmatch(found):
            assert json.loads(shape[1]) in [list(tensor.shape) for tensor in named], f"it has another shape: {text}"
        elif hasattr(torch, found):
            assert found in [str(tensor.dtype).removeprefix("torch.") for tensor in named], (
                f"it is something else: {text}"
            )

    def headers(self, seed: str) -> bool:
        """Whether to read the headers too: of pickles in one case of four, for they have none and are read as for
        loading.
        """
        return self.target.container == "safetensors" or not int(seed.rpartition(":")[2]) % 4

    def check_load(self, adapter: Adapter, state: State) -> None:
        """Each place has the tensor of its name in the file, and all are finite numbers."""
        now = dict(pieces(state))
        for place, tensor in held(adapter).items():
            assert tensor.is_floating_point() and tensor.device.type == "cpu" and tensor.layout == torch.strided, (
                f"{place} is {tensor.dtype} on {tensor.device}"
            )
            assert bool(tensor.float().isfinite().all()), f"{place} holds NaN or infinity"
            source, found = self.source.get(place), prints(tensor)
            if source in now:
                assert prints(now[source]) == found, f"{place} is not '{source}' of the file"
            elif found not in self.others:
                assert found in set(map(prints, now.values())), f"{place} is no tensor of the file"


def checked_text(error: CheckpointError) -> str:
    """The message, which has three parts in one paragraph of bearable length."""
    assert error.expected and error.found and error.remedy
    text = str(error)
    assert text.startswith("Expected ") and ", found " in text and text.rstrip().endswith((".", "name"))
    assert len(text) < 2000 and "\n" not in text and "Traceback" not in text, f"{len(text)} characters: {text[:300]!r}"
    return text


def warm_up(root: Path) -> None:
    """What is imported and compiled when a file is refused for the first time is not the file's doing."""
    for name, content in {
        "a.bin": b"\x80\x02cos\nsystem\n.",
        "b.safetensors": b"\x02\0\0\0\0\0\0\0{]",
        "c.bin": b"PK\x03\x04",
    }.items():
        (root / name).write_bytes(content)
        outcome(lambda name=name: read_adapter(root / name))
        (root / name).unlink()


def kind_of(name: str) -> str:
    """The published format that a layout is of."""
    return next(kind for kind in KINDS if name.startswith(kind) or (kind == "project" and name == "image_project"))


def share(name: str, mutations: int) -> int:
    """A layout's part of its format's mutations."""
    return math.ceil(mutations / sum(kind_of(other) == kind_of(name) for other in FORMATS))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_loads_rightly_or_is_refused_in_a_sentence(tmp_path, name):
    stage, kinds, failures, counts = (
        Stage(name, tmp_path),
        classes(folder(name).files[folder(name).target].container),
        [],
        Counter(),
    )
    first, count = share(name, FROM), share(name, MUTATIONS or (100 if name == "FastComposer" else 200))
    assert count >= 2 * len(kinds) or name != "FastComposer"
    for i in range(first, first + count):
        kind = kinds[i % len(kinds)]
        try:
            counts[kind, stage.check(kind, f"{name}:{i}")] += 1
        except BaseException as problem:
            if isinstance(problem, KeyboardInterrupt):
                raise
            failures.append(f"{kind}, {name}:{i}: {type(problem).__name__}: {str(problem)[:400]}")
    if REPORT:
        with open(REPORT, "a") as file:
            file.write(
                json.dumps(
                    {
                        "format": name,
                        "kind": kind_of(name),
                        "from": first,
                        "mutations": count,
                        "failures": failures,
                        "counts": [[*key, count] for key, count in sorted(counts.items())],
                    }
                )
                + "\n"
            )
    assert not failures, "\n".join([f"{len(failures)} of {count}:", *failures[:10]])
