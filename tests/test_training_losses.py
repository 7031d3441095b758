"""Losses of training against the stored values of the official code."""

import torch
from support import golden_subject_diffusion
from support.golden_mm_diff import golden, normal
from troupe.training.losses import localization_loss, localization_losses


def test_the_localization_loss_is_the_official_one():
    g = golden("fastcomposer")
    maps = {side: g[f"fc.scores.{side}"] for side in (4, 8)} | {
        16: (2 * normal("input:fc.scores.16", 6, 256, 9)).float().softmax(-1)
    }
    losses = {
        side: localization_loss(scores, g["fc.segmaps"], g["fc.token_idx"], g["fc.token_idx_mask"])
        for side, scores in maps.items()
    }
    for side, loss in losses.items():
        torch.testing.assert_close(loss, g[f"fc.loss.plain.{side}"][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(sum(losses.values()) / 3, g["fc.loss.plain.all"][0], rtol=0, atol=1e-6)


def test_it_is_subject_diffusions_too():
    """Two layers of 8 x 8 and 4 x 4 positions; of the second picture one subject is absent."""
    g = golden_subject_diffusion.golden("localization")
    given = g["segmaps"], g["token_idx"], g["token_mask"].bool()
    assert given[2].tolist() == [[True, True], [True, False]]
    losses = [localization_loss(g[f"scores.{layer}"], *given) for layer in "ab"]
    for layer, loss in zip("ab", losses, strict=True):
        torch.testing.assert_close(loss, g[f"loss.layer_{layer}.norm0"][0], rtol=0, atol=1e-7)
    torch.testing.assert_close(sum(losses) / 2, g["loss.mean.norm0"][0], rtol=0, atol=1e-7)


def test_a_pictures_loss_counts_both_words_of_a_subject():
    """Subject-Diffusion's training takes the maps of a placeholder and of the word before it, each with the mask."""
    g = golden_subject_diffusion.golden("localization")
    masks, tokens, present = g["segmaps"].repeat(1, 2, 1, 1), g["doubled.token_idx"], g["doubled.token_mask"].bool()
    each = localization_losses([g["scores.a"], g["scores.b"]], masks, tokens, present)
    torch.testing.assert_close(each.mean(), g["doubled.loss.mean"][0], rtol=0, atol=1e-7)
    absolute = localization_losses([g["scores.a"], g["scores.b"]], masks, tokens, present, form="absolute")
    assert (each - absolute).abs().min() > 1e-2
