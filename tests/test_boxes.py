"""Boxes from the node's text and from other nodes: what is understood, to whom it goes, and what an artist is told."""

from __future__ import annotations

import json
import math
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from troupe.model_patches.errors import MismatchError, SubjectError
from troupe.model_patches.placement.boxes import EDGE_ROUNDING, SLACK, fault_in, read_text, read_wired
from troupe.model_patches.placement.palette import PALETTE, colour_of, ink_on
from troupe.model_patches.placement.placing import place_subjects
from troupe.model_patches.placement.preview import GREY, fitting
from troupe.model_patches.subjects import MAX_SUBJECTS, Box, Cast, Subject

# as Impact Pack has it
SEG = namedtuple(
    "SEG",
    ["cropped_image", "cropped_mask", "confidence", "crop_region", "bbox", "label", "control_net_wrapper"],
    defaults=[None],
)
FOX, CAT, OWL = (
    {"x": 0.1, "y": 0.2, "w": 0.3, "h": 0.5},
    {"x": 0.5, "y": 0.25, "w": 0.25, "h": 0.5},
    {"x": 0.0, "y": 0.0, "w": 0.2, "h": 0.1},
)


def cast_of(*names):
    return Cast(tuple(Subject(name, ()) for name in names))


def corners(box):
    return None if box is None else tuple(round(v, 6) for v in (box.x, box.y, box.w, box.h))


def place(boxes="[]", names=("red fox", "cat", "owl"), wired=None, size=(1000, 500), said=None, **more):
    """[(x, y, w, h) or None] of the subjects."""
    text = boxes if isinstance(boxes, str) else json.dumps(boxes)
    placed, *_ = place_subjects(
        cast_of(*names), *size, text, bounding_boxes=wired, warn=(said if said is not None else []).append, **more
    )
    assert [s.name for s in placed.subjects] == list(names)
    return [corners(s.box) for s in placed.subjects]


def fault(boxes="[]", **more) -> str:
    with pytest.raises(SubjectError) as caught:
        place(boxes, **more)
    sentence = str(caught.value)
    assert sentence.startswith("Expected ") and ", found " in sentence and sentence.endswith(".")
    return sentence


def of(item):
    return tuple(item[k] for k in "xywh")


# ---- the text --------------------------------------------------------------------------------------------------------


def test_element_i_is_for_subject_i_and_null_is_for_nobody():
    said = []
    assert place([{"label": "red fox", **FOX}, None, OWL], said=said) == [of(FOX), None, of(OWL)]
    assert said == []


@pytest.mark.parametrize("text", ["[]", "", "  \n", "[null, null, null, null, null]"])
def test_no_boxes(text):
    assert place(text) == [None, None, None]


def test_the_cast_that_came_in_is_left_alone():
    before = cast_of("cat")
    after = place_subjects(before, 512, 512, json.dumps([CAT]))[0]
    assert before.subjects[0].box is None and after.subjects[0].box == Box(*of(CAT))


def test_a_box_of_an_earlier_node_stays_until_a_new_one_comes():
    first, *_ = place_subjects(cast_of("fox", "cat"), 512, 512, json.dumps([FOX, CAT]))
    again, *_ = place_subjects(first, 512, 512, json.dumps([None, OWL]), layout="row")
    assert [corners(s.box) for s in again.subjects] == [of(FOX), of(OWL)]


def test_a_label_informs_and_a_stale_one_is_a_warning():
    said = []
    assert place([{"label": "owl", **FOX}, {"label": " Cat ", **CAT}], said=said) == [of(FOX), of(CAT), None]
    assert said == [
        "Check the order of the boxes: the box labelled 'owl' is used for subject 1 ('red fox'), by its "
        "position in the list."
    ]


def test_a_label_of_an_earlier_name_is_no_mistake():
    """The subject got another name after its box was drawn."""
    said = []
    assert place([{"label": "rocket", **FOX}], said=said) == [of(FOX), None, None]
    assert said == []


