"""The loss that binds a subject's word to its place in training (FastComposer, arXiv 2305.10431; Subject-Diffusion and
MM-Diff train with it too).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.nn.functional import interpolate

EPSILON = 1e-5
LOCALIZATIONS = ("signed", "absolute")


def localization_loss(
    probabilities: torch.Tensor,
    masks: torch.Tensor,
    tokens: torch.Tensor,
    present: torch.Tensor,
    form: str = LOCALIZATIONS[0],
) -> torch.Tensor:
    """Return one layer's loss.

    signed: mean attention to a subject's token outside of its mask less that inside, as in the published code; it may
    fall below 0. absolute: the mean distance between attention and mask, as Subject-Diffusion's paper has it, 0..1.

    Arguments:
        probabilities: text attention after its softmax, [B * H, P, L], batch-major, positions of a square picture.
        masks: [B, M, h, w] in 0..1, where each subject is; tokens: [B, M] its row of the text; present: [B, M]
            bool.
        form: one of LOCALIZATIONS.
    Returns:
        [], the mean over pictures and heads of the mean over their subjects.
    """
    (b, m), side = tokens.shape, round(probabilities.shape[1] ** 0.5)
    # B, 1, M, P
    inside = interpolate(masks, size=(side, side), mode="bilinear", antialias=True).flatten(2).unsqueeze(1)
    maps = probabilities.unflatten(0, (b, -1)).transpose(2, 3)  # B, H, L, P
    maps = maps.gather(2, tokens[:, None, :, None].expand(b, maps.shape[1], m, maps.shape[3]))  # B, H, M, P
    if form == "absolute":
        each = (maps - inside).abs().mean(-1)  # B, H, M
    else:
        outer, inner = ((maps * where).sum(-1) / (where.sum(-1) + EPSILON) for where in (1 - inside, inside))
        each = outer - inner
    here = present.unsqueeze(1).to(maps)  # B, 1, M
    return ((each * here).sum(-1) / (here.sum(-1) + EPSILON)).mean()


def localization_losses(
    layers: Iterable[torch.Tensor],
    masks: torch.Tensor,
    tokens: torch.Tensor,
    present: torch.Tensor,
    form: str = LOCALIZATIONS[0],
) -> torch.Tensor:
    """Return each picture's `localization_loss` [B], the mean over layers; arguments as there."""
    rows = [slice(b, b + 1) for b in range(len(tokens))]
    each = [
        torch.stack(
            [
                localization_loss(maps, masks[row], tokens[row], present[row], form=form)
                for row, maps in zip(rows, probabilities.unflatten(0, (len(rows), -1)), strict=True)
            ]
        )
        for probabilities in layers
    ]
    return torch.stack(each).mean(0)


def image_constraint(layers: Sequence[torch.Tensor], masks: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return each picture's constraint on image attention, [B]: `localization_loss` of every image token of a subject
    with the subject's mask, the mean over tokens and layers (MM-Diff, arXiv 2403.15059).

    Arguments:
        layers: probabilities [B * H, P, M * T] of each layer, batch-major, subject by subject.
        masks: [B, M, h, w] in 0..1; present: [B, M] bool.
    """
    (b, m), count = present.shape, layers[0].shape[-1]
    first = torch.arange(0, count, count // m, device=masks.device).expand(b, m)  # of each subject
    return torch.stack([localization_losses(layers, masks, first + t, present) for t in range(count // m)]).mean(0)
