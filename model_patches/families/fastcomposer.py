"""FastComposer (arXiv 2305.10431): one file with the whole model, of which three parts are read: `postfuse_module`,
`unet`, `image_encoder`.

Its UNet, diffusers' names of SD1.5, was trained as a whole and replaces the base's. Text encoder and VAE are SD1.5's
own and are passed over. A file for the rehearsal world has that world's UNet instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..adapter import Adapter, AdapterSpec, EncoderNeed, PhotoSpec, PromptFusion, PromptSpec, Weights
from ..bases import REHEARSAL_BASE
from ..checkpoints.adapter_file import AdapterFile
from ..checkpoints.clip_vision import overlay
from ..checkpoints.tensors import AGAIN, State, assign, check_shapes, part, reading
from ..checkpoints.unet_layout import REHEARSAL_UNET, RESBLOCKS, SD, ldm_names, sd_shapes
from ..encoders.projections import shape_of
from ..encoders.words import Postfuse
from ..encoding.interfaces import EncodeInputs
from ..encoding.prompt_vectors import prompt_vectors
from ..errors import CheckpointError
from ..subjects import References

POSTFUSE_PREFIX, UNET_PREFIX, VISION_PREFIX = "postfuse_module.", "unet.", "image_encoder."
KIND = "a FastComposer file"
LABELS = {"fastcomposer": "FastComposer"}
FUSION = PromptFusion(after_encoder=True, learned=True, keeps_other_rows=True)


def matches(file: AdapterFile) -> bool:
    """Return whether the file's tensors are such a file's, whole or not."""
    return any(name.startswith(POSTFUSE_PREFIX) for name in file.state)


def load(file: AdapterFile, operations: Any = nn) -> Adapter:
    """See `build`."""
    return build(file.state, file.label, operations)


def encode(given: EncodeInputs) -> tuple[References, list[str]]:
    """Encode the mean of the photos' embeddings, for the subject's word; published is one photo."""
    return prompt_vectors(given, lambda embeds: embeds.unsqueeze(1))


def companions(path: Path) -> Iterable[Path]:
    """Return no files: everything is in one."""
    return ()


def build(state: State, file: str, operations: Any = nn) -> Adapter:
    """Build the net that fuses photos with words, and the UNet and image encoder that were trained with it; weights in
    the file's own dtypes.

    Arguments:
        state: the file's tensors; file: its name, for messages; operations: namespace with Linear and LayerNorm.
    Raises:
        CheckpointError: a part is missing or of another model than SD1.5, or a tensor is missing, misshapen or unknown.
    """
    postfuse = part(state, POSTFUSE_PREFIX)
    with torch.device("meta"):
        with reading(file, POSTFUSE_PREFIX):
            widths = Postfuse.widths(postfuse)
        fusion = nn.ModuleDict({"l": Postfuse(**widths, operations=operations)})
    assign(
        fusion,
        {f"{POSTFUSE_PREFIX}{name}": tensor for name, tensor in postfuse.items()},
        {name: f"{POSTFUSE_PREFIX}{name.removeprefix('l.')}" for name in fusion.state_dict()},
        file,
        KIND,
    )
    weights = Weights(
        _unet(part(state, UNET_PREFIX), widths["dim"], file),
        vision=_vision(part(state, VISION_PREFIX), widths["embed_dim"], file),
    )
    spec = AdapterSpec(
        "fastcomposer",
        file,
        widths["dim"],
        (
            PhotoSpec(EncoderNeed("pooled", widths["embed_dim"]), framing="black"),
            PromptSpec(FUSION, {"l": widths["dim"]}),
        ),
        LABELS["fastcomposer"],
    )
    return Adapter(spec, None, None, weights=weights, fusion=fusion)


def _unet(unet: State, context_dim: int, file: str) -> State:
    """All tensors of the UNet by LDM names."""
    depths, blocks, inputs = (REHEARSAL_UNET, 1, 12) if context_dim == REHEARSAL_BASE.width else (SD, RESBLOCKS, 4)
    with reading(file, UNET_PREFIX):
        channels = [shape_of(unet, f"down_blocks.{i}.resnets.0.conv1.weight", 4)[0] for i in range(len(depths))]
    shapes = sd_shapes(channels, context_dim, depths, inputs, blocks)
    check_shapes(
        {f"{UNET_PREFIX}{name}": tensor for name, tensor in unet.items()},
        {f"{UNET_PREFIX}{name}": shape for name, shape in shapes.items()},
        file,
        KIND,
    )
    return {ldm: unet[name] for name, ldm in ldm_names(unet).items()}


def _vision(state: State, width: int, file: str) -> State:
    """The image encoder's tensors.

    Raises CheckpointError if its projection is of another width than the photos that are fused.
    """
    found = overlay(state, file)
    projection = found.get("visual_projection.weight")
    if projection is not None and projection.shape[0] != width:
        raise CheckpointError(
            f"'{VISION_PREFIX}visual_projection.weight' of '{file}' to give {width} numbers",
            f"the shape {list(projection.shape)}",
            AGAIN,
        )
    return found
