"""From a photo and five points of a face to the upright crop that ArcFace and MM-Diff's face head were trained on."""

from __future__ import annotations

import torch
from torch.nn.functional import grid_sample

from ..errors import SubjectError

CROP = 224  # pixels, both sides
TEMPLATE_SIDE = 112
LEAST_FIT = 1e-6
# ArcFace's: x, y of the points in a crop of that side
TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))


def similarity(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the least-squares rotation, scale and shift from one set of points to another (Umeyama 1991), without
    mirroring.

    Arguments: source, target: [N, 2], x and y. Returns [2, 3] float64, `[[a, -b, x], [b, a, y]]` on column vectors (x,
    y, 1). Raises SubjectError if no such transform is found (all source points in one place, not finite, or nothing
    like the target).
    """
    source, target = source.double(), target.double()
    from_mean, to_mean = source.mean(0), target.mean(0)
    (x, y), (u, v) = (source - from_mean).unbind(-1), (target - to_mean).unbind(-1)
    size, wanted = (x * x + y * y).sum(), (u * u + v * v).sum()
    a, b = (x * u + y * v).sum() / size, (x * v - y * u).sum() / size  # of the complex factor a + ib
    alike = (a * a + b * b) * size / wanted  # 1 for an exact fit; near 0 no turn is better than any other
    if not bool(alike > LEAST_FIT):  # nor if it is NaN
        raise SubjectError(
            "five different points of a face",
            "points that give no position",
            "Use another photo, or give the crop of the face yourself.",
        )
    matrix = torch.stack((torch.stack((a, -b)), torch.stack((b, a))))
    return torch.cat((matrix, (to_mean - matrix @ from_mean).unsqueeze(-1)), -1)


def align_face(photo: torch.Tensor, points: torch.Tensor, size: int = CROP) -> torch.Tensor:
    """Return the face of a photo, turned and scaled to ArcFace's template.

    Arguments:
        photo: [H, W, 3] float, 0..1.
        points: [5, 2], x and y in pixels, 0 the centre of the first: the eye at the picture's left, the other, the nose
            tip, the corner of the mouth at the left, the other.
        size: of the crop, pixels.
    Returns:
        [size, size, 3] float32, bilinear, black outside the photo.
    Raises:
        SubjectError: points that are not five, or that `similarity` refuses.
    """
    if tuple(points.shape) != (5, 2):
        raise SubjectError(
            "five points of a face, x and y each",
            f"a shape of {list(points.shape)}",
            "Use the five keypoints of an InsightFace-type detector.",
        )
    h, w = photo.shape[:2]
    template = torch.tensor(TEMPLATE, dtype=torch.float64) * (size / TEMPLATE_SIDE)
    matrix = inverse(similarity(points.cpu(), template))
    pixels = torch.arange(size, dtype=torch.float64)
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")
    # size, size, 2: where in the photo each pixel of the crop looks
    seen = torch.stack((x, y, torch.ones_like(x)), -1) @ matrix.T
    grid = (2 * seen + 1) / torch.tensor([w, h]) - 1  # grid_sample's -1 and 1 are the outer edges of the photo
    crop = grid_sample(
        photo.float().movedim(-1, 0).unsqueeze(0),
        grid.unsqueeze(0).to(photo.device, torch.float32),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return crop[0].movedim(0, -1)


def inverse(matrix: torch.Tensor) -> torch.Tensor:
    """Return the inverse of a [2, 3] transform, [2, 3]."""
    back = torch.linalg.inv(matrix[:, :2])
    return torch.cat((back, -back @ matrix[:, 2:]), -1)
