"""The template workflows as files: they open, they fit our nodes, their links are the catalogue's, and the job they
describe is the one we mean.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.shipped_templates import CHECKPOINTS, OUTPUTS, SOCKETS, WIDGETS
from troupe.model_patches.checkpoints.catalogue import (
    ENCODERS,
    PROJECTION_MATRIX,
    VIT_BIGG,
    VIT_H,
    VIT_L,
    published_file,
)
from troupe.model_patches.placement.boxes import read_text
from troupe.rehearsal.files import OFFERED
from troupe_tools.dev import best_thumbnail
from troupe_tools.dev.best_thumbnail import paint_scored
from troupe_tools.dev.thumbnails import QUALITY, draw_thumbnail
from troupe_tools.errors import RunError
from troupe_tools.pack import ROOT
from troupe_tools.workflow.graph import Graph
from troupe_tools.workflow.job import (
    AttentionJob,
    GatedJob,
    GuidanceJob,
    Job,
    PlaceJob,
    SubjectJob,
    WeightsJob,
    WordsJob,
    read_job,
)
from troupe_tools.workflow.photos import real_photos
from troupe_tools.workflow.virtual import NOTES
from troupe_tools.workflow.workflow_files import find_workflow

FILES = sorted((ROOT / "workflows").glob("*.json"))
NAMES = [path.stem for path in FILES]
MAPPED = ["1_start_here_rehearsal", "2_rehearsal_compare"]  # with relevance maps
IN_PROMPT = [
    "research_fastcomposer_rehearsal",
    "research_mm_diff_rehearsal",
    "research_subject_diffusion_rehearsal",
    "research_umm_rehearsal",
]
RESEARCH_BY_PHOTOS = "research_ip_adapter_rehearsal"
REHEARSALS = [*MAPPED, "9_rehearsal_keep_best", RESEARCH_BY_PHOTOS, *IN_PROMPT]  # their models come with the pack
DOWNLOADED = [name for name in NAMES if name not in REHEARSALS]
RESEARCH = ("research_subject_diffusion", "research_umm_fused_guidance")  # without published weights
PROMPT = "photo of an astronaut and a cat sitting side by side on a park bench, golden hour, detailed"
NEGATIVE = "monochrome, lowres, bad anatomy, worst quality, low quality"
CAST = (SubjectJob("astronaut", ("troupe_astronaut.jpg",)), SubjectJob("cat", ("troupe_cat.jpg",)))
PLUS = AttentionJob("ip-adapter-plus_sdxl_vit-h.safetensors", VIT_H.file.name, "auto", True, CAST, weight=0.65)


@pytest.fixture(params=NAMES)
def workflow(request) -> dict:
    """Each template."""
    return template(request.param)


@pytest.fixture(params=DOWNLOADED)
def downloaded(request) -> dict:
    """Each template whose models are to be downloaded."""
    return template(request.param)


@pytest.fixture(params=REHEARSALS)
def rehearsal(request) -> dict:
    """Each template whose models come with the pack."""
    return template(request.param)


def template(name: str) -> dict:
    """A shipped workflow."""
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text())


def test_the_folder_holds_templates_and_thumbnails_and_nothing_else():
    assert [
        *MAPPED,
        "3_quick_two_subjects",
        "4_two_subjects",
        "5_two_characters_illustrious",
        "6_boxes_and_relevance",
        "7_place_subjects",
        "8_portrait_mm_diff",
        "9_rehearsal_keep_best",
        *sorted((RESEARCH_BY_PHOTOS, *IN_PROMPT, *RESEARCH)),
    ] == NAMES
    assert sorted(p.name for p in (ROOT / "workflows").iterdir()) == sorted(
        f"{name}.{kind}" for name in NAMES for kind in ("json", "jpg")
    )


@pytest.mark.parametrize(
    "given", ["7_place_subjects", "7_place_subjects.json", "place_subjects", "place_subjects.json"]
)
def test_a_template_is_found_with_and_without_its_number(given):
    assert find_workflow(given) == ROOT / "workflows" / "7_place_subjects.json"


@pytest.mark.parametrize("given", ["subjects", "_place_subjects", "lace_subjects.json", "no_such"])
def test_part_of_a_template_s_name_is_not_its_name(given):
    assert find_workflow(given) == Path(given)


@pytest.mark.parametrize("name", NAMES)
def test_thumbnails_are_small_jpegs(name):
    path = ROOT / "workflows" / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.size == (800, 600)
    assert path.stat().st_size < 150_000


def drawn(name: str, workflow: dict) -> np.ndarray:
    """A template's thumbnail, made and saved anew."""
    picture = draw_thumbnail(name, workflow, [Image.open(path).convert("RGB") for path in real_photos()])
    saved = io.BytesIO()
    picture.save(saved, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(saved)).astype(float)


