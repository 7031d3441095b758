"""The layout of whole UNets of the SD family: every tensor of one under both names with its shape, and where SDXL's
transformer blocks are.

Level i of a UNet has channels C_i; attention is in levels with a transformer depth of more than 0. Sizes are those of
diffusers' `UNet2DConditionModel`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .files import Shapes
from .unet_names import ldm_name, resblocks

SD = (1, 1, 1, 0)  # transformer blocks in each attention of a level down; up they are the same, backwards
SDXL = (0, 2, 10)
REHEARSAL_UNET = (1, 1, 0)
RESBLOCKS = 2
WITHIN = {  # a residual block's parts, diffusers -> LDM
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
SINGLE_MODULES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = re.compile(rf"(?:(down|up)_blocks\.(\d+)|mid_block)\.resnets\.(\d+)\.({'|'.join(WITHIN)})\.")
SAMPLER = re.compile(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv\.")


def transformer_paths(depths: Sequence[int], blocks: int = RESBLOCKS) -> list[str]:
    """Return the LDM paths of all transformer blocks of a UNet, in the order of published layers: down, up, middle.

    depths: of each level, as SD and SDXL; blocks: residual blocks a level. The middle has the last level's depth that
    is not 0.
    """
    down = [
        f"down_blocks.{i}.attentions.{j}.transformer_blocks.{t}"
        for i, depth in enumerate(depths)
        for j in range(blocks)
        for t in range(depth)
    ]
    up = [
        f"up_blocks.{i}.attentions.{j}.transformer_blocks.{t}"
        for i, depth in enumerate(reversed(depths))
        for j in range(blocks + 1)
        for t in range(depth)
    ]
    middle = [
        f"mid_block.attentions.0.transformer_blocks.{t}"
        for t in range(next(depth for depth in reversed(depths) if depth))
    ]
    return [ldm_name(path, blocks) for path in down + up + middle]


def ldm_names(names: Iterable[str]) -> dict[str, str]:
    """Return the LDM name of every tensor of a whole diffusers UNet; a name that is none of a UNet's stays as it is."""
    names = list(names)
    depth = resblocks(names)
    attending = {match[0] for match in (re.match(r"up_blocks\.\d+(?=\.attentions\.)", name) for name in names) if match}

    def resnet(match: re.Match) -> str:
        part = WITHIN[match[4]]
        if not match[1]:
            return f"middle_block.{2 * int(match[3])}.{part}."
        number = (depth + 1) * int(match[2]) + int(match[3])
        return f"input_blocks.{number + 1}.0.{part}." if match[1] == "down" else f"output_blocks.{number}.0.{part}."

    def sampler(match: re.Match) -> str:
        level = int(match[2])
        if match[1] == "down":
            return f"input_blocks.{(depth + 1) * (level + 1)}.0.op."
        return f"output_blocks.{(depth + 1) * level + depth}.{2 if f'up_blocks.{level}' in attending else 1}.conv."

    def there(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        return (
            f"{SINGLE_MODULES[module]}.{leaf}"
            if module in SINGLE_MODULES
            else SAMPLER.sub(sampler, RESNET.sub(resnet, ldm_name(name, depth), count=1), count=1)
        )

    return {name: there(name) for name in names}


def sd_shapes(
    channels: Sequence[int], context_dim: int, depths: Sequence[int] = SD, inputs: int = 4, blocks: int = RESBLOCKS
) -> Shapes:
    """Return every tensor of a UNet like SD1.5's in diffusers' names, with 1x1 convolutions around its transformers.

    channels: C_i of each level; context_dim: width of the text; inputs: latent channels; blocks: residual blocks a
    level.
    """
    time, last = 4 * channels[0], len(channels) - 1
    shapes = (
        _biased("conv_in", channels[0], inputs, 3, 3)
        | _biased("time_embedding.linear_1", time, channels[0])
        | _biased("time_embedding.linear_2", time, time)
    )
    skips, width = [channels[0]], channels[0]
    for i, (out, depth) in enumerate(zip(channels, depths, strict=True)):
        for j in range(blocks):
            shapes |= _resnet(f"down_blocks.{i}.resnets.{j}.", width, out, time) | _transformer(
                f"down_blocks.{i}.attentions.{j}.", out, context_dim, depth
            )
            width = out
            skips.append(width)
        if i < last:
            shapes |= _biased(f"down_blocks.{i}.downsamplers.0.conv", width, width, 3, 3)
            skips.append(width)
    for j in range(2):
        shapes |= _resnet(f"mid_block.resnets.{j}.", width, width, time)
    shapes |= _transformer(
        "mid_block.attentions.0.", width, context_dim, next(depth for depth in reversed(depths) if depth)
    )
    for i, (out, depth) in enumerate(zip(reversed(channels), reversed(depths), strict=True)):
        for j in range(blocks + 1):
            shapes |= _resnet(f"up_blocks.{i}.resnets.{j}.", width + skips.pop(), out, time) | _transformer(
                f"up_blocks.{i}.attentions.{j}.", out, context_dim, depth
            )
            width = out
        shapes |= _biased(f"up_blocks.{i}.upsamplers.0.conv", width, width, 3, 3) if i < last else {}
    return shapes | _biased("conv_norm_out", width) | _biased("conv_out", inputs, width, 3, 3)


def _biased(module: str, *shape: int) -> Shapes:
    return {f"{module}.weight": shape, f"{module}.bias": shape[:1]}


def _resnet(prefix: str, width: int, out: int, time: int) -> Shapes:
    shapes = (
        _biased(f"{prefix}norm1", width)
        | _biased(f"{prefix}conv1", out, width, 3, 3)
        | _biased(f"{prefix}time_emb_proj", out, time)
    )
    shapes |= _biased(f"{prefix}norm2", out) | _biased(f"{prefix}conv2", out, out, 3, 3)
    return shapes if width == out else shapes | _biased(f"{prefix}conv_shortcut", out, width, 1, 1)


def _transformer(prefix: str, width: int, context: int, depth: int) -> Shapes:
    shapes = (
        _biased(f"{prefix}norm", width)
        | _biased(f"{prefix}proj_in", width, width, 1, 1)
        | _biased(f"{prefix}proj_out", width, width, 1, 1)
        if depth
        else {}
    )
    for t in range(depth):
        block = f"{prefix}transformer_blocks.{t}."
        for attention, read in (("attn1", width), ("attn2", context)):
            shapes |= {f"{block}{attention}.to_q.weight": (width, width)} | {
                f"{block}{attention}.to_{kv}.weight": (width, read) for kv in "kv"
            }
            shapes |= _biased(f"{block}{attention}.to_out.0", width, width)
        shapes |= {
            name: shape
            for norm in ("norm1", "norm2", "norm3")
            for name, shape in _biased(f"{block}{norm}", width).items()
        }
        shapes |= _biased(f"{block}ff.net.0.proj", 8 * width, width) | _biased(f"{block}ff.net.2", width, 4 * width)
    return shapes
