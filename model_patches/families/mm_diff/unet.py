"""The UNet's part of MM-Diff: low-rank pairs of every attention of a UNet, by number, to image attention and LoRAs with
LDM names.

Entry 2 j is the self-attention and 2 j + 1 the cross-attention of transformer block j, in the order down, up, middle.
No tensor shows an entry's place: the number of entries says which UNet it is, and a level's widths must be alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ...adapter import LoraPair
from ...checkpoints.tensors import AGAIN, State, assign, check_shapes, reading
from ...checkpoints.unet_layout import REHEARSAL_UNET, RESBLOCKS, SD, SDXL, transformer_paths
from ...encoders.lora import ImagePairs
from ...encoders.mm_diff import LoraLayers
from ...encoders.projections import shape_of
from ...errors import CheckpointError

# depths of the transformers of each level, and residual blocks a level
LEVELS = {"SDXL": (SDXL, RESBLOCKS), "SD1.5": (SD, RESBLOCKS), "the rehearsal world": (REHEARSAL_UNET, 1)}
BLOCKS_OF = {
    base: transformer_paths(*levels) for base, levels in LEVELS.items()
}  # LDM paths in the order of the entries
LAYER_TENSOR = re.compile(r"([0-9]{1,4})\.to_(?:q|k|v|out)_lora(_image)?\.")
# a pair -> the weight it changes
LORA_TARGETS = {"to_q_lora": "to_q", "to_k_lora": "to_k", "to_v_lora": "to_v", "to_out_lora": "to_out.0"}
IMAGE = ("to_k_lora_image", "to_v_lora_image")
KIND = "an MM-Diff file"


def recognised(names: Iterable[str]) -> bool:
    """Return whether tensors of these names are such a file's: numbered pairs, some of them for image tokens."""
    matches = [match for match in map(LAYER_TENSOR.match, names) if match]
    return any(match[2] for match in matches)


def read(state: State, file: str, operations: Any = nn) -> tuple[LoraLayers, dict[str, LoraPair]]:
    """Read image attention, and the pairs for text and self-attention by LDM names of the weights that they change;
    both share tensors.

    Raises:
        CheckpointError: of an unknown base model, or a tensor is missing, misshapen or unknown.
    """
    base = base_of(state, file)
    with torch.device("meta"):
        layers = _lora_layers(state, base, file, operations)
    pairs = _check_all(state, BLOCKS_OF[base], layers, file)
    names = {ours: f"{2 * int(ours.split('.')[1]) + 1}.{ours.split('.', 2)[2]}" for ours in layers.state_dict()}
    assign(layers, {name: state[name] for name in names.values()}, names, file, KIND)
    return layers, {
        weight: LoraPair(state[f"{name}.down.weight"], state[f"{name}.up.weight"]) for weight, name in pairs.items()
    }


def base_of(state: State, file: str) -> str:
    """Return the base model, a key of BLOCKS_OF, with as many attentions as a file. Raises CheckpointError for none."""
    found = {int(match[1]) for match in map(LAYER_TENSOR.match, state) if match}
    for base, blocks in BLOCKS_OF.items():
        if found == set(range(2 * len(blocks))):
            return base
    counts = ", ".join(f"{2 * len(blocks)} ({base})" for base, blocks in BLOCKS_OF.items())
    raise CheckpointError(
        f"the attentions of a known UNet in '{file}': {counts}",
        f"{len(found)}",
        "Please report a file for another model with a link to it.",
    )


def _lora_layers(state: State, base: str, file: str, operations: Any) -> LoraLayers:
    """The cross-attention layers on the meta device."""
    entries: list[State] = [{} for _ in BLOCKS_OF[base]]
    for name, tensor in state.items():
        match = LAYER_TENSOR.match(name)
        if match and int(match[1]) % 2:
            entries[int(match[1]) // 2][name.partition(".")[2]] = tensor
    sizes = []
    for j, entry in enumerate(entries):
        with reading(file, f"{2 * j + 1}."):
            sizes.append(ImagePairs.widths(entry))
    width_of: dict[int, int] = {}
    for j, (path, size) in enumerate(zip(BLOCKS_OF[base], sizes, strict=True)):
        level = _level(path, base)
        wanted = width_of.setdefault(level, size["width"]), sizes[0]["context_dim"]
        if wanted != (size["width"], size["context_dim"]):
            found = f"{size['context_dim']} -> {size['width']} at number {2 * j + 1}"
            raise CheckpointError(
                f"attentions in the order of {base}'s in '{file}', with pairs of {wanted[1]} -> {wanted[0]} for {path}",
                found,
                AGAIN,
            )
    return LoraLayers(
        sizes[0]["context_dim"],
        [s["width"] for s in sizes],
        [s["rank"] for s in sizes],
        [s["text_rank"] for s in sizes],
        operations,
    )


def _level(path: str, base: str) -> int:
    """The level of a transformer block's LDM path, from 0 on; the middle is in the last."""
    (depths, blocks), (part, number, _) = LEVELS[base], path.split(".", 2)
    level, last = int(number) // (blocks + 1), len(depths) - 1
    return {"input_blocks": level, "output_blocks": last - level}.get(part, last)


def _check_all(state: State, blocks: Sequence[str], layers: LoraLayers, file: str) -> dict[str, str]:
    """LDM name of every weight that a pair changes -> the pair's name in the file.

    Raises CheckpointError unless the file is whole and no more.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    pairs: dict[str, str] = {}
    for j, (path, width) in enumerate(zip(blocks, layers.widths, strict=True)):
        for index, attention, context in ((2 * j, "attn1", width), (2 * j + 1, "attn2", layers.context_dim)):
            for pair in (*LORA_TARGETS, *(IMAGE if attention == "attn2" else ())):
                name = f"{index}.{pair}"
                with reading(file, ""):
                    rank = shape_of(state, f"{name}.down.weight", 2)[0]
                shapes |= {
                    f"{name}.down.weight": (rank, context if pair.startswith(("to_k", "to_v")) else width),
                    f"{name}.up.weight": (width, rank),
                }
                if pair in LORA_TARGETS:
                    pairs[f"{path}.{attention}.{LORA_TARGETS[pair]}.weight"] = name
    check_shapes(state, shapes, file, KIND)
    return pairs
