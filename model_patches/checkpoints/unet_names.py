"""A UNet's transformer blocks under two names: diffusers' and LDM's, which the original files and ComfyUI have.

With r residual blocks a level (2 in SD1.5, SD2 and SDXL): `down_blocks.i.attentions.j` is
`input_blocks.{(r+1)i+j+1}.1`, `up_blocks.i.attentions.j` is `output_blocks.{(r+1)i+j}.1`, `mid_block.attentions.0` is
`middle_block.1`. No order of names in a file is relied on: diffusers lists the middle block last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

DIFFUSERS = re.compile(r"(?:(down|up)_blocks\.([0-9]{1,4})|mid_block)\.attentions\.([0-9]{1,4})\.")
LDM = re.compile(r"(input_blocks|output_blocks|middle_block)\.([0-9]{1,4})\.(?:1\.)?transformer_blocks\.([0-9]{1,4})$")
PARTS = ("input_blocks", "output_blocks", "middle_block")  # the order of published layers: down, up, mid
CONV_IN = {"conv_in.weight": "input_blocks.0.0.weight", "conv_in.bias": "input_blocks.0.0.bias"}


def resblocks(names: Iterable[str]) -> int:
    """Return the number of residual blocks in a level of the diffusers UNet that the names are from: r attentions in a
    level down, r + 1 up.

    0 without any such name.
    """
    found = (match for match in map(DIFFUSERS.match, names) if match and match[1])
    return max((int(match[3]) + (match[1] == "down") for match in found), default=0)


def ldm_name(name: str, resblocks: int) -> str:
    """Return the LDM name of a tensor or module in a diffusers transformer, or of its first convolution, and any other
    name unchanged.
    """

    def renamed(match: re.Match) -> str:
        if not match[1]:
            return "middle_block.1."
        start = (resblocks + 1) * int(match[2]) + int(match[3])
        return f"input_blocks.{start + 1}.1." if match[1] == "down" else f"output_blocks.{start}.1."

    return CONV_IN.get(name) or DIFFUSERS.sub(renamed, name, count=1)


def order(path: str) -> tuple[int, int, int]:
    """Return the sort key of LDM paths of transformer blocks: input, output, middle blocks; their number; depth. Raises
    ValueError for another path.
    """
    match = LDM.match(path)
    if match is None:
        raise ValueError(f"expected the path of a transformer block in an LDM UNet, found '{path}'")
    part, block, depth = match.groups()
    return PARTS.index(part), int(block), int(depth)


def block_paths(names: Iterable[str], module: str) -> dict[str, str]:
    """Map the LDM path of every transformer block that has a `module` ('fuser', 'attn2') to its path in the file, in
    the order of the layers.

    names: of tensors, in either layout, without a prefix; what lies elsewhere is passed over.
    """
    paths = {name.partition(f".{module}.")[0] for name in names if f".{module}." in name}
    depth = resblocks(f"{path}." for path in paths)
    found = {ldm_name(path, depth): path for path in paths}
    return {path: found[path] for path in sorted(filter(LDM.match, found), key=order)}
