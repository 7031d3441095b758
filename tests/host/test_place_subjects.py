"""Place Subjects in the real host: its boxes hold the subjects in the sampled latent, as an independent evaluation of
the formula says.
"""

import asyncio
import json
from pathlib import Path

import pytest
import torch
from support.host.node_chains import prompt_executor
from troupe.model_patches.attention.merges import MERGES

pytestmark = pytest.mark.usefixtures("host")
TOLERANCE = 1e-3  # of the references' effect
SIDE = 960  # pixels of the masks: a multiple of every grid here; edges and ramps of the boxes lie between its pixels
LEFT, RIGHT = (
    {"label": "cat", "x": 0.05, "y": 0.2, "w": 0.4, "h": 0.75},
    {"label": "dog", "x": 0.5, "y": 0.0, "w": 0.5, "h": 0.6},
)


def run(node, **inputs):
    """Execute a node class as the host does; its NodeOutput."""
    clone = node.PREPARE_CLASS_CLONE(None)
    out = clone.execute(**inputs)
    return asyncio.run(out) if asyncio.iscoroutine(out) else out


def cast_of(*names):
    from troupe.nodes.add_subject import AddSubject

    cast = None
    for i, name in enumerate(names):
        image = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(i))
        cast = run(
            AddSubject, image=image, name=name, weight=1.0, start_percent=0.0, end_percent=1.0, cast=cast
        ).result[0]
    return cast


def placed(*boxes, layout="none"):
    """Boxes of a cat and a dog after the node."""
    from troupe.nodes.place_subjects import PlaceSubjects

    cast = run(
        PlaceSubjects, cast=cast_of("cat", "dog"), width=128, height=128, boxes=json.dumps(boxes), layout=layout
    ).result[0]
    return [subject.box for subject in cast.subjects]


def ramp(edge, feather, side):
    """From 0 before the edge to 1 after it, at the middles of `side` pixels."""
    t = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    return (t > edge).double() if feather == 0 else ((t - edge) / feather + 0.5).clamp(0, 1)


def limit_mask(box, strength, feather, side=SIDE):
    """1 - strength * (1 - box) as a picture [side, side]; an edge on the border of the picture has no ramp. box: a dict
    as in `boxes`, or None.
    """
    if box is None:
        return None
    sides = []
    for start, length in ((box["y"], box["h"]), (box["x"], box["w"])):
        end = round(start + length, 6)
        sides.append(
            (ramp(start, feather, side) if start > 0 else 1.0)
            - (ramp(end, feather, side) if end < 1 else torch.zeros(side, dtype=torch.float64))
        )
    return 1 - strength * (1 - sides[0][:, None] * sides[1][None, :])


def check(st, boxes, chosen, size=(16, 16), steps=2, regions=None, batch=1, given=None, layout="none", side=SIDE):
    """boxes: where the subjects must stand; given: what the node is told, where that is not the same."""
    from support.host import independent_evaluation as independent
    from support.host.small_casts import error, ksample, noise_of

    references = st.references(2, boxes=placed(*(given or boxes), layout=layout), regions=regions)
    masks = [limit_mask(box, chosen.box_strength, chosen.box_feather, side) for box in boxes]
    noise = noise_of(size, batch)
    truth = st.truth(references, chosen, boxes=masks, box_end=chosen.box_end_percent)
    expected = independent.sample(st.patcher, truth, st.positive, st.negative, noise, steps)
    without = independent.sample(st.patcher, None, st.positive, st.negative, noise, steps)
    found = ksample(*st.apply(references, chosen), size, batch, steps)
    assert error(found, expected, without) < TOLERANCE
    free = ksample(*st.apply(st.references(2, regions=regions), chosen), size, batch, steps)
    assert (found - free).abs().max() > 0.05 * (expected - without).abs().max(), "the boxes change nothing"


