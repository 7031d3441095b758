"""The loss that binds a subject's word to its place in training (FastComposer, arXiv 2305.10431; Subject-Diffusion and
MM-Diff train with it too).
"""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate

EPSILON = 1e-5


def localization_loss(
    probabilities: torch.Tensor,
    masks: torch.Tensor,
    tokens: torch.Tensor,
    present: torch.Tensor,
    normalize: bool = False,
) -> torch.Tensor:
    """Return one layer's loss: mean attention to a subject's token outside of its mask less that inside, as published
    (signed, so it may fall below 0).

    Arguments:
        probabilities: text attention after its softmax, [B * H, P, L], batch-major, positions of a square picture.
        masks: [B, M, h, w] in 0..1, where each subject stands; tokens: [B, M] its row of the text; present: [B, M]
            bool.
        normalize: divide each map by its largest value first.
    Returns:
        [], the mean over pictures and heads of the mean over their subjects.
    """
    (b, m), side = tokens.shape, round(probabilities.shape[1] ** 0.5)
    # B, 1, M, P
    inside = interpolate(masks, size=(side, side), mode="bilinear", antialias=True).flatten(2).unsqueeze(1)
    maps = probabilities.unflatten(0, (b, -1)).transpose(2, 3)  # B, H, L, P
    maps = maps.gather(2, tokens[:, None, :, None].expand(b, maps.shape[1], m, maps.shape[3]))  # B, H, M, P
    if normalize:
        maps = maps / (maps.amax(-1, keepdim=True) + EPSILON)
    outer, inner = ((maps * where).sum(-1) / (where.sum(-1) + EPSILON) for where in (1 - inside, inside))
    here = present.unsqueeze(1).to(maps)  # B, 1, M
    return (((outer - inner) * here).sum(-1) / (here.sum(-1) + EPSILON)).mean()
