"""A graph on the host's own executor while things go wrong: the artist reads our sentence, mends it, and runs again without a restart.

Which fault is tested where; "each way" is image attention, gated adapter and fused prompt.

| fault | test |
|---|---|
| cancelled while it samples, each way | test_bad_runs.py::test_a_run_that_is_cancelled_and_the_next, test_hooks.py::test_an_interrupted_run_leaves_nothing_behind |
| cancelled while relevance is recorded | test_bad_runs.py::test_a_recorded_run_that_is_cancelled_and_the_next |
| out of memory in the first or a later step, each way | test_bad_runs.py::test_out_of_memory_in_a_step |
| ... in a function of ours | test_bad_runs.py::test_out_of_memory_in_a_function_of_ours |
| ... in attention, tried again by the host, each way | test_bad_runs.py::test_attention_that_runs_out_of_memory_and_is_tried_again_by_the_host |
| ... in the model, tried again by another pack, each way | test_bad_runs.py::test_a_model_call_that_is_tried_again |
| ... in the VAE, which then decodes in tiles | test_bad_runs.py::test_a_picture_that_is_decoded_in_tiles_for_want_of_memory |
| models unloaded between runs, each way | test_bad_runs.py::test_models_unloaded_between_runs |
| the same graph fifty times; fifty times with other settings and subjects, each way | test_bad_runs.py::test_fifty_runs_hold_no_more_than_ten |
| prompts with other subjects, one after the other, each way | test_bad_runs.py::test_prompts_with_other_subjects_one_after_the_other |
| the adapter's file exchanged, deleted, another thing, and put back, each way | test_replaced_files.py::test_an_adapter_file_comes_and_goes_between_runs |
| the adapter's file deleted; damaged; hostile; of another kind; exchanged | \
test_bad_days.py::test_a_deleted_adapter_and_back_again, test_bad_days.py::test_a_damaged_adapter_and_back_again, \
test_bad_days.py::test_a_hostile_adapter_does_nothing, test_bad_days.py::test_an_adapter_of_another_kind_says_what_it_is, \
test_bad_days.py::test_a_file_that_was_exchanged_is_loaded_again |
| the image encoder's file missing, wrong, cut off | test_bad_days.py::test_no_encoder_until_one_is_put_there, test_bad_days.py::test_a_wrong_encoder_and_then_the_right_one, \
test_bad_days.py::test_a_cut_off_encoder_and_back_again |
| disk full while run.py writes | test_run_tool.py::test_a_full_disk_leaves_nothing, test_run_tool.py::test_a_disk_that_is_full_in_any_file, \
test_run_tool.py::test_a_move_that_fails_takes_back_what_was_moved, test_run_tool.py::test_a_full_disk_for_temporary_files_is_a_sentence |
| two runs at once from two processes | test_run_tool.py::test_two_runs_at_once, test_run_tool.py::test_many_processes_save_at_once, \
test_run_tool.py::test_no_run_writes_over_another |
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from support import published_layouts as published
from support.host import tiny_models
from support.host.errors_of_nodes import sentence
from support.host.host_executor import ADAPTER, Server, Studio
from support.host.small_encoders import Pixels, TinyVision

HIDDEN, POOLED = 32, 16  # of the tiny encoder that the graph uses
VISION = "encoder.safetensors"


class TinyClip:
    """Test node: a CLIP, made once."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "make", "test"
    made = None

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        type(self).made = self.made or tiny_models.tiny_clip("sd15")
        return (self.made,)


class Text:
    """Test node: a string that comes over a wire."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("COMBO",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {})}}

    def make(self, text):
        return (text,)


class Keep:
    """Test node: the end of the graph; what reached it."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "keep", "test", True
    got: list = []

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"references": ("TROUPE_REFERENCES",)}}

    def keep(self, references):
        self.got.append(references)
        return {"ui": {}, "result": ()}


@pytest.fixture(scope="module")
def pack(host, tmp_path_factory):
    """Our nodes and the test nodes, registered while these tests run."""
    from troupe.nodes import NODES

    import nodes

    TinyVision.folder = str(tmp_path_factory.mktemp("vision"))
    with pytest.MonkeyPatch.context() as patch:
        for cls in NODES:
            patch.setitem(nodes.NODE_CLASS_MAPPINGS, cls.GET_SCHEMA().node_id, cls)
        for cls in (TinyVision, TinyClip, Pixels, Text, Keep):
            patch.setitem(nodes.NODE_CLASS_MAPPINGS, cls.__name__, cls)
        yield


