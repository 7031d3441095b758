"""tools/check.py without ComfyUI: reading any workflow, model files and links, and what a host's /object_info says
about nodes, wires and values.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.ipadapter_workflows import stacked_by_files, stacked_by_preset, with_subgraph
from troupe.model_patches.checkpoints.catalogue import ENCODERS, published_file
from troupe_tools.commands import check as check_tool
from troupe_tools.commands.check import Here, check
from troupe_tools.errors import RunError
from troupe_tools.pack import ROOT, WORKFLOWS
from troupe_tools.workflow.any_workflow import flatten_workflow
from troupe_tools.workflow.graph import Graph
from troupe_tools.workflow.model_files import Places, places_of
from troupe_tools.workflow.needed import needed_models
from troupe_tools.workflow.workflow_files import read_workflow

EVERY = [path.stem for path in sorted(WORKFLOWS.glob("*.json"))]
REHEARSALS = [name for name in EVERY if "rehearsal" in name]  # their models come with the pack
TEMPLATES = [name for name in EVERY if name not in REHEARSALS]
NOWHERE = Places(())
PICTURE = ["COMBO", {"options": ["example.png"], "image_upload": True}]
INFO = {  # as a host answers /object_info: older nodes list their options in place of a type
    "CheckpointLoaderSimple": {
        "input": {"required": {"ckpt_name": [["here.safetensors", "sub/there.safetensors"]]}},
        "output": ["MODEL", "CLIP", "VAE"],
    },
    "CLIPTextEncode": {
        "input": {"required": {"text": ["STRING", {"multiline": True}], "clip": ["CLIP"]}},
        "output": ["CONDITIONING"],
    },
    "EmptyLatentImage": {
        "input": {
            "required": {
                "width": ["INT", {"min": 16, "max": 16384}],
                "height": ["INT", {"min": 16}],
                "batch_size": ["INT", {}],
            }
        },
        "output": ["LATENT"],
    },
    "KSampler": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {"min": 1, "max": 10000}],
                "cfg": ["FLOAT", {"min": 0.0, "max": 100.0}],
                "sampler_name": [["euler", "heun"]],
                "scheduler": [["normal", "karras"]],
                "positive": ["CONDITIONING"],
                "negative": ["CONDITIONING"],
                "latent_image": ["LATENT"],
                "denoise": ["FLOAT", {"min": 0.0, "max": 1.0}],
            }
        },
        "output": ["LATENT"],
        "output_node": True,
    },
    "LoadImage": {"input": {"required": {"image": PICTURE}}, "output": ["IMAGE", "MASK"], "output_node": True},
    "Either": {
        "input": {"required": {"any": ["IMAGE,MASK"]}, "optional": {"more": ["*"]}},
        "output": ["COMBO"],
        "output_node": True,
    },
}
SAMPLING = {  # an API prompt that INFO's host takes
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "here.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog", "clip": ["1", 1]}},
    "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
    "4": {
        "class_type": "KSampler",
        "_meta": {"title": "Sample"},
        "inputs": {
            "model": ["1", 0],
            "seed": 1,
            "steps": 20,
            "cfg": 5.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "positive": ["2", 0],
            "negative": ["2", 0],
            "latent_image": ["3", 0],
            "denoise": 1.0,
        },
    },
}


@pytest.fixture
def stocked(tmp_path) -> Here:
    """Model folders with a checkpoint of the name that SAMPLING has, and INFO's host."""
    write(tmp_path / "models" / "checkpoints" / "here.safetensors")
    return Here(INFO, places_of(tmp_path))


