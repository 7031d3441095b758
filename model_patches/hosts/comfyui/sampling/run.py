"""State of one sampling run: who is who, how far it is, and everything that is computed once."""

from __future__ import annotations

import logging

from ....binding.run_cache import RunCache
from ....relevance.overlap_check import OverlapLook
from ..messages import log, tell
from .clock import Clock
from .conditioning import Roles


class Run(RunCache):
    """The state of one sampling run, from its start to its end; caches are dropped with it.

    clock: its progress; roles: of its conditioning entries; node_id: of the Apply node
    that shows its messages.
    """

    def __init__(self, clock: Clock, roles: Roles, node_id: str | None = None):
        super().__init__()
        self.clock, self.roles, self.node_id = clock, roles, node_id
        self.due = False  # whether a call came in which something should act
        self.acted = False
        self.from_noise = False  # whether the run makes the layout of the picture
        self.look: OverlapLook | None = None  # at the places of the subjects in the present step
        self.part = ""  # why nothing can be placed in what this run samples
        self.explained = False  # whether the message was given why nothing, or not everything, acts
        self._said: set[str] = set()
        self._shown = False  # whether the node shows a message of this run

    def begins(self) -> bool:
        """Note that something acts in this run, and return whether that is the first time."""
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

    def explain(self, sentence: str, again: bool = True) -> None:
        """Warn, once a run, that something is disabled; a run in which nothing acted is then explained. again: False
        for what the node's earlier runs have said.
        """
        self.explained = True
        self.say(sentence, logging.WARNING if again else logging.DEBUG)

    def end(self) -> None:
        """Drop what the run kept."""
        self.clear()
