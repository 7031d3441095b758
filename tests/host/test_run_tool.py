"""tools/run.py and the templates on the real host: what a fresh one complains of, and whole runs through its server."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys

import pytest
from PIL import Image, ImageChops
from support.shipped_templates import READS_PHOTOS, template
from troupe.model_patches.checkpoints.catalogue import published_file, where_to_get
from troupe_tools.commands import run as run_tool
from troupe_tools.dev.prompt_thumbnail import paint_with_and_without
from troupe_tools.engine.comfyui import Host
from troupe_tools.engine.embedded import run_embedded
from troupe_tools.engine.host_server import HostServer
from troupe_tools.engine.on_comfyui import (
    LAYERS,
    convert,
    with_random_encoders,
    with_reports,
    without_analysers,
    write_random,
)
from troupe_tools.engine.random_models import BASES, WHOLE, base_of, write_adapter, write_gligen, write_host_checkpoint
from troupe_tools.engine.rehearsal_models import enlarged, rehearsal_models
from troupe_tools.engine.report import NOT_A_PICTURE
from troupe_tools.errors import RunError
from troupe_tools.pack import WORKFLOWS
from troupe_tools.workflow.any_workflow import flatten_workflow
from troupe_tools.workflow.edit import Changes, edit
from troupe_tools.workflow.graph import Graph
from troupe_tools.workflow.job import read_job
from troupe_tools.workflow.virtual import NOTES
from troupe_tools.workflow.workflow_files import read_workflow

EVERY = [path.stem for path in sorted(WORKFLOWS.glob("*.json"))]
IN_PROMPT = {f"research_{family}_rehearsal" for family in ("fastcomposer", "mm_diff", "subject_diffusion", "umm")}
REHEARSALS = [name for name in EVERY if "rehearsal" in name]  # their models come with the pack
TEMPLATES = [name for name in EVERY if name not in REHEARSALS]
CHECKPOINTS = ("sd_xl_base_1.0.safetensors", "Illustrious-XL-v0.1.safetensors")
ADAPTERS = ("ip-adapter-plus_sdxl_vit-h.safetensors", "noobIPAMARK1_mark1.safetensors")
LAYERS_OF_TINY_SDXL = 12
OTHER = {  # templates that are not on SDXL, or need all its blocks: base, and the layers that act
    "7_place_subjects": ("SD1.5", [7]),
    READS_PHOTOS: ("SD1.5", [7]),
    "8_portrait_mm_diff": (WHOLE, [70]),
    "research_subject_diffusion": ("SD2.x", [7]),
    "research_umm_fused_guidance": ("SD1.5", []),
}
WHOLE_CHECKPOINT = "sd_xl_every_block.safetensors"


@pytest.fixture(scope="module", autouse=True)
def converter(host):
    """comfy-cli, which turns the save format into an API prompt; it comes with the 'run' extra."""
    if importlib.util.find_spec("comfy_cli") is None:
        (pytest.fail if os.environ.get("TROUPE_REQUIRE_HOST") == "1" else pytest.skip)(
            "NO COMFY-CLI (pip install comfy-cli): the templates were not converted for the real host"
        )


@pytest.fixture(scope="module")
def spoken() -> list[str]:
    """What the pack said on the server."""
    return []


@pytest.fixture(scope="module")
def server(host, tmp_path_factory, spoken):
    """A server of our own, with no models at first."""
    base = tmp_path_factory.mktemp("run_tool_base")
    with HostServer(Host(host, sys.executable, gpu=False), base, {}, spoken.append) as running:
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
    write_host_checkpoint(models / "checkpoints" / "v1-5-pruned-emaonly-fp16.safetensors", "SD1.5")
    for name in ("gligen_sd14_textbox_pruned_fp16.safetensors", "gligen-generation-text-image-box.bin"):
        write_gligen(
            models / "gligen" / name, BASES["SD1.5"].host_places, BASES["SD1.5"].context_dim, BASES["SD1.5"].context_dim
        )
    write_host_checkpoint(models / "checkpoints" / "v2-1_512-ema-pruned.safetensors", "SD2.x")
    write_host_checkpoint(models / "checkpoints" / WHOLE_CHECKPOINT, WHOLE)
    for name in (
        "portrait_generation/unet_adapter_weights.bin",
        "subject_diffusion.safetensors",
        "umm_mapping.safetensors",
    ):
        write_random(models / "subject_adapters" / name, name, base_of(name))
    return server


def prompt_of(name: str, server: HostServer, info: dict, **changes) -> dict:
    """A template, its photos in the server's input folder, as an API prompt."""
    edited = edit(template(name), Changes(**changes))
    for file, path in edited.photos.items():
        shutil.copy(path, server.base / "input" / file)
    return convert(without_analysers(edited.workflow), info)


