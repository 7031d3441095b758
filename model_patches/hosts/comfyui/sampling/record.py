"""Recording which part of the picture each subject affects while a MODEL samples.

The blocks only add to sums on their own device; what they add up to is read once, when the run is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import torch
from comfy.patcher_extension import WrappersMP

from ....attention.limits import Window
from ....binding.layer_tokens import COND
from ....relevance.maps import RecordedRun, mark_of, wanted
from ....relevance.sums import LimitedSums
from .blocks import Grid
from .calls import shown_size, window_of
from .conditioning import KEY, ConditioningChunk

Observe = Callable[[torch.Tensor, torch.Tensor], None]  # `limited_shares` and relevance, see `image_delta`
RECORDINGS = "troupe_recordings"  # key in the transformer options of a run
MOST_PARTS = 64  # grids and areas of one Apply node that are kept apart
UNNAMED = (
    "Connect 'clip' to Encode Subject References: the subjects of {} have no names, so their relevance is unknown."
)
REARRANGED = "Some layers were not recorded: another pack samples the picture in tiles or rearranges its positions."
TOO_MANY = "Some layers were not recorded: the prompt has too many areas, or areas that change between steps."
NO_BLOCKS = "Set 'blocks' of Record Relevance to all: this MODEL has no {} blocks at this size."


Finished = Callable[["RelevanceRecord", torch.Tensor], None]


class RelevanceRecord:
    """The output of Record Relevance: the maps of its MODEL's last finished run.

    Emptied when a run begins; of several, the last begun wins.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: Recording | None = None
        self._run: RecordedRun | None = None

    @property
    def run(self) -> RecordedRun | None:
        """The last run, None if none has come to its end since it began."""
        with self._lock:
            return self._run

    def begin(self, blocks: str) -> Recording:
        """Forget the last run and record another."""
        with self._lock:
            self._current, self._run = Recording(blocks), None
            return self._current

    def finish(self, recording: Recording, latent: torch.Tensor) -> None:
        """Keep what was recorded, unless another run has begun meanwhile; this is where the GPU is waited for."""
        found = recording.result(latent)
        with self._lock:
            if self._current is recording:
                self._run, self._current = found, None

    def abandon(self, recording: Recording) -> None:
        """Drop the records of a run that did not finish."""
        with self._lock:
            if self._current is recording:
                self._current = None


class Recorder:
    """Record Relevance's wrapper on a MODEL.

    record: takes the maps; blocks: which layers, a choice of the widget; finished: called with the record and the
    latent after every run that ends.
    """

    def __init__(self, record: RelevanceRecord, blocks: str, finished: Finished | None = None):
        self.id, self.record, self.blocks, self.finished = uuid4().hex, record, blocks, finished

    def attach(self, model: Any) -> None:
        """Put the wrapper on a clone of the MODEL."""
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, f"{KEY}.record.{self.id}", self.outer_sample)

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Record a run."""
        recording = self.record.begin(self.blocks)
        options = executor.class_obj.model_options["transformer_options"]
        options[RECORDINGS] = options.get(RECORDINGS, ()) + (recording,)
        try:
            found = executor(*args, **kwargs)
            self.record.finish(recording, found)
        finally:
            self.record.abandon(recording)
        if self.finished is not None:
            self.finished(self.record, found)
        return found


class Recording:
    """One run as it is recorded.

    blocks: which layers, a choice of the widget.
    """

    def __init__(self, blocks: str):
        self.blocks = blocks
        self._tallies: dict[str, Tally] = {}
        self._notes: dict[str, None] = {}  # in the order in which they came
        self._lock = threading.Lock()

    def tally(self, hook: Any) -> Tally | None:
        """Return the accumulator for the layers of an Apply Image Attention, or None if its subjects have no names."""
        found = self._tallies.get(hook.id)
        if found is not None:
            return found
        if not hook.references.named:
            self.note(UNNAMED.format(hook.references.adapter.spec.file))
            return None
        with self._lock:
            return self._tallies.setdefault(hook.id, Tally(self, hook))

    def note(self, sentence: str) -> None:
        """Add a sentence to the report."""
        self._notes.setdefault(sentence)

    def result(self, latent: torch.Tensor) -> RecordedRun:
        """Return the recorded maps on the CPU."""
        applied = [tally.sums.maps() for tally in self._tallies.values()]
        if any(tally.skipped for tally in self._tallies.values()) and not any(
            tally.seen for tally in self._tallies.values()
        ):
            self.note(NO_BLOCKS.format(self.blocks))
        return RecordedRun(
            self.blocks, tuple(maps for maps in applied if maps is not None), tuple(self._notes), mark_of(latent)
        )


class Tally:
    """The sums of one Apply node in one recording.

    recording: of the run; hook: of the Apply node.
    """

    def __init__(self, recording: Recording, hook: Any):
        self.recording = recording
        self.sums = LimitedSums(hook.references, hook.settings.mixing, MOST_PARTS)
        self.skipped = self.seen = False  # whether any layer was left out, and whether any has added something

    def prepare(self, chunks: Sequence[ConditioningChunk | None], grid: Grid, size: Grid, device: torch.device) -> None:
        """Make room for what layers of a grid may add, before a model call."""
        for chunk in chunks:
            if (
                chunk
                and chunk.role == COND
                and wanted(self.recording.blocks, grid, shown_size(chunk.area, size))
                and self.sums.room(grid, window_of(chunk.area, size), device) is None
            ):
                self.recording.note(TOO_MANY)

    def add(
        self, limited_shares: torch.Tensor, acting: torch.Tensor, grid: Grid, windows: Sequence[Window | None]
    ) -> None:
        """Add what one layer observes, see `LimitedSums.add`."""
        self.seen = True
        if not self.sums.add(limited_shares, acting, grid, windows):
            self.recording.note(TOO_MANY)


def observer(
    tallies: Sequence[Tally],
    chunks: Sequence[ConditioningChunk],
    windows: Sequence[Window],
    acting: torch.Tensor | None,
    grid: Grid,
    size: Grid,
    whole: bool,
) -> Observe | None:
    """Return what a layer is to tell about rows of these chunks, or None if nobody records them. windows: the part of
    the picture that each shows; whole: whether the layer's positions are the picture's.
    """
    if not tallies or acting is None or all(chunk.role != COND for chunk in chunks):
        return None
    if not whole:
        for tally in tallies:
            tally.recording.note(REARRANGED)
        return None
    asked = []
    for tally in tallies:
        if wanted(tally.recording.blocks, grid, shown_size(chunks[0].area, size)):
            asked.append(tally)
        else:
            tally.skipped = True

    shown = [window if chunk.role == COND else None for chunk, window in zip(chunks, windows, strict=True)]

    def observe(limited_shares: torch.Tensor, relevance: torch.Tensor) -> None:
        for tally in asked:
            tally.add(limited_shares, acting, grid, shown)

    return observe if asked else None


def record_relevance(model: Any, blocks: str, finished: Finished | None = None) -> tuple[Any, RelevanceRecord]:
    """Return a clone of the MODEL that fills the RelevanceRecord whenever it samples, and then calls `finished`."""
    record, patched = RelevanceRecord(), model.clone()
    Recorder(record, blocks, finished).attach(patched)
    return patched, record
