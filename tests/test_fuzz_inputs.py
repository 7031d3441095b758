"""Whatever is wired into the nodes: a sentence of ours, or a result within its contract.

The same examples in every run (derandomized); host-free.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.outcome_balance import ACCEPTED, both_ways
from troupe.model_patches.encoding.framing import FRAMINGS
from troupe.model_patches.encoding.photos import prepare_photo
from troupe.model_patches.errors import TroupeError
from troupe.model_patches.placement.boxes import fault_in
from troupe.model_patches.placement.layouts import LAYOUTS
from troupe.model_patches.placement.placing import place_subjects
from troupe.model_patches.subjects import MAX_SUBJECTS, Cast, Photo, Subject, make_subject

PROFILE = settings(
    max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
numbers = st.one_of(
    st.floats(),
    st.integers(-(10**400), 10**400),
    st.floats(0, 1),
    st.sampled_from([0, 1, -0.0, 1e-320, 1e308, -1e308, 0.5]),
)
words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "",
            " ",
            "fox",
            "FOX ",
            "\\(cat\\)",
            "a\0b",
            "line\nbreak",
            "\ud800",
            "\u202eright",
            "狐",
            "🦊" * 40,
            "x" * 3000,
            "{a|b}",
            "(fox:1.2)",
            "[",
            "%s",
        ]
    ),
)
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(words, inner, max_size=5)),
    max_leaves=12,
)
boxes = st.fixed_dictionaries(
    {key: st.one_of(st.floats(-0.02, 1.02), numbers, junk) for key in "xywh"},
    optional={"label": st.one_of(words, junk)},
)
good = st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.001, 1), st.floats(0.001, 1)).map(
    lambda b: {"x": b[0], "y": b[1], "w": min(b[2], 1 - b[0]), "h": min(b[3], 1 - b[1])}
)
texts = st.one_of(
    st.text(max_size=30),
    st.lists(st.one_of(st.none(), good, good, good, boxes, junk), max_size=7).map(json.dumps),
    junk.map(json.dumps),
    st.sampled_from(
        [
            "[" * 100_000,
            '{"a":' * 50_000,
            "[NaN]",
            "[1e999]",
            "\ufeff[]",
            "[]]",
            "null",
            "[[[[]]]]",
            "9" * 5000,
            '[{"x": ' + "9" * 5000 + "}]",
        ]
    ),
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.bool)


@st.composite
def tensors(draw, sizes=(0, 1, 2, 7, 8, 9, 33, 700), axes=(2, 3, 4, 5), channels=(0, 1, 2, 3, 4, 5)):
    """A picture or mask of any number of axes, size, dtype and values."""
    shape = [draw(st.sampled_from((0, 1, 1, 1, 2, 3))) for _ in range(draw(st.sampled_from(axes)))]
    side = -1 if channels else 0
    for axis in (-3, -2) if channels else (-2, -1):
        if len(shape) >= -axis:
            shape[axis] = draw(st.sampled_from(sizes))
    if side:
        shape[-1] = draw(st.sampled_from(channels))
    tensor = torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * draw(
        st.sampled_from((1, 1, 1, 0, 5, 255))
    ) - draw(st.sampled_from((0, 0, 0.5)))
    odd = draw(st.sampled_from((None, None, None, float("nan"), float("inf"))))
    if odd is not None and tensor.numel():
        tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = odd
    return tensor.nan_to_num(0).to(draw(st.sampled_from(DTYPES))) if odd is None else tensor


def mostly(good, odd):
    """Nine times in ten something good."""
    return st.integers(0, 9).flatmap(lambda i: odd if i == 5 else good)


images = st.one_of(
    tensors(axes=(4,), channels=(3, 4)), tensors(axes=(4,), channels=(3, 4), sizes=(8, 9, 33, 700)), tensors()
)
photos = st.builds(
    lambda n, side, channels, seed: torch.rand(n, side, side, channels, generator=torch.Generator().manual_seed(seed)),
    st.integers(1, 3),
    st.integers(8, 33),
    st.sampled_from((3, 4)),
    st.integers(0, 99),
)
drawn_masks = st.one_of(
    st.none(),
    st.builds(
        lambda h, w, edge: torch.arange(h * w).reshape(1, h, w).ge(edge).float(),
        st.integers(1, 40),
        st.integers(1, 40),
        st.integers(-9, 0),
    ),
)
masks = st.one_of(st.none(), tensors(axes=(3,), channels=()), tensors(channels=()), st.just(torch.zeros(1, 64, 64)))


def spoken(call, *arguments, **more):
    """A result, or None where one of our sentences came instead."""
    ACCEPTED.append(True)
    try:
        return call(*arguments, **more)
    except TroupeError as error:
        ACCEPTED[-1] = False
        assert error.expected and error.found and error.remedy and str(error).startswith("Expected ")
        assert len(str(error)) < 8000 and "Traceback" not in str(error)
        return None


def check_place(box):
    assert 0 <= box.x <= box.x + box.w <= 1 + 1e-9 and 0 <= box.y <= box.y + box.h <= 1 + 1e-9 and min(box.w, box.h) > 0
    assert all(map(math.isfinite, (box.x, box.y, box.w, box.h)))


def cast_of(names, **each):
    photo = (Photo(torch.full((8, 8, 3), 0.5)),)
    return Cast(
        tuple(
            Subject(name, photo, **{key: values[i % len(values)] for key, values in each.items()})
            for i, name in enumerate(names)
        )
    )


GREY, REST = torch.full((1, 8, 8, 3), 0.5), ("fox", FRAMINGS[0], 1.0, 0.0, 1.0)


@pytest.mark.slow
@both_ways(0.3, 0.05)
@PROFILE
@example(GREY, torch.zeros(1, 0, 8), None, *REST)
@example(GREY, None, torch.ones(1, 8, 8, dtype=torch.bool), *REST)
@example(torch.zeros(1, 1, 8, 8, 3), None, None, *REST)
@example(GREY, None, None, "fox", FRAMINGS[0], math.nan, 0.0, 1.0)
@given(
    mostly(photos, images),
    mostly(drawn_masks, masks),
    mostly(drawn_masks, masks),
    mostly(st.text("abc ", min_size=1), words),
    st.sampled_from(FRAMINGS),
    mostly(st.floats(0, 3), numbers),
    mostly(st.floats(0, 0.5), numbers),
    mostly(st.floats(0.5, 1), numbers),
)
@pytest.mark.filterwarnings("ignore")
def test_a_subject_of_anything_is_refused_or_whole(image, mask, region, name, framing, weight, start, end):
    subject = spoken(
        make_subject, name, [image, None], mask, region, weight=weight, start_percent=start, end_percent=end
    )
    if subject is None:
        return
    assert len(subject.photos) == len(image) and all(
        map(math.isfinite, (subject.weight, subject.start_percent, subject.end_percent))
    )
    if subject.region is not None:
        assert subject.region.ndim == 2 or (subject.region.ndim == 3 and len(subject.region) > 1)
        assert (
            subject.region.dtype == torch.float32
            and 0 <= float(subject.region.min()) <= float(subject.region.max()) <= 1
        )
    for photo in subject.photos:
        seen = prepare_photo(photo, 16, framing)
        assert (
            seen.shape == (16, 16, 3)
            and bool(seen.isfinite().all())
            and 0 <= float(seen.min()) <= float(seen.max()) <= 1
        )


@pytest.mark.slow
@both_ways(0.05, 0.05)
@PROFILE
@given(
    st.lists(words, max_size=6),
    texts,
    st.sampled_from(LAYOUTS),
    st.sampled_from(((64, 64), (1024, 1024), (8192, 64), (64, 8192), (72, 4096))),
)
def test_boxes_of_any_text_are_refused_or_lie_in_the_picture(names, text, layout, size):
    placed = spoken(place_subjects, cast_of(names), *size, text, layout)
    fault = fault_in(text)
    assert fault is None or fault.startswith("Expected ")
    if placed is None:
        return
    cast, preview, *found = placed
    assert [s.name for s in cast.subjects] == names and tuple(found) == size
    assert (
        preview.ndim == 4
        and preview.shape[-1] == 3
        and max(preview.shape) <= 1024
        and bool(((preview >= 0) & (preview <= 1)).all())
    )
    for subject in cast.subjects:
        assert subject.box is not None or layout == "none"
        if subject.box is not None:
            check_place(subject.box)


wired = st.one_of(
    junk,
    st.lists(
        st.fixed_dictionaries({key: st.one_of(st.integers(0, 600), numbers) for key in ("x", "y", "width", "height")}),
        max_size=5,
    ),
    st.lists(st.tuples(*[st.one_of(st.integers(0, 300), numbers)] * 4), max_size=4),
    tensors(sizes=(1, 2, 4), channels=(4,)),
)
latents = st.one_of(
    st.none(),
    st.none(),
    tensors(axes=(4, 5), sizes=(0, 1, 8, 64), channels=()).map(lambda samples: {"samples": samples}),
    junk,
)


@pytest.mark.slow
@both_ways(0.05, 0.05)
@PROFILE
@example(["fox"], [], torch.zeros(1, 0, 8, 3), None)
@example(["fox"], [], None, {"samples": torch.zeros(1, 4, 0, 8)})
@given(st.lists(words, max_size=4), wired, st.one_of(st.none(), images), latents)
@pytest.mark.filterwarnings("ignore")
def test_boxes_of_other_nodes_are_refused_or_lie_in_the_picture(names, boxes, background, latent):
    placed = spoken(place_subjects, cast_of(names), 512, 768, "[]", "none", boxes, background, latent)
    for subject in placed[0].subjects if placed else ():
        if subject.box is not None:
            check_place(subject.box)
    assert placed is None or (bool(placed[1].isfinite().all()) and min(placed[2:]) > 0)


@pytest.mark.slow
@PROFILE
@given(st.integers(0, 40), st.sampled_from(LAYOUTS), st.floats(1 / 128, 128))
def test_every_number_of_subjects_has_places_or_a_sentence(count, layout, aspect):
    cast = Cast()
    for i in range(count):
        cast = spoken(cast.add, Subject(f"subject {i}", ())) or cast
    assert len(cast.subjects) == min(count, MAX_SUBJECTS)
    placed = spoken(place_subjects, cast, max(64, min(8192, round(512 * aspect))), 512, "[]", layout)
    assert placed is not None
    for subject in placed[0].subjects:
        if layout != "none":
            check_place(subject.box)
