"""tools/run.py without ComfyUI: whole runs on the embedded engine with random weights, what it leaves behind, and what
it says to mistakes.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import shipped_templates
from support.shipped_templates import READS_PHOTOS
from troupe_tools import pack
from troupe_tools.commands import run as run_tool
from troupe_tools.engine import comfyui
from troupe_tools.engine.random_faces import RANDOM_FACES
from troupe_tools.engine.report import NOISE, NOT_A_PICTURE, marked
from troupe_tools.errors import RunError
from troupe_tools.pack import ROOT, WORKFLOWS
from troupe_tools.workflow import edit as editing
from troupe_tools.workflow.graph import Graph
from troupe_tools.workflow.job import read_job
from troupe_tools.workflow.needed import model_roots, needed_models
from troupe_tools.workflow.photos import real_photos

RANDOM = "--random-models"
# those need no model files
TEMPLATES = [path.stem for path in sorted(WORKFLOWS.glob("*.json")) if "rehearsal" not in path.stem]
NAMED = "1 name token"
# what a subject brings in the templates that are not an IP-Adapter plus, and how many of which layers of the random
# models it reaches
BRINGS = {
    "5_two_characters_illustrious": (f"4 image tokens, {NAMED}, box", 4, "cross-attention layers"),
    "6_boxes_and_relevance": (f"16 image tokens, {NAMED}, box", 4, "cross-attention layers"),
    "7_place_subjects": ("phrase, box", 4, "gated layers"),
    READS_PHOTOS: ("phrase, photo, box", 4, "gated layers"),
    "8_portrait_mm_diff": (
        "4 image tokens, no name tokens (no CLIP wired), 1 word in the prompt",
        70,
        "cross-attention layers",
    ),
    "research_subject_diffusion": ("photo, 1 word in the prompt, box", 4, "gated layers"),
    "research_umm_fused_guidance": ("1 word in the prompt", 1, "text encoder"),
}
SDXL_LINK = "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors"
PLUS_LINK = "https://huggingface.co/h94/IP-Adapter/resolve/main/sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors"
VIT_H_LINK = "https://huggingface.co/h94/IP-Adapter/resolve/main/models/image_encoder/model.safetensors"


@pytest.fixture(autouse=True)
def no_comfyui(monkeypatch, tmp_path):
    """A machine without ComfyUI, whatever this one has."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setattr(comfyui, "ROOT", tmp_path / "somewhere")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models this small are faster so, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def template(name: str = "4_two_subjects") -> dict:
    """A shipped workflow, or READS_PHOTOS."""
    return shipped_templates.template(name)


