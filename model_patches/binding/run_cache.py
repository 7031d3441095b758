"""Values that are made once for a sampling run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
NOT_CACHED: Any = object()


class RunCache:
    """Values of one sampling run by key. seconds: how long making them took. Safe for use from several threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._cache: dict[Any, Any] = {}
        self._lock = threading.RLock()  # newer ComfyUI versions run the chunks of a call in threads, one a device

    def once(self, key: tuple, make: Callable[[], T], most: int | None = None) -> T:
        """Return the value of `key`, made at its first use; with `most`, keep only the newest so many of a kind
        (`key[0]`).
        """
        found = self._cache.get(key, NOT_CACHED)  # without the lock, which would break a compiled graph in every step
        if found is not NOT_CACHED:
            return found
        with self._lock:
            if key not in self._cache:
                before, began = self.seconds, time.perf_counter()
                self._cache[key] = make()
                self.seconds = before + time.perf_counter() - began  # with what it was made of
                kin = [k for k in self._cache if k[0] == key[0]]
                for oldest in kin[: max(len(kin) - most, 0)] if most else ():
                    del self._cache[oldest]
            return self._cache[key]

    def clear(self) -> None:
        """Drop every value."""
        with self._lock:
            self._cache.clear()
