"""Scores: likeness and its published conventions, verdicts, places and crops, and the truth of drawn pictures."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity
from troupe.model_patches.errors import SubjectError
from troupe.model_patches.relevance.maps import AppliedMaps, RecordedRun, SubjectMap
from troupe.model_patches.scores.dino import centre_crop, dino_pixels
from troupe.model_patches.scores.finding import Found, Wanted, regions_in
from troupe.model_patches.scores.likeness import (
    clip_i,
    clip_t,
    clip_t_times_2_5,
    likeness_matrix,
    reference_likeness,
)
from troupe.model_patches.scores.regions import SubjectRegion, crop, filled, region_of_map, region_of_mask, same_regions
from troupe.model_patches.scores.verdicts import verdicts, with_further
from troupe.model_patches.subjects import Box

PAIR = torch.tensor([[1.0, 0.5], [0.5, 1.0]])  # likeness of two subjects' references


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def photo(h: int = 40, w: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.rand(h, w, 3, generator=torch.Generator().manual_seed(seed))


# ---- published conventions -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_model():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 100, "eos_token_id": 99, "bos_token_id": 98, "pad_token_id": 99},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    return CLIPModel(config).eval()


@torch.no_grad()
def test_clip_t_is_the_cosine_of_transformers(clip_model):
    """And 100 / 2.5 of what torchmetrics' CLIPScore counts: 100 * max(cosine, 0)."""
    pixels, tokens = (
        random_tensor(6, 3, 32, 32),
        torch.randint(0, 98, (6, 9), generator=torch.Generator().manual_seed(1)),
    )
    tokens[:, 0], tokens[:, -1] = 98, 99
    found = clip_model(pixel_values=pixels, input_ids=tokens)
    truth = (found.logits_per_image / clip_model.logit_scale.exp()).diagonal()
    pictures = clip_model.visual_projection(clip_model.vision_model(pixel_values=pixels).pooler_output)
    texts = clip_model.text_projection(clip_model.text_model(input_ids=tokens).pooler_output)
    assert torch.allclose(clip_t(pictures, texts), truth, atol=1e-6)
    assert torch.allclose(clip_t(pictures, texts[0]), clip_t(pictures, texts[:1].expand(6, -1)), atol=1e-7)
    both = torch.cat((truth, -truth))
    assert torch.allclose(clip_t_times_2_5(both), 2.5 * both.clamp(min=0)) and (clip_t_times_2_5(both) == 0).any()


@torch.no_grad()
def test_clip_score_of_torchmetrics(clip_model):
    functional = pytest.importorskip("torchmetrics.functional.multimodal", reason="torchmetrics is not installed")
    pixels, tokens = (
        random_tensor(4, 3, 32, 32, seed=3),
        torch.tensor([[98, *range(3 + i, 9 + i), 99] for i in range(4)]),
    )

    def processor(text=None, images=None, **rest):
        """Takes what it is given as prepared: pictures and texts by their number."""
        if text is None:
            return {"pixel_values": pixels[: len(images)]}
        rows = [int(number) for number in text]
        return {"input_ids": tokens[rows], "attention_mask": torch.ones(len(rows), 8, dtype=torch.long)}

    class Older(torch.nn.Module):
        """CLIPModel with the features as tensors, as torchmetrics reads them; transformers 5 gives an object."""

        config, device = clip_model.config, torch.device("cpu")

        def get_image_features(self, pixel_values):
            # turned round, for these weights give a negative score, which CLIPScore counts as 0
            return -clip_model.visual_projection(clip_model.vision_model(pixel_values=pixel_values).pooler_output)

        def get_text_features(self, input_ids, attention_mask):
            return clip_model.text_projection(clip_model.text_model(input_ids=input_ids).pooler_output)

    pairs = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * 4
    truth = functional.clip_score(pairs, ["0", "1", "2", "3"], model_name_or_path=lambda: (Older(), processor))
    found = clip_t(Older().get_image_features(pixels), Older().get_text_features(tokens, None))
    assert torch.allclose((100 * found).mean().clamp(min=0), truth, atol=1e-3) and truth > 0


def test_clip_i_is_the_mean_of_all_pairs_of_a_subject_then_of_the_subjects():
    pictures, references = random_tensor(3, 8), [random_tensor(2, 8, seed=1), random_tensor(5, 8, seed=2)]
    truth = [
        sum(sum(float(cosine_similarity(picture, other, dim=0)) for other in own) / len(own) for own in references) / 2
        for picture in pictures
    ]
    assert torch.allclose(clip_i(pictures, references), torch.tensor(truth), atol=1e-6)


