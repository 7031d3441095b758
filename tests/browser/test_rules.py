"""The editor's rules, in Chromium alone: the same places, colours and numbers as in Python."""

import json
import random

import pytest
from troupe.model_patches.placement.boxes import fault_in
from troupe.model_patches.placement.layouts import LAYOUTS, fill, places
from troupe.model_patches.placement.palette import PALETTE, colour_of, ink_on
from troupe.model_patches.prompt.names import plain_words, stands_in
from troupe.model_patches.subjects import Box
from troupe_tools.pack import ROOT

SITE = "http://troupe.test/"


@pytest.fixture(scope="module")
def js(browser):
    """`js("layouts", "(m, given) => ...", given)`: runs a function on one of the editor's modules."""
    page = browser.new_page()
    types = {".js": "text/javascript", ".css": "text/css"}

    def serve(route):
        path = ROOT / "web" / route.request.url.removeprefix(SITE)
        if path.is_file():
            route.fulfill(body=path.read_text(), content_type=types[path.suffix])
        else:
            route.fulfill(body="<!doctype html>", content_type="text/html")

    page.route("**/*", serve)
    page.goto(SITE)
    yield lambda module, function, given=None: page.evaluate(
        f"async (given) => {{ const m = await import('{SITE}editor/{module}.js'); return ({function})(m, given); }}",
        given,
    )
    page.close()


