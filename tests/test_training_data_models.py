"""The code around Grounding DINO, SAM 2, SAM and BLIP runs for real, on tiny random models."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny_annotators
from troupe.model_patches.subjects import Box
from troupe.training.data.models import Blip, GroundingDino, Sam, word_spans
from troupe.training.data.records import DatasetError


def picture(seed, size=(70, 60)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def dino(models):
    return str(tiny_annotators.save_grounding_dino(models / "dino"))


@pytest.mark.slow
def test_each_word_has_its_tokens(dino):
    tokenizer = GroundingDino.load(dino, "cpu").processor.tokenizer
    words = ["cat", "mushroom", "t-shirt", "χ"]
    ids = tokenizer(". ".join(words) + ".", padding="max_length", max_length=30)["input_ids"]
    assert [len(span) for span in word_spans(tokenizer, words, ids)] == [1, 2, 7, 1]
    assert word_spans(tokenizer, words, ids)[1] == [3, 4]
    with pytest.raises(DatasetError, match="full stops"):
        word_spans(tokenizer, words[:2], ids)


def test_detections_are_the_models_boxes_with_their_best_words(dino):
    detector = GroundingDino.load(dino, "cpu", threshold=0.5)
    detector.overlap = 2.0  # no box is dropped for another
    words = [["cat", "mushroom"], ["robot"]]
    found = detector([picture(0), picture(1)], words)
    for i, asked in enumerate(words):
        inputs = detector.processor(images=picture(i), text=". ".join(asked) + ".", return_tensors="pt")
        with torch.no_grad():
            outputs = detector.model(**inputs)
        scores = outputs.logits[0].sigmoid()
        spans = {"cat": [1], "mushroom": [3, 4], "robot": [1]}
        best = torch.stack([scores[:, spans[word]].max(1).values for word in asked], 1)
        expected = []
        for row, (x, y, w, h) in zip(best, outputs.pred_boxes[0].tolist(), strict=True):
            left, top, right, bottom = x - w / 2, y - h / 2, x + w / 2, y + h / 2
            if row.max() > 0.5 and min(left, top) >= 0 and max(right, bottom) <= 1:
                expected.append((asked[row.argmax()], round(left, 4), round(top, 4), round(float(row.max()), 4)))
        inside = [one for one in found[i] if one.box.x > 0 and one.box.y > 0]
        assert {(one.word, round(one.box.x, 4), round(one.box.y, 4), round(one.score, 4)) for one in inside} >= {
            one for one in expected if one[1] > 0 and one[2] > 0
        }
        assert len(expected) > 3
        assert [one.score for one in found[i]] == sorted((one.score for one in found[i]), reverse=True)


def test_of_boxes_at_one_place_the_best_stays(dino):
    detector = GroundingDino.load(dino, "cpu", threshold=0.5)
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.52, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1]])
    scores = torch.tensor([[0.8, 0.1], [0.9, 0.2], [0.1, 0.7], [0.4, 0.3]])
    found = detector._detections(["cat", "dog"], boxes, scores)
    assert [(one.word, round(one.score, 3), round(one.box.y, 3)) for one in found] == [
        ("cat", 0.9, 0.32),
        ("dog", 0.7, 0.3),
    ]


@pytest.mark.slow
def test_more_words_than_fit_into_one_question(dino, monkeypatch):
    monkeypatch.setattr("troupe.training.data.models.AT_ONCE", 2)
    detector = GroundingDino.load(dino, "cpu", threshold=0.0)
    asked, ask = [], detector._ask
    monkeypatch.setattr(
        detector, "_ask", lambda pictures, words: asked.extend(map(list, words)) or ask(pictures, words)
    )
    found = detector([picture(0)], [["cat", "dog", "robot", "fish", "tree"]])
    assert asked == [["cat", "dog"], ["robot", "fish"], ["tree"]]
    assert len({one.word for one in found[0]}) >= 3  # one of each question at least


@pytest.mark.parametrize("save, size", [(tiny_annotators.save_sam2, (64, 64)), (tiny_annotators.save_sam, (64, 55))])
def test_a_mask_for_each_box(models, save, size):
    """The model gets the boxes in pixels of the resized picture, [left, top, right, bottom]."""
    sam = Sam.load(str(save(models / save.__name__)), "cpu")
    given = []
    sam.model.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs["input_boxes"]), with_kwargs=True)
    boxes = [Box(0.0, 0.0, 0.5, 0.5), Box(0.3, 0.3, 0.6, 0.6), Box(0.1, 0.0, 0.2, 0.9)]
    masks = sam(picture(0), boxes)
    corners = torch.tensor([[box.x, box.y, box.x + box.w, box.y + box.h] for box in boxes])
    torch.testing.assert_close(given[0][0].float(), corners * torch.tensor([*size, *size]), atol=0.01, rtol=0)
    assert [(mask.shape, mask.dtype) for mask in masks] == [((60, 70), np.dtype(bool))] * 3
    (alone,) = sam(picture(0), boxes[1:2])
    assert (alone != masks[1]).mean() < 0.01


@pytest.mark.slow
def test_captions(models):
    blip = Blip.load(str(tiny_annotators.save_blip(models / "blip")), "cpu")
    captions = blip([picture(0), picture(1), picture(2)])
    assert len(captions) == 3 and all(caption and "[" not in caption for caption in captions)
    assert blip([picture(1)]) == captions[1:2]


def test_a_model_that_is_not_there(models, dino):
    with pytest.raises(DatasetError, match="the model ") as error:
        GroundingDino.load(str(models / "gone"), "cpu")
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)
    with pytest.raises(DatasetError, match="'grounding-dino'"):
        Sam.load(dino, "cpu")
