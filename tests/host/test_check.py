"""tools/check.py against the real host: what it finds is what the host refuses, and workflows rewritten from
IPAdapter_plus are accepted and run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.ipadapter_workflows import Regional, stacked_before_2024, stacked_by_files, stacked_by_preset
from troupe.model_patches.attention.merges import MERGES
from troupe.model_patches.checkpoints.catalogue import ENCODERS
from troupe_tools.commands import check as check_tool
from troupe_tools.commands.check import Here, check
from troupe_tools.engine.comfyui import Host
from troupe_tools.engine.host_server import HostServer
from troupe_tools.engine.on_comfyui import convert, with_random_encoders, with_reports
from troupe_tools.engine.random_models import BASES, write_adapter, write_host_checkpoint
from troupe_tools.errors import RunError
from troupe_tools.pack import WORKFLOWS
from troupe_tools.workflow.from_ipadapter import from_ipadapter
from troupe_tools.workflow.model_files import Places
from troupe_tools.workflow.virtual import NOTES
from troupe_tools.workflow.workflow_files import read_workflow

TEMPLATES = [path.stem for path in sorted(WORKFLOWS.glob("*.json"))]
OLD = {
    "preset": (stacked_by_preset, "SDXL"),
    "preset, as saved in 2024": (lambda: stacked_by_preset(named=False), "SDXL"),
    "files": (stacked_by_files, "SD1.5"),
    "first version": (stacked_before_2024, "SDXL"),
    "regions": (lambda: Regional().saved, "SD1.5"),
}


@pytest.fixture(scope="module", autouse=True)
def converter(host):
    """comfy-cli, which turns the save format into an API prompt; it comes with the 'run' extra."""
    if importlib.util.find_spec("comfy_cli") is None:
        (pytest.fail if os.environ.get("TROUPE_REQUIRE_HOST") == "1" else pytest.skip)(
            "NO COMFY-CLI (pip install comfy-cli): what the check finds was not compared with the host"
        )


@pytest.fixture(scope="module")
def server(host, tmp_path_factory):
    """A server with tiny random models and pictures under the names that the workflows here have."""
    base = tmp_path_factory.mktemp("check_base")
    models = base / "models"
    for family, checkpoint, adapter in (
        ("SDXL", "sd_xl_base_1.0", "ip-adapter-plus_sdxl_vit-h"),
        ("SD1.5", "v1-5-pruned-emaonly-fp16", "ip-adapter-plus_sd15"),
    ):
        write_host_checkpoint(models / "checkpoints" / f"{checkpoint}.safetensors", family)
        write_adapter(
            models / "ipadapter" / f"{adapter}.safetensors", BASES[family].host_widths, BASES[family].context_dim
        )
    for encoder in ENCODERS:
        write_encoder(models / "clip_vision" / encoder.file.name, encoder)
    write_encoder(models / "clip_vision" / "my_vit_h.safetensors", ENCODERS[0])
    (base / "input").mkdir()
    shutil.copy(Path(host) / "input" / "example.png", base / "input" / "example.png")
    for name in ("woman", "dog", "mask", "photo_0", "photo_1", "photo_2"):
        Image.linear_gradient("L").convert("RGBA").save(base / "input" / f"{name}.png")
    with HostServer(Host(host, sys.executable, gpu=False), base, {}, lambda line: None) as running:
        yield running


def write_encoder(path: Path, encoder) -> None:
    """A file with the widths of an encoder and nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "vision_model.embeddings.class_embedding": torch.zeros(encoder.hidden),
            "visual_projection.weight": torch.zeros(encoder.pooled, 1).half(),
        },
        str(path),
    )


@pytest.fixture(scope="module")
def here(server) -> Here:
    """The server, as the check sees it."""
    return Here(server.object_info(), Places((server.base / "models",)))


def template(name: str) -> dict:
    """A shipped workflow."""
    return read_workflow(WORKFLOWS / f"{name}.json")


