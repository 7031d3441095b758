"""GLIGEN files (arXiv 2301.07093): text boxes and text-image boxes, from whole UNets or pruned to the gated layers, in
LDM's or diffusers' names.

Only the fusers and the position net are read; whatever else a file holds (UNet, autoencoder, text encoder, training
settings) is passed over. Inpainting files are refused: their fusers were trained together with a convolution of nine
channels that sees the picture to be filled, and without it they never were used. Pruned, they do not show it, and are
then taken for the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ...adapter import Adapter, AdapterSpec, EncoderNeed, GatedSpec, PhotoSpec
from ...checkpoints.catalogue import PROJECTION_MATRIX
from ...checkpoints.gated_tensors import FUSER, fuser_widths, gated_names
from ...checkpoints.tensors import State, assign, missing, part, reading
from ...checkpoints.unet_names import CONV_IN, block_paths
from ...encoders.gated import GatedLayers
from ...encoders.grounding import TextImagePositionNet, TextPositionNet, TextSpace
from ...errors import CheckpointError

UNET_PREFIXES = ("", "model.", "model.diffusion_model.", "diffusion_model.", "unet.")  # of a UNet within a file
NET = "position_net."
FIRST_BLOCK = "input_blocks.1.1.transformer_blocks.0"
TRAINED_OBJECTS = 30  # objects in training
KINDS = {"null_positive_feature": "text", "null_text_feature": "text_image"}
OTHER_INPUTS = {  # a name in other position nets -> what they read
    "null_person_feature": "keypoints",
    "keypoint_embeddings": "keypoints",
    "in_conv": "semantic maps",
    "convnext_tiny_backbone": "maps of the whole picture (canny, HED, depth or normals)",
    "null_feature": "maps of the whole picture",
}
CHOOSE = (
    "Choose a GLIGEN text-box or text-image-box file made for generation, such as "
    "gligen_sd14_textbox_pruned.safetensors."
)


def recognised(names: Iterable[str]) -> bool:
    """Return whether tensors of these names are a GLIGEN file's, of any modality: a position net, or fusers without
    Subject-Diffusion's first convolution.
    """
    names = list(names)
    return _prefix(names) is not None or (any(FUSER in name for name in names) and "conv_in.weight" not in names)


def reads_photos(names: Iterable[str]) -> bool:
    """Return whether a GLIGEN file has text-image boxes, which need the projection matrix."""
    return any(name.endswith(f"{NET}null_text_feature") for name in names)


def build(state: State, file: str, operations: Any = nn, image_project: torch.Tensor | None = None) -> Adapter:
    """Build the modules of a GLIGEN file, weights in the file's own dtypes.

    Arguments:
        state: flat tensors, with or without one of UNET_PREFIXES.
        file: its name, for messages.
        operations: namespace with Linear and LayerNorm.
        image_project: P [E, E] of a text-image file, with which its image features are `e P`.
    Raises:
        CheckpointError: another modality, an inpainting file, no P where it is needed, or a tensor that is missing,
            misshapen or unknown.
    """
    prefix = _prefix(state)
    if prefix is None:
        raise missing(f"{NET}null_position_feature", file)
    unet = part(state, prefix)
    net_state = part(unet, NET)
    kind = _net_kind(net_state, file)
    _refuse_inpainting(unet, file)
    paths = _checked_paths(unet, prefix, file)
    with torch.device("meta"):
        with reading(file, f"{prefix}{NET}"):
            widths = (TextPositionNet if kind == "text" else TextImagePositionNet).widths(net_state)
        net = (TextPositionNet if kind == "text" else TextImagePositionNet)(**widths, operations=operations)
        channels = fuser_widths(unet, paths, widths["out_dim"], file, prefix)
        gated = GatedLayers(net, list(channels.values()), widths["out_dim"], operations=operations)
    known = {
        f"{prefix}{name}": tensor
        for name, tensor in unet.items()
        if name.startswith(NET) or any(name.startswith(f"{path}{FUSER}") for path in paths.values())
    }
    assign(gated, known, gated_names(gated, list(paths.values()), prefix, f"{prefix}{NET}"), file, "a GLIGEN file")
    layers = GatedSpec(
        kind, channels, widths["out_dim"], widths["feature_dim"], TRAINED_OBJECTS, 1 if kind == "text" else 2
    )
    projection = None if kind == "text" else _text_space(image_project, widths["feature_dim"], file)
    photos = () if projection is None else (PhotoSpec(EncoderNeed("pooled", widths["feature_dim"]), framing="center"),)
    spec = AdapterSpec(
        "gligen",
        file,
        widths["out_dim"],
        (layers, *photos),
        "GLIGEN text boxes" if kind == "text" else "GLIGEN text-image boxes",
    )
    return Adapter(spec, projection, None, gated)


def _prefix(names: Iterable[str]) -> str | None:
    """The prefix of the UNet's names, found by the position net."""
    names = list(names)
    return next((prefix for prefix in UNET_PREFIXES if any(name.startswith(f"{prefix}{NET}") for name in names)), None)


