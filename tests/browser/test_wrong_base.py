"""The mistake that is made most: an SDXL adapter beside an SD1.5 checkpoint, both chosen from their lists, and Run."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from support.browser.message_boxes import CLOSE, SEEN, links, texts
from support.published_layouts import SDXL, flat, image_proj, layers
from troupe_tools.engine.comfyui import find_comfyui

ADAPTER, CHECKPOINT = "my_sdxl_adapter.safetensors", "my_sd15.safetensors"
TESTS = Path(__file__).resolve().parent.parent
# a UNet and a VAE that the host takes for SD1.5's; of the text encoder it only asks for one tensor
TINY_SD15 = """
import sys
_, host, support, path = sys.argv
sys.path[:0], sys.argv[1:] = [host, support], ["--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
from safetensors.torch import save_file
from tiny_models import build_taesd_sd, build_unet_sd
norm = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.ones(768).half()}
save_file(build_unet_sd("sd15") | build_taesd_sd() | norm, path)
"""
OPTIONS = "([id, name]) => [...window.graphNode(id).widgets.find((widget) => widget.name === name).options.values]"
HUB = "https://huggingface.co/h94/IP-Adapter/resolve/main/models"
FILES = ["ip-adapter-plus_sd15.safetensors", "ip-adapter-plus-face_sd15.safetensors"]


@pytest.fixture
def files(server, page):
    """The two files in the host's folders, and the lists of the page read again, as R does."""
    models = server.base / "models"
    adapter, checkpoint = models / "ipadapter" / ADAPTER, models / "checkpoints" / CHECKPOINT
    for path in (adapter, checkpoint):
        path.parent.mkdir(parents=True, exist_ok=True)
    save_file(flat(image_proj(SDXL, 32), layers(SDXL)), adapter)
    command = [sys.executable, "-c", TINY_SD15, find_comfyui(), TESTS / "support" / "host", checkpoint]
    subprocess.run([str(word) for word in command], check=True, timeout=300)
    page.evaluate("async () => { await window.app.refreshComboInNodes(); }")
    yield adapter, checkpoint
    adapter.unlink()
    checkpoint.unlink()
    page.evaluate("async () => { await window.app.refreshComboInNodes(); }")


SEPARATE = (
    [
        (5, "TroupeLoadAdapter", {"adapter_name": ADAPTER}, (0, 180)),
        (6, "TroupeAddSubject", {"name": "cat"}, (330, 480)),
        (7, "TroupeEncodeSubjects", {}, (330, 0)),
        (8, "TroupeApplyImageAttention", {}, (700, 0)),
    ],
    [(2, 0, 6, "image"), (5, 0, 7, "adapter"), (6, 0, 7, "cast"), (1, 1, 7, "clip"), (7, 0, 8, "references")],
)
QUICK = (
    [(8, "TroupeQuickSubjects", {"adapter_name": ADAPTER, "name_1": "cat"}, (500, 0))],
    [(2, 0, 8, "image_1"), (1, 1, 8, "clip")],
)
COMMON = (
    [
        (1, "CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}, (0, 0)),
        (2, "LoadImage", {"image": "half_red.png"}, (0, 320)),
        (3, "CLIPTextEncode", {"text": "a cat"}, (0, 720)),
        (4, "EmptyLatentImage", {"width": 64, "height": 64}, (330, 850)),
        (9, "KSampler", {"steps": 1}, (1060, 0)),
        (10, "VAEDecode", {}, (1060, 560)),
        (11, "PreviewImage", {}, (1060, 650)),
    ],
    [
        (1, 1, 3, "clip"),
        (1, 0, 8, "model"),
        (3, 0, 8, "positive"),
        (3, 0, 8, "negative"),
        *((8, output, 9, name) for output, name in enumerate(("model", "positive", "negative"))),
        (4, 0, 9, "latent_image"),
        (9, 0, 10, "samples"),
        (1, 2, 10, "vae"),
        (10, 0, 11, "images"),
    ],
)


@pytest.mark.parametrize(("graph", "on"), [(SEPARATE, 7), (QUICK, 8)], ids=["separate", "quick"])
def test_the_node_says_what_is_for_which_base_before_it_asks_for_an_encoder(graph, on, page, files):
    """There is no CLIP vision encoder either: one that is downloaded for the wrong adapter may be the wrong one."""
    page.build(COMMON[0] + graph[0], COMMON[1] + graph[1])
    assert CHECKPOINT in page.evaluate(OPTIONS, 1, "ckpt_name")
    assert ADAPTER in page.evaluate(OPTIONS, graph[0][0][0], "adapter_name")
    page.queue(completed=False)
    for _ in range(2):
        page.page.keyboard.press("Escape")  # closes what the host says about it
        page.settle()
    assert texts(page, on, "error") == [
        f"The adapter {ADAPTER} is for SDXL, the connected CLIP is from an SD1.5 checkpoint. Choose an SD1.5 adapter: "
        f"{' or '.join(FILES)}. Or, with an SDXL checkpoint, wire its own CLIP."
    ]
    assert links(page, on) == [f"{HUB}/{file}" for file in FILES]
    page.evaluate(CLOSE, on)
    page.settle(900)
    with page.page.context.expect_page() as opened:
        page.page.get_by_text(FILES[0]).first.click()
    opened.value.close()
    *_, (height, below, beside) = page.evaluate(SEEN, on)
    assert height > 10 and below and beside, "the sentence is readable in full"
