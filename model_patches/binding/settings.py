"""What the widgets of the Apply nodes mean, free of any host."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from ..adapter import ImageAttentionSpec
from ..attention.merges import Mixing
from ..errors import MismatchError
from ..subjects import References

IN_CROPS = ("auto", "apply", "skip")


@dataclass(frozen=True)
class ImageAttentionSettings:
    """Widgets of Apply Image Attention: weight 0..2; percents as ComfyUI's; box_* see `attention.limits`; mixing see
    `Mixing`.

    in_crops: what to do in a run that samples only a part of the picture, which only a host can know. 'auto': skip the
    node with a warning; 'apply': stretch regions and boxes over the part; 'skip': skip the node in every img2img run.
    """

    weight: float = 0.65
    mixing: Mixing = Mixing()
    start_percent: float = 0.0
    end_percent: float = 1.0
    box_strength: float = 1.0
    box_end_percent: float = 1.0
    box_feather: float = 0.05
    in_crops: str = IN_CROPS[0]


@dataclass(frozen=True)
class GatedSettings:
    """Widgets of Apply Gated Adapter: strength 0..2; percents as ComfyUI's: full strength until `end_percent`, then
    falling to 0 over `decay_percent`; use_bbox: 'auto', 'on' or 'off' (of Subject-Diffusion's GroundingNet); in_crops
    as in `ImageAttentionSettings`."""

    strength: float = 1.0
    end_percent: float = 1.0
    decay_percent: float = 0.0
    use_bbox: str = "auto"
    in_crops: str = IN_CROPS[0]


def mixing_for(references: References, merge: str, sharpness: float = 1.0, background: float = 1.0) -> Mixing:
    """Return the settings of the Apply node's merge widgets; 'auto' is the merge that the adapter was
    published with, and `Mixing`'s default for one without image attention, which the Apply node refuses.
    """
    spec = references.adapter.spec
    if merge == "auto":
        merge = spec.part(ImageAttentionSpec).merge if spec.has(ImageAttentionSpec) else Mixing.merge
    return Mixing(merge, sharpness, background)


def check_finite(settings: Any, node: str) -> None:
    """Raise MismatchError for a number of a settings dataclass that is NaN or infinite, as only a wire can bring it;
    `node` names the node.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Mixing):
            check_finite(value, node)
        elif isinstance(value, (int, float)):
            check_number(field.name, value, node)


def check_number(name: str, value: float, node: str) -> None:
    """Raise MismatchError if a number is NaN or infinite. name: of the widget; `node` names the node."""
    if not math.isfinite(value):
        remedy = "Look at the node that makes this number, or type one in."
        raise MismatchError(f"a finite number as '{name}' of {node}", f"{value}", remedy)
