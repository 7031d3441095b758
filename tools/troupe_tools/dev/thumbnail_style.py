"""What the thumbnails share: their size, colours and letters."""

from __future__ import annotations

from typing import Any

from PIL import ImageFont

SIZE = (800, 600)
MARGIN = 28
PAPER, CARD, HEAD, INK, DIM = (24, 25, 29), (52, 53, 60), (38, 39, 45), (240, 240, 244), (165, 167, 176)
OURS = (94, 200, 160)
SCALE = 2  # drawn larger, then reduced


def font(size: int) -> Any:
    """Return Pillow's own font, so that no machine needs another."""
    return ImageFont.load_default(size * SCALE)
