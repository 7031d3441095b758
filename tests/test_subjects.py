"""What an artist wires into Add Subject, right and wrong."""

import pytest
import torch
from troupe.model_patches.attention.limits import union
from troupe.model_patches.errors import SubjectError
from troupe.model_patches.subjects import MAX_SUBJECTS, Cast, References, ReferenceSubject, Subject, make_subject

PHOTO = torch.full((1, 16, 12, 3), 0.5)


def wrong(*args, **kwargs):
    """The message of make_subject's refusal."""
    with pytest.raises(SubjectError) as caught:
        make_subject(*args, **kwargs)
    assert caught.value.expected and caught.value.found and caught.value.remedy
    return str(caught.value)


# ---- photos ----------------------------------------------------------------------------------------------------------


def test_a_batch_and_further_images_are_photos_of_one_subject():
    batch, tall, wide = torch.rand(2, 16, 12, 3), torch.rand(1, 40, 9, 3), torch.rand(3, 9, 30, 4)
    subject = make_subject("cat", [batch, None, tall, wide])
    assert [tuple(p.image.shape) for p in subject.photos] == [(16, 12, 3)] * 2 + [(40, 9, 3)] + [(9, 30, 4)] * 3
    assert torch.equal(subject.photos[1].image, batch[1]) and torch.equal(subject.photos[5].image, wide[2])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_colour_and_alpha_are_photos(channels):
    assert make_subject("cat", [torch.rand(1, 16, 16, channels)]).photos[0].image.shape[-1] == channels


@pytest.mark.parametrize("h, w", [(1, 1), (7, 100), (100, 7)])
def test_a_tiny_image_is_refused_with_its_size(h, w):
    assert f"{w}x{h}" in wrong("cat", [torch.rand(1, h, w, 3)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_no_numbers_are_refused(value):
    broken = torch.rand(2, 16, 16, 3)
    broken[1, 3, 3, 0] = value
    assert "photo 2 of subject 4 ('cat')" in wrong("cat", [broken], number=4)


@pytest.mark.parametrize("channels", [2, 5, 16])
def test_something_that_is_no_image_is_refused(channels):
    assert str(channels) in wrong("cat", [torch.rand(1, 16, 16, channels)])


@pytest.mark.parametrize("images", [[], [None, None], [torch.rand(0, 16, 16, 3)]])
def test_no_photo_is_refused(images):
    assert "at least one photo for subject 1 ('cat')" in wrong("cat", images)


def test_the_third_photo_of_image_2_is_named_by_its_place():
    assert "photo 4" in wrong("cat", [PHOTO, torch.cat((PHOTO, PHOTO, torch.full_like(PHOTO, float("nan"))))])


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, kept",
    [
        ("cat", "cat"),
        ("  red cat\n", "red cat"),
        ("", ""),
        ("   ", ""),
        (r"rem \(re:zero\)", r"rem \(re:zero\)"),
        ("少女", "少女"),
    ],
)
def test_a_name_is_stripped_and_otherwise_kept(name, kept):
    assert make_subject(name, [PHOTO]).name == kept


def test_messages_about_a_nameless_subject_have_its_number_only():
    text = wrong("  ", [torch.rand(1, 1, 1, 3)], number=3)
    assert "subject 3 to" in text and "''" not in text


@pytest.mark.parametrize("weight", [0.0, -1.0, 3.0])
def test_weights_and_ranges_are_kept_as_given(weight):
    subject = make_subject("cat", [PHOTO], weight=weight, start_percent=0.7, end_percent=0.2)
    assert (subject.weight, subject.start_percent, subject.end_percent) == (weight, 0.7, 0.2)


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_one_mask_serves_the_whole_batch_but_not_the_other_images():
    mask = torch.rand(1, 5, 5)
    subject = make_subject("cat", [PHOTO.repeat(2, 1, 1, 1), PHOTO], mask)
    assert torch.equal(subject.photos[0].cutout, mask[0]) and torch.equal(subject.photos[1].cutout, mask[0])
    assert subject.photos[2].cutout is None


def test_a_batch_of_masks_is_one_for_each_photo():
    masks = torch.rand(3, 5, 7)
    for mask in (masks, masks.unsqueeze(1)):
        subject = make_subject("cat", [PHOTO.repeat(2, 1, 1, 1), PHOTO], mask)
        assert all(torch.equal(p.cutout, m) for p, m in zip(subject.photos, masks, strict=True))


def test_masks_for_the_batch_alone_are_allowed():
    subject = make_subject("cat", [PHOTO.repeat(2, 1, 1, 1), PHOTO], torch.ones(2, 5, 5))
    assert [p.cutout is None for p in subject.photos] == [False, False, True]


@pytest.mark.parametrize("count", [2, 4])
def test_too_few_or_too_many_masks_are_refused(count):
    text = wrong("cat", [PHOTO.repeat(3, 1, 1, 1)], torch.ones(count, 5, 5))
    assert "each of the 3 photos of subject 1 ('cat')" in text and f"{count} masks" in text


def test_an_empty_mask_is_the_hosts_way_to_say_none():
    subject = make_subject("cat", [PHOTO.repeat(2, 1, 1, 1)], torch.stack((torch.zeros(64, 64), torch.ones(64, 64))))
    assert subject.photos[0].cutout is None and subject.photos[1].cutout is not None


def test_a_mask_without_a_batch_axis_is_one_mask():
    assert make_subject("cat", [PHOTO], torch.ones(4, 6)).photos[0].cutout.shape == (4, 6)


@pytest.mark.parametrize("what", ["mask", "region"])
def test_a_mask_with_nan_is_refused(what):
    text = wrong("cat", [PHOTO], **{what: torch.full((1, 4, 4), float("nan"))})
    assert what in text and "subject 1 ('cat')" in text


def test_a_region_keeps_a_mask_for_each_picture_and_one_for_all():
    left, right = torch.zeros(4, 6), torch.zeros(4, 6)
    left[:, :2], right[:, 4:] = 1.5, 0.25
    region = make_subject("cat", [PHOTO], region=torch.stack((left, right)).half()).region
    assert region.shape == (2, 4, 6) and region.dtype == torch.float32
    assert region[:, 0].tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0.25, 0.25]]
    assert union(region)[0].tolist() == [1, 1, 0, 0, 0.25, 0.25]
    alone = make_subject("cat", [PHOTO], region=left[None]).region
    assert alone.shape == (4, 6) and union(alone) is alone