def saved_as(path: Path, workflow: dict) -> str:
    """The path of a workflow file."""
    path.write_text(json.dumps(workflow))
    return str(path)


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TEMPLATES, READS_PHOTOS])
def test_a_template_runs_where_there_is_nothing(name, tmp_path, capsys):
    """No ComfyUI, no model files: the picture is called noise in its name, on its face, in the report and on the
    screen.
    """
    out = tmp_path / "out"
    given = name if name in TEMPLATES else saved_as(tmp_path / "changed.json", template(name))
    assert run_tool.main([RANDOM, "--workflow", given, "--output", str(out), "--size", "128x64", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    names = [subject.name for subject in read_job(template(name)).subjects]
    # text boxes read no photos
    seen = (
        []
        if name == "7_place_subjects"
        else [f"reference_{n}_as_the_encoder_saw_it.png" for n in range(1, len(names) + 1)]
    )
    assert sorted(p.name for p in out.iterdir()) == sorted([NOT_A_PICTURE, *seen, "report.txt"])
    assert "No ComfyUI was found" in said and "embedded" in said and NOISE in said and "step 2 of 2" in said
    assert (RANDOM_FACES in said) == (name == "8_portrait_mm_diff")
    # of unknown files the encoder is not known
    listed = [
        model for model in template(name)["models"] if "research" not in name or model["directory"] == "checkpoints"
    ]
    assert all(model["url"] in said and f"models/{model['directory']}/{model['name']}" in said for model in listed)
    report = (out / "report.txt").read_text()
    brings, count, layers = BRINGS.get(name, (f"16 image tokens, {NAMED}", 4, "cross-attention layers"))
    assert report.startswith(NOISE) and f"it acted in {count} of {count} {layers}" in report
    for number, subject in enumerate(names, 1):
        brought = brings.replace(NAMED, "2 name tokens") if " " in subject else brings
        assert (
            f"subject {number} '{subject}': {count} {layers.split()[-1] if 'layers' in layers else layers}, "
            f"{brought}, weight 1" in report
        )
    with Image.open(out / NOT_A_PICTURE) as picture:
        assert picture.size == (1024, 512), "enlarged, so that its face can be read"


@pytest.mark.slow
def test_the_references_are_the_photos(tmp_path):
    """As the encoder saw them: the astronaut fills her square, the wide cat stands between white borders."""
    assert run_tool.main([RANDOM, "--output", str(tmp_path), "--size", "64x64", "--steps", "1"]) == 0
    seen = [np.asarray(Image.open(tmp_path / f"reference_{n}_as_the_encoder_saw_it.png")) for n in (1, 2)]
    whole = np.asarray(Image.open(real_photos()[0]).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
    assert seen[0].shape == (224, 224, 3) and np.abs(seen[0].astype(float) - whole).mean() < 2
    border = (451 - 300) * 224 // 451 // 2
    assert (seen[1][: border - 1] == 255).all() and (seen[1][-border + 1 :] == 255).all() and (seen[1][112] < 255).any()


def test_the_mark_is_on_the_face():
    plain = Image.new("RGB", (256, 256), (0, 0, 0))
    face = np.asarray(marked(plain))
    assert face.shape == (512, 512, 3) and (face[200:320].max(axis=(0, 1)) > 200).any() and not face[:150].any()


@pytest.fixture(scope="module")
def small_of():
    """Of a template: a way to run it, changed, on random models that are made once: (workflow changes) -> Result."""
    import tempfile

    from troupe_tools.engine import embedded, embedded_models

    with tempfile.TemporaryDirectory() as folder:
        made = {}

        def of(name: str):
            made.setdefault(name, embedded_models.random_models(read_job(template(name)), Path(folder) / name))

            def go(change=lambda graph: None, photos: tuple[Path, ...] = (), **changes):
                graph = Graph(template(name))
                change(graph)
                edited = editing.edit(graph.workflow, editing.Changes(photos=photos, size=(64, 64), steps=2, **changes))
                return embedded.run_embedded(
                    read_job(edited.workflow), edited.photos, made[name], lambda line: None, lambda done, of: None
                )

            return go

        yield of


@pytest.fixture
def small(small_of):
    """The default template's."""
    return small_of("4_two_subjects")


def pixels(result) -> np.ndarray:
    """The first picture."""
    return np.asarray(result.pictures[0], dtype=float)


def set_widget(kind: str, widget: str, value):
    """A change to the first node of a class."""
    return lambda graph: graph.write(graph.of_type(kind)[0], widget, value)


@pytest.mark.slow
def test_a_run_can_be_repeated_and_everything_it_reads_counts(small):
    """The same job gives the same picture; another photo, name, prompt, weight, seed, step range or merge gives
    another.
    """
    first = pixels(small())
    assert np.array_equal(first, pixels(small()))
    different = {
        "photo": small(photos=(real_photos()[1],)),
        "name": small(names=("park bench",)),
        "prompt": small(prompt="an astronaut and a cat on the moon"),
        "seed": small(seed=7),
        "weight": small(set_widget("TroupeApplyImageAttention", "weight", 1.5)),
        "subject's weight": small(set_widget("TroupeAddSubject", "weight", 2.0)),
        "merge": small(set_widget("TroupeApplyImageAttention", "merge", "add")),
        "end": small(set_widget("TroupeApplyImageAttention", "end_percent", 0.4)),
        "cfg": small(set_widget("KSampler", "cfg", 2.0)),
        "sampler": small(set_widget("KSampler", "sampler_name", "euler_ancestral")),
    }
    same = [what for what, result in different.items() if np.array_equal(first, pixels(result))]
    assert not same


@pytest.mark.slow
def test_boxes_and_their_widgets_count(small_of):
    """Another box, none, a layout instead, and each of the boxes' widgets of Apply Image Attention."""
    small, apply = small_of("6_boxes_and_relevance"), "TroupeApplyImageAttention"
    first = pixels(small())
    different = {
        "box": small(set_widget("TroupePlaceSubjects", "boxes", '[{"x": 0, "y": 0, "w": 0.5, "h": 0.5}, null]')),
        "no boxes": small(set_widget("TroupePlaceSubjects", "boxes", "[]")),
        "layout": small(
            lambda graph: [
                set_widget("TroupePlaceSubjects", w, v)(graph) for w, v in (("boxes", "[]"), ("layout", "column"))
            ]
        ),
        "strength": small(set_widget(apply, "box_strength", 0.5)),
        "end": small(set_widget(apply, "box_end_percent", 0.4)),
        "feather": small(set_widget(apply, "box_feather", 0.3)),
    }
    results = [first, *map(pixels, different.values())]
    assert not [(i, j) for i, a in enumerate(results) for j, b in enumerate(results[:i]) if np.array_equal(a, b)]
    with pytest.raises(RunError, match="box 3.*without a subject"):
        small(set_widget("TroupePlaceSubjects", "boxes", '[null, null, {"x": 0, "y": 0, "w": 0.5, "h": 0.5}]'))


@pytest.mark.slow
def test_a_gated_run_counts_what_it_reads(small_of):
    """GLIGEN: photo, phrase, box, strength and schedule each make another picture; at strength 0 nothing acts."""
    small, apply = small_of(READS_PHOTOS), "TroupeApplyGated"
    first = pixels(small())
    assert np.array_equal(first, pixels(small())) and np.array_equal(
        first, pixels(small(set_widget(apply, "use_bbox", "on")))
    )
    different = {
        "photo": small(photos=(real_photos()[1],)),
        "name": small(names=("park bench",)),
        "box": small(set_widget("TroupePlaceSubjects", "boxes", '[{"x": 0, "y": 0, "w": 0.5, "h": 0.5}, null]')),
        "strength": small(set_widget(apply, "strength", 0.5)),
        "end": small(set_widget(apply, "end_percent", 0.4)),
        "decay": small(
            lambda graph: [set_widget(apply, w, v)(graph) for w, v in (("end_percent", 0.4), ("decay_percent", 0.8))]
        ),
        "subject's weight": small(set_widget("TroupeAddSubject", "weight", 0.5)),
        "nothing": small(set_widget(apply, "strength", 0.0)),
    }
    results = [first, *map(pixels, different.values())]
    assert not [(i, j) for i, a in enumerate(results) for j, b in enumerate(results[:i]) if np.array_equal(a, b)]
    assert different["strength"].reached == (4,) and different["nothing"].reached == (0,)


@pytest.mark.slow
def test_text_boxes_count_names_and_boxes_and_no_photos(small_of):
    """As the template is shipped."""
    small = small_of("7_place_subjects")
    first = pixels(small())
    assert np.array_equal(first, pixels(small(photos=(real_photos()[1],))))
    different = [
        small(names=("park bench",)),
        small(set_widget("TroupePlaceSubjects", "boxes", '[{"x": 0, "y": 0, "w": 0.5, "h": 0.5}, null]')),
        small(set_widget("TroupeApplyGated", "end_percent", 1.0)),
        small(set_widget("TroupeApplyGated", "strength", 0.0)),
    ]
    assert not [i for i, result in enumerate(different) if np.array_equal(first, pixels(result))]


WORDS, GUIDER = "TroupeEncodePrompt", "TroupeSubjectGuider"
COUNTED = {  # template -> what is changed: class, widget, value
    "research_umm_fused_guidance": [
        ("TroupeAddSubject", "weight", 0.5),
        (WORDS, "fuse_start_step", 1),
        (WORDS, "fuse_start_percent", 0.5),
        (GUIDER, "second", 0.2),
        (GUIDER, "end_percent", 0.0),
        (GUIDER, "cfg", 3.0),
        ("RandomNoise", "noise_seed", 7),
        ("KSamplerSelect", "sampler_name", "euler_ancestral"),
        ("BasicScheduler", "scheduler", "sgm_uniform"),
    ],
    "8_portrait_mm_diff": [
        ("TroupeApplyWeights", "strength_model", 0.5),
        ("TroupeApplyWeights", "strength_clip", 0.5),
        ("TroupeApplyImageAttention", "weight", 0.3),
        (WORDS, "fuse_start_step", 1),
        ("TroupeApplyImageAttention", "start_percent", 0.5),
    ],
    "research_subject_diffusion": [
        ("TroupeApplyWeights", "strength_model", 0.0),
        ("TroupeApplyWeights", "strength_clip", 0.0),
        ("TroupeApplyGated", "strength", 0.5),
        (GUIDER, "second", 3.0),
        (WORDS, "fuse_start_step", 1),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_a_run_with_subjects_in_the_prompt_counts_what_it_reads(name, small_of):
    """Photo, name and every widget around it make another picture each."""
    small = small_of(name)
    first = pixels(small())
    assert np.array_equal(first, pixels(small()))
    different = {
        "photo": small(photos=(real_photos()[1],)),
        "name": small(names=("astronaut",) if name == "8_portrait_mm_diff" else ("photo",)),
    }
    different |= {f"{kind} {widget}": small(set_widget(kind, widget, value)) for kind, widget, value in COUNTED[name]}
    assert not [what for what, result in different.items() if np.array_equal(first, pixels(result))]


@pytest.mark.slow
def test_what_only_comfyui_does_with_prompts_is_named(small_of):
    with pytest.raises(RunError, match="'quirks'.*official.*run this workflow in ComfyUI"):
        small_of("8_portrait_mm_diff")(set_widget(WORDS, "quirks", "official"))


def rewired(name: str, title: str, slot: str, source: str, output: int = 0) -> dict:
    """A template with another wire into an input; nodes by their titles."""
    workflow = template(name)
    nodes = {node["title"]: node for node in workflow["nodes"]}
    place, entry = next((i, entry) for i, entry in enumerate(nodes[title]["inputs"]) if entry["name"] == slot)
    entry["link"] = 900
    workflow["links"].append([900, nodes[source]["id"], output, nodes[title]["id"], place, entry["type"]])
    return workflow


@pytest.mark.parametrize(
    "wire, said",
    [
        (
            ("8_portrait_mm_diff", "Negative", "clip", "Base model", 1),
            "Negative.*takes its CLIP from 'Base model'.*Apply Adapter Weights",
        ),
        (
            ("research_umm_fused_guidance", "Two-Strength Guider: umm", "middle", "Negative"),
            "'middle' of 'Two-Strength Guider: umm'.*comes from 'Negative'.*text_only",
        ),
        (
            ("research_umm_fused_guidance", "Two-Strength Guider: umm", "negative", "Encode Prompt with Subjects"),
            "makes the negative prompt.*run this workflow in ComfyUI",
        ),
        (
            ("research_umm_fused_guidance", "Encode Prompt with Subjects", "places_of", "Prompt"),
            "'places_of' of 'Encode Prompt with Subjects'.*run this workflow in ComfyUI",
        ),
        (
            ("research_umm_fused_guidance", "Sample", "guider", "Steps"),
            "'guider' of 'Sample'.*knows only TroupeSubjectGuider",
        ),
        (
            ("8_portrait_mm_diff", "Subject: woman", "faces", "IPAdapter InsightFace Loader"),
            "The faces of 'Subject: woman'.*not those of its own photos",
        ),
    ],
)
def test_wires_that_only_comfyui_follows_are_named(wire, said):
    import re

    with pytest.raises(RunError) as refused:
        read_job(rewired(*wire))
    assert re.search(said, str(refused.value))


@pytest.mark.slow
def test_real_models_have_no_faces_here(tmp_path):
    """The embedded engine has no analyser: with real models it says so instead of drawing lots."""
    from dataclasses import replace

    from troupe_tools.engine import embedded, embedded_models

    edited = editing.edit(template("8_portrait_mm_diff"), editing.Changes(size=(64, 64), steps=1))
    job = read_job(edited.workflow)
    models = replace(embedded_models.random_models(job, tmp_path), random=False)
    with pytest.raises(RunError, match="The faces of 'woman'.*embedded engine has none"):
        embedded.run_embedded(job, edited.photos, models, lambda line: None, lambda done, of: None)


@pytest.mark.slow
def test_an_ancestral_sampler_can_be_repeated_too(small):
    ancestral = set_widget("KSampler", "sampler_name", "euler_ancestral")
    assert np.array_equal(pixels(small(ancestral)), pixels(small(ancestral)))


@pytest.mark.slow
def test_layers_are_counted_where_they_acted(small):
    """Weight 0 does nothing and the report says so."""
    assert small().reached == (4,)
    assert small(set_widget("TroupeApplyImageAttention", "weight", 0.0)).reached == (0,)


@pytest.mark.slow
def test_the_pack_s_warnings_are_heard(small):
    assert any("'dragon' is not in your prompt" in line for line in small(names=("astronaut", "dragon")).lines)
    assert any("both called 'cat'" in line for line in small(names=("cat", "cat")).lines)


# ---- model files -----------------------------------------------------------------------------------------------------


def header_only(path: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file whose header tells of tensors; their data is not there."""
    header = json.dumps(
        {name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    ).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.fixture
def models(tmp_path) -> Path:
    """A models folder that has what the default template needs, the encoder under another name."""
    folder = tmp_path / "models"
    header_only(folder / "checkpoints" / "sdxl" / "sd_xl_base_1.0.safetensors", {"a": [1]})
    header_only(folder / "ipadapter" / "ip-adapter-plus_sdxl_vit-h.safetensors", {"a": [1]})
    header_only(
        folder / "clip_vision" / "whatever.safetensors",
        {"vision_model.embeddings.class_embedding": [1280], "visual_projection.weight": [1024, 1280]},
    )
    return folder


def test_missing_files_are_listed_with_link_and_folder(capsys):
    assert run_tool.main(["--list-missing"]) == 1
    said = capsys.readouterr().out
    assert said.count("missing  ") == 3
    for link, place in (
        (SDXL_LINK, "models/checkpoints/sd_xl_base_1.0.safetensors"),
        (PLUS_LINK, "models/ipadapter/ip-adapter-plus_sdxl_vit-h.safetensors"),
        (VIT_H_LINK, "models/clip_vision/CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"),
    ):
        assert f"download {link}\n           and save it as {place}" in said


def test_files_are_found_in_subfolders_and_encoders_by_their_widths(models, capsys):
    assert run_tool.main(["--list-missing", "--models", str(models)]) == 0
    said = capsys.readouterr().out
    assert "missing" not in said and "whatever.safetensors" in said
    header_only(
        models / "clip_vision" / "whatever.safetensors",
        {"vision_model.embeddings.class_embedding": [1664], "visual_projection.weight": [1280, 1664]},
    )
    assert run_tool.main(["--list-missing", "--models", str(models)]) == 1
    assert VIT_H_LINK in capsys.readouterr().out


def test_the_illustrious_template_needs_the_other_encoder(models):
    files = {
        file.name: file.path
        for file in needed_models(Graph(template("5_two_characters_illustrious")), model_roots(None, models))
    }
    assert files == {
        "Illustrious-XL-v0.1.safetensors": None,
        "noobIPAMARK1_mark1.safetensors": None,
        "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors": None,
    }


def test_gligen_needs_its_matrix_beside_it(models):
    """The projection matrix is looked for where the file lies, the encoder by its widths."""

    def files() -> dict:
        return {
            f"{file.folder}/{file.name}": file.path
            for file in needed_models(Graph(template(READS_PHOTOS)), model_roots(None, models))
        }

    wanted = [
        "checkpoints/v1-5-pruned-emaonly-fp16.safetensors",
        "gligen/gligen-generation-text-image-box.bin",
        "gligen/projection_matrix",
        "clip_vision/clip-vit-large-patch14.safetensors",
    ]
    assert files() == dict.fromkeys(wanted)
    (models / "gligen").mkdir()
    (models / "gligen" / "gligen-generation-text-image-box.bin").touch()
    assert files()["gligen/gligen-generation-text-image-box.bin"] and files()["gligen/projection_matrix"] is None
    (models / "gligen" / "projection_matrix").touch()
    header_only(
        models / "clip_vision" / "l.safetensors",
        {"vision_model.embeddings.class_embedding": [1024], "visual_projection.weight": [768, 1024]},
    )
    found = files()
    assert (
        found["gligen/projection_matrix"] == models / "gligen" / "projection_matrix"
        and found["clip_vision/clip-vit-large-patch14.safetensors"].name == "l.safetensors"
    )
    phrases = Graph(template("7_place_subjects"))
    assert [file.name for file in needed_models(phrases, model_roots(None, None))] == [
        wanted[0].split("/")[1],
        "gligen_sd14_textbox_pruned_fp16.safetensors",
    ]
    phrases.write(
        phrases.of_type("TroupeLoadAdapter")[0], "adapter_name", "gligen/gligen_sd14_textbox_pruned_fp16.safetensors"
    )
    assert [file.name for file in needed_models(phrases, model_roots(None, None))] == [
        wanted[0].split("/")[1],
        "gligen_sd14_textbox_pruned_fp16.safetensors",
    ]


def test_extra_model_folders_of_comfyui_are_searched(models, tmp_path):
    pytest.importorskip("yaml")
    host = tmp_path / "ComfyUI"
    host.mkdir()
    (host / "extra_model_paths.yaml").write_text(f"mine:\n  base_path: {models}\n  checkpoints: checkpoints\n")
    assert all(file.path for file in needed_models(Graph(template()), model_roots(host, None)))


# ---- what the command line changes -----------------------------------------------------------------------------------


def test_changes_land_in_the_workflow():
    photos = (real_photos()[1],)
    both = editing.edit(template(), editing.Changes(tuple(reversed(real_photos()))))
    assert list(both.photos.values()) == list(reversed(real_photos()))
    edited = editing.edit(
        template(), editing.Changes(photos, ("woman", "tabby"), "a woman and a tabby", (832, 1216), 12, 99)
    )
    job = read_job(edited.workflow)
    assert [s.name for s in job.subjects] == ["woman", "tabby"]
    assert (job.prompt, job.width, job.height, job.steps, job.seed) == ("a woman and a tabby", 832, 1216, 12, 99)
    assert [edited.photos[name] for s in job.subjects for name in s.photos] == [real_photos()[1], real_photos()[1]]
    assert read_job(template()).seed == 20261121, "the file's own record is untouched"


def test_the_size_is_written_where_the_picture_has_it_from():
    """Into Place Subjects, whose outputs feed the latent; the latent's own numbers rest."""
    graph = Graph(editing.edit(template("7_place_subjects"), editing.Changes(size=(832, 1216))).workflow)
    [place], [latent] = graph.of_type("TroupePlaceSubjects"), graph.of_type("EmptyLatentImage")
    assert place.raw["widgets_values"][:2] == [832, 1216] and latent.raw["widgets_values"][:2] == [512, 512]
    job = read_job(graph.workflow)
    assert (job.width, job.height) == (832, 1216) == (job.applied[0].places[0].width, job.applied[0].places[0].height)


def test_a_sampler_may_take_the_latent_of_place_subjects():
    graph = Graph(template("7_place_subjects"))
    [place], [sampler] = graph.of_type("TroupePlaceSubjects"), graph.of_type("KSampler")
    link = graph.links[sampler.inputs["latent_image"]["link"]]
    link[1:3] = [place.id, 3]
    job = read_job(editing.edit(graph.workflow, editing.Changes(size=(832, 1216))).workflow)
    assert (job.width, job.height, job.batch) == (832, 1216, 1)


def test_the_size_is_also_that_of_boxes_that_do_not_feed_the_latent():
    graph = Graph(template("6_boxes_and_relevance"))
    [latent] = graph.of_type("EmptyLatentImage")
    for name in ("width", "height"):
        latent.inputs[name]["link"] = None
    job = read_job(editing.edit(graph.workflow, editing.Changes(size=(832, 1216))).workflow)
    assert (job.width, job.height) == (832, 1216) == (job.applied[0].places[0].width, job.applied[0].places[0].height)


def test_names_are_asked_for_at_a_terminal(monkeypatch, capsys):
    """Once for each photo without one, until something is typed."""
    asked, typed = [], iter(["", " tabby ", "woman"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or next(typed))
    options = run_tool.parse(["--photo", str(real_photos()[1]), "--photo", str(real_photos()[0])])
    run_tool.ask_names(options)
    assert options.name == ["tabby", "woman"]
    assert asked == ["Noun for troupe_cat.jpg in the prompt: "] * 2 + ["Noun for troupe_astronaut.jpg in the prompt: "]


def test_without_changes_only_the_photos_differ():
    for name in TEMPLATES:
        edited = editing.edit(template(name), editing.Changes())
        assert [path for path in edited.photos.values()] == real_photos()[: len(edited.photos)]
        graph = Graph(edited.workflow)
        for node in graph.of_type("LoadImage"):
            graph.write(node, "image", edited.photos[graph.value(node, "image")].name)
        assert graph.workflow == template(name)


def test_comfyui_s_example_picture_stands_for_the_sample_photos():
    """In templates of older versions."""
    graph = Graph(template())
    for node in graph.of_type("LoadImage"):
        graph.write(node, "image", "example.png")
    assert list(editing.edit(graph.workflow, editing.Changes()).photos.values()) == real_photos()


def test_a_photo_beside_the_workflow_goes_before_a_sample_of_its_name(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "troupe_cat.jpg")
    assert list(editing.edit(template(), editing.Changes(), [tmp_path]).photos.values()) == [
        real_photos()[0],
        tmp_path / "troupe_cat.jpg",
    ]


def test_a_photo_of_the_workflow_s_own_is_looked_up(tmp_path):
    graph = Graph(template())
    graph.write(graph.of_type("LoadImage")[1], "image", "tom.png")
    with pytest.raises(RunError, match="'tom.png' is not in .*--photo"):
        editing.edit(graph.workflow, editing.Changes(), [tmp_path])
    Image.new("RGB", (32, 32)).save(tmp_path / "tom.png")
    edited = editing.edit(graph.workflow, editing.Changes(), [tmp_path])
    assert list(edited.photos.values()) == [real_photos()[0], tmp_path / "tom.png"]


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--workflow", "no_such"], "no workflow file.*3_quick_two_subjects.json"),
        (["--photo", "no_such.jpg"], "no photo at no_such.jpg.*--photo"),
        (["--photo", "a", "--photo", "b", "--photo", "c"], "3 photos were given for 2"),
        (["--name", "a", "--name", "b", "--name", "c"], "3 names were given for 2"),
        (["--models", "no_such_folder"], "no folder no_such_folder"),
        (["--engine", "comfyui"], "No ComfyUI was found.*COMFYUI_PATH"),
        (["--size", "100x100"], "multiples of 8 pixels.*100x100"),
        (["--photo", __file__, "--size", "64x64"], f"{re.escape(__file__)} is no picture that can be read.*--photo"),
        (["--photo", str(real_photos()[1]), "--size", "64x64"], "--photo .*troupe_cat.jpg has no name. Add --name"),
        (
            ["--photo", str(real_photos()[1]), "--name", "cat", "--photo", str(real_photos()[0])],
            "--photo .*troupe_astronaut.jpg has no name",
        ),
        (["--name", " "], "A --name is blank.*--name cat"),
    ],
)
def test_mistakes_are_sentences(arguments, said, capsys, tmp_path, monkeypatch):
    """Each before a model is made or read."""
    from troupe_tools.engine import embedded_models

    monkeypatch.setattr(embedded_models, "random_models", lambda *given: pytest.fail("models were made"))
    assert run_tool.main([RANDOM, *arguments, "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and re.search(said, error, re.S) and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_wrong_comfyui_path_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(RunError, match="COMFYUI_PATH.*no ComfyUI lies"):
        comfyui.find_comfyui()


def test_comfyui_is_looked_for_in_order(monkeypatch, tmp_path):
    """The environment, then the folder the pack lies in, then where comfy-cli installs."""

    def make(place: Path) -> Path:
        (place / "comfy").mkdir(parents=True)
        (place / "comfy" / "model_patcher.py").touch()
        (place / "main.py").touch()
        return place

    assert comfyui.find_comfyui() is None
    home = make(tmp_path / "home" / "comfy" / "ComfyUI")
    assert comfyui.find_comfyui() == home
    above = make(tmp_path / "A")
    monkeypatch.setattr(comfyui, "ROOT", above / "custom_nodes" / "troupe")
    assert comfyui.find_comfyui() == above
    named = make(tmp_path / "B")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert comfyui.find_comfyui() == named


def test_a_comfyui_without_its_requirements_is_passed_over(monkeypatch, tmp_path, capsys):
    host = tmp_path / "ComfyUI"
    host.mkdir()
    (host / "requirements.txt").write_text("pillow>=1\nno-such-package-troupe==1.0 # why\n")
    with pytest.raises(RunError, match="lacks 1 of the packages.*no-such-package-troupe.*pip install -r"):
        comfyui.usable_host(host)
    assert run_tool.choose_host("auto", host) is None
    assert "no-such-package-troupe" in capsys.readouterr().out
    with pytest.raises(RunError):
        run_tool.choose_host("comfyui", host)


def test_installing_shows_comfy_cli_s_own_command(monkeypatch, capsys):
    pytest.importorskip("comfy_cli")
    ran = []
    monkeypatch.setattr(
        comfyui.subprocess,
        "run",
        lambda command, **kwargs: ran.append(command) or subprocess.CompletedProcess(command, 7),
    )
    assert run_tool.main(["--install-comfyui"]) == 1
    shown = capsys.readouterr()
    assert ran[0][1:5] == ["-m", "comfy_cli", "--skip-prompt", "install"] and " ".join(ran[0][1:]) in shown.out
    assert "exit status 7" in shown.err and "GitHub" in shown.err


@pytest.mark.slow
def test_the_command_runs_from_anywhere_and_keeps_the_pack_off_the_path(tmp_path):
    """A root folder `nodes/` on sys.path would hide the host's nodes.py."""
    code = (
        f"import sys; sys.path[0] = r'{ROOT / 'tools'}'; import run; run.main(['--list-missing']); assert "
        f"r'{ROOT}' not in sys.path"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "missing  checkpoints" in done.stdout, done.stderr


def test_a_broken_torchaudio_counts_as_none(monkeypatch, tmp_path):
    (tmp_path / "torchaudio.py").write_text("raise RuntimeError('compiled with different CUDA versions')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    pack.hide_broken_torchaudio()
    import torchaudio

    assert not hasattr(torchaudio, "sound")
    monkeypatch.delitem(sys.modules, "torchaudio")
    (tmp_path / "torchaudio.py").write_text("sound = True")
    pack.hide_broken_torchaudio()
    assert sys.modules["torchaudio"].sound
    monkeypatch.delitem(sys.modules, "torchaudio")


# ---- a full disk, and runs at the same time --------------------------------------------------------------------------

QUICK_RUN = [RANDOM, "--engine", "embedded", "--size", "64x64", "--steps", "1"]


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 64 kB, where this system lets a test have one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("NO RIGHT TO MOUNT A SMALL DISK: a full one was only played")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def full(capsys, place: Path) -> None:
    """One sentence about a full disk that names the place."""
    error = capsys.readouterr().err
    assert (
        error.startswith("error: Expected ")
        and str(place) in error
        and "No space left on device" in error
        and error.count("\n") == 1
    ), error


@pytest.mark.slow
@pytest.mark.parametrize("taken", [0, 40_000], ids=["in the picture", "in its first bytes"])
def test_a_full_disk_leaves_nothing(taken, tiny_disk, capsys):
    """Not under a final name and not beside it; what was there stays."""
    (tiny_disk / "mine.bin").write_bytes(b"x" * taken)
    assert run_tool.main([*QUICK_RUN, "--output", str(tiny_disk)]) == 1
    full(capsys, tiny_disk)
    assert [path.name for path in tiny_disk.iterdir()] == ["mine.bin"] and (
        tiny_disk / "mine.bin"
    ).stat().st_size == taken


@pytest.mark.slow
@pytest.mark.parametrize("name", ["4_two_subjects", "8_portrait_mm_diff", "7_place_subjects"])
def test_a_full_disk_for_temporary_files_is_a_sentence(name, tiny_disk, tmp_path, capsys, monkeypatch):
    """Of each writer of random models: safetensors, torch, transformers."""
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tiny_disk))
    assert run_tool.main([*QUICK_RUN, "--workflow", name, "--output", str(tmp_path / "out")]) == 1
    full(capsys, tiny_disk)
    assert not (tmp_path / "out").exists() and not list(tiny_disk.iterdir())


def test_only_a_full_disk_is_called_one():
    import errno

    from troupe_tools.engine.saving import room_for_temporary_files

    with pytest.raises(RunError, match="No space left on device.*TMPDIR"), room_for_temporary_files():
        raise OSError(errno.ENOSPC, "in words of another system")
    for other in (OSError(errno.EACCES, "Permission denied"), RuntimeError("something else"), RunError("a sentence")):
        with pytest.raises(type(other)) as raised, room_for_temporary_files():
            raise other
        assert raised.value is other


SAVED = ("picture.png", "picture_2.png", "reference_1_as_the_encoder_saw_it.png", "report.txt")


def made_by_hand(grey: int = 0):
    """A result of two pictures and a reference, without a run."""
    from troupe_tools.engine.result import Result

    fact = {
        "adapter": "a.bin",
        "kind": "a kind",
        "layers": 3,
        "places": "layers",
        "subjects": [{"name": f"number {grey}", "has": ["photo"], "weight": 1.0}],
    }
    picture = Image.new("RGB", (64, 64), (grey,) * 3)
    return Result((picture, picture), (picture,), (fact,), (3,), ())


@pytest.mark.parametrize("failing", SAVED[:3])
def test_a_disk_that_is_full_in_any_file(failing, tmp_path, monkeypatch):
    """As far as it was written, nothing remains, and the files of an earlier run are as they were."""
    save = Image.Image.save

    def half(self, path, *args, **kwargs):
        save(self, path, *args, **kwargs)
        if Path(path).name == failing:
            Path(path).write_bytes(Path(path).read_bytes()[:20])
            raise OSError(28, "No space left on device")

    run_tool.save(made_by_hand(1), tmp_path, random=False)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(
        RunError, match="Expected to write this run's 4 files.*found 'No space left on device'.*--output"
    ):
        run_tool.save(made_by_hand(2), tmp_path, random=False)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before and len(before) == 4


def test_a_move_that_fails_takes_back_what_was_moved(tmp_path, monkeypatch):
    import os

    from troupe_tools.engine import saving

    def replace(source, target):
        if Path(target).name == "report.txt":
            raise OSError(28, "No space left on device")
        os.rename(source, target)

    monkeypatch.setattr(saving.os, "replace", replace)
    with pytest.raises(RunError, match="No space left"):
        run_tool.save(made_by_hand(), tmp_path, random=False)
    assert not list(tmp_path.iterdir())


def test_no_run_writes_over_another(tmp_path):
    """Nor over a picture of the user's own."""
    (tmp_path / "run_3_picture.png").write_bytes(b"mine")
    names = [
        tuple(path.name for path in run_tool.save(made_by_hand(grey), tmp_path, random=False)) for grey in (1, 2, 3)
    ]
    assert names == [SAVED, tuple(f"run_2_{name}" for name in SAVED), tuple(f"run_4_{name}" for name in SAVED)]
    for grey, prefix in ((1, ""), (2, "run_2_"), (3, "run_4_")):
        assert (
            np.asarray(Image.open(tmp_path / f"{prefix}picture.png"))[0, 0, 0] == grey
            and f"'number {grey}'" in (tmp_path / f"{prefix}report.txt").read_text()
        )
    assert (tmp_path / "run_3_picture.png").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 13


def test_many_processes_save_at_once(tmp_path):
    """Each set of files is one run's own."""
    code = (
        f"import sys; sys.path.append(r'{ROOT / 'tools'}'); import pathlib; from troupe_tools.engine import saving\n"
        "me = sys.argv[1]; files = {n: (lambda p: p.write_text(me)) for n in ('picture.png', "
        "'reference.png', 'report.txt')}\n"
        f"sys.stdin.read(1)\nfor i in range(20): saving.save_all(files, pathlib.Path(r'{tmp_path / 'out'}'))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for i in range(4)
    ]
    for process in running:
        process.stdin.write(b".")
        process.stdin.flush()
    assert [process.communicate()[1] for process in running] == [b""] * 4
    texts = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    prefixes = ["", *(f"run_{number}_" for number in range(2, 81))]
    assert sorted(texts) == sorted(
        f"{prefix}{name}" for prefix in prefixes for name in ("picture.png", "reference.png", "report.txt")
    )
    sets = [
        {texts[f"{prefix}{name}"] for name in ("picture.png", "reference.png", "report.txt")} for prefix in prefixes
    ]
    assert all(len(found) == 1 for found in sets) and sorted(found.pop() for found in sets) == sorted(
        str(i) for i in range(4) for _ in range(20)
    )


@pytest.mark.slow
def test_two_runs_at_once(tmp_path):
    """The whole command, twice into one folder: both finish, and each record tells of its own run and stands beside its
    own picture.
    """
    command = [sys.executable, str(ROOT / "tools" / "run.py"), *QUICK_RUN, "--output", str(tmp_path / "out")]
    words = ("astronaut", "park bench")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([*command, "--name", name, "--seed", str(i)], cwd=tmp_path, **pipes)
        for i, name in enumerate(words)
    ]
    said = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    found = {}
    for name, (text, _) in zip(words, said, strict=True):
        saved = [Path(line.removeprefix("saved ")) for line in text.splitlines() if line.startswith("saved ")]
        assert len(saved) == 4 and f"subject 1 '{name}'" in saved[-1].read_text()
        for path in saved[:-1]:
            with Image.open(path) as picture:
                picture.load()
        found[name] = saved
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for saved in found.values() for path in saved
    )
    assert len({path for saved in found.values() for path in saved}) == 8
    assert len({saved[0].read_bytes() for saved in found.values()}) == 2


def test_an_output_that_is_a_file_is_said_before_the_run(tmp_path, capsys):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        assert run_tool.main([*QUICK_RUN, "--output", str(tmp_path / place)]) == 1
        said = capsys.readouterr()
        assert "Expected a folder to save in" in said.err and "a file" in said.err and "step" not in said.out


# ---- the rehearsal: no model files, and no random weights ------------------------------------------------------------


def test_missing_models_end_a_named_workflow(capsys, tmp_path):
    """Random weights are for tests: the error lists the files that the workflow needs, and says what runs
    without them.
    """
    assert run_tool.main(["--workflow", "4_two_subjects", "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert (
        SDXL_LINK in said.out
        and "run `python tools/run.py` without --workflow" in said.err
        and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--photo", "me.jpg"], "only know their own drawn subjects.*--list-missing"),
        (["--name", "knight"], "takes its names from the prompt.*--prompt"),
        (["--size", "512x512"], "paint 128x128 pixels.*--list-missing"),
        (["--prompt", "a unicorn on the moon"], "names 0. They know: robot, cat.*For example"),
        (["--prompt", "a cat, a robot, a fish and a bird at night"], "names 4"),
    ],
)
def test_what_the_rehearsal_cannot_do(arguments, said, capsys, tmp_path):
    import re

    assert run_tool.main([*arguments, "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert (
        error.startswith("error: ")
        and re.search(said, error, re.S)
        and "Traceback" not in error
        and not (tmp_path / "out").exists()
    )


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A copy of the shipped rehearsal files, which a test may harm."""
    from troupe.rehearsal import files

    folder = tmp_path / "files"
    shutil.copytree(files.FOLDER, folder)
    monkeypatch.setattr(files, "FOLDER", folder)
    return folder


@pytest.mark.slow
def test_the_first_command_paints_a_picture(tmp_path, capsys):
    """Without arguments and model files: picture, comparison and a report that says what it is; nothing is called
    noise.
    """
    out = tmp_path / "out"
    assert run_tool.main(["--steps", "2", "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["comparison.png", "picture.png", "report.txt"]
    report = (out / "report.txt").read_text(encoding="utf-8")
    assert (
        "a small model trained on drawn pictures" in report
        and "says nothing about how well the real models reproduce a photo" in report
    )
    assert report.rstrip() in said and "NOISE" not in said
    assert "1 cat: " in report and "2 robot: " in report and "prompt: a cat and a robot on grass, seed: " in report
    picture = np.asarray(Image.open(out / "picture.png"))
    assert (
        picture.shape == (512, 512, 3)
        and (picture.reshape(32, 16, 32, 16, 3) == picture[::16, ::16][:, None, :, None]).all()
    ), "every drawn cell is a square of 16 pixels"
    assert Image.open(out / "comparison.png").width > 1000


@pytest.mark.parametrize(
    "name",
    ["unet.safetensors", "text_encoder.safetensors", "image_encoder.safetensors", "rehearsal_mip_adapter.safetensors"],
)
@pytest.mark.parametrize("harm", ["missing", "cut off"])
def test_a_harmed_rehearsal_file_is_named(name, harm, shipped, tmp_path, capsys):
    path = shipped / name
    path.write_bytes(path.read_bytes()[:10_000]) if harm == "cut off" else path.unlink()
    assert run_tool.main(["--steps", "1", "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert (
        error.startswith("error: Expected ")
        and name in error
        and "reinstall or update the pack" in error
        and "Traceback" not in error
        and not (tmp_path / "out").exists()
    )


def test_a_rehearsal_template_that_scores_is_sent_to_comfyui(tmp_path, capsys):
    assert run_tool.main(["--workflow", "9_rehearsal_keep_best", "--output", str(tmp_path / "out")]) == 1
    assert "Score Subjects needs ComfyUI. Run this workflow there, or leave --workflow out." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


RESEARCH = {
    "research_fastcomposer_rehearsal": "1 of 1 text encoder",
    "research_ip_adapter_rehearsal": "7 of 7 cross-attention layers",
    "research_subject_diffusion_rehearsal": "7 of 7 gated layers",
    "research_mm_diff_rehearsal": "7 of 7 cross-attention layers",
    "research_umm_rehearsal": "1 of 1 text encoder",
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "acted"), RESEARCH.items())
def test_a_research_template_on_the_rehearsal_models_runs_without_a_host(name, acted, tmp_path):
    """tests/host/test_run_tool.py compares its picture with ComfyUI's."""
    assert run_tool.main(["--workflow", name, "--steps", "2", "--output", str(tmp_path)]) == 0
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (512, 512)
    report = (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert f"it acted in {acted}\n" in report and "subject 2 'robot'" in report


@pytest.mark.parametrize(
    ("given", "said"),
    [(["--photo", str(real_photos()[1])], "cannot use your photo"), (["--size", "256x256"], "leave --size out")],
)
def test_a_research_template_on_the_rehearsal_models_takes_no_photo_and_no_size(given, said, tmp_path, capsys):
    arguments = ["--workflow", "research_umm_rehearsal", *given, "--output", str(tmp_path / "out")]
    assert run_tool.main(arguments) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_rehearsal_models_are_sampled_as_the_templates_do(tmp_path, capsys):
    workflow = json.loads((WORKFLOWS / "research_umm_rehearsal.json").read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][5] = "karras"
    path = tmp_path / "other.json"
    path.write_text(json.dumps(workflow), encoding="utf-8")
    assert run_tool.main(["--workflow", str(path), "--output", str(tmp_path / "out")]) == 1
    assert "with euler on simple, the workflow asks for euler on karras" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1_start_here_rehearsal", "2_rehearsal_compare"])
def test_the_rehearsal_templates_run_without_a_host(name, tmp_path, capsys):
    """Their prompt and seed, with every merge."""
    assert run_tool.main(["--workflow", name, "--steps", "1", "--output", str(tmp_path / "out")]) == 0
    assert (
        "prompt: a cat and a robot on grass, seed: " in capsys.readouterr().out
        and (tmp_path / "out" / "comparison.png").is_file()
    )
