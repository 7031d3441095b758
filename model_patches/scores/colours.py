"""Pictures by their colours alone: which there are and how much of each, at any position. Needs no model."""

from __future__ import annotations

import torch

from ..encoding.framing import frame

NAME = "colours"
BINS = 6  # of each of red, green and blue
PAPER = 0.93  # pixels with all three above it are empty paper


class ColourPictures:
    """A `scoring.PictureEncoder` of colours: the cosine of two pictures is the Bhattacharyya coefficient of their
    histograms, 1 for equal shares of all colours, 0 for no colour in common.
    """

    size, name, shares = 64, NAME, True

    def vectors(self, pictures: torch.Tensor) -> torch.Tensor:
        """See `scoring.PictureEncoder`: roots of the shares of BINS ** 3 colours, white paper left out."""
        pixels = pictures.flatten(1, 2).float().clamp(0, 1)
        cells = (pixels * BINS).long().clamp(max=BINS - 1)
        cells = (cells[..., 0] * BINS + cells[..., 1]) * BINS + cells[..., 2]
        seen = (pixels <= PAPER).any(-1).float()
        counts = torch.zeros(len(pixels), BINS**3, device=pixels.device).scatter_add_(1, cells, seen)
        return (counts / counts.sum(1, keepdim=True).clamp(min=1)).sqrt()

    def whole(self, picture: torch.Tensor) -> torch.Tensor:
        """See `scoring.PictureEncoder`."""
        return frame(picture, self.size, "stretch")