def shipped(name: str) -> dict:
    """A template without the nodes of other packs."""
    return without_analysers(read_workflow(WORKFLOWS / f"{name}.json"))


@pytest.mark.parametrize("name", EVERY)
def test_conversion_keeps_every_node_wire_and_widget(name, server, info):
    """Each literal and link of the saved graph, by name, is in the prompt; nothing else is."""
    graph, prompt = Graph(shipped(name)), convert(shipped(name), info)
    real = [node for node in graph.nodes.values() if node.type not in NOTES and node.mode == 0]
    assert len(real) == sum(node.type not in NOTES for node in graph.nodes.values()) - (name == "8_portrait_mm_diff")
    assert {id_: node["class_type"] for id_, node in prompt.items()} == {str(node.id): node.type for node in real}
    for node in real:
        wired = {slot: [str(found[0].id), found[1]] for slot in node.inputs if (found := graph.source(node, slot))}
        widgets = {
            w: node.raw["widgets_values"][place]
            for w, place in node.widget_places().items()
            if w not in wired and w != "upload"
        }
        assert {k: v for k, v in prompt[str(node.id)]["inputs"].items() if k != "upload"} == wired | widgets


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_fresh_host_complains_of_missing_models_only(name, server, info):
    """The host's own validation; the photos are there since the start."""
    with pytest.raises(RunError) as refused:
        server.run(convert(shipped(name), info))
    complaints = str(refused.value).splitlines()[1:]
    graph = Graph(shipped(name))
    [checkpoint] = [graph.value(node, "ckpt_name") for node in graph.of_type("CheckpointLoaderSimple")]
    [adapter] = [
        graph.value(node, "adapter_name") for node in graph.of_type("TroupeLoadAdapter", "TroupeQuickSubjects")
    ]
    wanted = where_to_get(published_file(adapter)) if published_file(adapter) else f"the adapter file '{adapter}'"
    about_checkpoint = [line for line in complaints if f"ckpt_name: '{checkpoint}' not in []" in line]
    about_adapter = [line for line in complaints if wanted in line]
    assert (
        len(about_checkpoint) == 1 and about_adapter and len(complaints) == len(about_checkpoint) + len(about_adapter)
    )


@pytest.mark.parametrize("name", REHEARSALS)
def test_a_rehearsal_runs_on_a_fresh_host(name, server, info, spoken):
    """As saved, without a file or an upload; the picture without references, which is shown only, is saved too."""
    spoken.clear()
    graph, prompt = Graph(shipped(name)), convert(shipped(name), info)
    without = [str(node["id"]) for node in shipped(name)["nodes"] if node.get("title") == "Without references"]
    for id_ in without:
        prompt[id_]["class_type"], prompt[id_]["inputs"]["filename_prefix"] = "SaveImage", "without"
    saved = sorted(server.run(prompt), key=lambda path: path.name.startswith("without"))
    with_layers = len(graph.of_type("TroupeApplyImageAttention"))  # each has a sampler
    assert [Image.open(path).size for path in saved] == [(512, 512)] * len(graph.of_type("SaveImage") + without)
    assert (
        sum(
            "2 subjects: 'cat' (4 image tokens, 1 name token), 'robot' (4 image tokens, 1 name token)" in line
            and "7 layers" in line
            for line in spoken
        )
        == with_layers
    )
    assert not [line for line in spoken if "is not in your prompt" in line]
    if name.startswith("research_"):
        job = read_job(shipped(name))
        models, quiet = rehearsal_models(job), {"say": lambda line: None, "progress": lambda done, of: None}
        pictures = {True: [run_embedded(job, {}, models, **quiet).pictures[0]], False: []}
        if name in IN_PROMPT:
            for with_them, pixels in paint_with_and_without(shipped(name))[1].items():
                pictures[with_them].append(Image.fromarray((pixels[0] * 255).byte().numpy()))
            assert largest(pictures[True][0], pictures[False][0]) > 75, "no effect, so nothing is tested"
        for path, with_them in zip(saved, (True, False), strict=name in IN_PROMPT):
            for picture in pictures[with_them]:
                # one engine cuts off where the other rounds
                assert largest(Image.open(path).convert("RGB"), enlarged(picture)) <= 1, (
                    "the embedded one paints another"
                )


