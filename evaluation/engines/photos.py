"""Photos of a subject that go through one batch in ComfyUI, which needs all of them in one size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...model_patches.encoding.framing import FRAMINGS, frame
from ...training.data.pictures import ORIENTATION, PictureFault, open_picture

ON_ITS_SIDE = 5  # EXIF orientations from this one on exchange width and height


def one_size(photos: Sequence[Path]) -> bool:
    """Return whether all photos have one size, as their EXIF data turn them. Raises PictureFault where one does not
    open.
    """
    return len({_size(photo) for photo in photos}) == 1


def _size(photo: Path) -> tuple[int, int]:
    try:
        with Image.open(photo) as picture:
            w, h = picture.size
            turned = picture.getexif().get(ORIENTATION, 1) >= ON_ITS_SIDE
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureFault("picture does not open", f"{photo.name} ({error})") from error
    return (h, w) if turned else (w, h)


def framed_png(photo: Path, side: int, framing: str) -> bytes:
    """Return a photo as the PNG of a square, as an image encoder of that size sees it.

    framing: 'pad', 'center' or 'stretch'; anything else is 'pad', as IP-Adapters and MIP-Adapter were published.
    Raises:
        PictureFault: it does not open.
    """
    pixels = torch.from_numpy(np.array(open_picture(photo))).float() / 255
    square = frame(pixels, side, framing if framing in FRAMINGS else "pad")
    buffer = io.BytesIO()
    Image.fromarray((square * 255).round().byte().numpy()).save(buffer, "PNG")
    return buffer.getvalue()
