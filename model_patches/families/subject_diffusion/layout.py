"""Subject-Diffusion (arXiv 2307.11410): four modules that belong together, each a state dict of its own, or all in one
bundle.

`unet`: a whole diffusers UNet of SD2 with fusers and a fifth input channel; `clip_text`: the retrained text encoder;
`mlp`: photos into the prompt; `proj`: photos into the gated layers; optional `clip_visual`: the last blocks of the
image encoder, where they were trained too.

A bundle is a safetensors file in Troupe's format: the members' tensors below `unet.`, `clip_text.`, `mlp.`, `proj.` and
`clip_visual.`, of the UNet only what is read here, with the metadata `format` subject_diffusion, `version` 1,
`slots`, the number of subjects trained with (2 where it is not said: no tensor tells), and `box_embedding` false where
the training had none. tools/convert_subject_diffusion.py makes one; tools/train.py too, also for SD1.5 and the
rehearsal world, for which none was published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ...adapter import Adapter, AdapterSpec, EncoderNeed, GatedSpec, PhotoSpec, PromptFusion, PromptSpec, Weights
from ...bases import BASES, SD2_BASE
from ...checkpoints.clip_text import text_weights
from ...checkpoints.clip_vision import overlay
from ...checkpoints.gated_tensors import FUSER, fuser_widths, gated_names
from ...checkpoints.tensors import AGAIN, SMALL_NUMBER, State, assign, check_format, check_shapes, part, reading
from ...checkpoints.unet_names import CONV_IN, block_paths, ldm_name, resblocks
from ...encoders.gated import GatedLayers
from ...encoders.grounding import GroundingNet
from ...encoders.mlp import MLP
from ...errors import CheckpointError
from .members import MEMBERS, OPTIONAL

FORMAT, VERSION, SLOTS = "subject_diffusion", 1, 2
BOX_EMBEDDING = "box_embedding"
FUSION = PromptFusion(in_suffix=True)
INPUTS = (5, 13)  # latent channels, of SD or the rehearsal world, and the mask
TRAINED_KEYS = ("attn2.to_k.weight", "attn2.to_v.weight")
KIND = "a Subject-Diffusion file"


def is_bundle(names: Iterable[str]) -> bool:
    """Return whether tensors of these names are a bundle, whole or not."""
    names = list(names)
    return any(name.startswith("unet.") and FUSER in name for name in names) and any(
        name.startswith(("mlp.", "proj.", "clip_text.")) for name in names
    )


def unbundled(state: State) -> dict[str, State]:
    """Return the members in a bundle."""
    found = {member: part(state, f"{member}.") for member in MEMBERS}
    return {member: tensors for member, tensors in found.items() if tensors}


def slots_of(metadata: Mapping[str, str], file: str) -> int:
    """Return the number of subjects that a bundle was trained with. Raises CheckpointError for a bundle of a later
    version.
    """
    check_format(metadata, FORMAT, VERSION, file)
    slots = metadata.get("slots", "")
    return int(slots) if SMALL_NUMBER.fullmatch(slots) else SLOTS


def boxed_of(metadata: Mapping[str, str]) -> bool:
    """Return whether a bundle was trained with boxes in its object tokens."""
    return metadata.get(BOX_EMBEDDING) != "false"


def needed(members: Mapping[str, State]) -> State:
    """Return the tensors that a bundle needs: of the UNet the fusers, text keys and values and the first convolution,
    of the other members all.
    """
    bundle = {
        f"{name}.{key}": tensor
        for name, state in members.items()
        if name != "unet"
        for key, tensor in state.items()
        if not key.endswith("position_ids")
    }
    unet = members.get("unet", {})
    return {
        f"unet.{key}": tensor
        for key, tensor in unet.items()
        if FUSER in key or key.endswith(TRAINED_KEYS) or key in CONV_IN
    } | bundle


def build(
    members: Mapping[str, State],
    file: str,
    operations: Any = nn,
    beside: str = "",
    slots: int = SLOTS,
    boxed: bool = True,
) -> Adapter:
    """Build the modules of the members, weights in their own dtypes, and the weights of the base model that they bring.

    Arguments:
        members: tensors by MEMBERS; file: name of the chosen one, for messages.
        operations: namespace with Linear, LayerNorm and Conv2d.
        beside: where the others were looked for, in words; slots: subjects in training; boxed: see `GroundingNet`.
    Raises:
        CheckpointError: a member is missing or of another variant, the members are of different widths, or a tensor is
            missing or misshapen.
    """
    _check_members(members, file, beside)
    unet, unet_file = members["unet"], f"unet of {file}"
    width = _input_width(unet, unet_file)
    with torch.device("meta"):
        with reading(f"mlp of {file}", ""):
            sizes = MLP.widths(members["mlp"])
            mlp = MLP(sizes["in_dim"], sizes["out_dim"], sizes["hidden_dim"], operations=operations)
        with reading(f"proj of {file}", ""):
            widths = GroundingNet.widths(members["proj"])
        net, dim = GroundingNet(**widths, boxed=boxed, operations=operations), widths["out_dim"]
        paths = _paths(unet, unet_file)
        channels = fuser_widths(unet, paths, dim, unet_file)
        gated = GatedLayers(net, list(channels.values()), dim, width, operations)
    if mlp.fc2.out_features != dim:
        found = f"vectors of size {mlp.fc2.out_features} for the prompt and tokens of size {dim} for the UNet"
        raise CheckpointError(f"members of one Subject-Diffusion in '{file}'", found, AGAIN)
    assign(mlp, members["mlp"], {name: name for name in mlp.state_dict()}, f"mlp of {file}", KIND)
    _assign_gated(gated, unet, members["proj"], list(paths.values()), file)
    text, vision = (
        text_weights(members["clip_text"], dim, f"clip_text of {file}", KIND),
        overlay(members.get(OPTIONAL, {}), f"{OPTIONAL} of {file}"),
    )
    weights = Weights(_unet_weights(unet, paths, channels, dim, unet_file), text, vision)
    return Adapter(spec_of(file, channels, net, dim, slots), mlp, None, gated, weights)


def stream_of(dim: int) -> str:
    """Return ComfyUI's name of the text encoder that gives embeddings of that size; SD2's, as published, for a base
    that is unknown or has several.
    """
    streams = BASES.get(dim, SD2_BASE).streams
    return streams[0] if len(streams) == 1 else SD2_BASE.streams[0]


def spec_of(file: str, channels: Mapping[str, int], net: GroundingNet, dim: int, slots: int) -> AdapterSpec:
    """Return the description of an adapter. channels: of each block's fuser; dim: size of the text embeddings."""
    return AdapterSpec(
        "subject_diffusion",
        file,
        dim,
        (
            PhotoSpec(EncoderNeed("last", net.feature_dim)),
            GatedSpec("patches", channels, dim, net.feature_dim, slots, net.tokens),
            PromptSpec(FUSION, {stream_of(dim): dim}),
        ),
        "Subject-Diffusion",
    )