@pytest.mark.parametrize(
    ("names", "boxes", "unused"),
    [
        (("cat", "robot"), [FOX, CAT], ["Box 3 is not used: no subject of the cast is called 'bird'."]),
        (("cat", "bird"), [FOX, OWL], ["Box 2 is not used: no subject of the cast is called 'robot'."]),
        (
            ("bird",),
            [OWL],
            [f"Box {i} is not used: no subject of the cast is called '{n}'." for i, n in ((1, "cat"), (2, "robot"))],
        ),
        (("cat", "wolf"), [FOX, CAT], ["Box 3 is not used: no subject of the cast is called 'bird'."]),
    ],
)
def test_a_subject_that_is_bypassed_leaves_its_box(names, boxes, unused):
    """The others keep theirs, also one that was renamed; nothing is deleted, so that it has its box when it is back."""
    said = []
    drawn = [{"label": "cat", **FOX}, {"label": "robot", **CAT}, {"label": "bird", **OWL}]
    assert place(drawn, names=names, said=said) == list(map(of, boxes))
    assert said == unused


def test_a_label_binds_what_has_no_place_by_order():
    assert place([None, None, None, {"label": "RED  fox", **FOX}]) == [of(FOX), None, None]


def test_a_label_matches_a_name_that_is_escaped_for_the_prompt():
    said = []
    assert place(
        [{"label": "rem (re:zero)", **FOX}, {"label": "cat", **CAT}], names=(r"rem \(re:zero\)", "cat"), said=said
    ) == [of(FOX), of(CAT)]
    assert said == []


@pytest.mark.parametrize(
    ("boxes", "names", "found"),
    [
        ([FOX, FOX, FOX, FOX], ("red fox", "cat", "owl"), "found box 4 without a subject."),
        (
            [None, CAT, None, {"label": "cat", **FOX}],
            ("red fox", "cat", "owl"),
            "labelled 'cat' without a subject, and subject 2 ('cat') has a box already.",
        ),
        ([None, None, {"label": "cat", **FOX}], ("cat", "cat"), "found box 3 labelled 'cat' without a subject."),
        (
            [None, None, {"label": "cat", **FOX}, {"label": "cat", **CAT}],
            ("cat", "dog"),
            "found box 3 labelled 'cat' without a subject.",
        ),
        ([FOX], (), "found box 1 without a subject."),
        ([{"label": "cat", **CAT}, FOX], ("cat",), "found box 2 without a subject."),
    ],
)
def test_a_box_for_no_subject(boxes, names, found):
    sentence = fault(boxes, names=names)
    assert found in sentence
    assert all(f"subject {i} ('{name}')" in sentence for i, name in enumerate(names, 1))