def shown(name: str) -> np.ndarray:
    """The thumbnail in the folder."""
    return np.asarray(Image.open(ROOT / "workflows" / f"{name}.jpg")).astype(float)


@pytest.fixture(scope="module")
def best():
    """What the template that keeps the best picture paints."""
    return paint_scored(template("9_rehearsal_keep_best"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_thumbnail_is_that_of_its_workflow(name, request, monkeypatch):
    """As tools/thumbnails.py draws it; another release of Pillow may draw letters a little differently."""
    if name == "9_rehearsal_keep_best":
        monkeypatch.setattr(best_thumbnail, "paint_scored", lambda workflow: request.getfixturevalue("best"))
    assert np.abs(drawn(name, template(name)) - shown(name)).mean() < 1


def test_an_old_thumbnail_is_found():
    """Of another template, and of a workflow whose nodes have moved since."""
    assert np.abs(shown("4_two_subjects") - shown("6_boxes_and_relevance")).mean() > 4
    moved = template("4_two_subjects")
    next(node for node in moved["nodes"] if node["type"] == "SaveImage")["pos"][1] += 700
    assert np.abs(drawn("4_two_subjects", moved) - shown("4_two_subjects")).mean() > 4


def test_the_save_format(workflow):
    assert workflow["version"] == 0.4
    assert set(workflow) >= {"nodes", "links", "groups", "config", "extra", "last_node_id", "last_link_id"}
    ids = [node["id"] for node in workflow["nodes"]]
    assert len(set(ids)) == len(ids) and max(ids) == workflow["last_node_id"]
    assert max(link[0] for link in workflow["links"]) == workflow["last_link_id"]


def test_every_link_is_known_at_both_ends(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    seen_in, seen_out = set(), set()
    for id_, source, out, target, into, kind in workflow["links"]:
        output, slot = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert id_ in output["links"] and slot["link"] == id_
        assert output["type"] == kind and kind in slot["type"].split(",")
        seen_in.add((target, into))
        seen_out.add((source, out, id_))
    assert seen_in == {
        (n["id"], i) for n in workflow["nodes"] for i, slot in enumerate(n["inputs"]) if slot["link"] is not None
    }
    assert seen_out == {
        (n["id"], o, link)
        for n in workflow["nodes"]
        for o, slot in enumerate(n["outputs"])
        for link in slot["links"] or ()
    }


def test_widgets_and_sockets_are_the_contract_s(workflow):
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            assert node["widgets_values"][0].strip()
            continue
        widgets = [slot["widget"]["name"] for slot in node["inputs"] if "widget" in slot]
        assert widgets == WIDGETS[node["type"]]
        after = node["type"] in ("KSampler", "RandomNoise", "PrimitiveInt")
        assert len(node["widgets_values"]) == len(widgets) + after, (
            "the front end saves one value a widget, and one more after a seed"
        )
        if node["type"] in SOCKETS:
            assert [slot["name"] for slot in node["inputs"] if "widget" not in slot] == SOCKETS[node["type"]]
            assert len(node["outputs"]) == OUTPUTS[node["type"]]


def test_nodes_have_titles_and_do_not_lie_on_each_other(workflow):
    boxes = [
        (n["pos"][0], n["pos"][1] - 30, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1])
        for n in workflow["nodes"]
    ]
    assert all(node.get("title") for node in workflow["nodes"])
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        groups = [(x, y, x + w, y + h, g["title"]) for g in workflow["groups"] for x, y, w, h in [g["bounding"]]]
        inside = [g for g in groups if g[0] <= a[0] and g[1] <= a[1] and a[2] <= g[2] and a[3] <= g[3]]
        assert len(inside) == 1 and inside[0][4]


def test_every_model_has_its_link(downloaded):
    """On the nodes, and at the file's top.

    Front ends offer a node's model where a widget has exactly its name as value.
    """
    listed = [model for node in downloaded["nodes"] for model in node["properties"].get("models", ())]
    assert sorted(map(json.dumps, listed)) == sorted(map(json.dumps, downloaded["models"]))
    for model in listed:
        if model["directory"] == "checkpoints":
            assert CHECKPOINTS[model["name"]] == model["url"]
        else:
            known = published_file(model["name"])
            assert (known.name, known.link, known.folder) == (model["name"], model["url"], model["directory"])
        assert model["name"].endswith(".safetensors"), "the front end downloads nothing else"
    for node in downloaded["nodes"]:
        assert {model["name"] for model in node["properties"].get("models", ())} <= {
            value for value in node.get("widgets_values", ()) if isinstance(value, str)
        }
    graph = Graph(downloaded)
    [name] = {graph.value(node, "adapter_name") for node in graph.of_type("TroupeLoadAdapter", "TroupeQuickSubjects")}
    [checkpoint] = [graph.value(node, "ckpt_name") for node in graph.of_type("CheckpointLoaderSimple")]
    adapter, encoders = published_file(name), {"": "", **{e.name: e.file.name for e in ENCODERS}}
    noted = "".join(node.raw["widgets_values"][0] for node in graph.of_type("MarkdownNote"))
    assert all(f"]({model['url']})" in noted for model in listed), "a note has the links too"
    if adapter is None:
        assert sum(model["name"] in {e.file.name for e in ENCODERS} for model in listed) == 1 and {checkpoint} == {
            m["name"] for m in listed
        } - {e.file.name for e in ENCODERS}
        return
    assert {model["name"] for model in listed} == {
        file for file in (checkpoint, encoders[adapter.encoder], adapter.name) if file.endswith(".safetensors")
    }
    assert f"]({adapter.link})" in noted, "also to what front ends do not download"
    assert (f"]({PROJECTION_MATRIX.link})" in noted) == (adapter.folder == "gligen")


def test_a_link_says_how_large_its_file_is(downloaded):
    """In its line of the note; noob-ipa's page is the one that does not say it."""
    lines = [line for node in downloaded["nodes"] if node["type"] == "MarkdownNote" for line in lines_of(node)]
    for model in downloaded["models"]:
        if model["name"] != "noobIPAMARK1_mark1.safetensors":
            [line] = [line for line in lines if f"]({model['url']})" in line]
            assert re.search(r"\(\d[\d.]* [GM]B\)", line), line


def lines_of(node: dict) -> list[str]:
    """The lines of a note."""
    return node["widgets_values"][0].split("\n")


@pytest.mark.parametrize("name", RESEARCH)
def test_what_has_no_weights_says_so_first(name):
    workflow = template(name)
    first = workflow["nodes"][0]
    assert (
        first["type"] == "MarkdownNote"
        and "no public weights" in first["widgets_values"][0]
        and "trained their own" in first["widgets_values"][0]
    )
    assert first["pos"] == min((n["pos"] for n in workflow["nodes"]), key=lambda at: (at[0], at[1])), "at the top left"
    assert (
        published_file(Graph(workflow).value(Graph(workflow).of_type("TroupeLoadAdapter")[0], "adapter_name")) is None
    )


def test_boxes_are_for_the_subjects_in_their_order(downloaded):
    """Labels are the names, unless a layout places them all; the picture is as large as Place Subjects says."""
    for apply in read_job(downloaded).encoded:
        for place in apply.places:
            labels = [box.label for box in read_text(place.boxes)]
            assert labels == [subject.name for subject in apply.subjects] if place.layout == "none" else labels == []
            assert (place.width, place.height) == (read_job(downloaded).width, read_job(downloaded).height)


def test_photos_are_different_ones_of_the_pack_with_a_note(downloaded):
    graph = Graph(downloaded)
    loaders = graph.of_type("LoadImage")
    photos = [graph.value(node, "image") for node in loaders]
    assert (
        len(photos) == len(read_job(downloaded).subjects)
        and photos == [path.name for path in real_photos()][: len(photos)]
    )
    assert any("choose your own photo" in node.raw["widgets_values"][0] for node in graph.of_type("Note"))


def placed(width: int, height: int, astronaut: tuple[float, ...], cat: tuple[float, ...]) -> tuple[PlaceJob, ...]:
    """One Place Subjects node after both subjects; x, y, w, h of each."""
    boxes = [
        {"label": name, **dict(zip("xywh", sides, strict=True))}
        for name, sides in (("astronaut", astronaut), ("cat", cat))
    ]
    return (PlaceJob(2, json.dumps(boxes), "none", width, height),)


def in_prompt(adapter: str, encoder: str, named: str, places: tuple[PlaceJob, ...] = (), **faces) -> tuple:
    """What feeds Encode Prompt with Subjects: the adapter, and one subject or the cast of two."""
    return (
        adapter,
        encoder,
        "auto",
        False,
        CAST if named == "both" else (SubjectJob(named, ("troupe_astronaut.jpg",), **faces),),
        places,
    )


PORTRAIT = in_prompt("portrait_generation/unet_adapter_weights.bin", VIT_L.file.name, "woman", faces=True)
SUBJECTS = in_prompt(
    "subject_diffusion.safetensors",
    VIT_H.file.name,
    "both",
    placed(512, 512, (0.06, 0.12, 0.46, 0.84), (0.58, 0.44, 0.36, 0.5)),
)
JOBS = {
    "8_portrait_mm_diff": Job(
        "sd_xl_base_1.0.safetensors",
        "portrait photo of a woman as an astronaut, orange spacesuit, soft light, detailed",
        "longbody, lowres, bad anatomy, bad hands, cropped, worst quality, low quality",
        1024,
        1024,
        1,
        25,
        5.0,
        20261121,
        "euler",
        "normal",
        (AttentionJob(*PORTRAIT, weight=0.8),),
        WordsJob(*PORTRAIT),
        (WeightsJob(PORTRAIT[0], 1.0, 1.0),),
    ),
    "research_subject_diffusion": Job(
        "v2-1_512-ema-pruned.safetensors",
        PROMPT,
        NEGATIVE,
        512,
        512,
        1,
        30,
        7.5,
        20261121,
        "euler",
        "normal",
        (GatedJob(*SUBJECTS),),
        WordsJob(*SUBJECTS),
        (WeightsJob(SUBJECTS[0], 1.0, 1.0),),
        GuidanceJob("subject_diffusion", 1.5, 1.5, 0.0, 1.0),
    ),
    "research_umm_fused_guidance": Job(
        "v1-5-pruned-emaonly-fp16.safetensors",
        "photo of an astronaut riding a horse on a beach, golden hour, detailed",
        NEGATIVE,
        512,
        512,
        1,
        30,
        7.5,
        20261121,
        "euler",
        "normal",
        (),
        WordsJob(*in_prompt("umm_mapping.safetensors", VIT_L.file.name, "astronaut")),
        (),
        GuidanceJob("umm", 0.5, 0.5, 0.0, 1.0, text_only=True),
    ),
    "6_boxes_and_relevance": Job(
        "sd_xl_base_1.0.safetensors",
        "photo of an astronaut on the left and a cat on the right, sitting on a park bench, golden hour, detailed",
        NEGATIVE,
        1152,
        896,
        1,
        30,
        5.0,
        20261121,
        "euler",
        "normal",
        (replace(PLUS, places=placed(1152, 896, (0.08, 0.1, 0.42, 0.86), (0.56, 0.44, 0.34, 0.5))),),
    ),
    "7_place_subjects": Job(
        "v1-5-pruned-emaonly-fp16.safetensors",
        PROMPT,
        NEGATIVE,
        512,
        512,
        1,
        30,
        7.5,
        20261121,
        "euler",
        "normal",
        (
            GatedJob(
                "gligen_sd14_textbox_pruned_fp16.safetensors",
                "auto",
                "auto",
                True,
                CAST,
                placed(512, 512, (0.06, 0.12, 0.46, 0.84), (0.58, 0.44, 0.36, 0.5)),
                end_percent=0.3,
            ),
        ),
    ),
    "3_quick_two_subjects": Job(
        "sd_xl_base_1.0.safetensors",
        PROMPT,
        NEGATIVE,
        1024,
        1024,
        1,
        30,
        5.0,
        20261121,
        "euler",
        "normal",
        (replace(PLUS, clip_vision="auto"),),
    ),
    "4_two_subjects": Job(
        "sd_xl_base_1.0.safetensors", PROMPT, NEGATIVE, 1024, 1024, 1, 30, 5.0, 20261121, "euler", "normal", (PLUS,)
    ),
    "5_two_characters_illustrious": Job(
        "Illustrious-XL-v0.1.safetensors",
        "2girls, astronaut, cat girl, side-by-side, standing, spacesuit, cat ears, cat tail, moon, "
        r"earth \(planet\), starry sky, looking at viewer, masterpiece, best quality, absurdres",
        "worst quality, low quality, lowres, bad anatomy, bad hands, jpeg artifacts, signature, watermark",
        832,
        1216,
        1,
        28,
        5.0,
        20261121,
        "euler_ancestral",
        "normal",
        (
            AttentionJob(
                "noobIPAMARK1_mark1.safetensors",
                VIT_BIGG.file.name,
                "auto",
                True,
                (CAST[0], replace(CAST[1], name="cat girl")),
                (PlaceJob(2, "[]", "row", 832, 1216),),
                weight=0.65,
            ),
        ),
    ),
}


def test_no_two_templates_are_of_the_same_nodes():
    graphs = {
        name: sorted(node["type"] for node in template(name)["nodes"] if node["type"] not in NOTES) for name in NAMES
    }
    assert not [(a, b) for a in NAMES for b in NAMES if a < b and graphs[a] == graphs[b]]
    prompts = {name: (job.prompt, job.width, job.height) for name in DOWNLOADED for job in [read_job(template(name))]}
    assert prompts["5_two_characters_illustrious"] not in [
        prompts[name] for name in DOWNLOADED if name != "5_two_characters_illustrious"
    ]


def test_two_characters_are_asked_for_in_tags():
    """How many there are, and each by a tag of its own."""
    [apply] = (job := read_job(template("5_two_characters_illustrious"))).applied
    tags = job.prompt.split(", ")
    assert (
        tags[0] == "2girls" and [subject.name for subject in apply.subjects] == tags[1:3] and len(apply.subjects) == 2
    )
    assert job.width * job.height <= 1024 * 1024 and job.width < job.height, "a native size of SDXL, taller than wide"


@pytest.mark.parametrize("name", ["4_two_subjects", "6_boxes_and_relevance", *MAPPED])
def test_relevance_is_recorded_and_shown(name):
    """The recorded MODEL is the sampler's, and the preview has the picture."""
    graph = Graph(template(name))
    previews = graph.of_type("TroupePreviewRelevance")
    assert len(previews) == len(graph.of_type("KSampler")) == len(graph.of_type("TroupeRecordRelevance"))
    for preview in previews:
        record, sampler = (graph.source(preview, wire)[0] for wire in ("record", "latent"))
        assert graph.source(sampler, "model")[0] is record and graph.source(preview, "image") is not None
        assert graph.source(record, "model")[0].type == "TroupeApplyImageAttention"


def test_boxes_need_the_small_file_of_gligen():
    """Photos are read by the large one, which the note describes."""
    workflow = template("7_place_subjects")
    small, large = (
        published_file("gligen_sd14_textbox_pruned_fp16.safetensors"),
        published_file("gligen-generation-text-image-box.bin"),
    )
    assert [model["name"] for model in workflow["models"]] == [
        "v1-5-pruned-emaonly-fp16.safetensors",
        small.name,
    ] and small.size == "418 MB"
    noted = "".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    assert (
        "does not read the photos" in noted
        and all(f"]({file.link})" in noted for file in (large, PROJECTION_MATRIX, VIT_L.file))
        and large.size in noted
    )


@pytest.mark.parametrize("name", DOWNLOADED)
def test_the_job_of_a_template(name):
    assert read_job(template(name)) == JOBS[name]


# ---- the rehearsal ---------------------------------------------------------------------------------------------------


def test_a_rehearsal_downloads_and_uploads_nothing(rehearsal):
    graph = Graph(rehearsal)
    assert rehearsal["models"] == [] and not graph.of_type(
        "CheckpointLoaderSimple", "LoadImage", "TroupeLoadAdapter", "TroupeQuickSubjects"
    )
    assert len(graph.of_type("TroupeRehearsal")) == 1 and "http" not in json.dumps(
        [node["widgets_values"] for node in rehearsal["nodes"]]
    )
    assert "Press Run" in next(node.raw["widgets_values"][0] for node in graph.of_type("MarkdownNote"))


def test_a_rehearsal_is_the_one_that_run_py_paints(rehearsal):
    """Prompt, seed, steps and sampler of `python tools/run.py` without model files. MM-Diff and IP-Adapter have another
    seed: with that one they paint both subjects like their references.
    """
    from troupe.rehearsal.engine.paint import CFG
    from troupe.rehearsal.world import PIXELS
    from troupe_tools.engine.rehearsing import PROMPT, SEED, SHOWN, STEPS

    graph = Graph(rehearsal)
    texts = ["CLIPTextEncode"] if not graph.of_type("TroupeEncodePrompt") else ["TroupeEncodePrompt", "CLIPTextEncode"]
    seeds = {graph.value(node, "seed") for node in graph.of_type("KSampler")}
    settings = {tuple(node.raw["widgets_values"][2:]) for node in graph.of_type("KSampler")}
    [load] = graph.of_type("TroupeRehearsal")
    assert seeds == {4 if graph.value(load, "adapter") in ("mm_diff", "ip_adapter") else SEED}
    assert settings == {(STEPS, CFG, "euler", "simple", 1.0)}
    assert [graph.value(node, "text") for kind in texts for node in graph.of_type(kind)] == [PROMPT, ""]
    assert {tuple(node.raw["widgets_values"]) for node in graph.of_type("EmptyLatentImage")} == {
        (PIXELS, PIXELS, 6 if graph.of_type("TroupeKeepBest") else 1)
    }
    assert {tuple(node.raw["widgets_values"]) for node in graph.of_type("ImageScaleBy")} == {
        ("nearest-exact", SHOWN / PIXELS)
    }


def test_a_rehearsal_names_whom_its_references_show(rehearsal):
    graph = Graph(rehearsal)
    [load] = graph.of_type("TroupeRehearsal")
    for n, subject in enumerate(graph.of_type("TroupeAddSubject"), 1):
        source, slot = graph.source(subject, "image")
        assert source is load and load.raw["outputs"][slot]["name"] == f"image_{n}"
        assert (
            graph.value(subject, "name")
            == graph.value(load, f"subject_{n}")
            in graph.value(graph.of_type("PrimitiveStringMultiline")[0], "value").split()
        )


def test_the_comparison_has_every_way_on_one_seed():
    graph = Graph(template("2_rehearsal_compare"))
    lanes = []
    for preview in graph.of_type("TroupePreviewRelevance"):
        record, sampler = (graph.source(preview, name)[0] for name in ("record", "latent"))
        apply = graph.source(record, "model")[0]
        assert graph.source(sampler, "model")[0] is record and graph.source(sampler, "seed")[0].type == "PrimitiveInt"
        assert [graph.source(sampler, name)[0] for name in ("positive", "negative")] == [apply, apply]
        boxed = graph.source(graph.source(apply, "references")[0], "cast")[0].type == "TroupePlaceSubjects"
        lanes.append((graph.value(apply, "merge"), boxed))
        assert [graph.value(apply, name) for name in ("weight", "sharpness", "background")] == [1.0, 1.0, 1.0]
    assert lanes == [("uniform", False), ("joint", False), ("add", False), ("relevance", False), ("relevance", True)]
    [place] = graph.of_type("TroupePlaceSubjects")
    assert [box.label for box in read_text(graph.value(place, "boxes"))] == ["cat", "robot"] and place.raw[
        "widgets_values"
    ][:2] == [128, 128]


@pytest.mark.parametrize("name", IN_PROMPT)
def test_subjects_are_the_only_difference(name):
    """In the prompt, and in layers where they act there too."""
    graph = Graph(template(name))
    [load], [prompt] = (graph.of_type(kind) for kind in ("TroupeRehearsal", "TroupeEncodePrompt"))
    [weights] = graph.of_type("TroupeApplyWeights") or [load]
    samplers = graph.of_type("KSampler")
    layered = [*graph.of_type("TroupeApplyGated"), *graph.of_type("TroupeApplyImageAttention")]

    def behind(node, name):
        before, output = graph.source(node, name)
        return graph.source(before, name) if before in layered else (before, output)

    assert [behind(node, "positive") for node in samplers] == [(prompt, 0), (prompt, 1)]
    for name in ("model", "negative", "latent_image", "seed"):
        assert len({(behind(node, name)[0].id, behind(node, name)[1]) for node in samplers}) == 1
    assert behind(samplers[0], "model") == (weights, 0) and graph.source(prompt, "clip") == (weights, 1)
    assert [graph.source(node, "model")[0] in layered for node in samplers] == [bool(layered), False]


def test_the_best_of_a_batch_is_chosen_by_the_scores_of_what_is_saved():
    graph = Graph(template("9_rehearsal_keep_best"))
    [keep], [score], [place] = (
        graph.of_type(kind) for kind in ("TroupeKeepBest", "TroupeScoreSubjects", "TroupePlaceSubjects")
    )
    assert graph.source(keep, "image") == graph.source(score, "image")
    assert graph.source(keep, "scores") == (score, 0) and graph.source(score, "cast") == (place, 0)
    [save] = graph.of_type("SaveImage")
    assert graph.source(graph.source(save, "images")[0], "image") == (keep, 0)


@pytest.mark.slow
def test_the_saved_best_has_every_subject_right(best):
    """On the embedded engine; in the thumbnail it has the frame."""
    right = [one.right for one in best.scores.pictures]
    assert len(right) == 6 and right[best.best] == 2 and min(right) < 2, "and not every picture is right"


@pytest.mark.parametrize("name", REHEARSALS)
def test_a_rehearsal_template_with_one_saved_picture_is_a_job_without_comfyui(name):
    """Of those that run.py paints otherwise, or sends to ComfyUI, tests/test_run_tool.py tells."""
    if name == "2_rehearsal_compare":
        with pytest.raises(RunError, match="behind Save Image, found 5. Mute the others, or run it in ComfyUI"):
            read_job(template(name))
        return
    job = read_job(template(name))
    assert (job.checkpoint, job.width, job.height, job.steps) == ("TroupeRehearsal", 128, 128, 20)
    assert [one.drawn[0].index for one in job.subjects] == [0, 1] and not any(one.photos for one in job.subjects)
    assert set(job.adapters) <= set(OFFERED)


# ---- reading other people's graphs -----------------------------------------------------------------------------------


@pytest.fixture
def two_subjects() -> dict:
    """The default template."""
    return template("4_two_subjects")


def by_title(workflow: dict, title: str) -> dict:
    """A node's entry."""
    return next(node for node in workflow["nodes"] if node["title"] == title)


def test_reroutes_and_bypassed_nodes_are_seen_through(two_subjects):
    """The second subject bypassed: its cast wire goes through. A reroute on the way into Encode changes nothing."""
    encode, second = by_title(two_subjects, "Encode Subject References"), by_title(two_subjects, "Subject 2")
    slot = next(s for s in encode["inputs"] if s["name"] == "cast")
    link = next(entry for entry in two_subjects["links"] if entry[0] == slot["link"])
    reroute = {
        "id": 90,
        "type": "Reroute",
        "inputs": [{"name": "", "type": "*", "link": link[0]}],
        "outputs": [{"name": "", "type": "TROUPE_CAST", "links": [91]}],
    }
    into = link[4]
    link[3:5] = [90, 0]
    two_subjects["nodes"].append(reroute)
    two_subjects["links"].append([91, 90, 0, encode["id"], into, "TROUPE_CAST"])
    slot["link"] = 91
    assert read_job(two_subjects) == JOBS["4_two_subjects"]
    second["mode"] = 4
    assert [subject.name for subject in read_job(two_subjects).subjects] == ["astronaut"]


@pytest.mark.parametrize(
    "title, mode, said", [("Subject 2", 2, "Nothing is wired into 'cast'"), ("Sampler", 2, "found 0")]
)
def test_muted_nodes_are_not_there(two_subjects, title, mode, said):
    by_title(two_subjects, title)["mode"] = mode
    with pytest.raises(RunError, match=said):
        read_job(two_subjects)


@pytest.mark.parametrize("name", ["bounding_boxes", "background", "latent"])
def test_what_only_comfyui_can_wire_into_place_subjects_is_named(name):
    workflow = template("6_boxes_and_relevance")
    place, size = by_title(workflow, "Place Subjects"), by_title(workflow, "Picture size")
    socket = next(slot for slot in place["inputs"] if slot["name"] == name)
    socket["link"] = 900
    workflow["links"].append([900, size["id"], 0, place["id"], place["inputs"].index(socket), socket["type"]])
    with pytest.raises(RunError, match=f"'{name}' of 'Place Subjects'.*run this workflow in ComfyUI"):
        read_job(workflow)


def test_places_come_after_the_subjects_that_they_place():
    """Place Subjects in the middle of the chain sees the subjects before it; widgets of Apply Image Attention come with
    them.
    """
    workflow = template("6_boxes_and_relevance")
    first, second, place, encode = (
        by_title(workflow, title) for title in ("Subject 1", "Subject 2", "Place Subjects", "Encode Subject References")
    )
    into = {
        (node["id"], "cast"): next(slot["link"] for slot in node["inputs"] if slot["name"] == "cast")
        for node in (second, place, encode)
    }
    sources = {(place["id"], "cast"): first, (second["id"], "cast"): place, (encode["id"], "cast"): second}
    for place_in, link in into.items():
        next(entry for entry in workflow["links"] if entry[0] == link)[1:3] = [sources[place_in]["id"], 0]
    by_title(workflow, "Apply Image Attention")["widgets_values"][4:7] = [0.5, 0.6, 0.2]
    [apply] = read_job(workflow).applied
    assert [subject.name for subject in apply.subjects] == ["astronaut", "cat"] and [
        place.subjects for place in apply.places
    ] == [1]
    assert (apply.box_strength, apply.box_end_percent, apply.box_feather) == (0.5, 0.6, 0.2)


def test_what_the_embedded_engine_cannot_run_is_named(two_subjects):
    loader = by_title(two_subjects, "Base model")
    loader["type"], loader["title"] = "LoraLoaderModelOnly", "My LoRA"
    with pytest.raises(RunError, match="My LoRA.*run this workflow in ComfyUI"):
        read_job(two_subjects)


def test_an_api_prompt_is_refused_in_a_sentence_and_a_subgraph_is_a_node_like_others(two_subjects):
    with pytest.raises(RunError, match="API prompt.*Save"):
        Graph({"1": {"class_type": "KSampler", "inputs": {}}})
    two_subjects["definitions"] = {"subgraphs": [{"id": "abc", "name": "My photos"}]}
    two_subjects["nodes"][0]["type"] = "abc"
    assert Graph(two_subjects).of_type("abc")


def test_a_value_from_another_node_is_not_guessed(two_subjects):
    by_title(two_subjects, "Prompt")["type"] = "SomebodysTextNode"
    with pytest.raises(RunError, match="'text' of 'Positive'.*only known when ComfyUI runs"):
        read_job(two_subjects)
