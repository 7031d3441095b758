"""Guidance of three branches as arithmetic."""

import pytest
import torch
from troupe.model_patches.attention.guidance import equivalent_uncond, subject_guidance


@pytest.mark.parametrize("cfg", [7.5, 0.5, 0.0])
@pytest.mark.parametrize("second", [0.0, 1.0, 1.5, 9.0, "each row its own"])
def test_ordinary_guidance_against_the_equivalent_uncond_is_the_formula(cfg, second):
    text, image, uncond = torch.randn(3, 2, 4, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if isinstance(second, str):
        second = torch.tensor([1.0, 3.0], dtype=torch.float64).view(2, 1, 1, 1)
    x = equivalent_uncond(image, uncond, cfg, second)
    assert torch.allclose(x + cfg * (text - x), subject_guidance(text, image, uncond, cfg, second), rtol=0, atol=1e-12)