BAD = {
    "word": ("abc", 'found "abc"'),
    "number": (5, "found 5"),
    "boolean": (True, "found true"),
    "list": ([0.1, 0.2, 0.3, 0.4], "found [0.1, 0.2, 0.3, 0.4]"),
    "no height": ({"x": 0.1, "y": 0.1, "w": 0.1}, '{"x", "y", "w", "h"} or null'),
    "pixels": ({"x": 1, "y": 1, "width": 10, "height": 10}, '{"x", "y", "w", "h"} or null'),
    "text": ({**CAT, "x": "0.5"}, "to be four numbers"),
    "boolean x": ({**CAT, "x": True}, "to be four numbers"),
    "nothing": ({**CAT, "y": None}, "to be four numbers"),
    "list x": ({**CAT, "y": [0.1]}, "to be four numbers"),
    "nan": ({**CAT, "w": math.nan}, "four finite numbers"),
    "infinite": ({**CAT, "h": math.inf}, "four finite numbers"),
    "huge": ({**CAT, "h": 10**400}, "four finite numbers"),
    "right": ({**CAT, "x": 0.8}, "lie in the picture, from 0 to 1, found x 0.8 to 1.05"),
    "left": ({**CAT, "x": -0.1}, "lie in the picture, from 0 to 1"),
    "below": ({**CAT, "h": 1.0}, "lie in the picture, from 0 to 1"),
    "above": ({**CAT, "y": -0.5}, "lie in the picture, from 0 to 1"),
    "far off": ({**CAT, "x": 512}, "lie in the picture, from 0 to 1"),
    "no width": ({**CAT, "w": 0}, "to have a width and a height"),
    "negative": ({**CAT, "h": -0.1}, "to have a width and a height"),
    "hair": ({**CAT, "h": 1e-9}, "at least 0.1% of the picture"),
    "outside but touching": ({"x": 1.0, "y": 0.1, "w": 0.005, "h": 0.5}, "at least 0.1% of the picture"),
    "label": ({**CAT, "label": 3}, "the label of the box of subject 2"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_box_names_its_subject(kind):
    box, says = BAD[kind]
    sentence = fault([FOX, box])
    assert says in sentence and "subject 2 ('cat')" in sentence


def test_long_values_are_cut_in_messages():
    assert len(fault([None, "x" * 5000])) < 300


@pytest.mark.parametrize("kind", BAD)
def test_literal_boxes_are_checked_before_the_run(kind):
    sentence = fault_in(json.dumps([FOX, BAD[kind][0]]))
    assert sentence is not None and "subject 2" in sentence


@pytest.mark.parametrize("text", ["[", "abc", "[1,]", '{"x": 0.1}', "5", "null", '"[]"', "[" * 100_000, None, 3])
def test_what_is_no_list(text):
    with pytest.raises(SubjectError, match="'boxes' to be a JSON list such as") as caught:
        read_text(text)
    assert len(str(caught.value)) < 400 and fault_in(text) == str(caught.value)


def test_a_number_too_long_for_python_is_a_fault():
    assert fault_in("[" + "9" * 5000 + "]") is not None


def test_good_text_has_no_fault():
    # how many subjects there are is not known yet
    assert fault_in(json.dumps([FOX, None, {"label": "cat", **CAT}] * 6)) is None
    assert fault_in("") is None


def test_what_reaches_out_a_little_is_cut_off():
    said = []
    assert place([{"x": -SLACK / 2, "y": 0.5, "w": 0.5, "h": 0.5 + SLACK}], said=said)[0] == (0.0, 0.5, 0.495, 0.5)
    assert len(said) == 1 and "subject 1 ('red fox') extends beyond the picture" in said[0]


def test_rounding_is_cut_off_without_a_word():
    said = []
    assert place([{"x": 0.0, "y": 0.6667, "w": 1.0, "h": 0.3334}], said=said)[0] == (0.0, 0.6667, 1.0, 0.3333)
    assert said == [] and EDGE_ROUNDING < SLACK


unit = st.floats(0, 1)


@given(x=unit, y=unit, right=unit, bottom=unit)
@settings(deadline=None)
def test_every_box_in_the_picture_is_kept(x, y, right, bottom):
    box = {"x": x, "y": y, "w": right - x, "h": bottom - y}
    found = (
        place_subjects(cast_of("cat"), 64, 64, json.dumps([box]))[0].subjects[0].box
        if right - x > 0.002 and bottom - y > 0.002
        else None
    )
    if found:
        assert (found.x, found.y, found.w, found.h) == pytest.approx((x, y, right - x, bottom - y), abs=1e-12)
        assert found.x >= 0 and found.y >= 0 and found.x + found.w <= 1 + 1e-12 and found.y + found.h <= 1 + 1e-12


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["x", "y", "w", "h", "label", "width", "height"]), inner)
    ),
    max_leaves=12,
)


@pytest.mark.slow
@given(value=json_values)
@settings(deadline=None)
def test_any_json_gives_boxes_or_a_sentence(value):
    text = json.dumps(value)
    try:
        found = place(text)
    except SubjectError:
        return
    assert len(found) == 3 and fault_in(text) is None


@pytest.mark.slow
@given(value=json_values)
@settings(deadline=None)
def test_anything_wired_gives_boxes_or_a_sentence(value):
    try:
        assert len(place(wired=value)) == 3
    except SubjectError as error:
        assert len(str(error)) < 500


# ---- boxes of other nodes, for a picture of 1000x500 -----------------------------------------------------------------

PIXELS = {"x": 100, "y": 50, "width": 300, "height": 250}
PARTS = (0.1, 0.1, 0.3, 0.5)
OTHER, OTHER_PARTS = (500, 0, 250, 500), (0.5, 0.0, 0.25, 1.0)
ONE_BOX = {
    "BOUNDING_BOX": PIXELS,
    "BOUNDING_BOXES": [PIXELS],
    "a list for each picture": [[PIXELS]],
    "BBOX": (100, 50, 300, 250),
    "BBOX list": [(100, 50, 300, 250)],
    "lists": [[100, 50, 300, 250]],
    "list of lists of lists": [[[100.0, 50.0, 300.0, 250.0]]],
    "array": np.array([[100, 50, 300, 250]]),
    "numbers of an array": [tuple(np.array([100, 50, 300, 250], dtype=np.float32))],
    "tensor": torch.tensor([[100, 50, 300, 250]]),
    "list of tensors": [torch.tensor([100.0, 50.0, 300.0, 250.0])],
    "our own": [{"x": 0.1, "y": 0.1, "w": 0.3, "h": 0.5}],
    "SEGS of another size": ((100, 200), [SEG(None, None, 0.9, (0, 0, 9, 9), (20, 10, 80, 60), "person")]),
    "SEGS with arrays": ((100, 200, 3), [SEG(None, None, 0.9, None, np.array([20, 10, 80, 60]), None)]),
}