# ---- what the boxes do to the picture --------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("feather", [0.0, 0.05])
def test_boxes_limit_their_subjects(strength, feather):
    from support.host.small_casts import settings, stage

    check(stage(), (LEFT, RIGHT), settings(box_strength=strength, box_feather=feather))


@pytest.mark.parametrize("merge", MERGES)
def test_in_every_merge(merge):
    from support.host.small_casts import settings, stage

    check(stage("SDXL"), (LEFT, RIGHT), settings(merge, box_strength=0.75, box_feather=0.1), (24, 16))


def test_boxes_end_in_the_middle_of_the_run():
    from support.host.small_casts import settings, stage

    check(stage(), (LEFT, RIGHT), settings(box_end_percent=0.5), steps=5)


def test_one_without_a_box_one_with_a_region_and_a_batch():
    from support.host.small_casts import settings, stage

    soft = torch.rand(50, 70, generator=torch.Generator().manual_seed(5))
    check(stage(text_gain=True), (LEFT, None), settings(box_feather=0.05), (16, 24), regions=[soft, None], batch=3)


def test_a_layout_reaches_the_sampler():
    from support.host.small_casts import settings, stage

    left_place = {"x": 0.02, "y": 0.02, "w": 0.47, "h": 0.96}
    check(stage(), (left_place, RIGHT), settings(box_feather=0.0), given=(None, RIGHT), layout="row", side=2000)


@pytest.mark.parametrize("off", [{"box_strength": 0.0}, {"boxes": False}])
def test_no_boxes_and_strength_zero_change_nothing(off):
    from support.host.small_casts import ksample, settings, stage

    st = stage()
    strength = off.get("box_strength", 1.0)
    boxes = placed(LEFT, RIGHT) if off.get("boxes", True) else placed()
    found = ksample(*st.apply(st.references(2, boxes=boxes), settings(box_strength=strength)))
    assert torch.equal(found, ksample(*st.apply(st.references(2), settings(box_strength=1.0))))


def test_boxes_stay_where_the_picture_has_them_in_a_second_larger_run():
    """Hires fix: the same MODEL samples again, larger, from the upscaled latent; told so, as there is no graph here
    (see test_crops.py).
    """
    import comfy.samplers
    from support.host import independent_evaluation as independent
    from support.host.small_casts import error, ksample, noise_of, settings, stage

    import nodes

    st, chosen, steps = stage(), settings(box_feather=0.05, in_crops="apply"), 2
    references = st.references(2, boxes=placed(LEFT, RIGHT))
    model, positive, negative = st.apply(references, chosen)
    truth = st.truth(references, chosen, boxes=[limit_mask(box, 1.0, 0.05) for box in (LEFT, RIGHT)])

    small = ksample(model, positive, negative, (16, 16), 1, steps)
    without = independent.sample(st.patcher, None, st.positive, st.negative, noise_of((16, 16)), steps)
    assert (
        error(
            small, independent.sample(st.patcher, truth, st.positive, st.negative, noise_of((16, 16)), steps), without
        )
        < TOLERANCE
    )

    large = torch.nn.functional.interpolate(small, (24, 32), mode="nearest")
    found = nodes.common_ksampler(
        model, 1, steps, 5.0, "euler", "normal", positive, negative, {"samples": large}, denoise=0.5
    )[0]["samples"]
    sigmas = comfy.samplers.calculate_sigmas(st.patcher.model.model_sampling, "normal", 2 * steps)[-(steps + 1) :]
    expected, plain = (
        independent.sample(
            st.patcher, t, st.positive, st.negative, noise_of((24, 32)), steps, sigmas=sigmas, latent=large
        )
        for t in (truth, None)
    )
    assert error(found, expected, plain) < TOLERANCE


# ---- the node --------------------------------------------------------------------------------------------------------