SCRIPTS = sorted((ROOT / "web").rglob("*.js"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short_and_asks_for_nothing_outside(script):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300 and max(map(len, text.splitlines())) <= 180
    assert "://" not in text and "eval(" not in text


def as_dict(box):
    return None if box is None else {"x": box.x, "y": box.y, "w": box.w, "h": box.h}


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_layouts_have_the_places_of_python(js, layout):
    cases = [[count, aspect] for count in [*range(1, 13), 17, 30] for aspect in (1.0, 4 / 3, 9 / 16, 2.39, 0.2)]
    found = js(
        "layouts",
        "(m, [layout, cases]) => cases.map(([count, aspect]) => m.places(layout, count, aspect))",
        [layout, cases],
    )
    assert found == [[as_dict(box) for box in places(layout, count, aspect)] for count, aspect in cases]


def test_subjects_without_a_box_get_the_places_of_python(js):
    chance = random.Random(7)
    cases = []
    for _ in range(300):
        boxes = []
        for _ in range(chance.randint(1, 8)):
            x, y = round(chance.random() * 0.8, 4), round(chance.random() * 0.8, 4)
            boxes.append(
                None
                if chance.random() < 0.5
                else {
                    "x": x,
                    "y": y,
                    "w": round(chance.uniform(0.05, 1 - x), 4),
                    "h": round(chance.uniform(0.05, 1 - y), 4),
                }
            )
        cases.append([boxes, chance.choice(LAYOUTS), chance.choice([1.0, 1.5, 0.5, 16 / 9])])
    found = js("layouts", "(m, cases) => cases.map((given) => m.fill(...given))", cases)
    wanted = [fill([None if b is None else Box(**b) for b in boxes], layout, aspect) for boxes, layout, aspect in cases]
    assert found == [[as_dict(box) for box in boxes] for boxes in wanted]


def test_the_colours_are_those_of_python(js):
    assert js("palette", "(m) => [m.PALETTE, [...Array(20).keys()].map(m.colourOf), m.PALETTE.map(m.inkOn)]") == [
        list(PALETTE),
        [colour_of(i) for i in range(20)],
        [ink_on(colour) for colour in PALETTE],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        " [null] ",
        '[{"x": 0.1, "y": 0, "w": 0.5, "h": 1}]',
        '[{"label": "a", "x": 0, "y": 0, "w": 1, "h": 1, "locked": true}, null]',
        "[",
        "{}",
        '"[]"',
        "[1]",
        "[[]]",
        '[{"x": 0, "y": 0, "w": 0, "h": 1}]',
        '[{"x": "0", "y": 0, "w": 1, "h": 1}]',
        '[{"x": 0, "y": 0, "w": 1}]',
    ],
)
def test_what_is_a_list_of_boxes_in_python_is_one_here(js, text):
    found = js("boxes", "(m, text) => m.parse(text)", text)
    assert bool(found["fault"]) == (fault_in(text) is not None)
    assert found["boxes"] == ([] if found["fault"] or not text.strip() else json.loads(text))


def test_what_is_written_is_read_again_with_every_key(js):
    boxes = [
        {"label": 'a "red" fox', "x": 0.1, "y": 0.2, "w": 0.3, "h": 0.5, "locked": True, "of another pack": [1]},
        None,
        {"x": 0, "y": 0, "w": 1, "h": 1},
    ]
    text, again = js("boxes", "(m, boxes) => [m.write(boxes), m.parse(m.write(boxes)).boxes]", boxes)
    assert again == boxes and json.loads(text) == boxes and text.count("\n") == 2


def test_no_move_and_no_resize_leaves_the_picture(js):
    """Whatever the pointer does, Python takes the box, and a move does not change the size."""
    chance = random.Random(11)
    handles = ["n", "s", "e", "w", "nw", "ne", "sw", "se"]
    cases = [
        [
            {"x": 0.25, "y": 0.5, "w": 0.3, "h": 0.4},
            chance.choice(handles),
            chance.uniform(-2, 2),
            chance.uniform(-2, 2),
        ]
        for _ in range(400)
    ]
    found = js(
        "boxes",
        "(m, cases) => cases.map(([box, handle, x, y]) => [m.moved(box, x, y), m.resized(box, handle, x, "
        "y), m.between('a', [box.x, box.y], [x, y])])",
        cases,
    )
    for (box, handle, *_), (moved, resized, drawn) in zip(cases, found, strict=True):
        assert (moved["w"], moved["h"]) == (box["w"], box["h"])
        assert all(resized[side] == box[side] for side, edge in (("x", "w"), ("y", "n")) if edge not in handle)
        for made in (moved, resized, drawn):
            assert made is None or fault_in(json.dumps([made])) is None
            assert made is None or (
                made["x"] >= 0
                and made["y"] >= 0
                and made["x"] + made["w"] <= 1.00005
                and made["y"] + made["h"] <= 1.00005
            )
            assert made is None or min(made["w"], made["h"]) >= 0.01 - 1e-9


def test_the_grid_has_the_edges_of_the_picture_as_lines(js):
    found = js(
        "boxes",
        "(m) => { const snap = m.gridSnap(1000, 512, 64); return [snap(0.03, 0), snap(0.07, 0), snap(0.97, "
        "0), snap(0.99, 0), snap(0.06, 1), snap(0.07, 1)]; }",
    )
    assert found == pytest.approx([0, 0.064, 0.96, 1, 0, 0.125])


def test_a_copy_keeps_the_size_and_not_the_lock(js):
    found = js("boxes", "(m) => m.copied({label: 'cat', x: 0.7, y: 0.1, w: 0.3, h: 0.2, locked: true}, 'dog')")
    assert found == {"label": "dog", "x": 0.67, "y": 0.13, "w": 0.3, "h": 0.2}


def test_the_smallest_box_at_a_point_is_on_top(js):
    boxes = [{"x": 0.2, "y": 0.2, "w": 0.2, "h": 0.2}, {"x": 0, "y": 0, "w": 1, "h": 1}, None]
    assert js(
        "boxes", "(m, boxes) => [m.boxAt(boxes, 0.3, 0.3), m.boxAt(boxes, 0.5, 0.5), m.boxAt([null], 0.5, 0.5)]", boxes
    ) == [0, 1, -1]


NAMES = [
    ("cat", "a cat on a rug"),
    ("cat", "a category"),
    ("cat", "two cats"),
    ("bus", "three buses"),
    ("girl", "1girl, solo"),
    ("2", "12 monkeys"),
    ("red fox", "a (red fox:1.3) in snow"),
    ("red fox", "a red\nfox"),
    ("red_fox", "a red fox"),
    ("cat \\(animal\\)", "cat \\(animal\\), grass"),
    ("Ärztin", "eine ärztin"),
    ("猫", "草地上的猫和狗"),
    ("e\u0301t\u00e9", "un été"),
    ("c++ coder", "a c++ coder"),
    ("dog", ""),
    ("[cat]", "a [cat] here"),
    ("cat", "concat, scatter"),
    ("knight", "night"),
    ("a.b", "aXb"),
]


def test_a_name_is_in_a_prompt_where_python_finds_it(js):
    found = js(
        "../names", "(m, pairs) => pairs.map(([name, prompt]) => [m.isIn(name, prompt), m.plainWords(prompt)])", NAMES
    )
    assert found == [[stands_in(name, prompt), plain_words(prompt)] for name, prompt in NAMES]
    assert {result for result, _ in found} == {True, False}