@pytest.fixture
def studio(pack, base_folder, monkeypatch):
    import server

    stand_in = Server()
    monkeypatch.setattr(server.PromptServer, "instance", stand_in, raising=False)
    Keep.got.clear()
    yield Studio(base_folder, stand_in)
    for folder in ("ipadapter", "clip_vision"):
        shutil.rmtree(base_folder / "models" / folder)
        (base_folder / "models" / folder).mkdir()


@pytest.fixture
def tiny_vision_files(monkeypatch):
    """The host reads encoder files of four sizes only: here it builds a tiny one of the file's own widths, after
    reading it for real.
    """
    import comfy.clip_vision
    import comfy.utils

    def load(path):
        state = comfy.utils.load_torch_file(path)
        pooled, hidden = state["visual_projection.weight"].shape
        return TinyVision().make(hidden, pooled)[0]

    monkeypatch.setattr(comfy.clip_vision, "load", load)


def tiny_adapter(pooled=POOLED, context=768):
    return published.flat(published.image_proj(context, pooled), published.layers(context))


def graph(*subjects, adapter=f"ipadapter/{ADAPTER}", vision_name="none", vision=(HIDDEN, POOLED), clip=True):
    """Load, a chain of Add Subject, Encode; `vision`: widths of a wired encoder, or None; a subject is (name, kind of
    photo).
    """
    subjects = subjects or (("cat", "photo"), ("dog", "photo"))
    made = {
        "load": {
            "class_type": "TroupeLoadAdapter",
            "inputs": {"adapter_name": adapter, "clip_vision_name": vision_name},
        },
        "encode": {
            "class_type": "TroupeEncodeSubjects",
            "inputs": {"adapter": ["load", 0], "cast": [f"add{len(subjects)}", 0], "framing": "auto"},
        },
        "keep": {"class_type": "Keep", "inputs": {"references": ["encode", 0]}},
    }
    for i, (name, kind) in enumerate(subjects, 1):
        made[f"photo{i}"] = {"class_type": "Pixels", "inputs": {"kind": kind}}
        chain = {"cast": [f"add{i - 1}", 0]} if i > 1 else {}
        made[f"add{i}"] = {
            "class_type": "TroupeAddSubject",
            "inputs": {
                "image": [f"photo{i}", 0],
                "name": name,
                "weight": 1.0,
                "start_percent": 0.0,
                "end_percent": 1.0,
                **chain,
            },
        }
    if vision:
        made["vision"] = {"class_type": "TinyVision", "inputs": {"hidden": vision[0], "pooled": vision[1]}}
        made["encode"]["inputs"]["clip_vision"] = ["vision", 0]
    if clip:
        made["clip"] = {"class_type": "TinyClip", "inputs": {}}
        made["encode"]["inputs"]["clip"] = ["clip", 0]
    return made


def test_every_test_of_the_list_is_there():
    listed = re.findall(r"(test_\w+\.py)::(test_\w+)", __doc__)
    assert len(listed) > 20
    here = Path(__file__).parent
    for file, name in listed:
        places = [folder / file for folder in (here, here.parent) if (folder / file).exists()]
        assert any(f"def {name}(" in path.read_text(encoding="utf-8") for path in places), f"{file}::{name}"


# ---- a good day ------------------------------------------------------------------------------------------------------


def test_a_proper_graph_runs_in_silence(studio):
    studio.save(tiny_adapter())
    assert studio.run(graph()) is None
    assert [s.name for s in Keep.got[0].subjects] == ["cat", "dog"] and Keep.got[0].named
    messages = studio.messages("encode")
    assert messages["warnings"] == [] and messages["done"] == [
        "Encoded 2 subjects: 'cat' (4 image tokens, 1 name token), 'dog' (4 image tokens, 1 name token)."
    ]


def test_a_second_run_encodes_nothing_again(studio):
    studio.save(tiny_adapter())
    assert studio.run(graph()) is None and studio.run(graph()) is None
    assert len(Keep.got) == 1


def test_values_with_backslashes_are_the_same_files(studio):
    """A workflow saved on Windows."""
    studio.save(tiny_adapter(), "sdxl/" + ADAPTER)
    assert studio.run(graph(adapter=f"ipadapter\\sdxl\\{ADAPTER}")) is None
    studio.save(published.vision_encoder(HIDDEN, POOLED), "H/" + VISION, "clip_vision")
    assert studio.run(graph(adapter=f"ipadapter/sdxl\\{ADAPTER}", vision_name=f"H\\{VISION}")) is None


