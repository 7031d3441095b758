"""An adapter's file is exchanged, deleted or overwritten with something else between two runs of one graph that
samples, and put back. See the list in test_bad_days.py.
"""

from __future__ import annotations

import os
import shutil
import weakref

import pytest
import safetensors.torch
import torch
from support import published_layouts as published
from test_bad_runs import MECHANISMS, alive, lab, sets, studio_of  # noqa: F401  (fixtures)

POOLED = {"image": 16, "prompt": 768}  # of the tiny encoder
FILES = {
    "image": "ipadapter/replaced.safetensors",
    "gated": "gligen/replaced.safetensors",
    "prompt": "subject_adapters/replaced.safetensors",
}
UMM = {"format": "umm_diffusion", "activation": "silu", "normalize": "true"}


@pytest.fixture(scope="module", autouse=True)
def more_nodes(lab, tmp_path_factory):  # noqa: F811
    """The test nodes of test_bad_days too."""
    from support.host.small_encoders import Pixels, TinyVision

    import nodes

    TinyVision.folder = str(tmp_path_factory.mktemp("vision"))
    with pytest.MonkeyPatch.context() as patch:
        for cls in (Pixels, TinyVision):
            patch.setitem(nodes.NODE_CLASS_MAPPINGS, cls.__name__, cls)
        yield


@pytest.fixture(autouse=True)
def nothing_left(base_folder):
    yield
    for folder in ("ipadapter", "gligen", "subject_adapters"):
        shutil.rmtree(base_folder / "models" / folder)
        (base_folder / "models" / folder).mkdir()


def state_of(kind, set_, factor=1.0):
    """Tensors of a file of this kind for the set's model; `factor` on all that are not gates or norms makes another
    file of the same shape.
    """
    from support.host.small_casts import adapter_state
    from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks

    blocks = {
        block.path.removesuffix(".attn2"): block.width for block in attention_blocks(set_.patcher.model.diffusion_model)
    }
    made = {
        "image": lambda: adapter_state(set_.patcher),
        "gated": lambda: published.gligen_state("text", blocks),
        "prompt": lambda: published.umm_state((POOLED["prompt"], 32, 768)),
    }
    state = made[kind]()
    return {name: tensor * factor if tensor.ndim > 1 else tensor for name, tensor in state.items()}


def graph(lab, kind):  # noqa: F811
    """From the file to the latent."""
    made = lab.graph(kind)
    made["load"] = {
        "class_type": "TroupeLoadAdapter",
        "inputs": {"adapter_name": FILES[kind], "clip_vision_name": "none"},
    }
    made["photo"] = {"class_type": "Pixels", "inputs": {"kind": "photo"}}
    for i, name in enumerate(("cat", "red fox"), 1):
        given = {
            "image": ["photo", 0],
            "name": name,
            "weight": 1.0,
            "start_percent": 0.0,
            "end_percent": 1.0,
            **({"cast": ["add1", 0]} if i == 2 else {}),
        }
        made[f"add{i}"] = {"class_type": "TroupeAddSubject", "inputs": given}
    made["place"] = {
        "class_type": "TroupePlaceSubjects",
        "inputs": {"cast": ["add2", 0], "width": 64, "height": 64, "boxes": "[]", "layout": "row"},
    }
    made["encode"] = {
        "class_type": "TroupeEncodeSubjects",
        "inputs": {
            "adapter": ["load", 0],
            "cast": ["place" if kind == "gated" else "add2", 0],
            "framing": "auto",
            "clip": ["cast", 4],
        },
    }
    if kind in POOLED:
        made["vision"] = {"class_type": "TinyVision", "inputs": {"hidden": 32, "pooled": POOLED[kind]}}
        made["encode"]["inputs"]["clip_vision"] = ["vision", 0]
    for node in made.values():
        for name, source in (("references", ["encode", 0]), ("adapter", ["load", 0])):
            if name in node["inputs"]:
                node["inputs"][name] = source
    return made


@MECHANISMS
def test_an_adapter_file_comes_and_goes_between_runs(kind, lab, sets, studio_of, monkeypatch):  # noqa: F811
    """Exchanged: the latent of the new file, and the old weights are gone.

    Deleted, or another thing: a sentence. Put back: the first latent again.
    """
    from support.host.errors_of_nodes import sentence
    from troupe.model_patches.hosts.comfyui.loading import adapters

    made, original = [], adapters.host_adapter

    def watched(adapter, *rest):
        found = original(adapter, *rest)
        made.append(
            [
                weakref.ref(t)
                for p in (found.projection_patcher, found.layers_patcher, found.gated_patcher, found.fusion_patcher)
                if p
                for t in p.model.parameters()
            ]
        )
        return found

    studio, (folder, name) = studio_of(kind), FILES[kind].split("/")
    first, second = state_of(kind, studio.set), state_of(kind, studio.set, 1.5)

    def put(state):
        path = studio.models / folder / name
        safetensors.torch.save_file(state, path, UMM if kind == "prompt" else None)
        return path

    put(second)
    expected = studio_of(kind).latent(graph(lab, kind))
    monkeypatch.setattr(adapters, "host_adapter", watched)
    path = put(first)
    before = studio.latent(graph(lab, kind))
    was = os.stat(path)
    put(second)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))  # as a copy that keeps times does; the size is the same too
    assert torch.equal(studio.latent(graph(lab, kind)), expected) and not torch.equal(before, expected)
    assert len(made) == 2 and made[0] and not alive(made[0]) and alive(made[1])
    path.unlink()
    sentence(studio.run(graph(lab, kind)), "validation: ", name, "no such file")
    safetensors.torch.save_file(published.REFUSED["LoRA, kohya"][0], path)
    sentence(studio.run(graph(lab, kind)), name, "LoRA")
    assert len(made) == 2 and not alive(made[1])
    put(first)
    assert torch.equal(studio.latent(graph(lab, kind)), before)
    assert len(made) == 3
