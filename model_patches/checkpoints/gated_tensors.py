"""Names and sizes of the tensors of gated layers, as GLIGEN and Subject-Diffusion publish them in a UNet's files."""

from __future__ import annotations

from collections.abc import Mapping

from ..encoders.fuser import GatedFuser
from ..encoders.gated import GatedLayers
from ..encoders.leaf_parameter import published_name
from ..errors import CheckpointError
from .tensors import AGAIN, State, reading

FUSER = ".fuser."  # between the name of a transformer block and that of a tensor of its gated layer


def fuser_widths(unet: State, paths: Mapping[str, str], object_dim: int, file: str, prefix: str = "") -> dict[str, int]:
    """Return the channels of every block, read off its fuser.

    paths: from `unet_names.block_paths`; object_dim: D that they all must take.
    Raises CheckpointError where one takes another size.
    """
    channels = {}
    for block, path in paths.items():
        with reading(file, f"{prefix}{path}{FUSER}"):
            widths = GatedFuser.widths(
                {"linear.weight": unet[f"{path}{FUSER}linear.weight"]} if f"{path}{FUSER}linear.weight" in unet else {}
            )
        if widths["context_dim"] != object_dim:
            found = f"size {widths['context_dim']} at '{prefix}{path}'"
            raise CheckpointError(f"gated layers for object tokens of size {object_dim} in '{file}'", found, AGAIN)
        channels[block] = widths["width"]
    return channels


def gated_names(gated: GatedLayers, paths: list[str], prefix: str, net_prefix: str) -> dict[str, str]:
    """Return the published name of every tensor of the layers and their net; paths: of the transformer blocks in the
    file, in order.
    """
    names = {}
    for ours in gated.state_dict():
        room, _, rest = ours.partition(".")
        if room == "fusers":
            number, _, leaf = rest.partition(".")
            names[ours] = f"{prefix}{paths[int(number)]}{FUSER}{published_name(leaf)}"
        else:
            names[ours] = f"{net_prefix}{published_name(rest)}" if room == "net" else ours
    return names
