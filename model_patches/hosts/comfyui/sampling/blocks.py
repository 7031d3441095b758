"""The cross-attention layers of the host's UNet, found by walking its modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, Upsample
from torch import nn

from ....errors import MismatchError

Grid = tuple[int, int]
Key = tuple[str, int, int]  # the host's name of a transformer block: ("input" | "middle" | "output", block, depth)
# order of published adapters: down, up, mid
PATCHED_PARTS = (("input_blocks", "input"), ("output_blocks", "output"), ("middle_block", "middle"))


@dataclass(frozen=True)
class Block:
    """One cross-attention layer: its key in `patches_replace`, width C, context width D, module path, heads, how often
    the picture is halved before it, and the dtype it insists to attend in, or None."""

    key: Key
    width: int
    context_dim: int
    path: str
    heads: int
    level: int
    precision: torch.dtype | None


def attention_blocks(unet: nn.Module) -> tuple[Block, ...]:
    """Return all text cross-attention layers of an SD1.5, SD2 or SDXL UNet, in checkpoint order (down, up, mid).

    Raises:
        MismatchError: the model has none (FLUX, SD3, Qwen and other transformers).
    """
    found: list[Block] = []
    levels = {name: _levels(unet, name) for _, name in PATCHED_PARTS}
    for part, name in PATCHED_PARTS:
        for path, module in getattr(unet, part, nn.Module()).named_modules():
            names = path.split(".")
            if len(names) < 3 or names[-2] != "transformer_blocks" or getattr(module, "attn2", None) is None:
                continue
            attention: Any = module.attn2
            block = 0 if name == "middle" else int(names[0])
            widths, precision = (
                (attention.to_q.out_features, attention.to_k.in_features),
                getattr(attention, "attn_precision", None),
            )
            found.append(
                Block(
                    (name, block, int(names[-1])),
                    *widths,
                    f"{part}.{path}.attn2",
                    attention.heads,
                    levels[name][block],
                    precision,
                )
            )
    if not found:
        what = f"{type(unet).__name__}, without text cross-attention"
        remedy = (
            "Load an SD1.5 or SDXL checkpoint (or one of their finetunes); for FLUX and Qwen use their own "
            "reference nodes."
        )
        raise MismatchError("a MODEL of the SD1.5, SD2 or SDXL family", what, remedy)
    return tuple(found)


def grids_of(blocks: Iterable[Block], size: Grid) -> set[Grid]:
    """Return (h, w) of the positions that the layers see, for rows of that size in latent cells: half the side each
    time, rounded up.
    """
    return {(-(-size[0] // 2**level), -(-size[1] // 2**level)) for level in {block.level for block in blocks}}


def text_keys(unet: nn.Module, block: Block) -> nn.Module:
    """Return the layer's own `to_k`. Call it and do not read its weight, which the host may keep elsewhere, cast or
    patched.
    """
    return unet.get_submodule(f"{block.path}.to_k")


def text_values(unet: nn.Module, block: Block) -> nn.Module:
    """Return the layer's own `to_v`; see `text_keys`."""
    return unet.get_submodule(f"{block.path}.to_v")


def own_attentions(unet: nn.Module, blocks: Iterable[Block]) -> dict[Key, Any]:
    """Return the `preferred_attention` of newer hosts, for the layers whose checkpoint asks for an attention function
    of its own; their modules have it, in `comfy_attention`.
    """
    found = {block.key: getattr(unet.get_submodule(block.path), "comfy_attention", None) for block in blocks}
    return {key: own for key, own in found.items() if getattr(own, "function", None) is not None}


def _levels(unet: nn.Module, name: str) -> list[int]:
    """For each block of a part of the UNet, how often the picture is halved before it."""
    down, up = (
        [any(isinstance(module, kind) for module in block.modules()) for block in getattr(unet, part, ())]
        for part, kind in (("input_blocks", Downsample), ("output_blocks", Upsample))
    )
    if name == "middle":
        return [sum(down)]
    return (
        [sum(down[:i]) for i in range(len(down))]
        if name == "input"
        else [sum(down) - sum(up[:i]) for i in range(len(up))]
    )