# ---- casts -----------------------------------------------------------------------------------------------------------


def test_adding_makes_a_new_cast():
    one = Cast().add(make_subject("a", [PHOTO]))
    two = one.add(make_subject("b", [PHOTO]))
    assert [len(c.subjects) for c in (Cast(), one, two)] == [0, 1, 2]
    assert [s.name for s in two.subjects] == ["a", "b"]


def test_the_thirty_first_subject_is_refused_by_name():
    cast = Cast(tuple(Subject(str(i), ()) for i in range(MAX_SUBJECTS)))
    with pytest.raises(SubjectError, match="at most 30 subjects.*'late' as number 31"):
        cast.add(Subject("late", ()))


def test_references_are_named_when_every_subject_is():
    def subject(named):
        return ReferenceSubject("x", torch.zeros(1, 1), torch.zeros(1, 1) if named else None)

    assert References(None, (subject(True),) * 2, torch.zeros(1, 1), torch.zeros(1, 1)).named
    assert not References(None, (subject(True), subject(False)), torch.zeros(1, 1), torch.zeros(1, 1)).named
    assert not References(None, (subject(True),), torch.zeros(1, 1), None).named


def test_a_mask_without_white_is_refused_with_its_brightness():
    with pytest.raises(SubjectError, match=r"nothing brighter than 2%"):
        make_subject("cat", [torch.rand(1, 20, 20, 3)], mask=torch.full((1, 20, 20), 0.02))


def test_whole_number_pictures_are_refused():
    with pytest.raises(SubjectError, match=r"whole numbers \(uint8\)"):
        make_subject("cat", [torch.zeros(1, 20, 20, 3, dtype=torch.uint8)])