def write(path: Path) -> None:
    """An empty file; an encoder's has the widths that its name promises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = next((e for e in ENCODERS if e.file.name == path.name), None)
    if encoder is None:
        path.touch()
        return
    save_file(
        {
            "vision_model.embeddings.class_embedding": torch.zeros(encoder.hidden),
            "visual_projection.weight": torch.zeros(encoder.pooled, 1).half(),
        },
        str(path),
    )


def template(name: str) -> dict:
    """A shipped workflow."""
    return read_workflow(WORKFLOWS / f"{name}.json")


def texts(workflow: dict, here: Here) -> list[str]:
    """The findings."""
    return [finding.text for finding in check(workflow, here).findings]


def files_of(name: str) -> dict[tuple[str, str], str]:
    """(folder, name) -> link or '' of every file that a template's loaders need or its records name."""
    workflow = template(name)
    records = {(model["directory"], model["name"]): model["url"] for model in workflow["models"]}
    return {**{(file.folder, file.name): file.link for file in needed_models(Graph(workflow), NOWHERE)}, **records}


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_without_any_file_each_is_named_with_its_link(name):
    report = check(template(name), Here(None, NOWHERE, without="none is here"))
    assert {finding.kind for finding in report.findings} == {"file"} and len(report.findings) == len(files_of(name))
    for (folder, file), link in files_of(name).items():
        [told] = [finding.text for finding in report.findings if f"expected models/{folder}/{file}" in finding.text]
        if link:
            assert f"; {'download' if '/resolve/' in link else 'look on'} {link} " in told and told.endswith(
                f"and save it under this name in models/{folder}."
            )
        else:
            assert told.endswith("no link is known, look at the page you have the workflow from.")
    assert report.notes[0].startswith("not checked: node types, values and sockets of the nodes, since none is here")


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_pass_once_the_files_are_there(name, tmp_path):
    for folder, file in files_of(name):
        write(tmp_path / "models" / folder / file)
    report = check(template(name), Here(None, places_of(tmp_path), without="none is here"))
    assert report.findings == () and report.summary().endswith("no problem found, as far as could be checked")


@pytest.mark.parametrize("name", REHEARSALS)
def test_a_rehearsal_needs_no_file(name):
    report = check(template(name), Here(None, NOWHERE, without="none is here"))
    assert (
        files_of(name) == {}
        and report.findings == ()
        and report.summary().endswith("no problem found, as far as could be checked")
    )


def test_the_adapter_of_the_rehearsal_is_no_missing_file():
    workflow = {
        "1": {
            "class_type": "TroupeQuickSubjects",
            "inputs": {"adapter_name": "rehearsal/rehearsal_mip_adapter.safetensors"},
        }
    }
    assert not [text for text in texts(workflow, Here(None, NOWHERE)) if "model file" in text]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_encoder_is_found_under_any_name(name, tmp_path):
    """Also where only a record names it, as of adapters that were never published."""
    for folder, file in files_of(name):
        write(tmp_path / "models" / folder / file)
    for number, encoder in enumerate(list((tmp_path / "models").glob("clip_vision/*"))):
        encoder.rename(encoder.with_name(f"what I called it {number}.safetensors"))
    assert texts(template(name), Here(None, places_of(tmp_path))) == []


@pytest.mark.parametrize(
    ("kind", "value", "folder"),
    [
        ("LoraLoader", "my/style.safetensors", "loras"),
        ("UNETLoader", "flux.sft", "diffusion_models"),
        ("VAELoader", "vae.pt", "vae"),
        ("CLIPLoader", "t5.safetensors", "text_encoders"),
        ("IPAdapterModelLoader", "ip.bin", "ipadapter"),
        ("TroupeLoadAdapter", "mine.safetensors", "clip_vision"),
    ],
)
def test_files_of_other_loaders(kind, value, folder, tmp_path):
    workflow = {"1": {"class_type": kind, "inputs": {"name": value}}}
    assert texts(workflow, Here(None, places_of(tmp_path))) == [
        f"model file: expected models/{folder}/{value}, found no such file; no link is known, look at the "
        "page you have the workflow from."
    ]
    write(tmp_path / "models" / folder / value)
    assert texts(workflow, Here(None, places_of(tmp_path))) == []


def test_a_file_of_an_unknown_loader_is_looked_for_everywhere(tmp_path):
    workflow = {"1": {"class_type": "SomebodysLoader", "inputs": {"file": "odd.safetensors"}}}
    assert "expected ComfyUI's models folder/odd.safetensors" in texts(workflow, Here(None, places_of(tmp_path)))[0]
    write(tmp_path / "models" / "anything" / "odd.safetensors")
    assert texts(workflow, Here(None, places_of(tmp_path))) == []


