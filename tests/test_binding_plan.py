"""What both hosts decide alike for a model call: strengths, who takes part, regions, the deltas of several nodes,
second strengths.
"""

from dataclasses import replace
from time import perf_counter, sleep

import pytest
import torch
from support.tiny_diffusers import references as image_references
from support.tiny_diffusers import unet
from troupe.model_patches.binding.checks import check_whole_weights
from troupe.model_patches.binding.layer_tokens import COND, UNCOND
from troupe.model_patches.binding.limits import group_limits, limits_on_grid, pictured
from troupe.model_patches.binding.plan import (
    WHOLE_RUN,
    GatedStrengths,
    ImageStrengths,
    gated_strengths,
    image_strengths,
    is_delayed,
    is_idle,
    needs_names,
    takes_part,
    waits_for_prompt,
)
from troupe.model_patches.binding.run_cache import RunCache
from troupe.model_patches.binding.settings import GatedSettings, ImageAttentionSettings, mixing_for
from troupe.model_patches.binding.stack import DeltaStack, at_first_call
from troupe.model_patches.binding.two_strengths import Guidance, branch_factors
from troupe.model_patches.errors import MismatchError
from troupe.model_patches.prompt.tokens import name_too_long, word_embeddings
from troupe.model_patches.subjects import Box


@pytest.fixture(scope="module")
def references():
    return image_references(unet())


def subjects_of(references, *changes):
    return tuple(replace(subject, **change) for subject, change in zip(references.subjects, changes, strict=True))


def at(percent, asked=None):
    """Where the run is, as a host tells it."""

    def inside(spans):
        spans = list(spans)
        if asked is not None:
            asked.append(spans)
        return [start < end and start <= percent <= end for start, end in spans]

    return inside


# ---- strengths -------------------------------------------------------------------------------------------------------


def test_a_node_is_idle_without_strength_or_subjects(references):
    assert (
        is_idle(0.0, references.subjects)
        and is_idle(1.0, ())
        and is_idle(1.0, subjects_of(references, {"weight": 0.0}, {"weight": 0.0}))
    )
    assert not is_idle(0.5, subjects_of(references, {"weight": 0.0}, {"weight": 0.1}))


def test_image_attention_acts_in_the_range_of_the_node_and_of_the_subject(references):
    settings = ImageAttentionSettings(weight=0.5, start_percent=0.1, end_percent=0.9)
    subjects = subjects_of(references, {"weight": 1.5, "start_percent": 0.4}, {"weight": 1.0, "end_percent": 0.5})
    found = {percent: image_strengths(settings, subjects, at(percent)) for percent in (0.05, 0.2, 0.45, 0.6, 0.95)}
    assert found == {
        0.05: None,
        0.2: ImageStrengths((0.0, 0.5), False),
        0.45: ImageStrengths((0.75, 0.5), False),
        0.6: ImageStrengths((0.75, 0.0), False),
        0.95: None,
    }
    assert image_strengths(replace(settings, weight=0.0), subjects, at(0.45)) is None


@pytest.mark.parametrize(
    ("box", "strength", "span", "percent", "boxed"),
    [
        (None, 1.0, WHOLE_RUN, 0.2, False),
        (Box(0, 0, 0.5, 1), 0.0, WHOLE_RUN, 0.2, False),
        (Box(0, 0, 0.5, 1), 1.0, (0.0, 0.3), 0.2, True),
        (Box(0, 0, 0.5, 1), 1.0, (0.0, 0.3), 0.5, False),
    ],
)
def test_the_end_of_boxes_is_asked_for_only_where_boxes_limit(references, box, strength, span, percent, boxed):
    asked = []
    subjects = subjects_of(references, {"box": box}, {})
    found = image_strengths(
        ImageAttentionSettings(box_strength=strength, box_end_percent=0.3), subjects, at(percent, asked)
    )
    assert asked[0][1] == span and found.boxed is boxed


def test_a_gated_adapter_holds_and_then_fades(references):
    settings, subjects = (
        GatedSettings(strength=2.0, end_percent=0.4, decay_percent=0.4),
        subjects_of(references, {"weight": 0.5}, {"weight": 1.0, "end_percent": 0.5}),
    )
    found = {
        percent: gated_strengths(settings, subjects, at(percent), lambda percent=percent: percent)
        for percent in (0.2, 0.6, 0.9)
    }
    assert found == {
        0.2: GatedStrengths((0.5, 1.0), 2.0),
        0.6: GatedStrengths((0.5, 0.0), pytest.approx(1.0)),
        0.9: None,
    }


def test_the_percent_is_read_only_where_the_scale_changes(references):
    assert gated_strengths(
        GatedSettings(strength=0.5), references.subjects, at(0.9), lambda: pytest.fail("read")
    ) == GatedStrengths((1.0, 1.0), 0.5)


# ---- who takes part --------------------------------------------------------------------------------------------------


def test_rows_of_the_negative_take_part_only_with_empty_tokens(references):
    without = replace(references, uncond_tokens=None)
    assert [takes_part(references, role) for role in (COND, UNCOND, None)] == [True, True, False]
    assert [takes_part(without, role) for role in (COND, UNCOND, None)] == [True, False, False]


def test_names_are_needed_for_the_merge_or_to_record(references):
    relevance, uniform = (
        ImageAttentionSettings(mixing=mixing_for(references, merge)) for merge in ("relevance", "uniform")
    )
    assert (
        needs_names(references, relevance)
        and not needs_names(references, uniform)
        and needs_names(references, uniform, True)
    )


