"""A tiny random vision tower of open_clip's own code, its file, and what it computes."""

from __future__ import annotations

import torch
from open_clip.transformer import VisionTransformer

SIZE, PATCH, WIDTH, LAYERS, OUT = 32, 8, 256, 3, 16
HEADS = WIDTH // 64


def vision_tower(seed: int = 0) -> VisionTransformer:
    """Every tensor random, norms and biases included, at a scale that keeps the signal alive; numbers that half
    precision holds exactly.
    """
    g = torch.Generator().manual_seed(seed)
    tower = VisionTransformer(
        image_size=SIZE, patch_size=PATCH, width=WIDTH, layers=LAYERS, heads=HEADS, mlp_ratio=2.0, output_dim=OUT
    )
    with torch.no_grad():
        for name, value in tower.named_parameters():
            noise = torch.randn(value.shape, generator=g)
            norm = name.endswith("weight") and value.ndim == 1
            scaled = (
                1 + 0.1 * noise
                if norm
                else 0.1 * noise
                if value.ndim == 1
                else noise / (value[0].numel() if name != "proj" else len(value)) ** 0.5
            )
            value.copy_(scaled.half().float())
    return tower.eval()


def file_of(tower: VisionTransformer) -> dict[str, torch.Tensor]:
    """The state dict as open_clip saves a whole model: the tower's names after `visual.`, and something of the text
    half.
    """
    text = {
        "logit_scale": torch.tensor(4.6),
        "transformer.resblocks.0.ln_1.weight": torch.ones(8),
        "ln_final.weight": torch.ones(8),
    }
    return {f"visual.{name}": value.detach().clone() for name, value in tower.state_dict().items()} | text


@torch.no_grad()
def patches_and_pooled(tower: VisionTransformer, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, 3, S, S] -> tokens without CLS as the last block leaves them [n, P, E] (open_clip's own tokens have ln_post
    on them in newer versions), and the projected CLS [n, F]."""
    seen = []
    hook = tower.transformer.register_forward_hook(lambda module, args, output: seen.append(output))
    pooled = tower(pixels)
    hook.remove()
    return seen[0][:, 1:], pooled