def test_folders_are_comfyui_s(tmp_path):
    """Older names of folders, and folders that extra_model_paths.yaml names one by one."""
    yaml = pytest.importorskip("yaml")
    other = tmp_path / "other"
    (tmp_path / "extra_model_paths.yaml").write_text(
        yaml.safe_dump(
            {"a111": {"base_path": str(other), "loras": "models/Lora\nmodels/LyCORIS\n", "is_default": True}}
        )
    )
    write(other / "models" / "LyCORIS" / "style.safetensors")
    write(tmp_path / "models" / "unet" / "flux.safetensors")
    write(tmp_path / "models" / "clip" / "t5.safetensors")
    workflow = {
        str(n): {"class_type": kind, "inputs": {"a": value}}
        for n, (kind, value) in enumerate(
            [("LoraLoader", "style.safetensors"), ("UNETLoader", "flux.safetensors"), ("CLIPLoader", "t5.safetensors")]
        )
    }
    places = places_of(tmp_path)
    assert texts(workflow, Here(None, places)) == []
    assert places.as_extra_paths()["troupe_check"]["loras"] == str(other / "models" / "LyCORIS")


def test_links_come_from_the_file_or_the_catalogue():
    """A workflow's own record of a model, and an adapter that everybody knows, in an older workflow without records."""
    workflow = stacked_by_files()
    workflow["nodes"][0]["properties"]["models"] = [
        {
            "name": "v1-5-pruned-emaonly-fp16.safetensors",
            "url": "https://example.org/sd.safetensors",
            "directory": "checkpoints",
        }
    ]
    found = texts(workflow, Here(None, NOWHERE))
    assert [
        line
        for line in found
        if "download https://example.org/sd.safetensors and save it under this name in models/checkpoints." in line
    ]
    assert [line for line in found if f"download {published_file('ip-adapter-plus_sd15.safetensors').link} and" in line]
    assert [
        line
        for line in found
        if "expected models/clip_vision/my_vit_h.safetensors, found no such file; no link is known" in line
    ] and len(found) == 3


def test_muted_and_bypassed_nodes_need_no_files():
    workflow = stacked_by_files()
    for raw in workflow["nodes"]:
        raw["mode"] = 4 if raw["id"] % 2 else 2
    assert check(workflow, Here(INFO, NOWHERE)).findings == ()


# ---- nodes -----------------------------------------------------------------------------------------------------------


def test_missing_nodes_name_their_pack(stocked):
    workflow = stacked_by_preset()
    workflow["nodes"][0]["widgets_values"] = ["here.safetensors"]
    info = {**INFO, "VAEDecode": {"input": {"required": {"samples": ["LATENT"], "vae": ["VAE"]}}, "output": ["IMAGE"]}}
    told = [finding.text for finding in check(workflow, Here(info, stocked.places)).findings if finding.kind == "node"]
    assert told[0] == (
        "'IPAdapterUnifiedLoader' (node 2, IPAdapterUnifiedLoader): expected a node of the pack "
        "comfyui_ipadapter_plus, found no IPAdapterUnifiedLoader in this ComfyUI; "
        "install 'comfyui_ipadapter_plus' in ComfyUI Manager, or run `comfy node install "
        "comfyui_ipadapter_plus`, and restart ComfyUI."
    )
    assert [line.partition(":")[0] for line in told[1:]] == [
        "'PrepImageForClipVision' (node 6, PrepImageForClipVision)",
        "'IPAdapter' (node 7, IPAdapter)",
        "'IPAdapterAdvanced' (node 8, IPAdapterAdvanced)",
        "'SaveImage' (node 15, SaveImage)",
    ]
    assert told[2].endswith("or rewrite it with --from-ipadapter.")


@pytest.mark.parametrize(
    ("properties", "kind", "sentence"),
    [
        (
            {"aux_id": "kijai/ComfyUI-KJNodes"},
            "Blur",
            "expected a node of the pack kijai/ComfyUI-KJNodes, found no Blur in this ComfyUI; install "
            "https://github.com/kijai/ComfyUI-KJNodes and",
        ),
        (
            {"cnr_id": "comfy-core"},
            "New",
            "expected a node of ComfyUI itself, found no New in this ComfyUI; update ComfyUI.",
        ),
        (
            {},
            "Odd",
            "expected the node Odd of some pack, found no Odd in this ComfyUI; search for this name in ComfyUI Manager",
        ),
        (
            {},
            "TroupeAddSubject",
            "expected a node of Troupe, found no TroupeAddSubject in this ComfyUI; install or update Troupe.",
        ),
    ],
)
def test_how_a_missing_node_is_got(properties, kind, sentence):
    nodes = [
        {
            "id": id_,
            "type": kind,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": properties,
            "widgets_values": [],
        }
        for id_ in (1, 2)
    ]
    [told] = texts({"nodes": nodes, "links": []}, Here(INFO, NOWHERE))
    assert told.startswith(f"'{kind}' (node 1, {kind}) and 1 more: {sentence}")


