"""How the branches of one step become one prediction. All tensors have one shape: noise predictions, or denoised pictures (the same
formula, since the denoised picture is affine in the prediction and the coefficients sum to 1)."""
from __future__ import annotations

import torch


def subject_guidance(text: torch.Tensor, image: torch.Tensor, uncond: torch.Tensor, cfg: float, image_cfg: float | torch.Tensor) -> torch.Tensor:
    """`e_u + cfg (e_t - e_i) + image_cfg (e_i - e_u)` (Subject-Diffusion, arXiv 2307.11410; published: cfg 7.5, image_cfg 1.5).

    Arguments:
        text: e_t, fused prompt, subjects and mask; image: e_i, negative prompt, subjects and mask; uncond: e_u, negative prompt,
            object tokens of zeros and a mask of zeros.
    """
    return uncond + cfg * (text - image) + image_cfg * (image - uncond)


def equivalent_uncond(image: torch.Tensor, uncond: torch.Tensor, cfg: float, image_cfg: float | torch.Tensor) -> torch.Tensor:
    """X for which ordinary guidance, `X + cfg (e_t - X)`, is `subject_guidance` whatever e_t is; cfg must not be 1, where there is none."""
    return image + (1.0 - image_cfg) / (1.0 - cfg) * (uncond - image)