def test_a_matrix_is_the_mean_cosine_with_each_photo():
    crops, references = random_tensor(3, 8), [random_tensor(2, 8, seed=1), random_tensor(1, 8, seed=2)]
    found, alike = likeness_matrix(crops, references), reference_likeness(references)
    for i, j in ((0, 0), (2, 1)):
        truth = cosine_similarity(crops[i : i + 1], references[j]).mean()
        assert found.shape == (3, 2) and abs(found[i, j] - truth) < 1e-6
    pair = cosine_similarity(references[0][0], references[0][1], dim=0)
    assert abs(alike[0, 0] - (2 + 2 * pair) / 4) < 1e-6 and abs(alike[1, 1] - 1) < 1e-6
    assert (
        torch.allclose(alike, alike.T)
        and abs(alike[0, 1] - cosine_similarity(references[0], references[1]).mean()) < 1e-6
    )


@pytest.mark.parametrize("size", [(300, 500), (411, 256), (230, 231), (1024, 768)])
def test_dino_reads_what_torchvision_prepares(size):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize

    prepare = Compose(
        [
            Resize(256, InterpolationMode.BICUBIC, antialias=True),
            CenterCrop(224),
            Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    picture = photo(*size).mul(0.4).add(0.3)  # bicubic overshoots, which a picture cannot
    truth = prepare(picture.movedim(-1, 0))
    assert torch.allclose(dino_pixels(centre_crop(picture)[None])[0], truth, atol=1e-4)


def test_colours_are_shares_wherever_they_are():
    from troupe.model_patches.scores.colours import ColourPictures

    half, turned, quarter = torch.ones(3, 64, 64, 3)
    half[:32], half[32:] = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9])
    turned[:, :16], turned[:, 16:32] = torch.tensor([0.1, 0.1, 0.9]), torch.tensor([0.9, 0.1, 0.1])
    quarter[:48], quarter[48:] = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9])
    vectors = ColourPictures().vectors(torch.stack([half, turned, quarter, torch.ones(64, 64, 3)]))
    found = likeness_matrix(vectors[:3], [one[None] for one in vectors])
    assert torch.allclose(found[0], torch.tensor([1.0, 1.0, 0.375**0.5 + 0.125**0.5, 0.0]), atol=1e-5), (
        "white paper does not count"
    )


# ---- verdicts --------------------------------------------------------------------------------------------------------


def words(rows, references=PAIR, found=(True, True), threshold=0.2, same_region=(), shares=False):
    return [v.word for v in verdicts(torch.tensor(rows), references, found, threshold, same_region, shares)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.8, 0.5], [0.4, 0.7]], ["right", "right"]),
        ([[0.5, 0.8], [0.7, 0.4]], ["swapped", "swapped"]),
        ([[0.5, 0.8], [0.4, 0.7]], ["cloned", "right"]),
        ([[0.5, 0.8], [0.1, 0.15]], ["cloned", "missing"]),
        ([[0.70, 0.72], [0.4, 0.7]], ["mixed", "right"]),
        ([[0.72, 0.70], [0.4, 0.7]], ["mixed", "right"]),
        ([[0.5, 0.8], [0.70, 0.72]], ["cloned", "mixed"]),
        ([[0.1, 0.15], [0.4, 0.7]], ["missing", "right"]),
    ],
)
def test_a_verdict_of_each_kind(rows, expected):
    assert words(rows) == expected


def test_the_margin_is_a_part_of_the_way_between_two_references():
    """The same difference is large where references are alike, and small where they are not."""
    rows = [[0.70, 0.67], [0.4, 0.7]]
    assert words(rows, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))[0] == "mixed"
    assert words(rows, torch.tensor([[1.0, 0.8], [0.8, 1.0]]))[0] == "right"
    assert verdicts(torch.tensor(rows), torch.tensor([[1.0, 0.8], [0.8, 1.0]]), [True] * 2, 0.2)[
        0
    ].lead == pytest.approx(0.15)