def test_nodes_of_the_front_end_alone_are_not_missing():
    """ComfyUI's own, and those of a pack that is installed."""
    nodes = [
        {
            "id": n,
            "type": kind,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {"aux_id": aux},
            "widgets_values": [],
        }
        for n, (kind, aux) in enumerate(
            [("Note", ""), ("SetNode", "kijai/ComfyUI-KJNodes"), ("SetNode2", "somebody/Other")]
        )
    ]
    info = {**INFO, "Blur": {"input": {}, "output": [], "python_module": "custom_nodes.comfyui-kjnodes"}}
    [told] = texts({"nodes": nodes, "links": []}, Here(info, NOWHERE))
    assert told.startswith("'SetNode2'")


# ---- wires and values ------------------------------------------------------------------------------------------------


def test_a_sound_prompt_passes(stocked):
    report = check(SAMPLING, stocked)
    assert (
        report.findings == ()
        and report.notes == ()
        and report.summary() == "checked 4 nodes, 5 links, 1 model file: it will run here"
    )


CHECKPOINT, TEXT, LATENT, SAMPLER = (
    "'CheckpointLoaderSimple' (node 1, CheckpointLoaderSimple)",
    "'CLIPTextEncode' (node 2, CLIPTextEncode)",
    "'EmptyLatentImage' (node 3, EmptyLatentImage)",
    "'Sample' (node 4, KSampler)",
)
WRONG = [  # node, input, value (... takes it out), the sentence
    (
        "4",
        "cfg",
        101.0,
        f"{SAMPLER}: expected a number from 0.0 to 100.0 in 'cfg', found 101.0; set it within that range.",
    ),
    ("4", "steps", "many", f"{SAMPLER}: expected a whole number in 'steps', found 'many'; type one in."),
    (
        "4",
        "sampler_name",
        "eular",
        f"{SAMPLER}: expected one of euler, heun in 'sampler_name', found 'eular'; choose one of them.",
    ),
    ("4", "denoise", None, f"{SAMPLER}: expected a number in 'denoise', found None; type one in."),
    (
        "4",
        "latent_image",
        ["2", 0],
        f"{SAMPLER}: expected LATENT in 'latent_image', found CONDITIONING from {TEXT}; wire an output of "
        "type LATENT into it.",
    ),
    (
        "4",
        "model",
        ["1", 3],
        f"{SAMPLER}: expected output 3 of {CHECKPOINT} in 'model', found fewer; the node has changed, wire it again.",
    ),
    ("4", "model", ..., f"{SAMPLER}: expected a wire of type MODEL in 'model', found none; wire it."),
    (
        "4",
        "cfg",
        ...,
        f"{SAMPLER}: expected a value for 'cfg', found none; open the workflow in ComfyUI and export it again.",
    ),
    (
        "2",
        "text",
        ["3", 0],
        f"{TEXT}: expected STRING in 'text', found LATENT from {LATENT}; wire an output of type STRING into it.",
    ),
    (
        "3",
        "width",
        8,
        f"{LATENT}: expected a whole number from 16 to 16384 in 'width', found 8; set it within that range.",
    ),
    (
        "1",
        "ckpt_name",
        "there.safetensors",
        f"{CHECKPOINT}: expected a file that ComfyUI lists in 'ckpt_name', found 'there.safetensors'; "
        "choose 'sub/there.safetensors'.",
    ),
    (
        "1",
        "ckpt_name",
        "gone.safetensors",
        "model file: expected models/checkpoints/gone.safetensors, found no such file; no link is known, "
        "look at the page you have the workflow from.",
    ),
]