def test_an_adapter_name_may_come_over_a_wire(studio):
    studio.save(tiny_adapter())
    wired = graph()
    wired["text"] = {"class_type": "Text", "inputs": {"text": f"ipadapter/{ADAPTER}"}}
    wired["load"]["inputs"]["adapter_name"] = ["text", 0]
    assert studio.run(wired) is None
    wired["text"]["inputs"]["text"] = "ipadapter/gone.safetensors"
    sentence(studio.run(wired), "gone.safetensors")


# ---- the adapter file ------------------------------------------------------------------------------------------------


def test_a_deleted_adapter_and_back_again(studio, tmp_path):
    path = studio.save(tiny_adapter())
    assert studio.run(graph()) is None
    shutil.move(path, tmp_path / "aside")
    sentence(studio.run(graph()), ADAPTER, "no such file", "https://huggingface.co/")
    shutil.move(tmp_path / "aside", path)
    assert studio.run(graph()) is None


def test_a_published_adapter_that_is_missing_comes_with_its_own_link(studio):
    text = studio.run(graph(adapter="ipadapter/ip-adapter-plus_sd15.safetensors"))
    sentence(
        text,
        "validation: ",
        "https://huggingface.co/h94/IP-Adapter/resolve/main/models/ip-adapter-plus_sd15.safetensors",
        "models/ipadapter/",
    )


def test_a_missing_adapter_is_said_by_the_quick_node_too(studio):
    quick = graph()
    quick["load"] = {
        "class_type": "TroupeQuickSubjects",
        "inputs": {
            "model": ["clip", 0],
            "clip": ["clip", 0],
            "adapter_name": "ipadapter/model_sdxl.bin",
            "weight": 0.65,
            "image_1": ["photo1", 0],
            "name_1": "cat",
        },
    }
    quick["keep"]["inputs"]["references"] = ["load", 3]
    import execution

    _, _, _, errors = asyncio.run(execution.validate_prompt("quick", quick, None))
    assert any(
        "hqhQAQ/MIP-Adapter/resolve/main/model_sdxl.bin" in error["details"] for error in errors["load"]["errors"]
    )