def by_class(prompt: dict, kind: str) -> dict:
    """The inputs of a prompt's first node of a class."""
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == kind)


# ---- the templates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_of_a_template_only_files_and_other_packs_can_be_missing(name, here):
    """Every wire and value is the host's, as saved and as exported; a node that is not is another pack's, which the
    file names.
    """
    saved = template(name)
    active = [raw for raw in saved["nodes"] if raw["type"] not in NOTES and raw["mode"] == 0]
    foreign = [raw["type"] for raw in active if raw["type"] not in here.info]
    report = check(saved, here)
    nodes = [finding.text for finding in report.findings if finding.kind == "node"]
    assert {finding.kind for finding in report.findings} <= {"file", "node"} and report.notes == ()
    assert len(nodes) == len(set(foreign)) and all("expected a node of the pack " in text for text in nodes)
    assert report.counts.startswith(f"{len(active)} nodes, {len(saved['links'])} links, ")
    if not foreign:
        assert {finding.kind for finding in check(convert(saved, here.info), here).findings} <= {"file"}


def test_the_default_template_passes_where_its_files_are(here, server):
    for workflow in (template("4_two_subjects"), convert(template("4_two_subjects"), here.info)):
        report = check(workflow, here)
        assert (
            report.findings == () and report.summary() == "checked 17 nodes, 25 links, 3 model files: it will run here"
        )


# ---- the host refuses what the check finds ---------------------------------------------------------------------------


def _drop(kind: str, name: str):
    return lambda prompt: by_class(prompt, kind).pop(name)


def _put(kind: str, name: str, value):
    return lambda prompt: by_class(prompt, kind).__setitem__(name, value)