@pytest.mark.parametrize(("node", "name", "value", "sentence"), WRONG)
def test_one_mistake_is_one_sentence(node, name, value, sentence, stocked):
    write(stocked.places.roots[0] / "checkpoints" / "sub" / "there.safetensors")
    prompt = copy.deepcopy(SAMPLING)
    if value is ...:
        del prompt[node]["inputs"][name]
    else:
        prompt[node]["inputs"][name] = value
    assert texts(prompt, stocked) == [sentence]


def test_only_what_an_output_needs_is_looked_at(stocked):
    """As the host does. Without any output there is nothing to run."""
    prompt = {**SAMPLING, "5": {"class_type": "CLIPTextEncode", "inputs": {"text": 5}}}
    assert texts(prompt, stocked) == []
    del prompt["4"]
    assert texts(prompt, stocked) == [
        "the workflow: expected an active output node, found none; add one, such as Save Image."
    ]


def test_backslashes_unions_and_any_are_fine(stocked):
    write(stocked.places.roots[0] / "checkpoints" / "sub" / "there.safetensors")
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sub\\there.safetensors"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "3": {"class_type": "Either", "inputs": {"any": ["2", 1], "more": ["1", 2]}},
        "4": {"class_type": "LoadImage", "inputs": {"image": "clipspace/painted.png [input]"}},
    }
    assert texts(prompt, stocked) == []
    prompt["2"]["inputs"]["image"] = "holiday.jpg"
    assert texts(prompt, stocked) == [
        "'LoadImage' (node 2, LoadImage): expected a file in ComfyUI's input folder in 'image', found "
        "'holiday.jpg'; choose one of yours, or put it there."
    ]


@pytest.mark.parametrize("control", ["randomize", True])
def test_values_of_older_files_go_by_the_host_s_order(control, stocked):
    """They save no names of widgets; the extra value after the seed and the button after a picture are stepped over."""
    workflow = stacked_by_preset(named=False)
    kept = {"CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "KSampler", "LoadImage"}
    workflow["nodes"] = [raw for raw in workflow["nodes"] if raw["type"] in kept]
    workflow["nodes"][0]["widgets_values"] = ["here.safetensors"]
    sampler = next(raw for raw in workflow["nodes"] if raw["type"] == "KSampler")
    sampler["widgets_values"] = [7, control, 0, 5.0, "eular", "normal", 1.0]
    told = [finding.text for finding in check(workflow, stocked).findings if finding.kind == "value"]
    assert [line.partition(": ")[2] for line in told if "KSampler" in line] == [
        "expected a whole number from 1 to 10000 in 'steps', found 0; set it within that range.",
        "expected one of euler, heun in 'sampler_name', found 'eular'; choose one of them.",
    ]
    assert len(told) == 5 and sum("in 'image'" in line for line in told) == 3


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        (
            [999, 1, 7, 10, 0, "CLIP"],
            "link 999 into 'clip' of 'CLIPTextEncode' (node 10, CLIPTextEncode): expected output 7 of node "
            "1 at its end, found nothing there; open the "
            "workflow, wire it again and save.",
        ),
        (
            [999, 77, 0, 10, 0, "CLIP"],
            "link 999 into 'clip' of 'CLIPTextEncode' (node 10, CLIPTextEncode): expected output 0 of node "
            "77 at its end, found nothing there; open the "
            "workflow, wire it again and save.",
        ),
        (
            [999, 1, 2, 10, 0, "CLIP"],
            "'CLIPTextEncode' (node 10, CLIPTextEncode): expected CLIP in 'clip', found VAE from "
            f"{CHECKPOINT}; wire an output of type CLIP into it.",
        ),
    ],
)
def test_broken_links_are_told_without_a_host(link, sentence):
    """What the front end drops when it loads the file; a link that no input names was none."""

    def told() -> list[str]:
        return [finding.text for finding in check(workflow, Here(None, NOWHERE)).findings if finding.kind == "wire"]

    workflow = stacked_by_preset()
    workflow["links"].append(link)
    assert told() == []
    next(raw for raw in workflow["nodes"] if raw["id"] == 10)["inputs"][0]["link"] = 999
    assert told() == [sentence]


# ---- any workflow ----------------------------------------------------------------------------------------------------


