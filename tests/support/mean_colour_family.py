"""A family of adapters that the pack does not have: its image tokens are made of nothing but each photo's mean colour.

It is one module with the names that `families.family.Family` asks for. Tests add it to the list of families, and
nothing else.
"""

from __future__ import annotations

import torch
from torch import nn
from troupe.model_patches.adapter import Adapter, AdapterSpec, ImageAttentionSpec
from troupe.model_patches.checkpoints.tensors import assign, part
from troupe.model_patches.encoders.decoupled import DecoupledLayers
from troupe.model_patches.encoding.image_tokens import reference_subject
from troupe.model_patches.errors import CheckpointError
from troupe.model_patches.subjects import References

LABELS = {"mean_colour": "Mean Colour"}
PROJECTION, LAYERS = "mean_colour.projection.", "mean_colour.layers."
TOKENS = 2


class Projection(nn.Module):
    """Mean colours [n, 3] -> tokens [n, TOKENS, D]."""

    def __init__(self, context_dim, operations=nn):
        super().__init__()
        self.linear = operations.Linear(3, TOKENS * context_dim)

    def forward(self, colours):
        return self.linear(colours).unflatten(-1, (TOKENS, -1))


def matches(file):
    return any(name.startswith(PROJECTION) for name in file.state)


def load(file, operations=nn):
    layers = part(file.state, LAYERS)
    widths = [layers[f"{j}.to_k_ip.weight"].shape[0] for j in range(len(layers) // 2)]
    if not widths:
        raise CheckpointError(f"attention layers in '{file.label}'", "none", "Choose a whole file.")
    context_dim = layers["0.to_k_ip.weight"].shape[1]
    with torch.device("meta"):
        projection, attention = (
            Projection(context_dim, operations),
            DecoupledLayers(context_dim, widths, False, operations),
        )
    own = {name: tensor for name, tensor in file.state.items() if name.startswith((PROJECTION, LAYERS))}
    modules = nn.ModuleDict({"projection": projection, "attention": attention})
    names = {
        name: name.replace("projection.", PROJECTION, 1).replace("attention.layers.", LAYERS, 1)
        for name in modules.state_dict()
    }
    assign(modules, own, names, file.label, "a Mean Colour file")
    parts = (ImageAttentionSpec("Colour", tuple(widths), TOKENS, text_gain=False, merge="uniform"),)
    spec = AdapterSpec("mean_colour", file.label, context_dim, parts, LABELS["mean_colour"])
    return Adapter(spec, projection, attention)


def encode(given):
    colours = [torch.stack([photo.image.mean((0, 1)) for photo in s.photos]).mean(0) for s in given.cast.subjects]
    *tokens, uncond = given.project(torch.stack([*colours, torch.zeros(3)])).float()
    subjects = (reference_subject(i, s, t) for i, (s, t) in enumerate(zip(given.cast.subjects, tokens, strict=True), 1))
    return References(given.adapter, tuple(subjects), uncond), []


def companions(path):
    return ()


def state_for(widths, context_dim):
    """A random file's tensors for a UNet with cross-attention layers of these widths."""
    g = torch.Generator().manual_seed(3)
    state = {
        f"{PROJECTION}linear.weight": torch.randn(TOKENS * context_dim, 3, generator=g),
        f"{PROJECTION}linear.bias": torch.randn(TOKENS * context_dim, generator=g),
    }
    for j, width in enumerate(widths):
        state |= {
            f"{LAYERS}{j}.{name}.weight": torch.randn(width, context_dim, generator=g) * context_dim**-0.5
            for name in ("to_k_ip", "to_v_ip")
        }
    return state