def test_shares_of_two_looks_are_mixed_without_a_tie():
    """Most of a crop is the first one's; what the second has in common with it decides."""
    rows, unlike = [[0.7, 0.3], [0.1, 0.9]], torch.eye(2)
    assert words(rows, unlike, shares=True) == ["mixed", "right"]
    assert words(rows, unlike) == ["right", "right"], "likeness by a network does not add up"
    assert words([[0.7, 0.2], [0.1, 0.9]], unlike, shares=True) == ["right", "right"]
    mixed = verdicts(torch.tensor([[0.3, 0.7], [0.1, 0.9]]), unlike, [True] * 2, 0.2, shares=True)[0]
    assert (mixed.word, mixed.owners) == ("mixed", (1, 0)) and mixed.lead == pytest.approx(0.4)


def test_what_looks_have_in_common_is_nobody_elses():
    """0.5 of the likeness with the second is that of the first's own looks: 0.35 of 0.40."""
    common = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    assert words([[0.7, 0.40], [0.1, 0.9]], common, shares=True) == ["right", "right"]
    assert words([[0.7, 0.47], [0.1, 0.9]], common, shares=True) == ["mixed", "right"]


def test_nobody_is_where_nothing_was_found():
    nothing = [[float("nan")] * 2, [0.4, 0.7]]
    assert words(nothing, found=(False, True)) == ["missing", "right"]
    assert words([[float("nan")] * 2] * 2, found=(False, False)) == ["missing", "missing"]


def test_one_place_is_not_two_subjects():
    rows = [[0.5, 0.8], [0.4, 0.7]]
    assert words(rows, same_region=[(0, 1)]) == ["missing", "right"]
    assert words([[0.5, 0.8], [0.7, 0.4]], same_region=[(0, 1)]) == ["swapped", "swapped"]


def test_references_that_are_one_to_the_encoder_count_as_one():
    assert words([[0.7, 0.71], [0.71, 0.7]], torch.tensor([[1.0, 0.98], [0.98, 1.0]])) == ["right", "right"]


def test_a_single_subject_is_right_or_missing():
    assert words([[0.3]], torch.ones(1, 1), [True]) == ["right"]
    assert words([[0.1]], torch.ones(1, 1), [True]) == ["missing"]


def counted(rows, further, beside, references=PAIR, shares=False):
    """The words of the subjects and of further places."""
    likeness = torch.tensor(rows)
    found = [not row[0].isnan() for row in likeness]
    own = verdicts(likeness, references, found, 0.2, shares=shares)
    table = torch.cat([likeness, torch.tensor(further).view(-1, len(references))])
    subjects, more = with_further(own, table, torch.tensor(beside).view(-1, len(references)), references, 0.2, shares)
    return [v.word for v in subjects], [(v.word, v.owners) for v in more]


def test_a_second_figure_with_the_same_looks_is_a_clone():
    both = [[0.8, 0.5], [0.4, 0.7]]
    assert counted(both, [[0.7, 0.3]], [[0.9, 0.3]]) == (["cloned", "right"], [("cloned", (0,))])
    apart = [[0.9, 0.1], [0.1, 0.9]], [[0.75, 0.25]], [[0.9, 0.2]], torch.eye(2)
    assert counted(*apart)[0] == ["cloned", "right"]
    assert counted(*apart, shares=True)[0] == ["right", "right"], "the second figure has the looks of both"
    assert counted(both, [[0.3, 0.7]], [[0.3, 0.6]]) == (["right", "cloned"], [("cloned", (1,))])
    assert counted(both, [[0.7, 0.3]] * 2, [[0.9, 0.3]] * 2)[1] == [("cloned", (0,))] * 2
    assert counted(both, [], []) == (["right", "right"], [])
    alone = torch.ones(1, 1)
    assert counted([[0.8]], [[0.7]], [[0.9]], alone) == (["cloned"], [("cloned", (0,))])


def test_a_further_place_that_is_less_like_a_subject_is_nobody():
    both, nobody = [[0.8, 0.5], [0.4, 0.7]], (["right", "right"], [("missing", ())])
    assert counted(both, [[0.63, 0.3]], [[0.9, 0.3]]) == nobody, "less than 0.8 of its likeness with the photos"
    assert counted(both, [[0.7, 0.3]], [[0.63, 0.3]]) == nobody, "less than 0.8 of it with the subject's crop"
    assert counted(both, [[0.7, 0.67]], [[0.9, 0.9]]) == nobody, "a tie"
    assert counted([[0.22, 0.1], [0.4, 0.7]], [[0.19, 0.1]], [[0.9, 0.3]]) == nobody, "below the threshold"


