"""Losses of training against the stored values of the official code."""

import pytest
import torch
from support.golden_mm_diff import golden, normal
from troupe.training.losses import localization_loss


@pytest.mark.parametrize("kind", ["plain", "norm"])
def test_the_localization_loss_is_the_official_one(kind):
    g = golden("fastcomposer")
    maps = {side: g[f"fc.scores.{side}"] for side in (4, 8)} | {
        16: (2 * normal("input:fc.scores.16", 6, 256, 9)).float().softmax(-1)
    }
    losses = {
        side: localization_loss(scores, g["fc.segmaps"], g["fc.token_idx"], g["fc.token_idx_mask"], kind == "norm")
        for side, scores in maps.items()
    }
    for side, loss in losses.items():
        torch.testing.assert_close(loss, g[f"fc.loss.{kind}.{side}"][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(sum(losses.values()) / 3, g[f"fc.loss.{kind}.all"][0], rtol=0, atol=1e-6)