@pytest.mark.parametrize("kind", ONE_BOX)
def test_wired_boxes(kind):
    assert place(wired=ONE_BOX[kind]) == [PARTS, None, None]


@pytest.mark.parametrize(
    "nothing", [None, [], (), [[]], [[], []], ((64, 64), []), np.zeros((0, 4)), [None], [None, None]]
)
def test_nothing_wired(nothing):
    assert place(wired=nothing) == [None, None, None]


def test_of_several_pictures_the_first_counts():
    said = []
    assert place(wired=[[PIXELS], [PIXELS, OTHER], []], said=said) == [PARTS, None, None]
    assert said == ["'bounding_boxes' has boxes for 3 pictures; the boxes of the first are used."]


def test_drawn_boxes_come_first_and_wired_ones_fill():
    assert place([None, CAT], wired=[PIXELS, OTHER]) == [PARTS, of(CAT), OTHER_PARTS]
    assert place([CAT], wired=PIXELS) == [of(CAT), PARTS, None]


def test_a_wired_list_of_one_for_each_subject_goes_by_place():
    assert place([None, CAT], wired=[PIXELS, OTHER, None]) == [PARTS, of(CAT), None]
    assert place([FOX], wired=[OTHER, PIXELS, OTHER]) == [of(FOX), PARTS, OTHER_PARTS]
    assert place([FOX, CAT, OWL], wired=[OTHER, PIXELS, OTHER]) == [of(FOX), of(CAT), of(OWL)]


def test_wired_labels_bind():
    segs = (
        (500, 1000),
        [SEG(None, None, 0.9, None, (500, 0, 750, 500), "owl"), SEG(None, None, 0.8, None, (100, 50, 400, 300), "Cat")],
    )
    said = []
    assert place(wired=segs, said=said) == [None, PARTS, OTHER_PARTS]
    assert place([None, FOX], wired=segs) == [None, of(FOX), OTHER_PARTS]  # what was drawn counts
    assert said == []
    dicts = [
        {**PIXELS, "metadata": {"type": "obj", "desc": "owl"}},
        dict(zip(("x", "y", "width", "height"), OTHER, strict=True)),
    ]
    assert place(wired=dicts) == [OTHER_PARTS, None, PARTS]


def test_labels_that_are_not_unique_go_in_order():
    def seg(label, *bbox):
        return SEG(None, None, 0.9, None, bbox, label)

    said = []
    left, right = (0, 0, 500, 500), (500, 0, 1000, 500)
    assert place(wired=((500, 1000), [seg("girl", *right), seg("girl", *left)]), names=("girl", "girl"), said=said) == [
        (0.5, 0, 0.5, 1),
        (0, 0, 0.5, 1),
    ]
    assert said == []
    assert place(
        wired=((500, 1000), [seg("person", *right), seg("person", *left)]), names=("woman", "man"), said=said
    ) == [(0.5, 0, 0.5, 1), (0, 0, 0.5, 1)]
    assert said == [
        f"Check the order of the boxes: the box labelled 'person' is used for subject {i} ('{n}'), by its "
        "position in the list."
        for i, n in ((1, "woman"), (2, "man"))
    ]


@pytest.mark.parametrize(
    ("drawn", "wired"), [([], [PIXELS] * 4), ([FOX, CAT, OWL], [PIXELS]), ([FOX, CAT], [PIXELS, OTHER])]
)
def test_more_wired_boxes_than_subjects(drawn, wired):
    sentence = fault(drawn, wired=wired)
    assert (
        "one box in 'bounding_boxes' for each subject" in sentence
        and "without a subject" in sentence
        and "subject 3 ('owl')" in sentence
    )


