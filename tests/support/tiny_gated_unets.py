"""Tiny random UNets with gated layers, adapters that hold the same layers, and references for them."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import GatedSelfAttentionDense
from torch import nn
from troupe.model_patches.adapter import Adapter, AdapterSpec, EncoderNeed, GatedSpec, PhotoSpec
from troupe.model_patches.encoders.gated import GatedLayers
from troupe.model_patches.encoders.grounding import GroundingNet
from troupe.model_patches.families.gligen.layout import build
from troupe.model_patches.hosts.diffusers.unet_blocks import transformer_blocks
from troupe.model_patches.subjects import Box, ObjectFeatures, References, ReferenceSubject

SLOTS = 30  # of published files
KINDS = {"text": "gated", "text_image": "gated-text-image"}  # ours -> diffusers'
BASES = {
    "sd15": {"cross_attention_dim": 768, "block_out_channels": (32, 64), "attention_head_dim": 8},
    "sd2": {
        "cross_attention_dim": 64,
        "block_out_channels": (64, 128),
        "attention_head_dim": (1, 2),
        "use_linear_projection": True,
    },
}
PATCH_SLOTS, PATCHES, PATCH_WIDTH = 2, 5, 24  # a small Subject-Diffusion: slots, patch tokens a slot, their width


def unet(base: str = "sd15", **settings) -> UNet2DConditionModel:
    """A UNet of two levels with heads as in the published bases; gates and null features are random too, and attention
    to objects is sharp.
    """
    torch.manual_seed(0)
    levels = {
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    }
    found = (
        UNet2DConditionModel(**{"sample_size": 16, "in_channels": 4, **levels, **BASES[base], **settings})
        .eval()
        .requires_grad_(False)
    )
    for name, parameter in found.named_parameters():
        if name.rpartition(".")[2].startswith(("alpha_", "null_")):
            nn.init.normal_(parameter)
        elif parameter.ndim == 2 and ("fuser" in name or "position_net" in name):
            nn.init.normal_(parameter, std=2 * parameter.shape[1] ** -0.5)
    return found


def native_unet(kind: str, base: str = "sd15") -> UNet2DConditionModel:
    """diffusers' own GLIGEN: a UNet with its gated layers and its position net."""
    return unet(base, attention_type=KINDS[kind])


def plain_unet(native: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same UNet without gated layers."""
    config = {**native.config, "attention_type": "default"}
    plain = (
        UNet2DConditionModel(**{name: value for name, value in config.items() if not name.startswith("_")})
        .eval()
        .requires_grad_(False)
    )
    plain.load_state_dict({name: native.state_dict()[name] for name in plain.state_dict()})
    return plain


def gligen_adapter(native: UNet2DConditionModel) -> Adapter:
    """diffusers' own GLIGEN as a file of it would be read."""
    return build(
        {name: tensor.clone() for name, tensor in native.state_dict().items()},
        "tiny.safetensors",
        image_project=torch.eye(native.config.cross_attention_dim),
    )


def patches_adapter(model: UNet2DConditionModel, mask: bool = True) -> Adapter:
    """A small Subject-Diffusion for a UNet: random layers, with the convolution of its mask channel."""
    torch.manual_seed(5)
    blocks, width = transformer_blocks(model), model.config.cross_attention_dim
    layers = GatedLayers(
        GroundingNet(PATCH_WIDTH, width, width, PATCHES),
        [block.dim for block in blocks.values()],
        width,
        model.conv_in.out_channels if mask else None,
    )
    for parameter in layers.parameters():
        if not parameter.ndim or parameter.ndim == 4:
            nn.init.normal_(parameter)
    gated = GatedSpec(
        "patches", {path: block.dim for path, block in blocks.items()}, width, PATCH_WIDTH, PATCH_SLOTS, PATCHES
    )
    photos = PhotoSpec(EncoderNeed("last", PATCH_WIDTH))
    spec = AdapterSpec("subject_diffusion", "tiny.safetensors", width, (photos, gated))
    return Adapter(spec, None, None, layers.requires_grad_(False).eval())


def gated_references(adapter: Adapter, boxes: list[Box | None], **each: list) -> References:
    """A subject for every box; of text-image adapters the second has only a photo, the third only a phrase."""
    spec, g = adapter.spec.part(GatedSpec), torch.Generator().manual_seed(7)

    def features(i: int) -> ObjectFeatures:
        text, image = torch.randn(spec.feature_dim, generator=g), torch.randn(spec.feature_dim, generator=g)
        if spec.kind == "patches":
            return ObjectFeatures(image=torch.randn(spec.tokens, spec.feature_dim, generator=g))
        if spec.kind == "text":
            return ObjectFeatures(text)
        return ObjectFeatures(None if i == 1 else text, None if i == 2 else image)

    fields = [{field: values[i] for field, values in each.items()} for i in range(len(boxes))]
    return References(
        adapter,
        tuple(
            ReferenceSubject(f"subject {i}", None, None, box=box, features=features(i), **fields[i])
            for i, box in enumerate(boxes)
        ),
        None,
    )


def native_fusers(model: UNet2DConditionModel) -> int:
    """How many of diffusers' own gated layers there are."""
    return sum(isinstance(module, GatedSelfAttentionDense) for module in model.modules())
