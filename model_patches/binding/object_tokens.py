"""Object tokens for gated layers: where each subject is, as the adapter's net sees it, and their keys and values in
every layer. Host-free.

Letters: N slots, E channels of a feature, T patch tokens a slot, M object tokens of all slots, D of an object token, G
groups of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from ..adapter import GatedSpec
from ..attention.box_mask import box_mask
from ..attention.gated import ObjectTokens, weighted
from ..attention.limits import WHOLE, Window
from ..bases import PIXELS_PER_CELL
from ..encoders.fuser import GatedFuser
from ..encoders.gated import GatedLayers
from ..encoders.grounding import ObjectNet, Objects
from ..subjects import Box, ObjectFeatures, References, ReferenceSubject
from .layer_tokens import UNCOND

Corners = tuple[float, float, float, float]  # left, top, right, bottom in 0..1
EVERYWHERE: Corners = (0.0, 0.0, 1.0, 1.0)
STYLE: Corners = (0.0, 1.0, 0.0, 1.0)  # the published place of a photo that gives the picture its style
NOWHERE: Corners = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Group:
    """Rows that share their objects: role COND or UNCOND, each subject's strength now (0: a null slot), and the part of
    the picture they show.
    """

    role: str
    strengths: tuple[float, ...]
    window: Window = WHOLE


def object_tokens(
    layers: GatedLayers,
    references: References,
    group: Group,
    use_bbox: str = "auto",
    device: torch.device | None = None,
) -> torch.Tensor:
    """Return the object tokens that the adapter's net makes of the subjects for one group of rows, [1, M, D] in the
    features' dtype, on the device (None: the net's own).

    A subject of strength 0, or without any part in the window, is a null slot. One without a box has the whole picture,
    or, where it also has no phrase, the published place of a style reference. Rows of role UNCOND get what the
    publisher gives them: null tokens (GLIGEN), zeros (Subject-Diffusion).
    """
    net = _net_of(layers)
    slots, device = _slots(references), device or next(layers.net.parameters()).device
    if group.role == UNCOND:
        return net.uncond(slots, device)
    corners = [
        corners_in(s, group.window) if strength else None
        for s, strength in zip(references.subjects, group.strengths, strict=True)
    ]
    boxes = torch.tensor([[c or NOWHERE for c in corners] + [NOWHERE] * (slots - len(corners))], device=device)
    present = torch.tensor([[c is not None for c in corners] + [False] * (slots - len(corners))], device=device)
    features = [_features(s) for s in references.subjects]
    image, has_image = _stacked([f.image for f in features], slots, net.image_shape, device)
    text, has_text = _stacked([f.text for f in features], slots, (net.feature_dim,), device)
    boxed = use_bbox == "on" or (use_bbox == "auto" and sum(s.weight > 0 for s in references.subjects) > 1)
    return net.tokens_of(Objects(boxes, present, text, has_text, image, has_image, boxed))


def layer_objects(
    layers: GatedLayers,
    references: References,
    groups: Sequence[Group],
    use_bbox: str,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> list[ObjectTokens]:
    """Return the keys and values [G, M, C] of every layer for the groups of a model call. Nothing here depends on the
    timestep.

    device: of the picture, which is not the net's where a host keeps weights elsewhere and casts them as they are used;
    None: the net's own.
    """
    tokens = torch.cat([object_tokens(layers, references, group, use_bbox, device) for group in groups]).to(dtype)
    net, fusers = _net_of(layers), cast("Sequence[GatedFuser]", layers.fusers)  # torch: Modules
    weights = torch.stack([_token_weights(net, references, group) for group in groups])
    plain = bool((weights == 1).all())
    zeros = tuple(net.uncond_is_zero and group.role == UNCOND for group in groups)
    found = [replace(fuser.project(tokens), equal=zeros) for fuser in fusers]
    return found if plain else [weighted(objects, weights.to(tokens.device)) for objects in found]


def mask_channel(references: References, strengths: Sequence[float], size: tuple[int, int]) -> torch.Tensor:
    """Return Subject-Diffusion's mask of the whole picture, [1, h, w] float32 on latent cells: 0 inside the boxes of
    the subjects that act, 1 elsewhere.

    A subject without a box has the whole picture: then the mask is 0 everywhere.
    """
    acting = [s for s, strength in zip(references.subjects, strengths, strict=True) if strength]
    corners = torch.tensor([corners_of(s.box) if s.box else EVERYWHERE for s in acting] or [NOWHERE])
    return box_mask(corners, size, PIXELS_PER_CELL).unsqueeze(0)


def corners_of(box: Box) -> Corners:
    """Convert x, y, w, h to left, top, right, bottom."""
    return box.x, box.y, box.x + box.w, box.y + box.h


def corners_in(subject: ReferenceSubject, window: Window) -> Corners | None:
    """Return a subject's box relative to the window of the picture that is shown, or None if it lies outside."""
    if subject.box is None:
        features = _features(subject)
        return (
            STYLE if features.text is None and features.image is not None and features.image.ndim == 1 else EVERYWHERE
        )
    (left, top, right, bottom), (y0, x0, y1, x1) = corners_of(subject.box), window
    if window == WHOLE:
        return left, top, right, bottom
    left, right = (min(max((x - x0) / (x1 - x0), 0.0), 1.0) for x in (left, right))
    top, bottom = (min(max((y - y0) / (y1 - y0), 0.0), 1.0) for y in (top, bottom))
    return None if left >= right or top >= bottom else (left, top, right, bottom)


def _net_of(layers: GatedLayers) -> ObjectNet:
    return cast(ObjectNet, layers.net)  # a Module too, which no type can say


def _features(subject: ReferenceSubject) -> ObjectFeatures:
    """What the subject was encoded to. Raises ValueError if it was encoded for an adapter without gated layers."""
    if subject.features is None:
        raise ValueError(f"'{subject.name}': expected features for gated layers, found none")
    return subject.features


def _slots(references: References) -> int:
    """Slots that the net was trained with, or more where the cast is larger."""
    return max(references.adapter.spec.part(GatedSpec).slots, len(references.subjects))


def _stacked(
    features: Sequence[torch.Tensor | None], slots: int, shape: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """[1, N, *shape] with zeros for what is not there, and [1, N] bool of what is."""
    there = [f is not None for f in features] + [False] * (slots - len(features))
    rows = [torch.zeros(shape) if f is None else f.cpu() for f in features] + [torch.zeros(shape)] * (
        slots - len(features)
    )
    return torch.stack(rows).unsqueeze(0).to(device), torch.tensor([there], device=device)


def _token_weights(net: ObjectNet, references: References, group: Group) -> torch.Tensor:
    """[M] factors of the object tokens' values: a subject's strength, 1 for null slots."""
    strengths = [strength or 1.0 for strength in group.strengths] if group.role != UNCOND else []
    return net.per_token(torch.tensor(strengths + [1.0] * (_slots(references) - len(strengths))))