BAD_WIRED = {
    "word in a list": ([(1, 2, 3, 4), "abc"], '"abc"'),
    "three numbers": ([(1, 2, 3, 4), (1, 2, 3)], "[1, 2, 3]"),
    "boolean": ([(1, 2, 3, 4), (True, 2, 3, 4)], "four numbers"),
    "text": ([(1, 2, 3, 4), ("1", 2, 3, 4)], "four numbers"),
    "nan": ([(1, 2, 3, 4), {**PIXELS, "x": math.nan}], "four finite numbers"),
    "outside": (
        [(1, 2, 3, 4), {**PIXELS, "x": 900}],
        "in the picture of 1000x500, found x 900 to 1200, y 50 to 300 pixels. Set 'width' and 'height'",
    ),
    "empty": ([(1, 2, 3, 4), {**PIXELS, "width": 0}], "a width and a height"),
    "segment the wrong way round": (
        ((100, 100), [SEG(None, None, 1, None, b, "") for b in ((1, 1, 9, 9), (50, 50, 40, 60))]),
        "a width and a height",
    ),
    "segment of text": (((100, 100), [SEG(None, None, 1, None, b, "") for b in ((1, 1, 9, 9), "box")]), '"box"'),
}


@pytest.mark.parametrize("kind", BAD_WIRED)
def test_a_bad_wired_box_names_its_subject(kind):
    wired, says = BAD_WIRED[kind]
    sentence = fault(wired=wired)
    assert says in sentence and "subject 2 ('cat')" in sentence


@pytest.mark.parametrize("value", ["boxes", 5, True, object()])
def test_wired_things_that_are_no_boxes(value):
    with pytest.raises(SubjectError, match="BOUNDING_BOX, BOUNDING_BOXES, BBOX or SEGS"):
        read_wired(value, (64, 64))


# ---- size and picture ------------------------------------------------------------------------------------------------


def test_a_latent_gives_the_size():
    _, preview, width, height = place_subjects(
        cast_of("cat"), 1024, 1024, latent={"samples": torch.zeros(2, 4, 96, 64)}, bounding_boxes=None
    )
    assert (width, height) == (512, 768) and preview.shape == (1, 768, 512, 3)
    assert place(wired=(64, 0, 128, 384), latent={"samples": torch.zeros(1, 16, 1, 96, 64)})[0] == (
        0.125,
        0.0,
        0.25,
        0.5,
    )


@pytest.mark.parametrize("latent", [{}, {"samples": None}, torch.zeros(1, 4, 8, 8), {"samples": torch.zeros(8)}])
def test_what_is_no_latent(latent):
    with pytest.raises(MismatchError, match="Expected a LATENT"):
        place(latent=latent)


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((1024, 1024), (1024, 1024)),
        ((768, 1344), (1024, 585)),
        ((64, 64), (512, 512)),
        ((8192, 64), (8, 1024)),
        ((640, 448), (448, 640)),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 5, MAX_SUBJECTS])
def test_the_preview_has_the_pictures_proportions(size, shape, count):
    preview = place_subjects(
        cast_of(*[f"subject of a rather long name {i}" for i in range(count)]), *size, layout="grid"
    )[1]
    assert (
        preview.shape == (1, *shape, 3) and preview.dtype == torch.float32 and preview.min() >= 0 and preview.max() <= 1
    )


def rgb(colour):
    return torch.tensor(list(bytes.fromhex(colour[1:]))) / 255


def shows(preview, colour, rows, columns):
    """Share of an area of the picture that has this colour."""
    return (preview[0, rows, columns] - rgb(colour)).abs().amax(-1).lt(0.02).float().mean()