@pytest.mark.parametrize("damage", ["cut off", "empty", "a web page"])
def test_a_damaged_adapter_and_back_again(studio, damage):
    path = studio.save(tiny_adapter())
    assert studio.run(graph()) is None
    good = path.read_bytes()
    studio.overwrite(path, {"cut off": good[: len(good) // 2], "empty": b"", "a web page": b"<!doctype html>"}[damage])
    sentence(studio.run(graph()), ADAPTER, "download")
    studio.overwrite(path, good)
    assert studio.run(graph()) is None
    assert len(Keep.got) == 2


def test_a_hostile_adapter_does_nothing(studio, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch '{tmp_path / 'ran'}'",)

    torch.save({"image_proj": Bomb()}, studio.save(tiny_adapter(), "evil.bin"))
    sentence(studio.run(graph(adapter="ipadapter/evil.bin")), "evil.bin", "hostile")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "kind, word",
    [("faceid_sd15", "FaceID"), ("Kolors plus", "Kolors"), ("FLUX by InstantX", "FLUX"), ("LoRA, kohya", "LoRA")],
)
def test_an_adapter_of_another_kind_says_what_it_is(studio, kind, word):
    studio.save(published.REFUSED[kind][0])
    sentence(studio.run(graph()), ADAPTER, word)
    studio.save(tiny_adapter())
    assert studio.run(graph()) is None


def test_a_file_that_was_exchanged_is_loaded_again(studio):
    studio.save(tiny_adapter())
    assert studio.run(graph()) is None
    studio.save({k: v * 2 for k, v in tiny_adapter().items()})
    assert studio.run(graph()) is None
    assert not torch.equal(Keep.got[0].subjects[0].tokens, Keep.got[1].subjects[0].tokens)


# ---- the image encoder -----------------------------------------------------------------------------------------------


def test_a_wrong_encoder_and_then_the_right_one(studio):
    studio.save(tiny_adapter(pooled=1024))
    sentence(
        studio.run(graph(vision=(HIDDEN, 768))),
        "CLIP ViT-H/14",
        "768",
        ADAPTER,
        "https://huggingface.co/h94/",
        "models/clip_vision/",
    )
    studio.save(tiny_adapter())
    assert studio.run(graph()) is None


def test_no_encoder_until_one_is_put_there(studio, tiny_vision_files):
    studio.save(tiny_adapter())
    auto = graph(vision_name="auto", vision=None)
    sentence(studio.run(auto), "models/clip_vision")
    studio.save(published.vision_encoder(HIDDEN, 999), "another.safetensors", "clip_vision")
    sentence(studio.run(auto), "models/clip_vision")
    studio.save(published.vision_encoder(HIDDEN, POOLED), VISION, "clip_vision")
    assert studio.run(auto) is None


def test_a_chosen_encoder_of_the_wrong_widths_is_refused_unread_and_may_be_replaced(
    studio, tiny_vision_files, monkeypatch
):
    studio.save(tiny_adapter())
    studio.save(published.vision_encoder(64, 48), VISION, "clip_vision")
    chosen = graph(vision_name=VISION, vision=None)
    with monkeypatch.context() as patch:
        patch.setattr("comfy.clip_vision.load", lambda path: pytest.fail("read a file of the wrong widths"))
        sentence(studio.run(chosen), "64", "48", ADAPTER)
    studio.save(published.vision_encoder(HIDDEN, POOLED), VISION, "clip_vision")
    assert studio.run(chosen) is None


def test_a_cut_off_encoder_and_back_again(studio, tiny_vision_files):
    studio.save(tiny_adapter())
    path = studio.save(published.vision_encoder(HIDDEN, POOLED), VISION, "clip_vision")
    good = path.read_bytes()
    studio.overwrite(path, good[:-100])
    for name in ("auto", VISION):
        sentence(studio.run(graph(vision_name=name, vision=None)), VISION, "cut off")
    studio.overwrite(path, good)
    assert studio.run(graph(vision_name="auto", vision=None)) is None


def test_a_chosen_encoder_that_is_gone(studio):
    studio.save(tiny_adapter())
    sentence(studio.run(graph(vision_name="gone.safetensors", vision=None)), "gone.safetensors", "auto")


def test_a_file_that_is_no_encoder(studio):
    studio.save(tiny_adapter())
    studio.save({"nothing": torch.zeros(2)}, "x.safetensors", "clip_vision")
    sentence(studio.run(graph(vision_name="x.safetensors", vision=None)), "x.safetensors", "does not recognise")


def test_encoder_none_and_nothing_wired(studio):
    studio.save(tiny_adapter())
    sentence(studio.run(graph(vision_name="none", vision=None)), ADAPTER, "none connected")


# ---- subjects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject, words",
    [
        (("cat", "nan"), ["'cat'", "NaN"]),
        (("cat", "tiny"), ["'cat'", "1x1"]),
        (("", "photo"), ["a name for subject 2"]),
        (("   ", "photo"), ["a name for subject 2"]),
        (("()", "photo"), ["subject 2", "'()'"]),
        (("cat " * 90, "photo"), ["75 tokens"]),
    ],
)
def test_a_subject_that_cannot_be_used_and_then_one_that_can(studio, subject, words):
    studio.save(tiny_adapter())
    sentence(studio.run(graph(("dog", "photo"), subject)), *words)
    assert studio.run(graph(("dog", "photo"), ("cat", "alpha"))) is None


def test_the_thirty_first_subject(studio):
    studio.save(tiny_adapter())
    many = [(f"cat {i}", "photo") for i in range(31)]
    sentence(studio.run(graph(*many)), "30", "31")
    assert studio.run(graph(*many[:30])) is None and len(Keep.got[0].subjects) == 30


def test_names_without_clip_need_no_names(studio):
    studio.save(tiny_adapter())
    assert studio.run(graph(("", "photo"), clip=False)) is None
    assert not Keep.got[0].named


def test_a_clip_of_another_base_model(studio):
    studio.save(tiny_adapter(context=2048))
    text = studio.run(graph())
    assert (
        text.startswith(
            f"The adapter {ADAPTER} is for SDXL, the connected CLIP is from an SD1.5 checkpoint. Choose "
            "an SD1.5 adapter: https://"
        )
        and "Traceback" not in text
    )


# ---- warnings --------------------------------------------------------------------------------------------------------


def test_warnings_stand_on_the_node_that_has_them(studio, caplog):
    studio.save(tiny_adapter())
    said = graph(("girl", "photo"), ("girl", "photo"), ("dog", "photo"))
    said["prompt"] = {"class_type": "Text", "inputs": {"text": "two girls"}}
    said["encode"]["inputs"]["prompt"] = ["prompt", 0]
    Text.RETURN_TYPES = ("STRING",)
    try:
        assert studio.run(said) is None
    finally:
        Text.RETURN_TYPES = ("COMBO",)
    first, second = studio.messages("encode")["warnings"]
    assert first.startswith("Give subjects 1 and 2 different names")
    assert second.startswith("'dog' is not in your prompt (two girls)")
    assert "Troupe: Give subjects 1 and 2" in caplog.text
