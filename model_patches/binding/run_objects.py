"""What a gated adapter projects once in a run and reads in all of its calls, the same in every host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..attention.gated import ObjectTokens
from ..attention.limits import WHOLE, Window
from ..encoders.gated import GatedLayers
from ..subjects import References
from .layer_tokens import COND
from .object_tokens import Group, layer_objects, mask_channel
from .plan import GatedStrengths
from .run_cache import RunCache
from .settings import GatedSettings

KEPT_OBJECTS = 8  # subjects that come and go, and areas, make several sets of objects in a run; so many are kept


def groups_of(roles: Sequence[str], weights: tuple[float, ...], windows: Sequence[Window] = ()) -> tuple[Group, ...]:
    """Return the groups of a model call. roles: COND or UNCOND, of each group, whose rows see the whole picture or, if
    given, these windows of it. weights: of the subjects, which only rows of role COND see.
    """
    each = zip(roles, windows or [WHOLE] * len(roles), strict=True)
    return tuple(Group(role, weights, window) if role == COND else Group(role, ()) for role, window in each)


@dataclass(frozen=True, eq=False)
class RunObjects:
    """Keys and values of the objects in every gated layer and the box mask, made at their first use in a run, on one
    device in one dtype.
    """

    run: RunCache
    references: References
    settings: GatedSettings
    layers: GatedLayers
    device: torch.device
    dtype: torch.dtype

    def objects(self, groups: tuple[Group, ...]) -> list[ObjectTokens]:
        """Return each layer's objects for the groups of a call."""
        return self.run.once(
            ("objects", groups, self.device, self.dtype),
            lambda: layer_objects(
                self.layers, self.references, groups, self.settings.use_bbox, self.dtype, self.device
            ),
            KEPT_OBJECTS,
        )

    def scale(self, now: GatedStrengths) -> float | torch.Tensor:
        """Return the scale of a call; a tensor where it changes from step to step, see `gated_residual`."""
        if self.settings.end_percent >= 1.0 or self.settings.decay_percent <= 0.0:
            return now.scale
        made = ("scale", now.scale, self.device)
        return self.run.once(made, lambda: torch.tensor(now.scale, device=self.device), KEPT_OBJECTS)

    def mask(
        self, weights: tuple[float, ...], size: tuple[int, int], area: tuple[int, ...] | None = None
    ) -> torch.Tensor | None:
        """Return what the mask channel adds after the UNet's first convolution in rows of role COND, [1, C, h, w]; None
        for an adapter without one. Other rows have a mask of zeros, which adds nothing.

        weights: of the subjects in the call; size: of the latent (h, w); area: (h, w, y, x) in its cells that the rows
        show, None: all of it.
        """
        convolution = self.layers.mask_conv
        if convolution is None:
            return None

        def make() -> torch.Tensor:
            mask = mask_channel(self.references, weights, size)
            if area is not None:
                h, w, y, x = area
                mask = mask[:, y : y + h, x : x + w]
            return convolution(mask.unsqueeze(0).to(self.device, self.dtype))

        return self.run.once(("mask", weights, area, size, self.device, self.dtype), make, KEPT_OBJECTS)
