"""IP-Adapters as a training saves them, before they are converted to the published layout: the same tensors
under other names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import CheckpointError
from .tensors import State

PROJECTION = re.compile(r"(?:module\.)?image_proj_model\.(.+)")
NUMBERED = re.compile(r"(?:module\.)?adapter_modules\.(\d{1,4})\.((?:to_[kv]_ip|text_to_weight)\.weight)")
NAMED = re.compile(  # diffusers' name of a cross-attention layer of the UNet
    r"(?:module\.)?(?:unet|ip_adapter)\.(down_blocks|up_blocks|mid_block)\.(?:(\d{1,3})\.)?attentions\.(\d{1,3})\.transformer_blocks\.(\d{1,3})"
    r"\.attn2\.processor\.((?:to_[kv]_ip|text_to_weight)\.weight)"
)
UNET_PARTS = ("down_blocks", "up_blocks", "mid_block")  # the order of diffusers' attention processors


def is_training(names: Iterable[str]) -> bool:
    """Return whether tensors of these names are half or whole an adapter under a training's names."""
    return any(pattern.fullmatch(name) for name in names for pattern in (PROJECTION, NUMBERED, NAMED))


def published_layout(state: State, file: str) -> State:
    """Return the tensors under the published names, `image_proj.*` and `ip_adapter.{2j+1}.*`; other tensors of the
    training, such as the UNet's, are left out.

    A state that is no training checkpoint comes back as it is. Raises CheckpointError if the layers' half was lost
    in a conversion.
    """
    layers = _in_order(state)
    if not layers and not any(name.startswith(("ip_adapter.", "adapter_modules.")) for name in state):
        photos = {name for name in state if name.startswith("image_proj.") or PROJECTION.fullmatch(name)}
        if photos and len(photos) == len(state):
            remedy = (
                "The conversion of a training checkpoint lost it: convert it again, with the tensors that "
                "end in 'to_k_ip.weight' and 'to_v_ip.weight', or choose "
                "the training's own checkpoint file (model.safetensors or pytorch_model.bin), which loads as it is."
            )
            raise CheckpointError(
                f"the attention layers' half 'ip_adapter' in '{file}'",
                f"only the photos' half, {len(photos)} tensors",
                remedy,
            )
        return state
    if not layers:
        return state
    projection = {
        f"image_proj.{found[1]}": tensor for name, tensor in state.items() if (found := PROJECTION.fullmatch(name))
    }
    projection |= {name: tensor for name, tensor in state.items() if name.startswith("image_proj.")}
    return projection | layers


def _in_order(state: State) -> State:
    """Layers with a training's names, numbered as in published files; {} if there are none."""
    if any(PROJECTION.fullmatch(name) for name in state):
        numbered = {
            f"ip_adapter.{found[1]}.{found[2]}": tensor
            for name, tensor in state.items()
            if (found := NUMBERED.fullmatch(name))
        }
        if numbered:
            return numbered
    named = {name: found for name in state if (found := NAMED.fullmatch(name))}
    order = sorted({_order(found) for found in named.values()})
    return {f"ip_adapter.{2 * order.index(_order(found)) + 1}.{found[5]}": state[name] for name, found in named.items()}


def _order(found: re.Match[str]) -> tuple[int, ...]:
    """The position of a layer in the order of the UNet's attention processors."""
    return UNET_PARTS.index(found[1]), int(found[2] or 0), int(found[3]), int(found[4])
