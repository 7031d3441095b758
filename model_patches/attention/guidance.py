"""How the branches of one step become one prediction. All tensors have one shape: noise predictions, or denoised
pictures (the same formula, since the denoised picture is affine in the prediction and the coefficients sum to 1)."""

from __future__ import annotations

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


def umm_coefficients(cfg: float, alpha: float) -> tuple[float, float, float]:
    """Return the factors of (null, text, subjects) in UMM-Diffusion's fused sampling, summing to 1:
    `e_0 + cfg (alpha e_u + (1 - alpha) e_y - e_0)` (arXiv 2303.09319, with classifier-free guidance).

    A branch with factor 0 need not be evaluated.

    Arguments:
        cfg: guidance, 7.5 in Stable Diffusion.
        alpha: in 0..1, the subjects' share; the published value is unknown.
    """
    return 1.0 - cfg, 0.0 if abs(1.0 - alpha) < WEIGHT_ROUNDING else cfg * (1.0 - alpha), cfg * alpha


def umm_condition(text: torch.Tensor | None, subjects: torch.Tensor | None, alpha: float) -> torch.Tensor:
    """Return `alpha e_u + (1 - alpha) e_y`, which classifier-free guidance then takes for the prompt's prediction.

    Arguments:
        text: e_y, plain prompt; subjects: e_u, prompt with the pseudo words. A branch whose coefficient is 0 is not
            read and may be None; at least one is not.
        alpha: in 0..1, the subjects' share.
    """
    read = cast("tuple[torch.Tensor, torch.Tensor]", (text, subjects))  # a None has the coefficient 0
    branches = zip(umm_coefficients(1.0, alpha)[1:], read, strict=True)
    return cast(torch.Tensor, sum(coefficient * branch for coefficient, branch in branches if coefficient))
