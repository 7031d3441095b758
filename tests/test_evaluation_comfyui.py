"""The engine behind ComfyUI's API, against a host that answers as ComfyUI does and fails where a test asks for it."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from support.fake_comfyui import PICTURE, Host, engine_on, png
from troupe.evaluation.engines import comfyui
from troupe.evaluation.engines.comfyui import ComfyUIEngine, HostError
from troupe.evaluation.engines.comfyui_graph import GraphError, build_graph, fill_template, read_template
from troupe.evaluation.engines.engine import EngineLostError
from troupe.evaluation.tasks import Method, Task, TaskSubject
from troupe.model_patches.encoding.framing import frame

CAT, DOG = TaskSubject("cat", ("cat/1.png", "cat/2.JPG")), TaskSubject("dog", ("dog.png",), (0.5, 0.0, 0.25, 1.0))
TASK = Task("suite", "cat and dog", Method("paper", {"merge": "paper"}), "a cat and a dog", (CAT, DOG), 7)
SETTINGS = {"checkpoint": "sdxl.safetensors", "adapter": "mip.bin"}
NAMES = {"cat/1.png": "in/a.png", "cat/2.JPG": "in/b.jpg", "dog.png": "in/c.png"}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(comfyui, "POLL", (0.001, 0.002))


@pytest.fixture
def photos(tmp_path) -> Path:
    for i, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(np.full((2, 2, 3), i, np.uint8)))
    return tmp_path


def engine_of(host, photos: Path, **options) -> ComfyUIEngine:
    options = {"settings": SETTINGS, **options}
    return engine_on(host, "http://host:8188/", photos, **options)


def raising(error: Exception):
    def answer(request):
        raise error

    return answer


def constant(*args, **kwargs):
    return lambda request: httpx.Response(*args, **kwargs)


# ---- a sound host ----------------------------------------------------------------------------------------------------


def test_it_uploads_queues_waits_and_downloads(photos):
    host = Host(waits=[((), ("mine",)), (("other",), ("mine",)), (("mine",), ())])
    assert np.array_equal(engine_of(host, photos).paint(TASK), PICTURE)
    looks = [("GET", "/history/mine"), ("GET", "/queue")] * 3
    expected = [("POST", "/upload/image")] * 3 + [
        ("POST", "/prompt"),
        *looks,
        ("GET", "/history/mine"),
        ("GET", "/view"),
    ]
    assert host.asked == expected
    assert (photos / "cat/1.png").read_bytes() in host.uploads[0] and b"troupe_evaluation" in host.uploads[0]
    assert {host.graphs[0][f"photo_{n}"]["inputs"]["image"].split("/")[0] for n in ("1_1", "1_2", "2_1")} == {
        "troupe_evaluation"
    }


def test_a_photo_is_uploaded_once(photos):
    host = Host()
    engine = engine_of(host, photos)
    for _ in range(3):
        engine.paint(TASK)
    assert len(host.uploads) == 3 and len(host.graphs) == 3


def test_photos_are_uploaded_again_to_a_host_that_was_lost(photos):
    host = Host()
    engine = engine_of(host, photos)
    engine.paint(TASK)
    host.answers = {"/prompt": raising(httpx.ConnectError("refused"))}
    with pytest.raises(EngineLostError):
        engine.paint(TASK)
    host.answers = {}
    engine.paint(TASK)
    assert len(host.uploads) == 6


def test_equal_photos_have_one_name_and_others_have_others(photos):
    (photos / "dog.png").write_bytes((photos / "cat/1.png").read_bytes())
    host = Host()
    engine_of(host, photos).paint(TASK)
    names = [host.graphs[0][f"photo_{n}"]["inputs"]["image"] for n in ("1_1", "1_2", "2_1")]
    assert names[0] == names[2] != names[1] and names[1].endswith(".jpg")


def test_a_password_is_no_part_of_the_name(photos):
    seen = []
    host = Host(answers={"/prompt": lambda request: seen.append(request.headers["authorization"])})
    engine = engine_on(host, "http://ann:secret@host:8188", photos, settings=SETTINGS)
    engine.paint(TASK)
    assert engine.name == "http://host:8188" and seen[0].startswith("Basic ")


@pytest.mark.parametrize("url", ["host:8188", "127.0.0.1:8188", "", "ftp://host", "http://"])
def test_what_is_no_address_is_refused_at_once(url, tmp_path):
    with pytest.raises(HostError, match="Write it as http://"):
        ComfyUIEngine(url, tmp_path)


def test_previews_are_not_the_picture(photos):
    history = {
        "status": {"messages": []},
        "outputs": {"1": {"images": [Host.image("p.png", "temp")]}, "2": {"text": []}},
    }
    history["outputs"]["3"] = {"images": [Host.image()]}
    assert np.array_equal(engine_of(Host(history=history), photos).paint(TASK), PICTURE)


# ---- a host that fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/upload/image", "/prompt", "/history/mine", "/view"])
@pytest.mark.parametrize(
    "answer",
    [
        raising(httpx.ConnectError("refused")),
        raising(httpx.ReadTimeout("slow")),
        raising(httpx.RemoteProtocolError("cut")),
        constant(502),
        constant(503, json={"error": "busy"}),
    ],
    ids=["refused", "slow", "cut", "bad gateway", "busy"],
)
def test_a_host_that_does_not_answer_is_lost(photos, path, answer):
    with pytest.raises(EngineLostError, match="http://host:8188"):
        engine_of(Host(answers={path: answer}), photos).paint(TASK)


@pytest.mark.parametrize("answer", [constant(404), constant(401), constant(302), constant(200, text="<html>")])
@pytest.mark.parametrize("path", ["/upload/image", "/prompt", "/history/mine"])
def test_another_server_is_lost(photos, answer, path):
    with pytest.raises(EngineLostError):
        engine_of(Host(answers={path: answer}), photos).paint(TASK)


@pytest.mark.parametrize("path", ["/upload/image", "/prompt"])
def test_an_answer_without_what_it_should_say_is_lost(photos, path):
    with pytest.raises(EngineLostError, match="answers something else"):
        engine_of(Host(answers={path: constant(200, json={})}), photos).paint(TASK)


@pytest.mark.parametrize(("times", "survives"), [(2, True), (3, False)])
def test_a_blip_while_waiting_is_forgiven(photos, times, survives):
    left = [times]

    def blip(request):
        left[0] -= 1
        if left[0] >= 0:
            raise httpx.ReadError("reset")

    engine = engine_of(Host(answers={"/history/mine": blip}), photos)
    if survives:
        assert np.array_equal(engine.paint(TASK), PICTURE)
    else:
        with pytest.raises(EngineLostError, match="reset"):
            engine.paint(TASK)


def test_a_prompt_that_vanished_means_a_restart(photos):
    host = Host(waits=[(("mine",), ()), ((), ()), ((), ())])
    with pytest.raises(EngineLostError, match="restarted"):
        engine_of(host, photos).paint(TASK)


def test_a_prompt_that_ends_between_two_questions_is_found(photos):
    host = Host(waits=[((), ())])
    assert np.array_equal(engine_of(host, photos).paint(TASK), PICTURE)


def test_a_prompt_that_takes_too_long_is_cancelled(photos):
    host = Host(waits=[(("mine",), ())] * 10_000)
    with pytest.raises(EngineLostError, match="no picture after 0.05 seconds"):
        engine_of(host, photos, timeout=0.05).paint(TASK)
    assert host.bodies == {"/queue": {"delete": ["mine"]}, "/interrupt": {"prompt_id": "mine"}}


def test_waiting_behind_others_does_not_count(photos):
    """Every 20 ms another prompt begins: 1.2 s in all."""
    host = Host(waits=[((f"other {i}",), ("mine",)) for i in range(60)])
    host.answers = {"/queue": lambda request: time.sleep(0.02)}
    assert np.array_equal(engine_of(host, photos, timeout=1.0).paint(TASK), PICTURE)


@pytest.mark.parametrize(
    ("event", "facts", "words"),
    [
        (
            "execution_error",
            {"node_type": "KSampler", "node_id": "3", "exception_message": "out of memory\n"},
            r"KSampler \(node 3\) failed: out of memory\.",
        ),
        ("execution_interrupted", {}, "interrupted"),
    ],
)
def test_a_failed_run_is_the_host_s_own_sentence(photos, event, facts, words):
    history = {"status": {"messages": [["execution_start", {}], [event, facts]]}, "outputs": {}}
    with pytest.raises(HostError, match=words):
        engine_of(Host(history=history), photos).paint(TASK)


def refused(status):
    error = {"message": "Value not in list", "details": "ckpt_name: 'sdxl' not in []"}
    node = {"class_type": "CheckpointLoaderSimple", "errors": [error], "dependent_outputs": ["save"]}
    body = {"error": {"message": "Prompt outputs failed validation"}, "node_errors": {"checkpoint": node}}
    return constant(status, json=body if status == 400 else {**body, "error": None, "prompt_id": "mine"})


@pytest.mark.parametrize("status", [400, 200])
def test_a_refused_graph_is_the_host_s_own_sentence(photos, status):
    """Refused as a whole, or taken without the outputs that cannot run, and then cancelled."""
    host = Host(answers={"/prompt": refused(status)})
    with pytest.raises(
        HostError, match="CheckpointLoaderSimple .node checkpoint.: Value not in list: ckpt_name"
    ) as caught:
        engine_of(host, photos).paint(TASK)
    assert ("Prompt outputs failed" in str(caught.value)) == (status == 400)
    assert ("/queue" in host.bodies) == (status == 200)


@pytest.mark.parametrize(
    "content", [b"", b"text", png()[:80], png(np.zeros((4, 4, 3), np.uint8))], ids=["empty", "text", "half", "black"]
)
def test_what_is_no_picture_is_an_error_of_the_task(photos, content):
    with pytest.raises(HostError):
        engine_of(Host(content=content), photos).paint(TASK)


@pytest.mark.parametrize("count", [0, 2])
def test_a_workflow_saves_one_picture(photos, count):
    history = {"status": {"messages": []}, "outputs": {"9": {"images": [Host.image()] * count}}}
    with pytest.raises(HostError, match=f"{count} pictures instead of one"):
        engine_of(Host(history=history), photos).paint(TASK)


def test_a_picture_that_is_gone_and_a_photo_that_is_missing_cost_one_task(photos):
    with pytest.raises(HostError, match="no file of the picture"):
        engine_of(Host(answers={"/view": constant(404)}), photos).paint(TASK)
    (photos / "dog.png").unlink()
    with pytest.raises(HostError, match="No such file"):
        engine_of(Host(), photos).paint(TASK)


def test_a_photo_that_is_too_large_costs_one_task(photos):
    with pytest.raises(HostError, match="status 413 for /upload/image"):
        engine_of(Host(answers={"/upload/image": constant(413)}), photos).paint(TASK)


# ---- graphs ----------------------------------------------------------------------------------------------------------


def test_the_built_graph_has_the_task_s_values():
    graph = build_graph(TASK, NAMES, {**SETTINGS, "merge": "paper", "steps": 12, "negative": "blurry"})
    assert (
        graph["subject_1"]["inputs"] | {"name": "cat", "image": ["photo_1_1", 0], "same_subject_2": ["photo_1_2", 0]}
        == (graph["subject_1"]["inputs"])
    )
    assert "cast" not in graph["subject_1"]["inputs"] and graph["subject_2"]["inputs"]["cast"] == ["subject_1", 0]
    assert graph["encode"]["inputs"]["cast"] == ["place", 0]
    assert json.loads(graph["place"]["inputs"]["boxes"]) == [None, {"x": 0.5, "y": 0.0, "w": 0.25, "h": 1.0}]
    assert graph["apply"]["inputs"]["merge"] == "paper" and graph["sample"]["inputs"]["steps"] == 12
    assert graph["sample"]["inputs"]["seed"] == 7 and graph["negative"]["inputs"]["text"] == "blurry"
    assert graph["positive"]["inputs"]["text"] == "a cat and a dog"
    assert graph["adapter"]["inputs"]["adapter_name"] == "mip.bin"
    wires = [value for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert {wire[0] for wire in wires} <= graph.keys()


def test_without_boxes_there_is_no_place_subjects():
    task = Task("s", "c", Method("m"), "a cat", (CAT,), 1)
    graph = build_graph(task, NAMES, SETTINGS)
    assert "place" not in graph and graph["encode"]["inputs"]["cast"] == ["subject_1", 0]
    placed = build_graph(task, NAMES, {**SETTINGS, "layout": "row"})
    assert placed["encode"]["inputs"]["cast"] == ["place", 0]
    assert (placed["place"]["inputs"]["layout"], placed["place"]["inputs"]["boxes"]) == ("row", "[null]")


@pytest.mark.parametrize("settings", [{}, {"adapter": "x"}, {**SETTINGS, "wieght": 1.0}])
def test_a_misspelt_setting_is_refused(settings):
    with pytest.raises(GraphError, match="wieght" if "wieght" in settings else "found none"):
        build_graph(TASK, NAMES, settings)


def joined(graph, wire):
    """The Load Image names behind a wire, in the order of the batch."""
    node = graph[wire[0]]
    if node["class_type"] == "LoadImage":
        return [node["inputs"]["image"]]
    assert node["class_type"] == "ImageBatch"
    return [*joined(graph, node["inputs"]["image1"]), *joined(graph, node["inputs"]["image2"])]


@pytest.mark.parametrize("count", [5, 13])
def test_more_photos_than_add_subject_has_inputs_go_through_one_batch(count):
    many = TaskSubject("cat", tuple(f"{i}.png" for i in range(count)))
    task = Task("s", "c", Method("m"), "a cat", (many, DOG), 1)
    graph = build_graph(task, {name: name for name in (*many.photos, "dog.png")}, SETTINGS)
    inputs = graph["subject_1"]["inputs"]
    assert joined(graph, inputs["image"]) == list(many.photos) and "same_subject_2" not in inputs
    assert joined(graph, graph["subject_2"]["inputs"]["image"]) == ["dog.png"]
    with pytest.raises(GraphError, match="a photo of 'cat', found none"):
        build_graph(Task("s", "c", Method("m"), "a cat", (TaskSubject("cat", ()),), 1), {}, SETTINGS)


def many_photos(folder: Path, sizes) -> TaskSubject:
    """A subject with a photo of each size (width, height)."""
    chance = np.random.default_rng(1)
    for i, (w, h) in enumerate(sizes):
        (folder / f"many_{i}.png").write_bytes(png(chance.integers(0, 256, (h, w, 3), np.uint8)))
    return TaskSubject("cat", tuple(f"many_{i}.png" for i in range(len(sizes))))


def sent(host: Host) -> list[bytes]:
    return [upload[upload.index(b"\x89PNG") :] for upload in host.uploads]


def test_photos_of_one_size_are_joined_as_they_are(photos):
    many, host = many_photos(photos, [(30, 20)] * 5), Host()
    engine_of(host, photos).paint(Task("s", "c", Method("m"), "a cat", (many,), 1))
    for content, name in zip(sent(host), many.photos, strict=True):
        assert content.startswith((photos / name).read_bytes())


@pytest.mark.parametrize(
    ("settings", "side", "framing"), [({}, 224, "pad"), ({"framing": "center", "photo_side": 40}, 40, "center")]
)
def test_photos_of_different_sizes_are_joined_as_squares(photos, settings, side, framing):
    """As the image encoder sees them; four of them or fewer are sent as they are."""
    many, host = many_photos(photos, [(30, 20), (20, 30), (300, 200), (25, 25), (20, 30)]), Host()
    engine = engine_of(host, photos)
    engine.paint(Task("s", "c", Method("m", settings), "a cat and a dog", (many, DOG), 1))
    assert len(host.uploads) == 6 and sent(host)[5].startswith((photos / "dog.png").read_bytes())
    for content, name in zip(sent(host)[:5], many.photos, strict=True):
        found = np.asarray(Image.open(io.BytesIO(content))).astype(float)
        photo = torch.from_numpy(np.array(Image.open(photos / name))).float() / 255
        assert found.shape == (side, side, 3)
        assert np.abs(found - frame(photo, side, framing).numpy() * 255).max() <= 0.5 + 1e-3
    few = TaskSubject("cat", many.photos[:4])
    engine.paint(Task("s", "c", Method("m", settings), "a cat", (few,), 1))
    assert sent(host)[6].startswith((photos / "many_0.png").read_bytes())


def test_a_photo_that_does_not_open_costs_one_task(photos):
    many = many_photos(photos, [(30, 20)] * 5)
    (photos / "many_3.png").write_bytes(b"text")
    with pytest.raises(HostError, match="photos that open, found picture does not open: many_3.png"):
        engine_of(Host(), photos).paint(Task("s", "c", Method("m"), "a cat", (many,), 1))
    with pytest.raises(GraphError, match="a number of pixels as 'photo_side', found 'wide'"):
        engine_of(Host(), photos).paint(Task("s", "c", Method("m", {"photo_side": "wide"}), "a cat", (DOG,), 1))


TEMPLATE = {
    "1": {
        "class_type": "KSampler",
        "inputs": {"seed": "${seed}", "cfg": "${cfg}", "merge": "${merge}", "model": ["2", 0]},
    },
    "2": {"class_type": "Text", "inputs": {"text": "best, ${prompt}, $5 {a|b}", "boxes": "${boxes}"}},
    "3": {"class_type": "LoadImage", "inputs": {"image": "${photo_1}"}},
    "4": {"class_type": "LoadImage", "inputs": {"image": "${photo_1_2}", "name": "${name_1}"}},
    "5": {"class_type": "LoadImage", "inputs": {"image": "${photo_2}"}},
}


def test_a_template_is_filled(tmp_path):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(TEMPLATE))
    graph = fill_template(read_template(path), TASK, NAMES, {"cfg": 4.5, "merge": "paper"})
    assert graph["1"]["inputs"] == {"seed": 7, "cfg": 4.5, "merge": "paper", "model": ["2", 0]}
    assert graph["2"]["inputs"]["text"] == "best, a cat and a dog, $5 {a|b}"
    assert json.loads(graph["2"]["inputs"]["boxes"])[1]["w"] == 0.25
    assert [graph[n]["inputs"]["image"] for n in "345"] == ["in/a.png", "in/b.jpg", "in/c.png"]
    assert graph["4"]["inputs"]["name"] == "cat"


def test_a_template_takes_any_number_of_photos():
    """`photos_1` is a wire to all of them."""
    template = {**TEMPLATE, "3": {"class_type": "TroupeAddSubject", "inputs": {"image": "${photos_1}"}}}
    del template["4"]
    many = TaskSubject("cat", tuple(f"{i}.png" for i in range(6)))
    task = Task("suite", "c", Method("paper", {"merge": "paper", "photo_side": 224}), "a cat and a dog", (many, DOG), 7)
    graph = fill_template(
        template, task, {name: name for name in (*many.photos, "dog.png")}, {"cfg": 4.5, "merge": "paper"}
    )
    assert joined(graph, graph["3"]["inputs"]["image"]) == list(many.photos)
    assert graph["5"]["inputs"]["image"] == "dog.png"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"1": {"class_type": "KSampler", "inputs": {"merge": "${merge}"}}}, r"no \$\{seed\}"),
        ({"1": {"class_type": "KSampler", "inputs": {"seed": "${seed}"}}}, r"no \$\{merge\}"),
        ({"2": {"class_type": "Text", "inputs": {"boxes": "${boxes}"}}}, r"no \$\{prompt\}"),
        ({"2": {"class_type": "Text", "inputs": {"text": "${prompt}"}}}, r"no \$\{boxes\}"),
        ({"5": {"class_type": "LoadImage", "inputs": {}}}, r"no \$\{photo_2\}"),
        ({"6": {"class_type": "LoadImage", "inputs": {"image": "${photo_3}"}}}, r"no value for \$\{photo_3\}"),
    ],
)
def test_a_template_that_does_not_fit_the_task_is_refused(change, words):
    """Otherwise all its pictures would be the same, or a subject would be missing in them."""
    with pytest.raises(GraphError, match=words):
        fill_template({**TEMPLATE, **change}, TASK, NAMES, {"cfg": 4.5, "merge": "paper"})


def test_a_method_has_its_own_workflow_for_each_number_of_subjects(photos, tmp_path):
    """Beside a method with the pack's graph."""
    alone = {"1": TEMPLATE["1"], "2": TEMPLATE["2"], "3": TEMPLATE["3"], "4": TEMPLATE["4"]}
    (tmp_path / "own_1.json").write_text(json.dumps(alone))
    (tmp_path / "own_2.json").write_text(json.dumps(TEMPLATE))
    own = Method("own", {"merge": "paper", "workflow": f"{tmp_path.as_posix()}/own_{{subjects}}.json"})
    host = Host()
    engine = engine_of(host, photos, settings={"cfg": 3, **SETTINGS})
    one = Task("suite", "cat", own, "a cat", (CAT,), 7)
    for task in (one, Task("suite", "cat and dog", own, "a cat and a dog", (CAT, DOG), 7), TASK):
        engine.paint(task)
    assert [graph.keys() for graph in host.graphs[:2]] == [alone.keys(), TEMPLATE.keys()]
    assert host.graphs[0]["1"]["inputs"]["cfg"] == 3 and host.graphs[2]["apply"]["inputs"]["merge"] == "paper"
    assert one.key != Task("suite", "cat", Method("own", {"merge": "paper"}), "a cat", (CAT,), 7).key


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": [], "links": []}', '{"1": {"inputs": {}}}'])
def test_what_is_no_template_is_refused(tmp_path, text):
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(GraphError, match=r"Export \(API\)"):
        read_template(tmp_path / "w.json")