def test_the_preview_shows_boxes_numbers_and_names():
    boxes = [{"x": 0.0625, "y": 0.125, "w": 0.375, "h": 0.5}, {"x": 0.5, "y": 0.5, "w": 0.25, "h": 0.25}]
    preview = place_subjects(cast_of("fox", "cat", "not placed"), 1024, 1024, json.dumps(boxes))[1]
    for i, box in enumerate(boxes):
        left, top, right, bottom = (
            round(v * 1023) for v in (box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"])
        )
        assert shows(preview, colour_of(i), slice(top + 40, bottom), slice(left, left + 3)) == 1  # its left edge
        assert shows(preview, colour_of(i), slice(bottom - 2, bottom + 1), slice(left, right)) == 1  # and its lower one
        label = slice(top, top + 20), slice(left, left + 50)
        assert shows(preview, colour_of(i), *label) > 0.5 and shows(preview, ink_on(colour_of(i)), *label) > 0.02
    assert shows(preview, f"#{GREY:02x}{GREY:02x}{GREY:02x}", slice(0, 100), slice(0, 1024)) == 1
    assert shows(preview, colour_of(2), slice(None), slice(None)) == 0
    other = place_subjects(cast_of("owl", "cat"), 1024, 1024, json.dumps(boxes))[1]
    changed = (preview != other).any(-1)[0].nonzero()
    # nothing but the label
    assert (
        len(changed)
        and changed.amin(0).ge(torch.tensor([127, 63])).all()
        and changed.amax(0).lt(torch.tensor([165, 200])).all()
    )


def test_a_small_box_in_a_large_one_stays_visible():
    small, large = {"x": 0.25, "y": 0.25, "w": 0.5, "h": 0.5}, {"x": 0.0, "y": 0.0, "w": 1.0, "h": 1.0}
    for order in ((small, large), (large, small)):
        preview = place_subjects(cast_of("fox", "cat"), 1024, 1024, json.dumps(order))[1]
        assert shows(preview, colour_of(order.index(small)), slice(500, 700), slice(256, 259)) == 1


def test_a_layout_knows_the_pictures_proportions():
    assert (
        place(layout="grid", names=("a", "b"), size=(500, 1000))[0][2] > 0.9
        and place(layout="grid", names=("a", "b"), size=(1000, 500))[0][2] < 0.5
    )


def test_labels_stay_in_the_picture_and_apart():
    same = [{"x": 0.9, "y": 0.985, "w": 0.1, "h": 0.015}] * 3
    preview = place_subjects(cast_of("fox", "cat", "owl"), 1024, 1024, json.dumps(same))[1]
    for i in range(3):
        seen = (preview[0] - rgb(colour_of(i))).abs().amax(-1).lt(0.02)
        rows, columns = seen.any(1).sum(), seen.any(0).sum()
        assert rows >= 20 and columns >= 50


def test_what_the_editor_keeps_beside_a_box_changes_nothing():
    """A lock, and keys of other programs."""
    plain, locked = (
        place_subjects(cast_of("fox", "cat"), 512, 512, json.dumps([{**FOX, **more}, None]))[0]
        for more in ({}, {"locked": True, "note": {"by": "hand"}})
    )
    assert (
        [corners(s.box) for s in plain.subjects]
        == [corners(s.box) for s in locked.subjects]
        == [(0.1, 0.2, 0.3, 0.5), None]
    )
    assert fault_in(json.dumps([{**FOX, "locked": True}])) is None


def test_the_background_is_stretched_under_the_boxes():
    left_half = torch.zeros(3, 40, 80, 3)
    left_half[0, :, :40, 0] = 1
    preview = place_subjects(
        cast_of("cat"), 512, 1024, json.dumps([{"x": 0.25, "y": 0.5, "w": 0.5, "h": 0.25}]), background=left_half
    )[1]
    assert preview.shape == (1, 1024, 512, 3)
    assert (
        shows(preview, "#ff0000", slice(0, 500), slice(0, 240)) == 1
        and shows(preview, "#000000", slice(0, 500), slice(272, 512)) == 1
    )
    assert shows(preview, "#ff0000", slice(600, 700), slice(140, 240)) == 1  # not tinted


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_odd_backgrounds(channels):
    background = torch.full((1, 7, 5, channels), math.nan)
    background[:, :, :2] = 3.0
    preview = place_subjects(cast_of("cat"), 64, 64, background=background)[1]
    assert torch.isfinite(preview).all() and preview.min() == 0 and preview.max() == 1
    assert (preview - 0.5).abs().min() < 0.1  # NaN is black and does not spread to the white beside it


@pytest.mark.parametrize("control", ["\x85", "\x00", "\u200b", "\n", "\ue000"])
def test_a_label_has_no_letters_that_cannot_be_drawn(control):
    text, font = fitting("1", f"{control}0 cat{control}", 500)
    assert text == "1 0 cat" and font.getlength(text) > 0


@pytest.mark.parametrize("name", ["", "cat", "a girl with a very long name and red hair", "Ångström", "初音ミク"])
@pytest.mark.parametrize("width", [1, 40, 120, 1000])
def test_a_label_fits_and_keeps_its_number(name, width):
    text, font = fitting("12", name, width)
    assert text.startswith("12") and (font.getlength(text) <= width or text == "12")
    assert width < 1000 or text == f"12 {name}".strip()


def test_the_palette_has_eight_readable_colours():
    assert len(set(PALETTE)) == 8 and colour_of(8) == colour_of(0)
    assert ink_on("#ffffff") == "#000000" and ink_on("#000000") == "#ffffff"
    assert all((rgb(c) - GREY / 255).abs().amax() > 0.3 for c in PALETTE)
