"""Where each subject may act in the layers of a run: made once for each grid and read in all calls, the same in every
host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..attention.limits import WHOLE, Window
from ..subjects import ReferenceSubject
from .limits import Pictured, group_limits, has_several_masks, limited, pictured
from .run_cache import RunCache
from .settings import ImageAttentionSettings

LIMITS = 192  # limits that areas, tiles and windows over the batch make: a UNet has up to seven grids


@dataclass(frozen=True, eq=False)
class RunLimits:
    """Maps of the regions and boxes on the grids of the layers, made at their first use in a run, on one device."""

    run: RunCache
    subjects: Sequence[ReferenceSubject]
    settings: ImageAttentionSettings
    device: torch.device

    def pictured(self, pictures: Sequence[int], whole: bool) -> Pictured:
        """Return the subjects with regions that fit the pictures of a call, see `limits.pictured`."""
        if not any(has_several_masks(subject) for subject in self.subjects):
            return Pictured(self.subjects)
        shown = tuple(pictures)
        return self.run.once(("pictures", shown, whole), lambda: pictured(self.subjects, shown, whole), LIMITS)

    def on_grid(
        self,
        found: Pictured,
        grid: tuple[int, int],
        boxed: bool,
        windows: Sequence[Window] = (WHOLE,),
        apart: bool = True,
    ) -> torch.Tensor | None:
        """Return the m of every subject on a layer's grid (h, w), [1 or G, 1 or B, M, h*w], or None if no region or box
        limits anybody.

        found: what `pictured` gave; boxed: whether boxes limit in this call; windows: the part of the picture that each
        of G groups of rows shows; apart: False if the rows of the layer are not the pictures', which then all get the
        union of a region's masks.
        """
        if not limited(found.subjects, boxed):
            return None
        shown = tuple(windows[:1] if len(set(windows)) == 1 else windows)
        pictures = found.pictures if apart else ()
        return self.run.once(
            ("limits", shown, grid, boxed, self.device, pictures),
            lambda: group_limits(found.subjects, self.settings, grid, boxed, self.device, shown, pictures),
            LIMITS,
        )
