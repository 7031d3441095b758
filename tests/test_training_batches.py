"""What a picture is trained with does not depend on the others in its batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import tiny_training as small
from support.paper_mm_diff import tokenizer
from troupe.training.recipes.registry import RECIPES

LONG = ", on a wide green field with tall grass under a grey sky" * 8  # more than 77 tokens with a caption
BINDING = {  # recipes with a loss on text attention, but Subject-Diffusion, which refuses such captions
    "fastcomposer": {"localization": 0.5},
    "mm_diff": {**small.MM_DIFF, "text_constraint": 0.1, "image_constraint": 0.1},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return small.write_set(tmp_path_factory.mktemp("pictures"))


def trainee(recipe, **options):
    more = small.MM_DIFF if recipe == "mm_diff" else {}
    return small.changed(small.trainee(recipe, **{**small.no_drops(recipe), **more, **options}))


def losses_of(trainee, draws):
    with torch.no_grad():
        found = trainee(trainee.prepare(draws))
    trainee.finish()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("recipe", BINDING)
def test_a_longer_caption_beside_it_changes_no_loss(recipe, pictures):
    """Its prompt is repeated to the length of the longer one; the attention to a word is that to all its copies."""
    draws, one = small.draws(pictures, 2), trainee(recipe, **BINDING[recipe])
    example = draws[1].example
    draws[1] = replace(draws[1], example=replace(example, caption=example.caption + LONG))
    assert len(tokenizer().encode(draws[1].example.caption)) > 75
    together, alone = losses_of(one, draws), losses_of(one, draws[:1])
    assert len(alone) > 1
    for name, loss in alone.items():
        assert loss.abs() > 1e-6
        torch.testing.assert_close(together[name][0], loss[0], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("count", [1, 2], ids=["alone", "beside one with subjects"])
def test_a_picture_without_subjects_can_be_trained_with(recipe, count, pictures):
    """The square that is cut from a picture may have none of them."""
    draws, one = small.draws(pictures, count), trainee(recipe)
    draws[0] = replace(draws[0], example=replace(draws[0].example, subjects=()))
    losses = one(one.prepare(draws))
    assert all(loss.isfinite().all() and loss.shape == (count,) for loss in losses.values())
    sum(one.weights[name] * loss.mean() for name, loss in losses.items()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in one.parameters())
