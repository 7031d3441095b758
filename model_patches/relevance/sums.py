"""What the layers of a run see of the subjects' shares, added up on the device and read once, when the run is over."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from ..attention.limits import Window
from ..attention.merges import Mixing
from ..subjects import References
from .maps import AppliedMaps, MapPart, applied_maps

# of one grid: total [M, h*w] of the maps, count [M] of the calls in which each subject acted
Sums = tuple[torch.Tensor, torch.Tensor]


class LimitedSums:
    """Sums of one Apply node's maps, for each grid and part of the picture, on each device; safe for use from several
    threads.

    references, mixing: of the Apply node; most: so many sums are kept apart, None: any number.
    """

    def __init__(self, references: References, mixing: Mixing, most: int | None = None):
        self.references, self.mixing, self.most = references, mixing, most
        self._sums: dict[tuple[tuple[int, int], Window, torch.device], Sums] = {}
        self._lock = threading.Lock()

    def room(self, grid: tuple[int, int], window: Window, device: torch.device) -> Sums | None:
        """Return the sums of a grid (h, w) that shows this window of the picture, made at their first use; None if
        there are too many.
        """
        key = (grid, window, device)
        found = self._sums.get(key)
        if found is not None or (self.most is not None and len(self._sums) >= self.most):
            return found
        count = len(self.references.subjects)
        with self._lock, torch.inference_mode(False):  # may be added to in any mode
            made = torch.zeros(count, grid[0] * grid[1], device=device), torch.zeros(count, device=device)
            return self._sums.setdefault(key, made)

    def add(
        self,
        limited_shares: torch.Tensor,
        acting: torch.Tensor,
        grid: tuple[int, int],
        windows: Sequence[Window | None],
    ) -> bool:
        """Add what one layer saw, and return whether there was room for all of it.

        limited_shares: [G, B, M, h*w] in 0..1 of B pictures; acting: [M] float32, 1 for subjects that act in this call,
        else 0; windows: what each of G groups of rows shows, None for those without the subjects.
        """
        complete = True
        for group, window in enumerate(windows):
            if window is None:
                continue
            sums = self.room(grid, window, limited_shares.device)
            if sums is None:
                complete = False
                continue
            sums[0].addcmul_(limited_shares[group].mean(0), acting.unsqueeze(1))
            sums[1].add_(acting)
        return complete

    def maps(self) -> AppliedMaps | None:
        """Return the mean maps on the CPU, or None if nobody acted."""
        parts = [
            MapPart(total.cpu().unflatten(1, grid), count.cpu(), window)
            for (grid, window, _), (total, count) in self._sums.items()
        ]
        return applied_maps(self.references, self.mixing.merge, parts)