def largest(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of a channel."""
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


@pytest.mark.parametrize("name", [*TEMPLATES, READS_PHOTOS])
def test_a_template_runs_once_the_files_are_there(name, stocked, info, spoken):
    """Only the two encoders, whose files cannot be small, are put in by the helper; all else is the template's own."""
    spoken.clear()
    base, layers = OTHER.get(name, ("SDXL", [LAYERS_OF_TINY_SDXL]))
    prompt, reports = with_reports(with_random_encoders(prompt_of(name, stocked, info, size=(128, 128), steps=2), base))
    for node in prompt.values():
        if base == WHOLE and "ckpt_name" in node["inputs"]:
            node["inputs"]["ckpt_name"] = WHOLE_CHECKPOINT
    [picture] = stocked.run(prompt)
    with Image.open(picture) as opened:
        assert opened.size == (128, 128)
    assert reports == 1
    acted = [int(found[1]) for line in spoken if (found := LAYERS.search(line))]
    assert acted == layers
    assert any("at token" in line for line in spoken) == (
        "TroupeEncodePrompt" in {node["class_type"] for node in prompt.values()}
    )
    assert not [line for line in spoken if "is not in your prompt" in line], (
        "the templates' names stand in their prompts"
    )


def test_the_whole_command(host, tmp_path, monkeypatch, capsys):
    """`python tools/run.py` finds the host, starts its server, and leaves picture, references and report."""
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    assert (
        run_tool.main(
            [
                "--random-models",
                "--engine",
                "comfyui",
                "--output",
                str(tmp_path),
                "--size",
                "128x128",
                "--steps",
                "2",
                "--name",
                "woman",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "engine: ComfyUI" in said and "step 2 of 2" in said
    assert "'woman' is not in your prompt" in said, "the pack's own warnings are shown"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [NOT_A_PICTURE, "reference_1_as_the_encoder_saw_it.png", "reference_2_as_the_encoder_saw_it.png", "report.txt"]
    )
    report = (tmp_path / "report.txt").read_text()
    assert f"it acted in {LAYERS_OF_TINY_SDXL} of {LAYERS_OF_TINY_SDXL} cross-attention layers" in report
    assert "subject 1 'woman': 12 layers, 16 image tokens, 1 name token, weight 1" in report


def test_the_first_command_in_comfyui(host, tmp_path, monkeypatch, capsys):
    """Asked to run there and without model files, it paints the rehearsal template, and nothing is random."""
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    assert run_tool.main(["--engine", "comfyui", "--output", str(tmp_path), "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "engine: ComfyUI" in said and "RANDOM" not in said and "NOISE" not in said
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (512, 512)


def test_a_failure_in_the_host_is_its_sentence(stocked, info):
    """A node's error comes back as this command's own sentence, and the next run works."""
    broken = with_random_encoders(prompt_of("4_two_subjects", stocked, info, size=(128, 128), steps=1), "SDXL")
    subject = next(node for node in broken.values() if node["class_type"] == "TroupeAddSubject")
    subject["inputs"]["name"] = ""
    with pytest.raises(RunError, match="TroupeEncodeSubjects.*failed.*a name for subject"):
        stocked.run(broken)
    subject["inputs"]["name"] = "astronaut"
    assert stocked.run(broken)


def test_a_workflow_that_is_only_partly_sound_is_refused(stocked, info):
    """The host would run the report, which needs no latent, leave the picture out, and call that a success."""
    prompt, _ = with_reports(
        with_random_encoders(prompt_of("4_two_subjects", stocked, info, size=(12, 12), steps=1), "SDXL")
    )
    with pytest.raises(RunError, match="(?s)refuses the workflow.*EmptyLatentImage.*12 smaller than min"):
        stocked.run(prompt)


def test_an_unknown_node_is_named(server, info):
    workflow = read_workflow(WORKFLOWS / "4_two_subjects.json")
    workflow["nodes"][0]["type"] = "SomebodysLoader"
    with pytest.raises(RunError, match="SomebodysLoader"):
        convert(workflow, info)


# ---- the embedded engine on files in the layout of the published ones, written with the host's own classes -----------

FULL_SIZE = {
    "SDXL": {
        "model_channels": 320,
        "context_dim": 2048,
        "use_linear_in_transformer": True,
        "num_heads": -1,
        "num_head_channels": 64,
        "adm_in_channels": 2816,
        "num_classes": "sequential",
        "channel_mult": [1, 2, 4],
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
    },
    "SD1.5": {
        "model_channels": 320,
        "context_dim": 768,
        "use_linear_in_transformer": False,
        "num_heads": 8,
        "num_head_channels": -1,
        "adm_in_channels": None,
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1] * 6 + [0, 0],
        "transformer_depth_output": [1] * 9 + [0, 0, 0],
        "transformer_depth_middle": 1,
    },
}
SMALL = {**FULL_SIZE["SD1.5"], "model_channels": 32, "num_heads": 4, "context_dim": 64}


def host_unet(config: dict, device: str):
    """The host's UNet class."""
    import comfy.ops
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    kind = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "use_spatial_transformer": True,
        "legacy": False,
        "dtype": torch.float32,
    }
    return UNetModel(**kind, device=device, operations=comfy.ops.disable_weight_init, **config)


@pytest.mark.parametrize("family", FULL_SIZE)
def test_the_numbers_of_the_base_models_are_the_published_ones(family, host):
    """A full-size UNet in the original layout has, converted, exactly the names and shapes that our configuration
    makes; no weight is in memory.
    """
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    from troupe_tools.engine import embedded  # noqa: F401  (loads the pack, and hides a torchaudio that transformers would fail with)
    from troupe_tools.engine.base_models import FAMILIES

    original = {
        f"model.diffusion_model.{name}": value
        for name, value in host_unet(FULL_SIZE[family], "meta").state_dict().items()
    }
    with torch.device("meta"):
        ours = UNet2DConditionModel(**FAMILIES[family].unet)
    converted = convert_ldm_unet_checkpoint(original, dict(ours.config))
    assert {name: value.shape for name, value in converted.items()} == {
        name: value.shape for name, value in ours.state_dict().items()
    }


@pytest.fixture
def small_files(host, tmp_path, monkeypatch):
    """A models folder with an SD1.5 checkpoint of small widths, an adapter for it and a vision tower that looks like
    ViT-H; and the host's UNet of that checkpoint.
    """
    import safetensors.torch
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection
    from troupe_tools.engine import base_models, embedded, random_models  # noqa: F401

    text = {
        **base_models.CLIP_L,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    unet = {
        **base_models.SD15.unet,
        "block_out_channels": [32, 64, 128, 128],
        "cross_attention_dim": 64,
        "attention_head_dim": 4,
    }
    vae = {**base_models.SD15.vae, "block_out_channels": [32, 32, 32, 32]}
    monkeypatch.setitem(base_models.FAMILIES, "SD1.5", base_models.BaseFamily(unet, vae, {"text_encoder": text}))
    model = random_models.randomise(host_unet(SMALL, "cpu"), seed=0)
    decoder = AutoencoderKL(
        embed_dim=4,
        ddconfig={
            "double_z": True,
            "z_channels": 4,
            "resolution": 256,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 32,
            "ch_mult": [1, 1, 1, 1],
            "num_res_blocks": 2,
            "attn_resolutions": [],
            "dropout": 0.0,
        },
    )
    words = random_models.randomise(CLIPTextModel(CLIPTextConfig(vocab_size=49408, eos_token_id=49407, **text)), seed=2)
    parts = {
        "model.diffusion_model.": model,
        "first_stage_model.": random_models.randomise(decoder, seed=1),
        "cond_stage_model.transformer.text_model.": words,
    }
    state = {
        prefix + name.removeprefix("text_model."): value.detach().contiguous()
        for prefix, part in parts.items()
        for name, value in part.state_dict().items()
    }
    (tmp_path / "checkpoints").mkdir()
    safetensors.torch.save_file(state, tmp_path / "checkpoints" / "small.safetensors")
    vision = {
        **random_models.VISION,
        "hidden_size": 1280,
        "intermediate_size": 64,
        "num_attention_heads": 16,
        "projection_dim": 1024,
        "image_size": 28,
        "patch_size": 14,
    }
    tower = random_models.randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)), seed=4)
    (tmp_path / "clip_vision").mkdir()
    safetensors.torch.save_file(
        {name: value.detach().contiguous() for name, value in tower.state_dict().items()},
        tmp_path / "clip_vision" / "tower.safetensors",
    )
    widths = (
        [width for level in (32, 64, 128) for width in (level,) * 2]
        + [width for level in (128, 64, 32) for width in (level,) * 3]
        + [128]
    )
    random_models.write_adapter(tmp_path / "ipadapter" / "ip-adapter-plus_sd15.safetensors", widths, 64, vision=vision)
    return tmp_path, model


def test_real_files_are_used_by_the_embedded_engine(small_files, tmp_path, monkeypatch, capsys):
    """With every file in place nothing is random: the workflow's own size and steps, a picture without a mark, and the
    checkpoint's own weights in the UNet.
    """
    import torch
    from troupe_tools.engine import base_models

    models, model = small_files
    workflow = Graph(read_workflow(WORKFLOWS / "4_two_subjects.json"))
    workflow.write(workflow.of_type("CheckpointLoaderSimple")[0], "ckpt_name", "small.safetensors")
    workflow.write(
        workflow.of_type("TroupeLoadAdapter")[0], "adapter_name", "ipadapter/ip-adapter-plus_sd15.safetensors"
    )
    for widget, value in (("width", 64), ("height", 128)):
        workflow.write(workflow.of_type("EmptyLatentImage")[0], widget, value)
    workflow.write(workflow.of_type("KSampler")[0], "steps", 3)
    file = tmp_path / "small.json"
    file.write_text(json.dumps(workflow.workflow))
    out = tmp_path / "out"
    assert (
        run_tool.main(["--engine", "embedded", "--workflow", str(file), "--models", str(models), "--output", str(out)])
        == 0
    )
    said = capsys.readouterr().out
    assert "RANDOM" not in said and "NOISE" not in said and "step 3 of 3" in said
    assert not (out / NOT_A_PICTURE).exists()
    with Image.open(out / "picture.png") as picture:
        assert picture.size == (64, 128)
    assert "it acted in 16 of 16 cross-attention layers" in (out / "report.txt").read_text()
    base = base_models.load_base(
        models / "checkpoints" / "small.safetensors", base_models.FAMILIES["SD1.5"], "cpu", torch.float32
    )
    x, t, text = torch.randn(2, 4, 16, 8), torch.tensor([500.0, 500.0]), torch.randn(2, 77, 64)
    theirs, ours = model(x, t, context=text), base.unet(x, t, encoder_hidden_states=text).sample
    assert torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max().item())


