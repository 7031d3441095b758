"""From photos of any shape to the encoder's square: exact geometry."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden_subject_diffusion import golden
from torch.nn.functional import interpolate
from troupe.model_patches.encoding.framing import FRAMINGS, bounding_box, flatten_alpha, frame, on_white
from troupe.model_patches.encoding.photos import prepare_photo
from troupe.model_patches.subjects import Photo

SIZE = 28
sides = st.integers(8, 90)


def black(h, w):
    return torch.zeros(h, w, 3)


def ramp(h, w):
    """Red grows downwards, green to the right: a pixel's colour tells where it came from."""
    return torch.stack(
        (torch.linspace(0, 1, h)[:, None].expand(h, w), torch.linspace(0, 1, w).expand(h, w), torch.full((h, w), 0.5)),
        -1,
    )


def content(square):
    """(top, left, bottom, right) of what is not white, ends exclusive."""
    return bounding_box((square.amax(-1) < 0.99).float())


@pytest.mark.parametrize("framing", FRAMINGS)
@given(h=sides, w=sides)
@settings(max_examples=30, deadline=None)
def test_every_photo_becomes_the_square(framing, h, w):
    square = frame(torch.rand(h, w, 3), SIZE, framing)
    assert square.shape == (SIZE, SIZE, 3)
    assert square.min() >= 0 and square.max() <= 1


@given(h=sides, w=sides)
@settings(max_examples=60, deadline=None)
def test_padding_is_a_white_square_with_the_photo_centred(h, w):
    """Padded first and resized then, as the training photos were: the border is soft by the resize filter, nothing
    else.
    """
    photo, side = torch.rand(h, w, 3), max(h, w)
    square = torch.ones(side, side, 3)
    top, left = (side - h) // 2, (side - w) // 2
    square[top : top + h, left : left + w] = photo
    expected = (
        interpolate(square.movedim(-1, 0)[None], size=(SIZE, SIZE), mode="bicubic", antialias=True)[0]
        .movedim(0, -1)
        .clamp(0, 1)
    )
    torch.testing.assert_close(frame(photo, SIZE, "pad"), expected)


KNOWN = {
    (56, 28): (0, 7, 28, 21),
    (28, 56): (7, 0, 21, 28),
    (28, 28): (0, 0, 28, 28),
    (10, 20): (7, 0, 21, 28),
    (1000, 8): (0, 14, 28, 14),
    (8, 1000): (14, 0, 14, 28),
}


@pytest.mark.parametrize("size, expected", KNOWN.items())
def test_padding_at_known_sizes(size, expected):
    """(top, left, bottom, right) of the photo in the square, soft by at most one pixel on each side."""
    assert all(
        abs(found - wanted) <= 1
        for found, wanted in zip(content(frame(black(*size), SIZE, "pad")), expected, strict=True)
    )


@pytest.mark.slow
def test_padding_a_long_strip_makes_no_huge_square():
    """A 20,000-pixel web comic: padded to a square as it is it would be 4.8 GB."""
    asked = []
    pad = torch.nn.functional.pad

    def spy(tensor, *args, **kwargs):
        result = pad(tensor, *args, **kwargs)
        asked.append(result.shape[-1])
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame.__module__ + ".pad", spy)
        strip = frame(torch.zeros(20000, 400, 3), SIZE, "pad")
    assert asked == [4096] and content(strip)[0] == 0 and content(strip)[2] == SIZE


@given(h=sides, w=sides)
@settings(max_examples=30, deadline=None)
def test_centre_crop_shows_the_middle_and_no_border(h, w):
    square = frame(0.9 * ramp(h, w), SIZE, "center")
    assert abs(square[..., 0].mean() - 0.45) < 0.04 and abs(square[..., 1].mean() - 0.45) < 0.04
    assert content(square) == (0, 0, SIZE, SIZE)
    seen = square[-1, 0, 0] - square[0, 0, 0], square[0, -1, 1] - square[0, 0, 1]
    for found, side in zip(seen, (h, w), strict=True):
        assert abs(found - 0.9 * min(h, w) / side) < 0.2 * min(h, w) / side + 0.03


@pytest.mark.parametrize("h, w", [(30, 41), (41, 30), (33, 33), (99, 20)])
def test_centre_crop_is_the_usual_clip_preprocessing(h, w):
    photo = torch.rand(h, w, 3)
    scale = SIZE / min(h, w)
    resized = interpolate(
        photo.movedim(-1, 0)[None], size=(round(scale * h), round(scale * w)), mode="bicubic", antialias=True
    )[0].movedim(0, -1)
    top, left = (resized.shape[0] - SIZE) // 2, (resized.shape[1] - SIZE) // 2
    torch.testing.assert_close(frame(photo, SIZE, "center"), resized[top : top + SIZE, left : left + SIZE].clamp(0, 1))


def test_stretching_shows_everything():
    square = frame(ramp(20, 60), SIZE, "stretch")
    assert square[0, 0, 0] < 0.05 and square[-1, 0, 0] > 0.95 and square[0, 0, 1] < 0.05 and square[0, -1, 1] > 0.95


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_photo_of_the_right_size_is_left_alone(framing):
    photo = torch.rand(SIZE, SIZE, 3)
    assert torch.equal(frame(photo, SIZE, framing), photo)


# ---- transparency and cut-outs ---------------------------------------------------------------------------------------