def test_outputs_and_preview():
    from troupe.nodes.place_subjects import PlaceSubjects

    given = dict(cast=cast_of("cat", "dog"), boxes=json.dumps([LEFT, RIGHT]), layout="none", width=1024, height=768)
    out = run(PlaceSubjects, **given)
    cast, boxes, preview, latent, width, height = out.result
    assert json.loads(boxes) == [{side: box[side] for side in "xywh"} for box in (LEFT, RIGHT)]
    assert latent["samples"].shape == (1, 4, 96, 128) and not latent["samples"].any(), "as Empty Latent Image makes it"
    assert [s.name for s in cast.subjects] == ["cat", "dog"] and all(s.photos for s in cast.subjects)
    assert (width, height) == (1024, 768) and preview.shape == (1, 768, 1024, 3)
    shown = out.ui["images"]
    assert len(shown) == 1 and shown[0]["type"] == "temp"
    wired = {"samples": torch.zeros(1, 4, 64, 96)}
    *_, latent, width, height = run(PlaceSubjects, **given, latent=wired).result
    assert (width, height) == (768, 512) and latent is wired


def test_what_the_editor_is_told():
    """Names, boxes and size as this run had them; of a background a picture without boxes."""
    import folder_paths
    from PIL import Image
    from troupe.nodes.place_subjects import PlaceSubjects

    given = dict(
        cast=cast_of("cat", "dog"), boxes=json.dumps([{**LEFT, "locked": True}]), layout="none", width=1024, height=768
    )
    out = run(PlaceSubjects, **given).ui
    json.dumps(out)
    left = {side: LEFT[side] for side in "xywh"}
    assert [json.loads(text) for text in out["troupe_places"]] == [
        {"names": ["cat", "dog"], "boxes": [left, None], "size": [1024, 768]}
    ]
    red = torch.tensor([1.0, 0.0, 0.0]).expand(1, 32, 32, 3)
    (text,) = run(PlaceSubjects, **given, latent={"samples": torch.zeros(1, 4, 64, 96)}, background=red).ui[
        "troupe_places"
    ]
    told = json.loads(text)
    assert told["size"] == [768, 512] and told["background"]["type"] == "temp"
    picture = Image.open(
        Path(folder_paths.get_temp_directory()) / told["background"]["subfolder"] / told["background"]["filename"]
    )
    assert picture.size == (768, 512) and picture.getcolors() == [(768 * 512, (255, 0, 0))]


class Boxes:
    """A node of another pack that gives boxes under one of the socket types in use."""

    CATEGORY, FUNCTION = "test", "make"
    VALUES = {
        "BOUNDING_BOX": {"x": 64, "y": 0, "width": 64, "height": 128},
        "BOUNDING_BOXES": [[{"x": 64, "y": 0, "width": 64, "height": 128, "metadata": {"desc": ""}}]],
        "BBOX": [(64, 0, 64, 128)],
        "SEGS": ((10, 20), [type("SEG", (), {"bbox": [10, 0, 20, 10], "label": "cat"})()]),
        "STRING": "nonsense",
    }

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return (self.VALUES[self.RETURN_TYPES[0]],)


class Watch:
    """Keeps what reaches it."""

    CATEGORY, FUNCTION, OUTPUT_NODE, RETURN_TYPES, got = "test", "keep", True, (), []

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"cast": ("TROUPE_CAST",), "width": ("INT", {"forceInput": True}), "picture": ("IMAGE",)}}

    def keep(self, **given):
        self.got.append(given)
        return ()