def test_a_checkpoint_of_another_family_is_refused_in_a_sentence(small_files):
    import torch
    from troupe_tools.engine import base_models

    with pytest.raises(RunError, match="cannot read small.safetensors as the base model"):
        base_models.load_base(
            small_files[0] / "checkpoints" / "small.safetensors", base_models.SDXL, "cpu", torch.float32
        )


def test_a_workflow_with_nodes_of_the_browser_runs_like_the_one_without(server, info):
    """The MODEL over a Set and a Get node, the VAE over Use Everywhere, links as records: the host gets the same
    prompt.
    """
    plain = shipped("4_two_subjects")
    expected, changed = convert(plain, info), Graph(plain).workflow
    last, ids = max(link[0] for link in changed["links"]), max(node["id"] for node in changed["nodes"])
    sampler, decoder = (
        next(node for node in changed["nodes"] if node["type"] == kind) for kind in ("KSampler", "VAEDecode")
    )
    model, vae = (
        next(slot for slot in node["inputs"] if slot["name"] == name)
        for node, name in ((sampler, "model"), (decoder, "vae"))
    )
    links = {link[0]: link for link in changed["links"]}
    source, slot = links[model["link"]][1:3]
    changed["nodes"] += [
        {
            "id": ids + 1,
            "type": "SetNode",
            "mode": 0,
            "inputs": [{"name": "MODEL", "type": "MODEL", "link": last + 1}],
            "outputs": [],
            "widgets_values": ["patched"],
        },
        {
            "id": ids + 2,
            "type": "GetNode",
            "mode": 0,
            "inputs": [],
            "outputs": [{"name": "MODEL", "type": "MODEL", "links": [last + 2]}],
            "widgets_values": ["patched"],
        },
        {
            "id": ids + 3,
            "type": "Anything Everywhere",
            "mode": 0,
            "inputs": [{"name": "anything", "type": "*", "link": last + 3}],
            "outputs": [],
            "widgets_values": [],
        },
    ]
    changed["links"] = [link for link in changed["links"] if link[0] not in (model["link"], vae["link"])]
    changed["links"] += [
        [last + 1, source, slot, ids + 1, 0, "MODEL"],
        [last + 2, ids + 2, 0, sampler["id"], sampler["inputs"].index(model), "MODEL"],
        [last + 3, *links[vae["link"]][1:3], ids + 3, 0, "VAE"],
    ]
    model["link"], vae["link"] = last + 2, None
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    changed["links"] = [dict(zip(names, link, strict=True)) for link in changed["links"]]
    assert convert(changed, info) == expected
    vae_free = convert(
        {**changed, "nodes": [node for node in changed["nodes"] if node["type"] != "Anything Everywhere"]}, info
    )
    assert "vae" not in vae_free[str(decoder["id"])]["inputs"], "without the broadcast nothing is wired there"


def test_an_api_prompt_is_run_as_it_is(info):
    prompt = convert(shipped("4_two_subjects"), info)
    assert convert(flatten_workflow(prompt), info) == {
        id_: {key: node[key] for key in ("class_type", "inputs")} for id_, node in prompt.items()
    }
