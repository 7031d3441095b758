"""How the branches of one step become one prediction. All tensors have one shape: noise predictions, or denoised
pictures (the same formula, since the denoised picture is affine in the prediction and the coefficients sum to 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch

WEIGHT_ROUNDING = 1e-9  # of a sum of weights


def subject_guidance(
    text: torch.Tensor, image: torch.Tensor, uncond: torch.Tensor, cfg: float, image_cfg: float | torch.Tensor
) -> torch.Tensor:
    """Return `e_u + cfg (e_t - e_i) + image_cfg (e_i - e_u)` (Subject-Diffusion, arXiv 2307.11410; published: cfg 7.5,
    image_cfg 1.5).

    Arguments:
        text: e_t, fused prompt, subjects and mask; image: e_i, negative prompt, subjects and mask; uncond: e_u,
            negative prompt, object tokens of zeros and a mask of zeros.
    """
    return uncond + cfg * (text - image) + image_cfg * (image - uncond)


def subject_coefficients(cfg: float, image_cfg: float) -> tuple[float, float, float]:
    """Return the factors of (uncond, image, text) in `subject_guidance`, summing to 1."""
    return 1.0 - image_cfg, image_cfg - cfg, cfg


def equivalent_uncond(
    image: torch.Tensor, uncond: torch.Tensor, cfg: float, image_cfg: float | torch.Tensor
) -> torch.Tensor:
    """Return X for which ordinary guidance, `X + cfg (e_t - X)`, is `subject_guidance` whatever e_t is; cfg must not be
    1, where there is none.
    """
    return image + (1.0 - image_cfg) / (1.0 - cfg) * (uncond - image)


def umm_coefficients(cfg: float, alphas: Sequence[float]) -> tuple[float, ...]:
    """Return the factors of (null, text, subject 1, subject 2, ...) in `umm_guidance`, summing to 1.

    A branch with factor 0 need not be evaluated.
    """
    text = 1.0 - math.fsum(alphas)
    return 1.0 - cfg, 0.0 if abs(text) < WEIGHT_ROUNDING else cfg * text, *(cfg * alpha for alpha in alphas)


def umm_guidance(
    null: torch.Tensor | None,
    text: torch.Tensor | None,
    subjects: Sequence[torch.Tensor | None],
    cfg: float,
    alphas: Sequence[float],
) -> torch.Tensor:
    """Return `e_0 + cfg (sum_j alpha_j e_j + (1 - sum_j alpha_j) e_y - e_0)` (UMM-Diffusion, arXiv 2303.09319, with
    classifier-free guidance).

    Arguments:
        null: e_0, negative prompt; text: e_y, plain prompt; subjects: e_j, prompt with the pseudo words of subject j
            (or of all in one). A branch whose coefficient is 0 is not read and may be None.
        cfg: guidance, 7.5 in Stable Diffusion; alphas: in 0..1, one for each of the subjects; the published value is
            unknown.
    """
    read = cast("tuple[torch.Tensor, ...]", (null, text, *subjects))  # a None has the coefficient 0
    branches = zip(umm_coefficients(cfg, alphas), read, strict=True)
    # at least one coefficient is not 0, since they sum to 1
    return cast(torch.Tensor, sum(coefficient * branch for coefficient, branch in branches if coefficient))
