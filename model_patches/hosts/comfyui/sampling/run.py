"""State of one sampling run: who is who, how far it is, and everything that is computed once."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..messages import log, tell
from .clock import Clock
from .conditioning import Roles

T = TypeVar("T")
MISSING: Any = object()


class Run:
    """Lives from the start of a sampling run to its end; caches are dropped with it. node_id: of the Apply node that shows its messages."""

    def __init__(self, clock: Clock, roles: Roles, node_id: str | None = None):
        self.clock, self.roles, self.node_id = clock, roles, node_id
        self.seconds = 0.0
        self.due = False  # whether a call came in which something should act
        self.acted = False
        self.part = ""  # why nothing can be placed in what this run samples
        self.explained = False  # whether it was told why nothing, or not everything, acts
        self._cache: dict[Any, Any] = {}
        self._said: set[str] = set()
        self._shown = False  # whether the node shows a message of this run
        self._lock = threading.RLock()  # newer hosts run the chunks of a call in threads, one a device

    def once(self, key: tuple, make: Callable[[], T], most: int | None = None) -> T:
        """The value of `key`, made at its first use and kept for the run; with `most`, only so many of the same kind (`key[0]`), newest last."""
        found = self._cache.get(key, MISSING)  # without the lock, which would break a compiled graph in every step
        if found is not MISSING:
            return found
        with self._lock:
            if key not in self._cache:
                began = time.perf_counter()
                self._cache[key] = make()
                self.seconds += time.perf_counter() - began
                kin = [k for k in self._cache if k[0] == key[0]]
                for oldest in kin[:max(len(kin) - most, 0)] if most else ():
                    del self._cache[oldest]
            return self._cache[key]

    def begins(self) -> bool:
        """Note that something acts in this run; whether that is the first time."""
        with self._lock:
            first, self.acted = not self.acted, True
        return first

    def say(self, sentence: str, level: int = logging.INFO) -> None:
        """Log a sentence and show it on the node, once a run."""
        with self._lock:
            if sentence in self._said:
                return
            self._said.add(sentence)
            log.log(level, "Troupe: %s", sentence)
            if level >= logging.INFO:
                tell(self.node_id, sentence, level >= logging.WARNING, first=not self._shown)
                self._shown = True

    def rest(self, sentence: str, again: bool = True) -> None:
        """Warn, once a run, that something rests; a run in which nothing acted is then explained. again: False for what the node's earlier runs have said."""
        self.explained = True
        self.say(sentence, logging.WARNING if again else logging.DEBUG)

    def end(self) -> None:
        """Drop what the run kept."""
        with self._lock:
            self._cache.clear()
