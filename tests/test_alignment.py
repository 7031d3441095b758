"""Face crops: the five-point transform and the warp, against independent evaluations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import SimilarityTransform, estimate_transform, warp
from troupe.model_patches.encoding.alignment import CROP, align_face, inverse, similarity
from troupe.model_patches.errors import SubjectError

# ArcFace's, for 224 pixels
TARGET = np.array(
    [[76.5892, 103.3926], [147.0636, 103.0028], [112.0504, 143.4732], [83.0986, 184.731], [141.4598, 184.4082]]
)


def photo(h=150, w=200, seed=0):
    """Smooth enough that a hundredth of a pixel does not matter, no two places alike."""
    y, x = np.mgrid[:h, :w] / 20
    phases = np.random.RandomState(seed).rand(3) * 6
    return np.stack([0.5 + 0.5 * np.sin(x * (1 + i) + phases[i]) * np.cos(y * (2 - i / 2)) for i in range(3)], -1)


def face(angle=0.0, scale=0.3, x=40.0, y=30.0, noise=0.0):
    """Five points in a photo: the template turned, scaled, moved, and shaken."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * TARGET @ turn.T + (x, y) + noise * np.random.RandomState(1).standard_normal((5, 2))


def umeyama(source, target):
    """The paper's solution by singular values, with the sign that forbids a mirror."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, d, v = np.linalg.svd(b.T @ a / len(a))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    turn, scale = u @ np.diag(sign) @ v, (d * sign).sum() / a.var(0).sum()
    return np.column_stack((scale * turn, target.mean(0) - scale * turn @ source.mean(0)))


def bilinear(image, x, y):
    """One place of an image, pixel centres at whole numbers, 0 outside."""
    h, w = image.shape[:2]
    total = np.zeros(3)
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < h and 0 <= column < w:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * image[row, column]
    return total


CASES = {
    "upright": {},
    "turned": {"angle": 0.4, "noise": 1.5},
    "upside down": {"angle": np.pi, "x": 150.0, "y": 120.0},
    "small": {"scale": 0.05, "noise": 0.3},
    "over the edge": {"scale": 0.7, "x": 90.0, "y": -40.0, "angle": -0.3},
}


@pytest.mark.parametrize("case", CASES)
def test_transform_is_umeyamas_and_skimages(case):
    points = face(**CASES[case])
    found = similarity(torch.from_numpy(points), torch.from_numpy(TARGET)).numpy()
    np.testing.assert_allclose(found, umeyama(points, TARGET), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found, estimate_transform("similarity", points, TARGET).params[:2], rtol=0, atol=1e-9)


def test_a_mirrored_face_is_not_mirrored_back():
    """Its points fit badly; the transform stays a turn, as in the official crops."""
    points = face(angle=0.2, noise=2.0) * (-1, 1) + (200, 0)
    found = similarity(torch.from_numpy(points), torch.from_numpy(TARGET)).numpy()
    assert np.linalg.det(found[:, :2]) > 0
    np.testing.assert_allclose(found, umeyama(points, TARGET), rtol=0, atol=1e-9)


@given(angle=st.floats(-3.1, 3.1), scale=st.floats(0.05, 20), x=st.floats(-500, 500), y=st.floats(-500, 500))
@settings(max_examples=50, deadline=None)
def test_an_exact_fit_is_found_and_undone(angle, scale, x, y):
    points = torch.from_numpy(face(angle, scale, x, y))
    there = similarity(points, torch.from_numpy(TARGET))
    assert torch.allclose(points @ there[:, :2].T + there[:, 2], torch.from_numpy(TARGET), rtol=0, atol=1e-6)
    back = inverse(there)
    assert torch.allclose(torch.from_numpy(TARGET) @ back[:, :2].T + back[:, 2], points, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_crop_is_the_bilinear_warp(case):
    """Against a loop over single pixels and skimage's warp; float32 coordinates move a place by 1e-4 of a pixel."""
    image, points = photo(), face(**CASES[case])
    found = align_face(torch.from_numpy(image), torch.from_numpy(points)).numpy()
    assert found.shape == (CROP, CROP, 3) and found.dtype == np.float32
    fit = umeyama(points, TARGET)
    back = np.linalg.inv(np.vstack((fit, (0, 0, 1))))
    for column, row in np.random.RandomState(2).randint(0, CROP, (200, 2)):
        x, y, _ = back @ (column, row, 1)
        np.testing.assert_allclose(found[row, column], bilinear(image, x, y), rtol=0, atol=1e-4)
    expected = warp(
        image,
        SimilarityTransform(matrix=np.vstack((fit, (0, 0, 1)))).inverse,
        output_shape=(CROP, CROP),
        order=1,
        mode="constant",
        cval=0,
    )
    x, y = (back @ np.stack([*np.mgrid[:CROP, :CROP][::-1].reshape(2, -1), np.ones(CROP * CROP)]))[:2].reshape(
        2, CROP, CROP
    )
    # skimage's border is sharp, cv2's and ours fades over a pixel
    inner = (x >= 0) & (x <= 199) & (y >= 0) & (y <= 149)
    assert inner.any()
    np.testing.assert_allclose(found[inner], expected[inner], rtol=0, atol=1e-4)
    outer = (x <= -1) | (x >= 200) | (y <= -1) | (y >= 150)
    assert not found[outer].any()


def test_a_crop_that_is_in_place_stays_as_it_is():
    image = torch.rand(CROP, CROP, 3)
    torch.testing.assert_close(align_face(image, torch.from_numpy(TARGET)), image, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        align_face(image[:112, :112], torch.from_numpy(TARGET / 2), 112), image[:112, :112], rtol=0, atol=1e-4
    )


def test_outside_a_photo_is_black():
    found = align_face(torch.ones(80, 80, 3), torch.from_numpy(face(scale=0.5, x=30, y=-30)))
    assert (
        set(found.unique().tolist()) >= {0.0, 1.0}
        and found.min() == 0
        and found[:40].max() == 0
        and found[:, -40:].max() == 0
    )


def unlike_a_face():
    """Points on which every turn of the template fits equally badly: as complex numbers, perpendicular to it."""
    template = (TARGET - TARGET.mean(0)) @ (1, 1j)
    points = np.array([3 + 1j, 10 - 2j, 4 + 9j, -8 + 1j, 5j])
    points = points - points.mean()
    points = points - np.vdot(template, points) / np.vdot(template, template) * template
    return torch.from_numpy(20 + np.stack((points.real, points.imag), -1))


@pytest.mark.parametrize(
    "points, complaint",
    [
        (unlike_a_face(), "points that give no position"),
        (torch.full((5, 2), torch.inf), "points that give no position"),
        (torch.ones(5, 2), "points that give no position"),
        (torch.full((5, 2), torch.nan), "points that give no position"),
        (torch.ones(4, 2), "five points"),
        (torch.ones(5, 3), "five points"),
    ],
)
def test_points_of_no_face_are_refused(points, complaint):
    with pytest.raises(SubjectError, match=complaint):
        align_face(torch.zeros(50, 50, 3), points)