def test_an_adapter_outside_the_prompt_does_not_wait_for_it(references):
    assert not waits_for_prompt(references)


@pytest.mark.parametrize(
    ("percent", "step", "delayed"), [(0.0, -1, False), (0.2, -1, True), (0.2, 0, False), (0.0, 3, True)]
)
def test_a_start_step_overrules_the_percent(percent, step, delayed):
    assert is_delayed(percent, step) == delayed


# ---- regions ---------------------------------------------------------------------------------------------------------


def test_regions_are_fitted_to_the_pictures(references):
    flat, three = torch.rand(8, 8), torch.rand(3, 8, 8)
    same = pictured(subjects_of(references, {"region": flat}, {}), range(3), True)
    each = pictured(subjects_of(references, {"region": three}, {}), range(3), True)
    wrong = pictured(subjects_of(references, {"region": three}, {}), range(2), True)
    assert (same.pictures, each.pictures, wrong.pictures) == ((), (0, 1, 2), ()) and (
        list(each.wrong),
        list(wrong.wrong),
    ) == ([], [0])
    assert torch.equal(wrong.subjects[0].region, three.amax(0))


def test_each_group_has_the_limits_of_its_window(references):
    subjects, windows = (
        subjects_of(references, {"region": torch.rand(16, 16)}, {}),
        [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)],
    )
    found = group_limits(subjects, ImageAttentionSettings(), (4, 2), True, "cpu", windows)
    assert found.shape == (2, 1, 2, 8)
    assert all(
        torch.equal(found[i], limits_on_grid(subjects, ImageAttentionSettings(), (4, 2), True, "cpu", window))
        for i, window in enumerate(windows)
    )


# ---- one layer, one run ----------------------------------------------------------------------------------------------


def test_deltas_of_the_same_class_share_a_stack():
    class Other(DeltaStack):
        pass

    first = DeltaStack.on("before", "a")
    second = DeltaStack.on(first, "b")
    assert (second.previous, second.deltas, first.deltas) == ("before", ("a", "b"), ("a",))
    assert Other.on(second, "c").previous is second


def test_a_value_is_computed_at_the_first_call():
    made = []
    get = at_first_call(lambda: made.append(1) or made)
    assert not made and get() is get() and made == [1]


def test_a_run_keeps_the_newest_of_a_kind():
    cache, made = RunCache(), []
    for key in (1, 2, 1, 3, 1):
        cache.once(("kind", key), lambda key=key: made.append(key), 2)
    assert made == [1, 2, 3, 1]
    cache.clear()
    cache.once(("kind", 1), lambda: made.append(1))
    assert made[-2:] == [1, 1] and cache.seconds >= 0


# ---- second strength, weights, words ---------------------------------------------------------------------------------


def test_a_second_strength_is_interpolated_for_numbers_and_tensors():
    settings, percents = Guidance("umm", 1.0, 3.0, 0.2, 0.6), [0.0, 0.2, 0.4, 0.6, 0.9]
    assert [settings.second_inside(p) for p in percents] == pytest.approx([1.0, 1.0, 2.0, 3.0, 3.0])
    assert settings.second_inside(torch.tensor(percents)).tolist() == pytest.approx([1.0, 1.0, 2.0, 3.0, 3.0])


@pytest.mark.parametrize(
    ("ends", "fine"), [((0.0, 1.0), True), ((0.5, 1.5), False), ((-0.1, 0.5), False), ((float("nan"), 0.5), False)]
)
def test_shares_are_between_0_and_1(ends, fine):
    if fine:
        Guidance("umm", *ends).umm_middle("prompt")
    else:
        with pytest.raises(MismatchError, match="from 0 to 1 for method umm"):
            Guidance("umm", *ends).umm_middle("prompt")


@pytest.mark.parametrize(
    ("widget", "message"),
    [("", "found 0.5. Set it to 1"), ("strength_clip", "found 'strength_clip' at 0.5. Set 'strength_clip' to 1")],
)
def test_whole_weights_have_strength_0_or_1(widget, message):
    check_whole_weights(0.0, widget)
    check_whole_weights(1.0, widget)
    with pytest.raises(MismatchError, match=message):
        check_whole_weights(0.5, widget)


def test_vectors_stay_as_they_are_between_the_words():
    table, vector = torch.rand(5, 4), torch.rand(4, dtype=torch.float64)
    assert torch.equal(
        word_embeddings([3, vector, 1], lambda ids: table[ids]), torch.stack((table[3], vector.float(), table[1]))
    )


def test_a_long_name_is_shown_cut():
    assert str(name_too_long("cat " * 80)).startswith("Expected a name of at most 75 tokens, found 'cat cat")


def test_what_is_made_of_other_kept_values_takes_its_time_once():
    run, began = RunCache(), perf_counter()

    def slow(seconds, found):
        sleep(seconds)
        return found

    outer = run.once(("outer",), lambda: slow(0.02, 1) + run.once(("inner",), lambda: slow(0.03, 2)))
    assert outer == 3 and 0.05 <= run.seconds <= perf_counter() - began


def test_a_method_of_guidance_that_nobody_knows_is_an_error():
    with pytest.raises(ValueError, match="expected subject_diffusion, umm or None, found 'um'"):
        branch_factors("um", 7.5, 1.5)