def test_a_subgraph_is_laid_open():
    graph = Graph(flatten_workflow(with_subgraph()))
    assert {id_: node.type for id_, node in graph.nodes.items()} == {
        1: "CheckpointLoaderSimple",
        2: "EmptyLatentImage",
        4: "Either",
        "3:1": "CLIPTextEncode",
        "3:2": "KSampler",
    }
    text, sampler, after = graph.nodes["3:1"], graph.nodes["3:2"], graph.nodes[4]
    fed = [graph.source(sampler, name) for name in ("model", "positive", "negative", "latent_image")]
    assert [(source.id, slot) for source, slot in fed] == [(1, 0), ("3:1", 0), ("3:1", 0), (2, 0)]
    assert [(source.id, slot) for source, slot in (graph.source(text, "clip"), graph.source(after, "any"))] == [
        (1, 1),
        ("3:2", 0),
    ]
    assert (graph.value(sampler, "steps"), graph.value(text, "text"), graph.value(sampler, "seed")) == (
        30,
        "a dog",
        1,
    ), "the values on the node that stands for it"


def test_mistakes_inside_a_subgraph_are_found(stocked):
    wire = (
        "'Either' (node 4, Either): expected IMAGE,MASK in 'any', found LATENT from 'KSampler' (node 3:2, "
        "KSampler); wire an output of type IMAGE,MASK into it."
    )
    assert texts(with_subgraph(), stocked)[-1] == wire
    workflow = with_subgraph()
    workflow["nodes"][2]["widgets_values"][0] = 0
    assert (
        "'KSampler' (node 3:2, KSampler): expected a whole number from 1 to 10000 in 'steps', found 0; set "
        "it within that range." in texts(workflow, stocked)
    )
    workflow["nodes"][2]["mode"] = 2
    assert not [line for line in texts(workflow, stocked) if "KSampler): expected" in line]


def test_a_subgraph_that_holds_itself_is_refused():
    workflow = with_subgraph()
    workflow["definitions"]["subgraphs"][0]["nodes"].append({"id": 9, "type": "abc", "inputs": [], "outputs": []})
    with pytest.raises(RunError, match="'Sampling' contains itself"):
        flatten_workflow(workflow)


@pytest.mark.parametrize("content", [[], {}, {"a": 1}, {"nodes": []}, "text"])
def test_what_is_no_workflow_is_refused(content):
    with pytest.raises(RunError, match="Expected a ComfyUI workflow"):
        flatten_workflow(content)


def test_a_posted_prompt_is_read_too(stocked):
    assert texts({"prompt": SAMPLING, "client_id": "x"}, stocked) == []


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_comfyui(monkeypatch, tmp_path):
    """A machine where none is found, and none is asked by chance."""
    monkeypatch.setattr(check_tool, "find_comfyui", lambda: None)
    monkeypatch.setattr(check_tool, "USUAL_URL", "http://127.0.0.1:1")


@pytest.fixture
def url() -> Iterator[str]:
    """A server that answers as a ComfyUI with INFO's nodes, a checkpoint that it alone can see, and no folder
    'loras'.
    """
    answers = {"/object_info": INFO, "/models/checkpoints": ["here.safetensors"]}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(self.path)).encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def saved(tmp_path: Path, workflow: dict) -> str:
    """A file's name."""
    (tmp_path / "given.json").write_text(json.dumps(workflow))
    return str(tmp_path / "given.json")


def test_a_running_comfyui_is_asked(no_comfyui, url, tmp_path, capsys):
    """It has files that this machine's folders have not."""
    assert check_tool.main([saved(tmp_path, SAMPLING), "--url", url]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"asking the ComfyUI at {url}",
        "given.json: checked 4 nodes, 5 links, 1 model file: it will run here",
    ]
    wrong = {
        **SAMPLING,
        "5": {"class_type": "LoraLoader", "inputs": {"lora_name": "a.safetensors"}},
        "6": {"class_type": "Odd", "inputs": {}},
    }
    assert check_tool.main([saved(tmp_path, wrong), "--url", url]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "given.json: checked 6 nodes, 5 links, 2 model files: it will not run here (2 missing node types, 1 "
        "missing model file)"
    )


@pytest.mark.parametrize("url", ["file:///etc", "127.0.0.1:8188", "ftp://127.0.0.1"])
def test_a_url_of_another_kind_is_not_opened(url, no_comfyui, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check_tool.urllib.request, "urlopen", lambda *args, **kwargs: pytest.fail("opened"))
    assert check_tool.main([saved(tmp_path, SAMPLING), "--url", url]) == 1
    assert f"found '{url}'" in capsys.readouterr().err


