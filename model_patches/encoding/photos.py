"""Photos as an image encoder sees them."""

from __future__ import annotations

from math import ceil

import torch

from ..subjects import Cast, Photo
from .framing import bounding_box, flatten_alpha, frame, on_white


def prepared_photos(cast: Cast, size: int, framing: str, inside: int = 0) -> tuple[torch.Tensor, ...]:
    """Return the photos of all subjects in order, [size, size, 3] each; see `prepare_photo`."""
    return tuple(prepare_photo(photo, size, framing, inside) for subject in cast.subjects for photo in subject.photos)


def prepare_photo(photo: Photo, size: int, framing: str, inside: int = 0) -> torch.Tensor:
    """Return one photo as the encoder sees it, [size, size, 3]: alpha and cut-out on white, cropped to the cut-out's
    box, framed.

    inside: rows and columns of the photo to leave away at the box's bottom and right; 1 as Subject-Diffusion was
    published.
    """
    image = flatten_alpha(photo.image.unsqueeze(0).float())
    if photo.cutout is not None:
        image = on_white(image, photo.cutout.unsqueeze(0).to(image))
        box = bounding_box(photo.cutout)
        if box is not None:
            (top, left, bottom, right), (h, w) = box, photo.cutout.shape
            y, x = image.shape[1] / h, image.shape[2] / w  # the mask may have another resolution
            top, left, bottom, right = int(top * y), int(left * x), ceil(bottom * y), ceil(right * x)
            image = image[:, top : max(top + 1, bottom - inside), left : max(left + 1, right - inside)]
    return frame(image[0], size, framing)