def _net_kind(net: State, file: str) -> str:
    """'text' or 'text_image'. Raises CheckpointError for everything else that GLIGEN was trained on."""
    found = [kind for name, kind in KINDS.items() if name in net]
    if found:
        return found[0]
    other = next((what for name, what in OTHER_INPUTS.items() if any(key.split(".")[0] == name for key in net)), None)
    if other:
        raise CheckpointError(f"a GLIGEN file for boxes in '{file}'", f"one for {other}", CHOOSE)
    raise missing(f"{NET}{next(iter(KINDS))}", file)


def _checked_paths(unet: State, prefix: str, file: str) -> dict[str, str]:
    """Every block with a fuser; in a whole UNet every transformer block has one."""
    paths = block_paths(unet, "fuser")
    if paths and not any(f"{path}{FUSER}linear.weight" in unet for path in paths.values()):
        raise CheckpointError(
            f"gated self-attention layers in '{file}'",
            "gated cross-attention, which GLIGEN uses for other inputs than boxes",
            CHOOSE,
        )
    absent = [path for block, path in block_paths(unet, "attn2").items() if block not in paths]
    if absent or not paths:
        raise missing(f"{prefix}{[*absent, FIRST_BLOCK][0]}{FUSER}linear.weight", file)
    return paths


def _refuse_inpainting(unet: State, file: str) -> None:
    """Raise CheckpointError if the file shows that its UNet reads more than a noisy latent image."""
    channels = next(
        (unet[name].shape[1] for pair in CONV_IN.items() for name in pair if name in unet and unet[name].ndim == 4), 4
    )
    if channels != 4:
        found = f"one for inpainting: its gated layers need a first convolution with {channels} channels"
        raise CheckpointError(f"a GLIGEN file for whole pictures in '{file}'", found, CHOOSE)


def _text_space(matrix: torch.Tensor | None, width: int, file: str) -> TextSpace:
    if matrix is None:
        remedy = (
            f"Download {PROJECTION_MATRIX.link} and save it beside that file, as '{PROJECTION_MATRIX.name}'; a "
            "diffusers folder has it in 'image_project'."
        )
        raise CheckpointError(f"the projection matrix for the photos of '{file}' beside it", "none", remedy)
    if tuple(matrix.shape) != (width, width) or not matrix.is_floating_point():
        remedy = f"Use the matrix from the adapter's publisher; GLIGEN's own is {PROJECTION_MATRIX.link}."
        raise CheckpointError(
            f"a projection matrix of {width} x {width} numbers beside '{file}'",
            f"one of the shape {list(matrix.shape)}",
            remedy,
        )
    with torch.device("meta"):
        module = TextSpace(width)
    module.load_state_dict({"matrix.weight": matrix}, assign=True)
    return module.eval().requires_grad_(False)