def test_looks_that_no_subject_has_are_not_counted_twice():
    swapped = [[0.5, 0.8], [0.7, 0.4]]
    assert counted(swapped, [[0.3, 0.7]], [[0.9, 0.3]]) == (["swapped", "swapped"], [("cloned", (1,))])
    gone = [[0.8, 0.5], [float("nan")] * 2]
    assert counted(gone, [[0.3, 0.7]], [[0.3, float("nan")]]) == (["right", "missing"], [("missing", ())])


# ---- places ----------------------------------------------------------------------------------------------------------


def test_a_map_gives_the_rectangle_around_its_largest_bright_part():
    values = torch.full((8, 16), 0.2)
    values[1:4, 2:6] = 0.8
    values[1, 2] = 0.45  # below half-way
    values[6:8, 14:16] = 0.9  # a smaller part
    region = region_of_map(values)
    assert (region.box, region.source, region.mask) == (Box(2 / 16, 1 / 8, 4 / 16, 3 / 8), "relevance map", None)
    assert region_of_map(torch.full((8, 8), 0.4)) is None and region_of_map(torch.zeros(8, 8)) is None
    diagonal = torch.eye(6) + 0.1
    assert region_of_map(diagonal).box.w == pytest.approx(1 / 6), "corners do not touch"


def test_a_long_part_is_followed_to_its_end():
    snake = torch.zeros(9, 9)
    snake[0, :], snake[:, 8], snake[8, :] = 1, 1, 1
    assert region_of_map(snake).box == Box(0, 0, 1, 1)


def test_a_crop_is_what_a_reference_is():
    picture = torch.zeros(40, 80, 3)
    picture[10:30, 20:40] = torch.tensor([1.0, 0.0, 0.0])
    region = SubjectRegion(Box(0.25, 0.25, 0.25, 0.5), "box")
    assert torch.allclose(crop(picture, region, 16), torch.tensor([1.0, 0.0, 0.0]).expand(16, 16, 3), atol=1e-5)
    half = crop(picture, region, 32, share=0.5)
    assert filled(half) == pytest.approx(0.5, abs=0.1) and half[0].min() > 0.99 and half[16, 16, 1] < 0.01
    mask = torch.zeros(40, 80)
    mask[10:20, 20:40] = 1
    cut = crop(picture, replace(region, mask=mask), 16)
    assert cut[2, 8, 1] < 0.05 and cut[14, 8].min() > 0.95
    assert region_of_mask(mask, "mask", cut_out=True).box == Box(0.25, 0.25, 0.25, 0.25)
    assert region_of_mask(mask * 0.4, "mask") is None
    assert crop(picture, SubjectRegion(Box(0.9999, 0.9999, 1e-4, 1e-4), "box"), 8).shape == (8, 8, 3)


def test_the_corners_of_a_box_are_left_out():
    """They are mostly background; a mask or a user's region says itself what is the subject."""
    picture = torch.zeros(40, 80, 3)
    picture[10:30, 20:40] = torch.tensor([1.0, 0.0, 0.0])
    region = SubjectRegion(Box(0.25, 0.25, 0.25, 0.5), "box", oval=True)
    cut = crop(picture, region, 20)
    green = cut[..., 1]
    assert green[[0, 0, 19, 19], [0, 19, 0, 19]].min() > 0.99
    assert green[[10, 10, 0, 19], [0, 19, 10, 10]].max() < 0.01, "the middles of the sides stay"
    assert 0.82 < (green < 0.5).float().mean() < 0.87
    segment = ((40, 80), [SEG(None, (0, 0, 20, 20), "cat"), SEG(torch.ones(20, 20), (20, 0, 40, 20), "robot")])
    values = torch.zeros(4, 4)
    values[:2, :2] = 1
    found = [
        *regions_in(NAMES, Found(bounding_boxes=[[0, 0, 20, 20]] * 2), 1, (80, 40))[0],
        *regions_in(NAMES, Found(segs=segment), 1, (80, 40))[0],
        *regions_in(NAMES, Found(), 1, (80, 40))[0],
        region_of_map(values),
    ]
    assert [(one.source, one.oval) for one in found] == [
        *(("bounding box", True), ("bounding box", True), ("segment", True), ("segment", False)),
        *(("box", True), ("region", False), ("relevance map", True)),
    ]


