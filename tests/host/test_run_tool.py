"""tools/run.py and the templates on the real host: what a fresh one complains of, and whole runs through its server."""
from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
from loading import ROOT
from PIL import Image

sys.path.append(str(ROOT / "tools"))

import run as run_tool  # noqa: E402
from comfyui import Host  # noqa: E402
from edit import Changes, edit  # noqa: E402
from graph import NOTES, WORKFLOWS, Graph, RunError, read_workflow  # noqa: E402
from host_server import HostServer  # noqa: E402
from on_comfyui import LAYERS, convert, with_random_encoders, with_reports  # noqa: E402
from random_models import BASES, write_adapter, write_host_checkpoint  # noqa: E402
from report import NOT_A_PICTURE  # noqa: E402

TEMPLATES = [path.stem for path in sorted(WORKFLOWS.glob("*.json"))]
CHECKPOINTS = ("sd_xl_base_1.0.safetensors", "Illustrious-XL-v0.1.safetensors")
ADAPTERS = ("ip-adapter-plus_sdxl_vit-h.safetensors", "noobIPAMARK1_mark1.safetensors")
LAYERS_OF_TINY_SDXL = 12


@pytest.fixture(scope="module", autouse=True)
def converter(host):
    """comfy-cli, which turns the save format into an API prompt; it comes with the 'run' extra."""
    if importlib.util.find_spec("comfy_cli") is None:
        (pytest.fail if os.environ.get("TROUPE_REQUIRE_HOST") == "1" else pytest.skip)("NO COMFY-CLI (pip install comfy-cli): the templates were not converted for the real host")


@pytest.fixture(scope="module")
def spoken() -> list[str]:
    """What the pack said on the server."""
    return []


@pytest.fixture(scope="module")
def server(host, tmp_path_factory, spoken):
    """A server of our own, with no models at first."""
    base = tmp_path_factory.mktemp("run_tool_base")
    with HostServer(Host(host, sys.executable, gpu=False), base, {}, spoken.append, environment={"OMP_NUM_THREADS": "1"}) as running:
        yield running


@pytest.fixture(scope="module")
def info(server) -> dict:
    """The host's /object_info before any model is there."""
    return server.object_info()


@pytest.fixture(scope="module")
def stocked(server):
    """The server with tiny random files under the templates' own names."""
    models = server.base / "models"
    first = write_host_checkpoint(models / "checkpoints" / CHECKPOINTS[0], "SDXL")
    shutil.copy(first, models / "checkpoints" / CHECKPOINTS[1])
    for name in ADAPTERS:
        write_adapter(models / "ipadapter" / name, BASES["SDXL"].host_widths, BASES["SDXL"].context_dim)
    return server


def prompt_of(name: str, server: HostServer, info: dict, **changes) -> dict:
    """A template, its photos in the server's input folder, as an API prompt."""
    edited = edit(read_workflow(WORKFLOWS / f"{name}.json"), Changes(**changes))
    for file, path in edited.photos.items():
        shutil.copy(path, server.base / "input" / file)
    return convert(edited.workflow, info)


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversion_keeps_every_node_wire_and_widget(name, server, info):
    """Each literal and link of the saved graph, by name, is in the prompt; nothing else is."""
    graph, prompt = Graph(read_workflow(WORKFLOWS / f"{name}.json")), convert(read_workflow(WORKFLOWS / f"{name}.json"), info)
    real = [node for node in graph.nodes.values() if node.type not in NOTES]
    assert {id_: node["class_type"] for id_, node in prompt.items()} == {str(node.id): node.type for node in real}
    for node in real:
        wired = {slot: [str(found[0].id), found[1]] for slot in node.inputs if (found := graph.source(node, slot))}
        widgets = {w: node.raw["widgets_values"][place] for w, place in node.widget_places().items() if w not in wired and w != "upload"}
        assert {k: v for k, v in prompt[str(node.id)]["inputs"].items() if k != "upload"} == wired | widgets


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_fresh_host_complains_of_missing_models_only(name, server, info):
    """The host's own validation; its example.png is the only photo."""
    shutil.copy(Path(server.host.path) / "input" / "example.png", server.base / "input" / "example.png")
    with pytest.raises(RunError) as refused:
        server.run(convert(read_workflow(WORKFLOWS / f"{name}.json"), info))
    complaints = str(refused.value).splitlines()[1:]
    workflow = read_workflow(WORKFLOWS / f"{name}.json")
    files = {model["directory"]: model["name"] for model in workflow["models"]}
    [link] = [model["url"] for model in workflow["models"] if model["directory"] == "ipadapter"]
    checkpoint = [line for line in complaints if f"ckpt_name: '{files['checkpoints']}' not in []" in line]
    adapter = [line for line in complaints if f"Download {link} and save it as models/ipadapter/{files['ipadapter']}" in line]
    assert len(checkpoint) == 1 and adapter and len(complaints) == len(checkpoint) + len(adapter)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_runs_once_the_files_are_there(name, stocked, info, spoken):
    """Only the two encoders, whose files cannot be small, are put in by the helper; all else is the template's own."""
    spoken.clear()
    prompt, reports = with_reports(with_random_encoders(prompt_of(name, stocked, info, size=(128, 128), steps=2), "SDXL"))
    [picture] = stocked.run(prompt)
    with Image.open(picture) as opened:
        assert opened.size == (128, 128)
    assert reports == 1
    acted = [int(found[1]) for line in spoken if (found := LAYERS.search(line))]
    assert acted == [LAYERS_OF_TINY_SDXL]
    assert not [line for line in spoken if "is not in the prompt" in line], "the templates' names stand in their prompts"


def test_the_whole_command(host, tmp_path, monkeypatch, capsys):
    """`python tools/run.py` finds the host, starts its server, and leaves picture, references and report."""
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run_tool.main(["--engine", "comfyui", "--output", str(tmp_path), "--size", "128x128", "--steps", "2", "--name", "woman"]) == 0
    said = capsys.readouterr().out
    assert "engine: ComfyUI" in said and "step 2 of 2" in said
    assert "Subject 1 'woman' is not in the prompt" in said, "the pack's own warnings are shown"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([NOT_A_PICTURE, "reference_1_as_the_encoder_saw_it.png", "reference_2_as_the_encoder_saw_it.png", "report.txt"])
    report = (tmp_path / "report.txt").read_text()
    assert f"it acted in {LAYERS_OF_TINY_SDXL} of {LAYERS_OF_TINY_SDXL} cross-attention layers" in report
    assert "subject 1 'woman': 12 layers, 16 image tokens, 1 name tokens, weight 1" in report


def test_a_failure_in_the_host_is_its_sentence(stocked, info):
    """A node's error comes back as this command's own sentence, and the next run works."""
    broken = with_random_encoders(prompt_of("two_subjects", stocked, info, size=(128, 128), steps=1), "SDXL")
    subject = next(node for node in broken.values() if node["class_type"] == "TroupeAddSubject")
    subject["inputs"]["name"] = ""
    with pytest.raises(RunError, match="TroupeEncodeSubjects.*failed.*a name for subject"):
        stocked.run(broken)
    subject["inputs"]["name"] = "astronaut"
    assert stocked.run(broken)


def test_an_unknown_node_is_named(server, info):
    workflow = read_workflow(WORKFLOWS / "two_subjects.json")
    workflow["nodes"][0]["type"] = "SomebodysLoader"
    with pytest.raises(RunError, match="SomebodysLoader"):
        convert(workflow, info)
