"""The cross-attention layers of the host's UNet, found by walking its modules."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import MismatchError

Key = tuple[str, int, int]  # the host's name of a transformer block: ("input" | "middle" | "output", block, depth)
PARTS = (("input_blocks", "input"), ("output_blocks", "output"), ("middle_block", "middle"))  # order of published adapters: down, up, mid


@dataclass(frozen=True)
class Block:
    """One cross-attention layer: its key in `patches_replace`, width C, context width D, and module path."""

    key: Key
    width: int
    context_dim: int
    path: str


def attention_blocks(unet: nn.Module) -> tuple[Block, ...]:
    """All text cross-attention layers of an SD1.5, SD2 or SDXL UNet, in checkpoint order (down, up, mid).

    Raises:
        MismatchError: the model has none (FLUX, SD3, Qwen and other transformers).
    """
    found: list[Block] = []
    for part, name in PARTS:
        for path, module in getattr(unet, part, nn.Module()).named_modules():
            names = path.split(".")
            if len(names) < 3 or names[-2] != "transformer_blocks" or getattr(module, "attn2", None) is None:
                continue
            attention: Any = module.attn2
            block = 0 if name == "middle" else int(names[0])
            found.append(Block((name, block, int(names[-1])), attention.to_q.out_features, attention.to_k.in_features, f"{part}.{path}.attn2"))
    if not found:
        what = f"{type(unet).__name__}, which has no text cross-attention"
        do = "Load an SD1.5 or SDXL checkpoint (or one of their finetunes); for FLUX and Qwen use their own reference nodes."
        raise MismatchError("a MODEL of the SD1.5, SD2 or SDXL family", what, do)
    return tuple(found)


def text_keys(unet: nn.Module, block: Block) -> nn.Module:
    """The layer's own `to_k`, to be called, never read: the host may keep its weight elsewhere, cast or patched."""
    return unet.get_submodule(f"{block.path}.to_k")


def text_values(unet: nn.Module, block: Block) -> nn.Module:
    """The layer's own `to_v`, likewise."""
    return unet.get_submodule(f"{block.path}.to_v")