def test_two_rectangles_are_one_place_where_they_share_half():
    first, apart = SubjectRegion(Box(0, 0, 0.5, 1), ""), SubjectRegion(Box(0.3, 0, 0.5, 1), "")
    assert same_regions([first, SubjectRegion(Box(0.1, 0, 0.5, 1), ""), apart, None]) == [(0, 1)]


SEG = namedtuple("SEG", "cropped_mask bbox label crop_region", defaults=(None,))
NAMES = [Wanted("cat", Box(0.0, 0.0, 0.5, 1.0)), Wanted("robot", region=torch.eye(4))]


def boxes_of(regions):
    return [None if p is None else tuple(round(v, 3) for v in (p.box.x, p.box.y, p.box.w, p.box.h)) for p in regions]


def test_boxes_go_by_label_then_in_order():
    cat, other = {"x": 10, "y": 0, "width": 20, "height": 50, "label": "Cat"}, [50, 0, 50, 100]
    found = regions_in(NAMES, Found(bounding_boxes=[other, cat]), 1, (100, 100))[0]
    assert boxes_of(found) == [(0.1, 0.0, 0.2, 0.5), (0.5, 0.0, 0.5, 1.0)]
    assert boxes_of(regions_in(NAMES, Found(bounding_boxes=[cat]), 1, (100, 100))[0]) == [(0.1, 0.0, 0.2, 0.5), None]
    assert boxes_of(regions_in(NAMES, Found(bounding_boxes=[]), 1, (100, 100))[0]) == [None, None]
    each = regions_in(NAMES, Found(bounding_boxes=[[cat], [other, other]]), 2, (100, 100))
    assert [boxes_of(p) for p in each] == [[(0.1, 0.0, 0.2, 0.5), None], [(0.5, 0.0, 0.5, 1.0)] * 2]
    one = regions_in(NAMES[:1], Found(bounding_boxes=(10, 0, 20, 50)), 2, (100, 100))
    assert [boxes_of(p) for p in one] == [[(0.1, 0.0, 0.2, 0.5)]] * 2
    large = {**cat, "width": 40}
    assert boxes_of(regions_in(NAMES, Found(bounding_boxes=[cat, large]), 1, (100, 100))[0])[0] == (0.1, 0.0, 0.4, 0.5)


def test_what_is_left_over_comes_after_the_subjects():
    cat = {"x": 10, "y": 0, "width": 20, "height": 50, "label": "cat"}
    second, robot = {**cat, "x": 60, "height": 40}, {**cat, "x": 35, "label": "robot"}
    tree = [0, 60, 30, 30]
    said = []
    found = regions_in(NAMES, Found(bounding_boxes=[second, cat, tree, robot]), 1, (100, 100), said.append)[0]
    assert boxes_of(found) == [
        *((0.1, 0.0, 0.2, 0.5), (0.35, 0.0, 0.2, 0.5)),
        *((0.0, 0.6, 0.3, 0.3), (0.6, 0.0, 0.2, 0.4)),
    ]
    assert [region.source for region in found] == ["bounding box"] * 4 and not said
    face = {**cat, "width": 10, "height": 10}
    room = [0, 0, 100, 100]
    again = {**second, "x": 62}
    found = regions_in(NAMES, Found(bounding_boxes=[cat, robot, face, room, second, again]), 1, (100, 100))[0]
    assert boxes_of(found)[2:] == [(0.6, 0.0, 0.2, 0.4)], "parts of a figure, and what is around one, are no figures"


def test_few_further_places_are_compared_and_none_stops_the_run():
    said = []
    small = [[x, 90, 4, 5] for x in range(0, 100, 5)]
    found = regions_in(NAMES, Found(bounding_boxes=[*small, [10, 0, 20, -3]]), 1, (100, 100), said.append)[0]
    assert len(found) == 2 + 8 and said[0].startswith("A box is left out: Expected")
    assert said[1].startswith("18 places more than subjects were found in a picture: the 8 largest are compared.")


def test_further_masks_and_segments():
    masks = torch.zeros(3, 8, 8)
    masks[0, :2, :2], masks[1, 4:, :2], masks[2, 4:, 5:] = 1, 1, 1
    for given, count in ((masks, 1), (torch.cat([masks, masks]), 2)):
        for regions in regions_in(NAMES, Found(masks=given), count, (8, 8)):
            assert boxes_of(regions) == [(0, 0, 0.25, 0.25), (0, 0.5, 0.25, 0.5), (0.625, 0.5, 0.375, 0.5)]
            assert regions[2].mask is not None
    parts = [SEG(torch.ones(10, 10).numpy(), (x, 0, x + 10, 10), "cat", None) for x in (0, 20)]
    found = regions_in(NAMES, Found(segs=((50, 100), parts)), 1, (100, 50))[0]
    assert found[1] is None and [region.source for region in found if region] == ["segment"] * 2
    assert found[2].mask[:10, 20:30].all() and found[2].mask.sum() == 100


