"""The subgraph blueprints on a host that serves them, and the graph inside against the host's own node schemas."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

import pytest
from troupe_tools.engine.comfyui import Host
from troupe_tools.engine.host_server import HostServer
from troupe_tools.engine.on_comfyui import convert
from troupe_tools.errors import RunError
from troupe_tools.pack import ROOT
from troupe_tools.workflow.any_workflow import flatten_workflow

FILES = sorted((ROOT / "subgraphs").glob("*.json"))
SIZE, PHOTOS = 64, ("troupe_astronaut.jpg", "troupe_cat.jpg")


@pytest.fixture(scope="module")
def server(host, tmp_path_factory):
    """A server of our own, with no models."""
    with HostServer(
        Host(host, sys.executable, gpu=False),
        tmp_path_factory.mktemp("blueprints"),
        {},
        lambda line: None,
    ) as running:
        yield running


def get(server, path):
    with urllib.request.urlopen(server.url + path, timeout=30) as answer:  # noqa: S310 (our own server)
        return json.load(answer)


def test_a_host_that_has_blueprints_serves_them(server):
    try:
        listed = get(server, "/global_subgraphs")
    except urllib.error.HTTPError as error:
        assert error.code == 404
        pytest.skip("this ComfyUI serves no blueprints")
    ours = {
        entry["name"]: id_
        for id_, entry in listed.items()
        if entry["info"]["node_pack"] == "custom_nodes.ComfyUI-Troupe"
    }
    assert sorted(ours) == [path.stem for path in FILES]
    for path in FILES:
        assert json.loads(get(server, f"/global_subgraphs/{ours[path.stem]}")["data"]) == json.loads(
            path.read_text(encoding="utf-8")
        )


def node(id_, kind, inputs, outputs, values):
    return {
        "id": id_,
        "type": kind,
        "pos": [0, 0],
        "size": [200, 100],
        "mode": 0,
        "properties": {},
        "widgets_values": values,
        "inputs": [
            {"name": name, "type": type_, "link": None, **({"widget": {"name": name}} if widget else {})}
            for name, type_, widget in inputs
        ],
        "outputs": [{"name": type_, "type": type_, "links": []} for type_ in outputs],
    }


def in_use(blueprint):
    """The blueprint between a checkpoint and two photos, and a sampler."""
    whole = json.loads(json.dumps(blueprint))
    [inner] = whole["nodes"]
    load = node(
        2,
        "CheckpointLoaderSimple",
        [("ckpt_name", "COMBO", True)],
        ["MODEL", "CLIP", "VAE"],
        ["sd_xl_base_1.0.safetensors"],
    )
    photos = [
        node(3 + i, "LoadImage", [("image", "COMBO", True)], ["IMAGE", "MASK"], [name]) for i, name in enumerate(PHOTOS)
    ]
    latent = node(
        5,
        "EmptyLatentImage",
        [(name, "INT", True) for name in ("width", "height", "batch_size")],
        ["LATENT"],
        [SIZE, SIZE, 1],
    )
    sampler = node(
        6,
        "KSampler",
        [
            ("model", "MODEL", False),
            ("positive", "CONDITIONING", False),
            ("negative", "CONDITIONING", False),
            ("latent_image", "LATENT", False),
        ],
        ["LATENT"],
        [0, "fixed", 1, 5.0, "euler", "normal", 1.0],
    )
    sampler["inputs"] += [
        {"name": name, "type": "COMBO", "link": None, "widget": {"name": name}}
        for name in ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")
    ]
    decode = node(7, "VAEDecode", [("samples", "LATENT", False), ("vae", "VAE", False)], ["IMAGE"], [])
    save = node(8, "SaveImage", [("images", "IMAGE", False), ("filename_prefix", "STRING", True)], [], ["Troupe"])
    whole["nodes"] += [load, *photos, latent, sampler, decode, save]
    placed = [slot["name"] for slot in inner["outputs"]]
    wires = [
        (load, 0, inner, "model"),
        (load, 1, inner, "clip"),
        (photos[0], 0, inner, "photo of subject 1"),
        (photos[1], 0, inner, "photo of subject 2"),
        (inner, 0, sampler, "model"),
        (inner, 1, sampler, "positive"),
        (inner, 2, sampler, "negative"),
        (inner, placed.index("latent"), sampler, "latent_image")
        if "latent" in placed
        else (latent, 0, sampler, "latent_image"),
        (sampler, 0, decode, "samples"),
        (load, 2, decode, "vae"),
        (decode, 0, save, "images"),
    ]
    for number, (source, slot, target, name) in enumerate(wires, 1):
        into = next(i for i, entry in enumerate(target["inputs"]) if entry["name"] == name)
        target["inputs"][into]["link"] = number
        source["outputs"][slot]["links"].append(number)
        whole["links"].append([number, source["id"], slot, target["id"], into, source["outputs"][slot]["type"]])
    whole["last_node_id"], whole["last_link_id"] = 8, len(wires)
    return whole


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_graph_inside_fits_the_host_s_nodes(path, server):
    """The host's validation of all of it: two files to download are the only complaint."""
    blueprint = json.loads(path.read_text(encoding="utf-8"))
    prompt = convert(flatten_workflow(in_use(blueprint)), server.object_info())
    [inside] = blueprint["definitions"]["subgraphs"]
    assert sorted(
        entry["class_type"] for entry in prompt.values() if entry["class_type"].startswith("Troupe")
    ) == sorted(entry["type"] for entry in inside["nodes"] if entry["type"].startswith("Troupe"))
    with pytest.raises(RunError) as refused:
        server.run(prompt)
    complaints = str(refused.value).splitlines()[1:]
    assert complaints and all(
        "ckpt_name: 'sd_xl_base_1.0.safetensors' not in" in line
        or "ip-adapter-plus_sdxl_vit-h.safetensors" in line
        or "clip_vision_name" in line
        for line in complaints
    ), complaints
