"""What a training of MM-Diff begins with: a file of its own kind, or the image attention of an IP-Adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ...model_patches.adapter import AdapterSpec, ImageAttentionSpec
from ...model_patches.checkpoints.files import read_state
from ...model_patches.encoders.decoupled import DecoupledLayer, DecoupledLayers
from ...model_patches.encoders.lora import LowRank
from ...model_patches.encoders.mm_diff import LoraLayer
from ...model_patches.encoders.projections import ImageProj
from ...model_patches.encoders.refiner import SubjectHead
from ...model_patches.errors import MismatchError
from ...model_patches.families.registry import read_adapter


@torch.no_grad()
def begin_with_file(own: Mapping[str, torch.Tensor], own_spec: AdapterSpec, start: Path) -> None:
    """Copy the weights of a file of this kind.

    Arguments:
        own: the trainee's weights by the file's names; own_spec: what they make.
    Raises:
        CheckpointError: not a file of a known adapter.
        MismatchError: a file of another kind or of other sizes.
    """
    spec = read_adapter(start).spec
    do = "Choose a file of this recipe as 'start' and its sizes in [recipe], or leave 'start' out."
    if spec.family != own_spec.family or _head(spec) != _head(own_spec):
        raise MismatchError(f"{own_spec.describe()} to start from", spec.describe(), do)
    state = read_state(start)
    for name in sorted(own.keys() | state.keys()):
        expected, found = (str(list(s[name].shape)) if name in s else "no such tensor" for s in (own, state))
        if expected != found:
            raise MismatchError(f"a start whose '{name}' is {expected}", found, do)
    for name, value in own.items():
        value.copy_(state[name])


def _head(spec: AdapterSpec) -> str:
    return spec.part(ImageAttentionSpec).projection


@torch.no_grad()
def begin_with_images(head: SubjectHead, layers: Sequence[LoraLayer], attentions: Sequence[Any], start: Path) -> None:
    """Give image attention the function of an IP-Adapter: its image tokens, and its keys and values.

    The head's MLP computes the projection as gelu(x) - gelu(-x) = x, its refiner adds 0. The low-rank pairs are the
    difference between the file's keys and values and the UNet's own: exactly if their rank is no smaller than the
    layer's sizes, else as near as a pair of this rank comes.

    Arguments:
        head: of the trainee, L layers: of the trainee; attentions: the UNet's cross-attentions, L in the same order.
    Raises:
        CheckpointError: not a file of a known adapter.
        MismatchError: another adapter, other sizes, or a head that is too narrow.
    """
    found = read_adapter(start)
    do = "Choose an IP-Adapter made with this image encoder as 'start_images', or leave 'start_images' out."
    projection, there = found.projection, found.layers
    if not isinstance(there, DecoupledLayers) or not isinstance(projection, ImageProj) or there.text_gain:
        what = "an IP-Adapter file with a linear projection and without text gain to start from"
        raise MismatchError(what, found.spec.describe(), do)
    own = {
        "layers of sizes {}": ([layer.to_k_lora_image.up.out_features for layer in layers], list(there.widths)),
        "an image embedding of {} numbers": (head.vector_dim, projection.proj.in_features),
        "{} image tokens": (head.tokens, projection.tokens),
        "image tokens of {} numbers": (head.context_dim, projection.context_dim),
    }
    for what, (expected, given) in own.items():
        if expected != given:
            raise MismatchError(f"{what.format(expected)} in 'start_images'", str(given), do)
    _project(head, projection)
    for layer, other, attention in zip(layers, there.layers, attentions, strict=True):
        theirs = cast(DecoupledLayer, other)
        _make(layer.to_k_lora_image, theirs.to_k_ip.weight.float() - attention.to_k.weight.float())
        _make(layer.to_v_lora_image, theirs.to_v_ip.weight.float() - attention.to_v.weight.float())


def _project(head: SubjectHead, projection: ImageProj) -> None:
    """Make the head's tokens those of a linear projection."""
    first, last, v = cast(nn.Linear, head.proj[0]), cast(nn.Linear, head.proj[2]), head.vector_dim
    if first.out_features < 2 * v:
        do = f"Set hidden to {2 * v} or more, or leave 'start_images' out."
        raise MismatchError(f"a 'hidden' of at least {2 * v} to start from an IP-Adapter", str(first.out_features), do)
    first.weight[: 2 * v] = torch.cat((torch.eye(v), -torch.eye(v)))
    first.bias[: 2 * v] = 0
    last.weight.zero_()
    last.weight[:, : 2 * v] = torch.cat((projection.proj.weight.float(), -projection.proj.weight.float()), 1)
    last.bias.copy_(projection.proj.bias)
    head.layer_norm.load_state_dict(projection.norm.state_dict())
    for parameter in head.refiner.norm_out.parameters():
        nn.init.zeros_(parameter)


def _make(pair: LowRank, change: torch.Tensor) -> None:
    """Make a pair the best approximation of a change [out, in] of its rank; what is left of the rank stays unused."""
    left, strengths, right = torch.linalg.svd(change.double(), full_matrices=False)
    kept = min(pair.down.out_features, len(strengths))
    root = strengths[:kept].sqrt() / pair.factor**0.5
    pair.up.weight.zero_()
    pair.up.weight[:, :kept] = (left[:, :kept] * root).float()
    pair.down.weight[:kept] = (root[:, None] * right[:kept]).float()
