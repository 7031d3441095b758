"""A newcomer's first minute: the gallery, the rehearsal template, Run. On a fresh host, without a file or an upload."""

import io
import json
import urllib.request

import numpy as np
import pytest
from PIL import Image

START, COMPARE, BEST = "1_start_here_rehearsal", "2_rehearsal_compare", "9_rehearsal_keep_best"
LANES = 5


def image(server, found):
    query = "&".join(f"{key}={found[key]}" for key in ("filename", "subfolder", "type"))
    with urllib.request.urlopen(f"{server.url}/view?{query}", timeout=30) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB")).astype(int)


def open_from_gallery(page, name):
    """The template browser, our pack in it, the template's card."""
    page.page.evaluate("() => { window.app.extensionManager.command.execute('Comfy.BrowseTemplates'); }")
    page.page.get_by_text("ComfyUI-Troupe").first.click()
    page.page.get_by_text(name, exact=True).first.click()
    page.page.wait_for_function("() => window.app.graph._nodes.some((node) => node.type === 'TroupeRehearsal')")
    page.settle(1000)


def images_of(entry, kind):
    """The pictures that nodes of a class gave, in the order of their ids."""
    nodes = entry["prompt"][2]
    return [
        found
        for id_ in sorted(entry["outputs"], key=int)
        if nodes[id_]["class_type"] == kind
        for found in entry["outputs"][id_].get("images", ())
    ]


def test_the_first_picture_comes_from_the_gallery_and_is_the_embedded_engine_s(page, server):
    from troupe_tools.engine.rehearsing import rehearse

    page.settle(2000)
    page.outside.clear()  # newer front ends ask for the files of the workflow they begin with; from here on for none
    open_from_gallery(page, START)
    entry = page.queue()
    [saved] = images_of(entry, "SaveImage")
    found = image(server, saved)
    assert found.shape == (512, 512, 3)
    small = found[::4, ::4]
    assert (found == small.repeat(4, 0).repeat(4, 1)).all(), "every pixel is a square"
    expected = np.asarray(rehearse().picture).astype(int)[::4, ::4]
    assert np.abs(small - expected).max() <= 1, "one host cuts off where the other rounds"
    assert len(images_of(entry, "TroupePreviewRelevance")) == 1 and len(images_of(entry, "PreviewImage")) == 2


def test_the_comparison_runs(page, server):
    with urllib.request.urlopen(
        f"{server.url}/api/workflow_templates/ComfyUI-Troupe/{COMPARE}.json", timeout=30
    ) as answer:
        page.page.evaluate("async (graph) => { await window.app.loadGraphData(graph); }", json.load(answer))
    page.settle(1000)
    entry = page.queue()
    references, pictures = (
        images_of(entry, "PreviewImage")[:2],
        [image(server, found) for found in images_of(entry, "PreviewImage")[2:]],
    )
    assert len(references) == 2 and len(pictures) == LANES and len(images_of(entry, "TroupePreviewRelevance")) == LANES
    assert all((a != b).any() for i, a in enumerate(pictures) for b in pictures[:i]), "two ways gave the same picture"


@pytest.mark.parametrize(
    "name",
    [
        START,
        COMPARE,
        BEST,
        "research_fastcomposer_rehearsal",
        "research_ip_adapter_rehearsal",
        "research_subject_diffusion_rehearsal",
        "research_mm_diff_rehearsal",
        "research_umm_rehearsal",
    ],
)
def test_no_node_outgrows_its_place(name, page, server):
    """Sizes in the file are what the front end needs, so that nothing overlaps after a run."""
    with urllib.request.urlopen(
        f"{server.url}/api/workflow_templates/ComfyUI-Troupe/{name}.json", timeout=30
    ) as answer:
        page.page.evaluate("async (graph) => { await window.app.loadGraphData(graph); }", json.load(answer))
    page.settle(1000)
    page.queue()
    page.settle(2000)
    boxes = page.page.evaluate(
        "() => window.app.graph._nodes.map((node) => [node.id, ...node.pos, ...node.size].map(Math.round))"
    )
    for i, (id_, x, y, w, h) in enumerate(boxes):
        for other, x2, y2, w2, h2 in boxes[:i]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 - 30 or y2 + h2 <= y - 30, (id_, other)