class Photo:
    """A photo for Add Subject."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return (torch.full((1, 16, 16, 3), 0.5),)


@pytest.fixture
def queue(host, monkeypatch):
    """Runs a graph of two subjects and Place Subjects through the host's own validation and executor: (what reached the
    end, the errors).
    """
    import execution
    import server
    from troupe.nodes import NODES

    import nodes

    class Server:
        client_id = last_node_id = last_prompt_id = None

        def send_sync(self, *args):
            pass

        queue_updated = send_sync

    monkeypatch.setattr(server.PromptServer, "instance", Server(), raising=False)
    for cls in NODES:
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, cls.GET_SCHEMA().node_id, cls)
    for cls in (Watch, Photo):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, cls.__name__, cls)
    for kind in Boxes.VALUES:
        monkeypatch.setitem(
            nodes.NODE_CLASS_MAPPINGS, f"Boxes{kind}", type(f"Boxes{kind}", (Boxes,), {"RETURN_TYPES": (kind,)})
        )

    def go(boxes, wired=None):
        add = {"weight": 1.0, "start_percent": 0.0, "end_percent": 1.0, "image": ["photo", 0]}
        graph = {
            "photo": {"class_type": "Photo", "inputs": {}},
            "cat": {"class_type": "TroupeAddSubject", "inputs": {**add, "name": "cat"}},
            "dog": {"class_type": "TroupeAddSubject", "inputs": {**add, "name": "dog", "cast": ["cat", 0]}},
            "place": {
                "class_type": "TroupePlaceSubjects",
                "inputs": {"cast": ["dog", 0], "width": 128, "height": 128, "boxes": boxes, "layout": "none"},
            },
            "watch": {
                "class_type": "Watch",
                "inputs": {"cast": ["place", 0], "width": ["place", 4], "picture": ["place", 2]},
            },
        }
        if wired:
            graph["wired"] = {"class_type": f"Boxes{wired}", "inputs": {}}
            graph["place"]["inputs"]["bounding_boxes"] = ["wired", 0]
        Watch.got.clear()
        valid, error, outputs, faults = asyncio.run(execution.validate_prompt("1", graph, None))
        if not valid:
            return None, [f"{e['type']}: {e['details']}" for fault in faults.values() for e in fault["errors"]]
        executor = prompt_executor(Server())
        executor.execute(graph, "1", {}, outputs)
        failures = [
            data["exception_message"].strip() for event, data in executor.status_messages if event == "execution_error"
        ]
        return (Watch.got[0] if Watch.got else None), failures

    return go


def test_a_graph_runs(queue):
    got, errors = queue(json.dumps([LEFT, None]))
    assert errors == [] and got["width"] == 128 and got["picture"].shape == (1, 512, 512, 3)
    assert [None if s.box is None else s.box.x for s in got["cast"].subjects] == [0.05, None]


@pytest.mark.parametrize("kind", ["BOUNDING_BOX", "BOUNDING_BOXES", "BBOX", "SEGS"])
def test_the_host_lets_boxes_of_every_kind_in(queue, kind):
    got, errors = queue(json.dumps([None, LEFT]), kind)
    assert errors == []
    box = got["cast"].subjects[0].box
    assert (box.x, box.y, box.w, box.h) == (0.5, 0.0, 0.5, 1.0) and got["cast"].subjects[1].box.x == 0.05


def test_the_host_lets_nothing_else_in(queue):
    _, errors = queue("[]", "STRING")
    assert errors and errors[0].startswith("return_type_mismatch")


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        ("[{]", "Expected 'boxes' to be a JSON list"),
        (json.dumps([LEFT, {**RIGHT, "w": 0}]), "Expected the box of subject 2 ('dog') to have a width and a height"),
        (json.dumps([LEFT, {**RIGHT, "x": 512}]), "Expected the box of subject 2 ('dog') to lie in the picture"),
    ],
)
def test_literal_boxes_are_refused_before_the_run(queue, boxes, says):
    got, errors = queue(boxes)
    assert got is None and len(errors) == 1 and errors[0].startswith("custom_validation_failed") and says in errors[0]


def test_a_box_too_many_is_found_in_the_run(queue):
    got, errors = queue(json.dumps([LEFT, RIGHT, LEFT]))
    assert got is None and len(errors) == 1
    assert errors[0].startswith(
        "Expected at most one box in 'boxes' for each subject of the cast (subject 1 ('cat'), subject 2 "
        "('dog')), found box 3"
    )
