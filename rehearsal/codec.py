"""The rehearsal world's latent codec: fixed, exact on its own pictures, with nothing to train.

A latent cell covers 2 x 2 cells of the drawing (8 x 8 pixels). Its 12 channels are the four Haar coefficients (average,
horizontal, vertical and diagonal difference) of luma and of two chroma differences. Each has its mean subtracted and is
divided by the square root of its standard deviation over the world, times a constant that makes the average variance 1:
differences are rare, but where there is a subject they then vary about as much as averages do.
"""

from __future__ import annotations

import torch

CELL = 4  # pixels of a drawn cell's side
CHANNELS = 12
FACTOR = 2 * CELL  # pixels of a latent cell's side

# RGB -> luma, blue and red difference (JPEG)
_COLOUR = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
# of the cells 00, 01, 10, 11; its own inverse
_HAAR = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
MEAN = torch.tensor([0.6, 0, 0, 0, -0.018, 0, 0, 0, -0.039, 0, 0, 0])
SCALE = torch.tensor([0.499, 0.206, 0.218, 0.165, 0.328, 0.157, 0.179, 0.136, 0.301, 0.153, 0.174, 0.132])


def encode(pixels: torch.Tensor) -> torch.Tensor:
    """Encode pictures [b, 3, 8h, 8w] in -1..1 as latents [b, 12, h, w]; a drawn cell is the average of its pixels."""
    cells = torch.nn.functional.avg_pool2d(pixels.float(), CELL)
    return (cells_to_coefficients(cells) - MEAN.to(cells).view(-1, 1, 1)) / SCALE.to(cells).view(-1, 1, 1)


def decode(latent: torch.Tensor) -> torch.Tensor:
    """Decode latents [b, 12, h, w] to pictures [b, 3, 8h, 8w] in about -1..1; a cell is a square of one colour."""
    coefficients = latent.float() * SCALE.to(latent.device).view(-1, 1, 1) + MEAN.to(latent.device).view(-1, 1, 1)
    return coefficients_to_cells(coefficients).repeat_interleave(CELL, -1).repeat_interleave(CELL, -2)


def cells_to_coefficients(cells: torch.Tensor) -> torch.Tensor:
    """Return RGB cells [b, 3, 2h, 2w] as coefficients [b, 12, h, w]: colour-major, then those of Haar."""
    blocks = torch.nn.functional.pixel_unshuffle(cells, 2).unflatten(1, (3, 4))  # b, rgb, 4 cells, h, w
    return torch.einsum("yc,kq,bcqhw->bykhw", _COLOUR.to(cells), _HAAR.to(cells), blocks).flatten(1, 2)


def coefficients_to_cells(coefficients: torch.Tensor) -> torch.Tensor:
    """Return the cells of coefficients: the inverse of `cells_to_coefficients`."""
    colours = torch.linalg.inv(_COLOUR).to(coefficients)
    blocks = torch.einsum("cy,qk,bykhw->bcqhw", colours, _HAAR.to(coefficients), coefficients.unflatten(1, (3, 4)))
    return torch.nn.functional.pixel_shuffle(blocks.flatten(1, 2), 2)
