"""From a photo of any size to the square picture that a CLIP vision encoder sees.

IMAGE layout: [n, H, W, 3] float, 0..1.
"""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate, pad

FRAMINGS = ("pad", "center", "stretch")
WHITE = 1.0
LONGEST_SIDE = (
    4096  # pixels: a longer photo is made smaller before it is padded to a square, which would fill the memory
)


def flatten_alpha(image: torch.Tensor) -> torch.Tensor:
    """Convert photos [n, H, W, 1, 3 or 4] to [n, H, W, 3]; transparent parts of a 4-channel image become white, grey
    becomes RGB.
    """
    if image.shape[-1] == 1:
        return image.expand(*image.shape[:-1], 3)
    if image.shape[-1] < 4:
        return image
    return on_white(image[..., :3], image[..., 3])


def on_white(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Keep the picture where the mask is 1, white where it is 0. image [n, H, W, 3], mask [n or 1, h, w] of any
    size.
    """
    if mask.shape[-2:] != image.shape[1:3]:
        mask = interpolate(mask.unsqueeze(1), size=tuple(image.shape[1:3]), mode="bilinear", antialias=True).squeeze(1)
    alpha = mask.clamp(0, 1).unsqueeze(-1).to(image)
    return image * alpha + WHITE * (1 - alpha)


def bounding_box(mask: torch.Tensor) -> tuple[int, int, int, int] | None:
    """Return (top, left, bottom, right), ends exclusive, of the mask's pixels over 0.5; None if there is none.

    mask: [h, w].
    """
    rows, columns = (mask > 0.5).any(1).nonzero(), (mask > 0.5).any(0).nonzero()
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def frame(image: torch.Tensor, size: int, framing: str) -> torch.Tensor:
    """Resize one photo [H, W, 3] to [size, size, 3], bicubic with antialias.

    framing: `pad` to a white square, `center` crop of the shorter side, `stretch`, or `black` (see `black_square`, not
    bicubic).
    """
    if framing == "black":
        return black_square(image, size)
    pixels = image.movedim(-1, 0).unsqueeze(0)  # 1, 3, H, W
    h, w = image.shape[:2]
    if framing == "pad":  # before resizing, as the training photos were
        if max(h, w) > LONGEST_SIDE:
            h, w = (max(1, round(side * LONGEST_SIDE / max(h, w))) for side in (h, w))
            pixels = interpolate(pixels, size=(h, w), mode="bicubic", antialias=True)
        side = max(h, w)
        top, left = (side - h) // 2, (side - w) // 2
        pixels = pad(pixels, (left, side - w - left, top, side - h - top), value=WHITE)
    fitting = min(h, w) if framing == "center" else None
    h, w = (
        (size, size)
        if fitting is None
        else (max(size, round(h * size / fitting)), max(size, round(w * size / fitting)))
    )
    if tuple(pixels.shape[-2:]) != (h, w):
        pixels = interpolate(pixels, size=(h, w), mode="bicubic", antialias=True)
    top, left = (h - size) // 2, (w - size) // 2
    return pixels[0, :, top : top + size, left : left + size].movedim(0, -1).clamp(0, 1)


def black_square(image: torch.Tensor, size: int) -> torch.Tensor:
    """Resize one photo [H, W, 3] to [size, size, 3] as MM-Diff and FastComposer were published: padded with black,
    bilinear with antialias, in 8-bit steps.

    Both sides get half of the difference, rounded down: an odd one leaves a pixel, over which the photo is stretched.
    """
    pixels = (image.movedim(-1, 0).unsqueeze(0).float() * 255).round()  # 1, 3, H, W
    h, w = image.shape[:2]
    if max(h, w) > LONGEST_SIDE:
        h, w = (max(1, round(side * LONGEST_SIDE / max(h, w))) for side in (h, w))
        pixels = interpolate(pixels, size=(h, w), mode="bilinear", antialias=True)
    x, y = (max(h, w) - w) // 2, (max(h, w) - h) // 2
    pixels = interpolate(pad(pixels, (x, x, y, y)), size=(size, size), mode="bilinear", antialias=True)
    return pixels[0].movedim(0, -1).round().clamp(0, 255) / 255