def test_a_url_that_does_not_answer_is_an_error(no_comfyui, tmp_path, capsys):
    assert check_tool.main([saved(tmp_path, SAMPLING), "--url", "http://127.0.0.1:1"]) == 1
    assert "error: Expected a ComfyUI at http://127.0.0.1:1, found no answer" in capsys.readouterr().err


def test_without_comfyui_files_and_links_are_checked(no_comfyui, tmp_path, capsys):
    assert check_tool.main([saved(tmp_path, {"1": SAMPLING["3"]})]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "not checked: node types, values and sockets of the nodes, since no ComfyUI was found (looked at "
        "http://127.0.0.1:1, COMFYUI_PATH,"
    )
    assert last == "given.json: checked 1 node, 0 links, 0 model files: no problem found, as far as could be checked"
    assert check_tool.main(["4_two_subjects"]) == 1
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "4_two_subjects: checked 17 nodes, 25 links, 3 model files: it will not run here (3 missing model files)"
    )


def test_a_folder_without_comfyui_is_an_error(tmp_path, capsys):
    assert check_tool.main(["4_two_subjects", "--comfyui", str(tmp_path)]) == 1
    assert f"Expected a ComfyUI in {tmp_path}, found no main.py there" in capsys.readouterr().err


def test_a_byte_order_mark_is_passed_over(tmp_path):
    """Editors on Windows put one before a file."""

    plain = ROOT / "workflows" / "4_two_subjects.json"
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert read_workflow(tmp_path / "marked.json") == read_workflow(plain)


def test_a_gguf_file_is_a_model_file(tmp_path, capsys):
    node = {
        "id": 1,
        "type": "UnetLoaderGGUF",
        "mode": 0,
        "inputs": [{"name": "unet_name", "type": "COMBO", "widget": {"name": "unet_name"}, "link": None}],
        "outputs": [],
        "properties": {},
        "widgets_values": ["sdxl/illustrious-Q8_0.gguf"],
    }
    (tmp_path / "gguf.json").write_text(json.dumps({"nodes": [node], "links": [], "version": 0.4}))
    check_tool.main([str(tmp_path / "gguf.json"), "--no-host"])
    assert "sdxl/illustrious-Q8_0.gguf, found no such file" in capsys.readouterr().out


@pytest.mark.parametrize("content", ['{"nodes": [', "[]"])
def test_what_is_no_workflow_is_one_sentence(content, tmp_path, capsys):
    (tmp_path / "odd.json").write_text(content)
    assert check_tool.main([str(tmp_path / "odd.json"), "--no-host"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("name", "value", "options", "wrong"),
    [
        ("adapter_name", "ipadapter/x.safetensors", ["x.safetensors"], None),  # as older workflows have it
        ("adapter_name", "x.safetensors", ["y.safetensors"], "choose another"),
        ("adapter_name", "(no adapter file yet)", ["(no adapter file yet)"], "choose one"),
        # found by its contents
        (
            "clip_vision_name",
            "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
            ["auto", "none", "model.safetensors"],
            None,
        ),
        ("clip_vision_name", "mine.safetensors", ["auto", "none", "model.safetensors"], "choose another"),
        ("ckpt_name", "ipadapter/x.safetensors", ["x.safetensors"], "choose 'x.safetensors'"),
    ],
)
def test_values_that_our_loaders_read_otherwise_are_not_complained_about(name, value, options, wrong):
    from troupe_tools.workflow import findings

    found = findings._not_offered(findings.Input(name, "COMBO", True, options, {}), value, set())
    assert (found is None) == (wrong is None) and (wrong is None or wrong in found[1])


def test_an_adapter_s_folder_is_the_recorded_one_where_the_name_says_nothing():
    from troupe_tools.workflow.needed import adapter_file

    assert adapter_file("my_boxes.safetensors", links=[("gligen", "my_boxes.safetensors")]) == (
        "gligen",
        "my_boxes.safetensors",
    )
    assert (
        adapter_file("gligen/my_boxes.safetensors") == ("gligen", "my_boxes.safetensors")
        and adapter_file("my_boxes.safetensors")[0] == "ipadapter"
    )