MISTAKES = {  # what is done to the default template's prompt: words of the one finding
    "weight": (
        _put("TroupeApplyImageAttention", "weight", 2.5),
        "expected a number from 0.0 to 2.0 in 'weight', found 2.5; set it within that range.",
    ),
    "merge": (
        _put("TroupeApplyImageAttention", "merge", "sum"),
        f"expected one of auto, {', '.join(MERGES)} in 'merge', found 'sum'; choose one of them.",
    ),
    "framing": (
        _put("TroupeEncodeSubjects", "framing", "crop"),
        "expected one of auto, pad, center, stretch in 'framing', found 'crop'; choose one of them.",
    ),
    "sampler": (_put("KSampler", "sampler_name", "eular"), "in 'sampler_name', found 'eular'; choose one of them."),
    "steps": (
        _put("KSampler", "steps", 0),
        "expected a whole number from 1 to 10000 in 'steps', found 0; set it within that range.",
    ),
    "width": (
        _put("EmptyLatentImage", "width", "wide"),
        "expected a whole number in 'width', found 'wide'; type one in.",
    ),
    "no image": (_drop("TroupeAddSubject", "image"), "expected a wire of type IMAGE in 'image', found none; wire it."),
    "no cfg": (
        _drop("KSampler", "cfg"),
        "expected a value for 'cfg', found none; open the workflow in ComfyUI and export it again.",
    ),
    "cast into references": (
        lambda prompt: _put(
            "TroupeApplyImageAttention", "references", by_class(prompt, "TroupeEncodeSubjects")["cast"]
        )(prompt),
        "expected TROUPE_REFERENCES in 'references', found TROUPE_CAST from",
    ),
    "photo": (
        _put("LoadImage", "image", "holiday.jpg"),
        "expected a file in ComfyUI's input folder in 'image', found 'holiday.jpg'; choose one of yours, or "
        "put it there.",
    ),
    "checkpoint": (
        _put("CheckpointLoaderSimple", "ckpt_name", "gone.safetensors"),
        "model file: expected models/checkpoints/gone.safetensors, found no such file",
    ),
    "adapter": (
        _put("TroupeLoadAdapter", "adapter_name", "ipadapter/ip-adapter_sdxl.safetensors"),
        "model file: expected models/ipadapter/ip-adapter_sdxl.safetensors (703 MB), found no such file; "
        "download https://huggingface.co/h94/",
    ),
    "encoder": (
        _put("TroupeLoadAdapter", "clip_vision_name", "gone.safetensors"),
        "model file: expected models/clip_vision/gone.safetensors, found no such file",
    ),
    "node": (
        lambda prompt: next(n for n in prompt.values() if n["class_type"] == "TroupeEncodeSubjects").update(
            class_type="TroupeEncodeEverything"
        ),
        "expected a node of Troupe, found no TroupeEncodeEverything in this ComfyUI; install or update Troupe.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_the_check_finds_the_host_refuses(name, here, server):
    """Each mistake in a prompt that the host would take: one finding, and the host does not run it."""
    change, words = MISTAKES[name]
    prompt = convert(template("4_two_subjects"), here.info)
    assert check(prompt, here).findings == ()
    change(prompt)
    told = [finding.text for finding in check(prompt, here).findings]
    assert len(told) == 1 and words in told[0]
    with pytest.raises(RunError):
        server.run(prompt)


@pytest.mark.parametrize(
    ("name", "type", "inputs"),
    [
        ("4_two_subjects", "TroupeApplyImageAttention", ("references",)),
        ("7_place_subjects", "TroupeApplyGated", ("references",)),
        ("3_quick_two_subjects", "TroupeQuickSubjects", ("clip", "image_1")),
    ],
)
def test_sockets_that_are_optional_only_for_their_place_are_asked_for(name, type, inputs, here):
    """tests/host/test_nodes.py shows that the nodes refuse them."""
    for given in inputs:
        prompt = convert(template(name), here.info)
        before = [finding.text for finding in check(prompt, here).findings]
        del by_class(prompt, type)[given]
        told = [finding.text for finding in check(prompt, here).findings if finding.text not in before]
        assert len(told) == 1 and f"in '{given}', found none; wire it." in told[0]


def test_a_missing_node_in_a_saved_workflow(here):
    """As an old workflow: the nodes of the other pack are the only thing in the way beside nothing else of the
    host's.
    """
    report = check(stacked_by_preset(), here)
    assert {finding.kind for finding in report.findings} == {"node"} and len(report.findings) == 4
    assert report.summary().endswith("it will not run here (4 missing node types)")


# ---- rewritten from IPAdapter_plus -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OLD)
def test_a_rewritten_workflow_passes_and_runs(name, here, server):
    """The host's own validation takes it, and it makes a picture; only the two encoders, whose files cannot be small,
    are put in.
    """
    make, base = OLD[name]
    new = from_ipadapter(make()).workflow
    report = check(new, here)
    assert report.findings == () and report.notes == ()
    if name.endswith("2024"):  # the same nodes and wires: once is enough
        assert _classes(convert(new, here.info)) == _classes(
            convert(from_ipadapter(stacked_by_preset()).workflow, here.info)
        )
        return
    prompt, _ = with_reports(with_random_encoders(convert(new, here.info), base))
    for field, value in (("width", 128), ("height", 128)):
        by_class(prompt, "EmptyLatentImage")[field] = value
    by_class(prompt, "KSampler")["steps"] = 2
    [picture] = server.run(prompt)
    with Image.open(picture) as opened:
        assert opened.size == (128, 128)


def test_relevance_is_one_switch_away(here, server):
    """A converted workflow with nothing changed but 'merge' runs, and another picture comes out."""
    prompt = convert(from_ipadapter(stacked_by_files()).workflow, here.info)
    pictures = []
    for merge in ("add", "relevance"):
        by_class(prompt, "TroupeApplyImageAttention")["merge"] = merge
        given, _ = with_reports(with_random_encoders(json.loads(json.dumps(prompt)), "SD1.5"))
        by_class(given, "EmptyLatentImage").update(width=128, height=128)
        by_class(given, "KSampler")["steps"] = 2
        [picture] = server.run(given)
        with Image.open(picture) as opened:
            pictures.append(opened.tobytes())
    assert pictures[0] != pictures[1]


def test_the_pack_s_regional_example_lacks_files_and_another_pack_alone(here):
    """The host's validation of the converted example: two classes of a third pack (the old file needs them too), and
    files that are not here.
    """
    place = (
        Path(os.environ.get("TROUPE_IPADAPTER_PLUS") or "/nowhere")
        / "examples"
        / "ipadapter_regional_conditioning.json"
    )
    if not place.is_file():
        pytest.skip(
            "COMFYUI_IPADAPTER_PLUS IS NOT THERE: set TROUPE_IPADAPTER_PLUS to the folder of its checkout; "
            "its regional example was not checked"
        )
    old = json.loads(place.read_text(encoding="utf-8"))
    before, after = (check(workflow, here).findings for workflow in (old, from_ipadapter(old).workflow))
    foreign = [finding.text for finding in after if finding.kind == "node"]
    assert len(foreign) == 2 and set(foreign) < {finding.text for finding in before}
    assert {finding.kind for finding in after if finding.kind != "value"} == {"node", "file"}
    assert all("input folder" in finding.text for finding in after if finding.kind == "value"), after


def _classes(prompt: dict) -> dict:
    return {id_: node["class_type"] for id_, node in prompt.items()}


def test_the_command_asks_a_running_host(server, tmp_path, monkeypatch, capsys):
    """Its own lists of files count, though this machine's folders are empty."""
    monkeypatch.setattr(check_tool, "find_comfyui", lambda: None)
    (tmp_path / "new.json").write_text(json.dumps(from_ipadapter(stacked_by_files()).workflow))
    url = f"http://127.0.0.1:{server._port}"
    assert check_tool.main([str(tmp_path / "new.json"), "--url", url]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("it will run here")
    (tmp_path / "old.json").write_text(json.dumps(stacked_by_files()))
    assert check_tool.main([str(tmp_path / "old.json"), "--url", url]) == 1
    assert "2 missing node types)" in capsys.readouterr().out


def test_the_command_starts_a_comfyui_with_its_own_packs_and_pictures(host, server, tmp_path, capsys):
    """A ComfyUI folder with a pack, models and an input folder of its own; nothing is written into it."""
    mine = tmp_path / "ComfyUI"
    mine.mkdir()
    for entry in Path(host).iterdir():
        if entry.name not in ("custom_nodes", "models", "input", "output", "user", "temp", "extra_model_paths.yaml"):
            (mine / entry.name).symlink_to(entry)
    (mine / "models").symlink_to(server.base / "models")
    (mine / "input").symlink_to(server.base / "input")
    pack = mine / "custom_nodes" / "my_pack"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(
        "class Mine:\n    INPUT_TYPES = classmethod(lambda cls: {'required': {'image': ('IMAGE',)}})\n    "
        "RETURN_TYPES = ('IMAGE',)\n"
        "    FUNCTION = 'go'\n\n\nNODE_CLASS_MAPPINGS = {'MyNode': Mine}\n"
    )
    before = sorted(path.relative_to(mine) for path in mine.rglob("*") if "__pycache__" not in path.parts)
    workflow = template("4_two_subjects")
    prompt = convert(workflow, server.object_info())
    photo = next(id_ for id_, node in prompt.items() if node["class_type"] == "LoadImage")
    prompt[photo]["inputs"]["image"] = "dog.png"
    (tmp_path / "api.json").write_text(
        json.dumps({**prompt, "77": {"class_type": "MyNode", "inputs": {"image": [photo, 0]}}})
    )
    assert check_tool.main([str(tmp_path / "api.json"), "--comfyui", str(mine)]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "api.json: checked 18 nodes, 26 links, 3 model files: it will run here"
    )
    assert sorted(path.relative_to(mine) for path in mine.rglob("*") if "__pycache__" not in path.parts) == before