def test_a_strangers_label_is_said():
    said = []
    person = {"x": 10, "y": 0, "width": 20, "height": 50, "label": "person"}
    regions_in(NAMES, Found(bounding_boxes=[person]), 1, (100, 100), said.append)
    assert said == ["No box is labelled 'cat': the one labelled 'person' is used for it."]


@pytest.mark.parametrize("region", [(0, 0, 20, 40), None])
def test_segments_bring_their_masks(region):
    part = torch.zeros(40, 20)
    part[10:30, 5:15] = 1
    mask = part if region else torch.ones(20, 10)
    segs = ((50, 100), [SEG(mask.numpy(), (5, 10, 15, 30), "cat", region)])
    cat, robot = regions_in(NAMES, Found(segs=segs), 1, (200, 100))[0]
    whole = torch.zeros(50, 100)
    whole[10:30, 5:15] = 1
    assert robot is None and boxes_of([cat]) == [(0.05, 0.2, 0.1, 0.4)] and torch.equal(cat.mask, whole)
    assert len(regions_in(NAMES, Found(segs=segs), 2, (200, 100))) == 2
    other = SEG(torch.ones(3, 3), (5, 10, 15, 30), "cat", None)
    assert regions_in(NAMES, Found(segs=((50, 100), [other])), 1, (200, 100))[0][0].mask is None


def test_masks_are_counted():
    masks = torch.zeros(4, 8, 8)
    masks[0, :4], masks[3, 4:] = 1, 1
    first, second = regions_in(NAMES, Found(masks=masks), 2, (8, 8))
    assert boxes_of(first) == [(0, 0, 1, 0.5), None] and boxes_of(second) == [None, (0, 0.5, 1, 0.5)]
    assert regions_in(NAMES, Found(masks=masks[:2]), 2, (8, 8))[1][0].mask is not None
    with pytest.raises(SubjectError, match="a mask in 'masks' for each of the 2 subjects"):
        regions_in(NAMES, Found(masks=masks[:3]), 2, (8, 8))


def run_of(*maps):
    subjects = tuple(SubjectMap(name, values) for name, values in maps)
    return RecordedRun("all", (AppliedMaps("a", "relevance", subjects),))


def test_a_record_is_for_subjects_without_a_box_and_has_one_map_for_a_batch():
    values = torch.zeros(4, 4)
    values[:2, :2] = 1
    said = []
    found = regions_in(NAMES[:1] + [Wanted("robot")], Found(run_of(("robot", values)), True), 2, (8, 8), said.append)
    assert [boxes_of(p) for p in found] == [[(0, 0, 0.5, 1), (0, 0, 0.5, 0.5)]] * 2 and len(said) == 1
    assert "mean of its pictures" in said[0]
    twins = [Wanted("cat"), Wanted("cat")]
    apart = regions_in(twins, Found(run_of(("cat", values), ("cat", values.flip(0))), True), 1, (8, 8))[0]
    assert boxes_of(apart) == [(0, 0, 0.5, 0.5), (0, 0.5, 0.5, 0.5)]
    inactive = regions_in([Wanted("cat")], Found(run_of(("cat", None)), True), 1, (8, 8))[0]
    assert inactive == [None]


def test_without_anything_the_subjects_own_boxes_and_regions_are_used():
    said = []
    assert [p.source for p in regions_in(NAMES, Found(), 1, (8, 8), said.append)[0]] == ["box", "region"] and not said
    regions = regions_in([*NAMES, Wanted("dog")], Found(None, True), 1, (8, 8), said.append)[0]
    assert regions[2].source == "whole picture" and "Nothing was recorded" in said[0] and "subject 3 ('dog')" in said[1]
    regions = torch.zeros(2, 4, 4)
    regions[0, :2], regions[1, 2:] = 1, 1
    both = regions_in([Wanted("cat", region=regions)], Found(), 3, (8, 8))
    assert [boxes_of(p)[0][1] for p in both] == [0.0, 0.5, 0.5]
