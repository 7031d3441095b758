"""Names are the words that a caption uses, and subjects keep to the rules that the papers trained with."""

import numpy as np
import pytest
from support.dataset_scenes import needs_inflect
from troupe.model_patches.subjects import Box
from troupe.training.data.selection import Rules, Thing, best_caption, choose, clipped, overlap_share
from troupe.training.data.synonyms import SYNONYMS, words_for
from troupe.training.data.words import candidate_words, find_name, place_of, template_caption

pytestmark = needs_inflect
LEFT, RIGHT = Box(0.0, 0.2, 0.4, 0.5), Box(0.5, 0.2, 0.4, 0.5)
SIZE = (100, 100)


@pytest.mark.parametrize(
    "caption, words, name",
    [
        ("A Cat on a mat", ["cat"], "Cat"),
        ("two dogs run", ["dog"], "dogs"),
        ("a category of its own", ["cat"], None),
        ("a hotdog", ["dog"], None),
        ("a hot  dog", ["hot dog"], "hot  dog"),
        ("a woman and her friends", ["person", "man", "woman"], "woman"),
        ("some people", ["person"], "people"),
        ("knives and wine glasses", ["wine glass"], "wine glasses"),
        ("a bear and a teddy bear", ["teddy bear", "bear"], "teddy bear"),
        ("a cat-like thing", ["dog"], None),
        ("ein Bär", ["bär"], "Bär"),
    ],
)
def test_the_name_is_what_the_caption_writes(caption, words, name):
    assert find_name(caption, words) == name


def test_a_name_is_placed_on_word_borders():
    assert place_of("a category, a cat", "cat") == 14
    assert place_of("nothing", "cat") == len("nothing")


def test_categories_have_their_own_name_first():
    assert words_for("couch") == ("couch", "sofa")
    assert words_for("zebra") == ("zebra",)
    assert all(name not in words for name, words in SYNONYMS.items())


def test_words_that_may_name_a_thing():
    assert candidate_words("A small Cat and the dog's ball, on 2 tables") == ["Cat", "dog", "ball", "tables"]
    vocabulary = ["ball", "table", "tennis ball", "robot"]
    assert candidate_words("a tennis ball on two tables", vocabulary) == ["tennis ball", "tables"]
    assert candidate_words("it is there") == []


@pytest.mark.parametrize(
    "names, caption",
    [(["cat"], "a cat"), (["cat", "owl"], "a cat and an owl"), (["cat", "owl", "cup"], "a cat, an owl and a cup")],
)
def test_a_template(names, caption):
    assert template_caption(names) == caption


def test_subjects_in_the_order_of_the_caption():
    things = [Thing(("dog",), LEFT, score=0.9), Thing(("cat",), RIGHT, score=0.5)]
    chosen, notes = choose(things, "a cat and a dog", SIZE, Rules())
    assert [(one.name, one.box) for one in chosen] == [("cat", RIGHT), ("dog", LEFT)] and notes == []


def thing(box=LEFT, mask=None, score=1.0, name="dog"):
    return Thing((name,), box, None if mask is None else lambda size: mask, score)


def part(share):
    """A mask that fills a share of LEFT."""
    mask = np.zeros((100, 100), bool)
    mask[20 : 20 + round(50 * share), 0:40] = True
    return mask


@pytest.mark.parametrize(
    "dropped, reason",
    [
        (thing(name="owl"), "caption without the name"),
        (thing(score=0.29), "score too low"),
        (thing(Box(0.7, 0.2, 0.4, 0.5)), "box outside of the picture"),
        (thing(Box(0.0, 0.0, float("nan"), 0.5)), "box outside of the picture"),
        (thing(Box(0.0, 0.0, 0.2, 0.3)), "too small"),
        (thing(Box(0.0, 0.0, 0.9, 0.9)), "too large"),
        (thing(Box(0.0, 0.0, 0.99, 0.3)), "too long or too tall"),
        (thing(name="cat", score=0.5), "second one of the same name"),
        (thing(Box(0.55, 0.25, 0.3, 0.4), score=0.5), "inside another subject"),
        (thing(mask=part(0.0)), "empty mask"),
        (thing(mask=part(0.5)), "mask fills too little of its box"),
    ],
)
def test_what_is_dropped_is_noted(dropped, reason):
    cat = Thing(("cat",), RIGHT)
    chosen, notes = choose([cat, dropped], "a cat and a dog", SIZE, Rules())
    assert [one.name for one in chosen] == ["cat"] and [note[0] for note in notes] == [reason]


def test_at_most_two():
    things = [thing(name=name, box=Box(0.3 * i, 0.1, 0.3, 0.5)) for i, name in enumerate(("cat", "dog", "owl"))]
    chosen, notes = choose(things, "a cat, a dog, an owl", SIZE, Rules())
    assert len(chosen) == 2 and notes == [("more subjects than asked for", "owl")]


def test_a_mask_gives_the_box_and_ends_there():
    mask = part(0.8)
    mask[90:, 90:] = True  # of something else
    (chosen,), _ = choose([thing(mask=mask)], "a dog", SIZE, Rules())
    assert chosen.box == Box(0.0, 0.2, 0.4, 0.4) and (chosen.mask == part(0.8)).all()


def test_boxes_that_reach_out_a_little_are_clipped():
    found = clipped(Box(-0.01, 0.5, 0.5, 0.51))
    assert found is not None and (found.x, found.y, found.w) == (0.0, 0.5, 0.49) and found.y + found.h == 1.0
    assert overlap_share(LEFT, Box(0.2, 0.2, 0.2, 0.5)) == pytest.approx(1)
    assert overlap_share(LEFT, RIGHT) == 0


def test_the_caption_that_names_most():
    things = [Thing(("dog",), LEFT), Thing(("cat",), RIGHT)]
    assert best_caption(["a dog", "a cat and dogs", "a dog, a cat"], things) == "a cat and dogs"