def test_transparent_becomes_white_and_half_becomes_half():
    image = torch.zeros(1, 1, 3, 4)
    image[0, 0, :, 3] = torch.tensor([0.0, 0.5, 1.0])
    assert flatten_alpha(image)[0, 0, :, 0].tolist() == [1.0, 0.5, 0.0]


def test_grey_becomes_three_channels():
    image = torch.rand(2, 4, 5, 1)
    flat = flatten_alpha(image)
    assert flat.shape == (2, 4, 5, 3) and torch.equal(flat[..., 2:], image)


def test_a_mask_of_another_resolution_is_stretched_over_the_photo():
    mask = torch.tensor([[1.0, 0.0]])
    cut = on_white(torch.zeros(1, 8, 8, 3), mask[None])[0, ..., 0]
    assert cut[:, :2].max() == 0 and cut[:, -2:].min() == 1


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (2, 3, 5, 9), (7, 9, 8, 10), (0, 0, 8, 10)])
def test_bounding_box_has_exclusive_ends(box):
    top, left, bottom, right = box
    mask = torch.zeros(8, 10)
    mask[top:bottom, left:right] = 1
    assert bounding_box(mask) == box


def test_bounding_box_of_nothing_is_none():
    assert bounding_box(torch.zeros(4, 4)) is None
    assert bounding_box(torch.full((4, 4), 0.4)) is None


def test_a_cut_out_stands_on_white_and_fills_the_square():
    """A black photo, masked to a 10x20 part: what is left is 28x14, centred, on white."""
    mask = torch.zeros(40, 40)
    mask[5:15, 10:30] = 1
    square = prepare_photo(Photo(black(40, 40), mask), SIZE, "pad")
    assert all(abs(found - wanted) <= 1 for found, wanted in zip(content(square), (7, 0, 21, SIZE), strict=True))
    assert square[8:20, 1:-1].max() == 0


def test_the_background_inside_the_cut_outs_box_is_white():
    mask = torch.zeros(SIZE, SIZE)
    mask[0, :] = mask[:, 0] = mask[-1, :] = mask[:, -1] = 1  # a frame, its box is the whole photo
    square = prepare_photo(Photo(black(SIZE, SIZE), mask), SIZE, "pad")
    assert square[1:-1, 1:-1].min() == 1 and square[0].max() == 0


@given(
    h=sides, w=sides, top=st.integers(0, 9), left=st.integers(0, 9), bottom=st.integers(1, 10), right=st.integers(1, 10)
)
@settings(max_examples=80, deadline=None)
def test_a_cut_out_of_another_resolution_loses_nothing(h, w, top, left, bottom, right):
    """A 10x10 mask on a photo of any size: every pixel that the mask's box touches is kept, no more than one pixel
    over.
    """
    if bottom <= top or right <= left:
        return
    mask = torch.zeros(10, 10)
    mask[top:bottom, left:right] = 1
    crops = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_photo.__module__ + ".frame", lambda image, *args: crops.append(image) or image)
        prepare_photo(Photo(torch.rand(h, w, 3), mask), SIZE, "pad")
    found = crops[0].shape[:2]
    for got, low, high, side in ((found[0], top, bottom, h), (found[1], left, right, w)):
        exact = (high - low) * side / 10
        assert exact - 1e-6 <= got < exact + 2


def test_a_faint_mask_cuts_out_without_cropping():
    square = prepare_photo(Photo(black(SIZE, SIZE), torch.full((SIZE, SIZE), 0.25)), SIZE, "pad")
    torch.testing.assert_close(square, torch.full((SIZE, SIZE, 3), 0.75))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_channels_and_float_type_are_prepared(channels, dtype):
    photo = Photo(torch.ones(9, 31, channels, dtype=dtype), torch.ones(5, 5))
    square = prepare_photo(photo, SIZE, "pad")
    assert square.dtype == torch.float32 and square.shape == (SIZE, SIZE, 3) and square.min() > 0.99


@pytest.mark.parametrize("reference", [0, 1])
def test_a_cut_out_is_what_subject_diffusion_was_published_with(reference):
    """Against the official crop and open_clip's preprocessing, normalised and pooled to 8x8. They resize 8-bit pixels
    in two rounded passes, we in float: at this sevenfold enlargement that is a quarter of an 8-bit step (0.001 of
    white, 0.004 of a normalised pixel)."""
    g = golden("pipeline")
    photo = Photo(g[f"ref_p{reference}.rgb"].float() / 255, g[f"ref_p{reference}.mask"].float())
    mean, std = torch.tensor((0.48145466, 0.4578275, 0.40821073)), torch.tensor((0.26862954, 0.26130258, 0.27577711))

    def pooled(inside):
        pixels = (prepare_photo(photo, 224, "center", inside) - mean) / std
        return torch.nn.functional.adaptive_avg_pool2d(pixels.movedim(-1, 0), 8)

    torch.testing.assert_close(pooled(1), g["two.clip_pixels_pool8"][reference], rtol=0, atol=5e-3)
    assert (pooled(0) - g["two.clip_pixels_pool8"][reference]).abs().max() > 0.4


def test_the_published_crop_leaves_something_of_a_cut_out_of_one_pixel():
    mask = torch.zeros(10, 10)
    mask[3, 4] = 1
    assert prepare_photo(Photo(black(10, 10), mask), SIZE, "center", inside=1).max() == 0