def _check_members(members: Mapping[str, State], file: str, beside: str) -> None:
    """Raise CheckpointError for a member that is not there, or of the variant that was never released."""
    absent = [name for name in MEMBERS if name not in members and name != OPTIONAL]
    if absent:
        expected = (
            "Subject-Diffusion's four modules together "
            f"({', '.join(name for name in MEMBERS if name != OPTIONAL)}), of which '{file}' is one"
        )
        remedy = (
            "Put folders such as 'unet_0_449999', 'clip_text_0_449999', 'mlp_0_449999' and 'proj_0_449999' of "
            "one training step beside each other."
        )
        raise CheckpointError(expected, f"no {' and no '.join(absent)}{f' {beside}' if beside else ''}", remedy)
    if "fc1.weight" in members["proj"]:
        found = (
            "an MLP over the two subjects' patches together ('fc1.weight' "
            f"{list(members['proj']['fc1.weight'].shape)}), of a variant that was never released"
        )
        raise CheckpointError(
            f"a GroundingNet as the module 'proj' of '{file}'",
            found,
            "Use modules of the released Subject-Diffusion code with patch_512.",
        )


def _input_width(unet: State, file: str) -> int:
    """Channels that the UNet's first convolution gives. Raises CheckpointError unless it reads the mask."""
    shape = tuple(unet["conv_in.weight"].shape) if "conv_in.weight" in unet else None
    if shape is None or len(shape) != 4 or shape[1] not in INPUTS or shape[2:] != (3, 3):
        found = "no such tensor" if shape is None else f"the shape {list(shape)}"
        raise CheckpointError(
            f"'conv_in.weight' of '{file}' to read {INPUTS[0]} channels, latent and mask",
            found,
            "Choose the UNet that Subject-Diffusion's training saved.",
        )
    return shape[0]


def _paths(unet: State, file: str) -> dict[str, str]:
    """Every transformer block of the UNet; each must have its fuser."""
    fusers, attentions = block_paths(unet, "fuser"), block_paths(unet, "attn2")
    for block, path in {**attentions, **fusers}.items():
        for found, name in ((fusers, f"{path}{FUSER}linear.weight"), (attentions, f"{path}.{TRAINED_KEYS[0]}")):
            if block not in found:
                raise CheckpointError(f"the tensor '{name}' in '{file}'", "no such tensor", AGAIN)
    return fusers


def _assign_gated(gated: GatedLayers, unet: State, proj: State, paths: list[str], file: str) -> None:
    fusers = {name: tensor for name, tensor in unet.items() if FUSER in name}
    mask = {"mask_conv.weight": unet["conv_in.weight"][:, -1:].contiguous()}
    assign(
        gated,
        fusers | mask | {f"proj.{name}": tensor for name, tensor in proj.items()},
        gated_names(gated, paths, "", "proj."),
        file,
        KIND,
    )


def _unet_weights(unet: State, paths: Mapping[str, str], channels: Mapping[str, int], dim: int, file: str) -> State:
    """What replaces the base model's: keys and values of the text, and the first convolution without its mask channel,
    by LDM names.
    """
    shapes = {f"{path}.{key}": (channels[block], dim) for block, path in paths.items() for key in TRAINED_KEYS}
    shapes |= {
        "conv_in.weight": tuple(unet["conv_in.weight"].shape),
        "conv_in.bias": tuple(unet["conv_in.weight"].shape[:1]),
    }
    found = {name: tensor for name, tensor in unet.items() if name in shapes}
    check_shapes(found, shapes, file, KIND)
    found["conv_in.weight"] = found["conv_in.weight"][:, :-1].contiguous()
    depth = resblocks(found)
    return {ldm_name(name, depth): found[name] for name in shapes}
