"""How alike pictures, references and a prompt are: cosines of vectors that an encoder made of them, and the conventions
by which papers report them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

CLIP_T_FACTOR = 2.5  # of CLIPScore (Hessel et al. 2021), by which MIP-Adapter's table is counted


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors [..., E] with length 1, float32; a vector of zeros stays one."""
    vectors = vectors.float()
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the cosine of every pair, [n, E] and [m, E] -> [n, m] in -1..1."""
    return unit(first) @ unit(second).T


def likeness_matrix(crops: torch.Tensor, references: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return how like each crop is to each subject's references: the mean cosine over the subject's photos.

    crops: [n, E]; references: [p, E] of each of m subjects, p >= 1. Returns [n, m].
    """
    sizes = [len(vectors) for vectors in references]
    return torch.stack([part.mean(1) for part in cosines(crops, torch.cat(list(references))).split(sizes, 1)], 1)


def reference_likeness(references: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return how alike the subjects' references are among themselves, [m, m]: the mean cosine over all pairs of photos.

    On the diagonal a photo is compared with itself too, so that a subject of one photo has 1 there.
    """
    sizes = [len(vectors) for vectors in references]
    return torch.stack([part.mean(0) for part in likeness_matrix(torch.cat(list(references)), references).split(sizes)])


def clip_i(pictures: torch.Tensor, references: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return CLIP-I [n] of whole pictures [n, E]: the mean cosine with each subject's references, then the mean over
    the subjects. With vectors of DINO it is what papers call DINO.
    """
    return likeness_matrix(pictures, references).mean(1)


def clip_t(pictures: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Return CLIP-T as its raw cosine [n]: pictures [n, E], texts [E] or [n, E] of the same encoder's text tower."""
    return (unit(pictures) * unit(texts)).sum(-1)


def clip_t_times_2_5(cosine: torch.Tensor) -> torch.Tensor:
    """Return CLIP-T as CLIPScore and MIP-Adapter count it: 2.5 * max(cosine, 0)."""
    return CLIP_T_FACTOR * cosine.clamp(min=0)
