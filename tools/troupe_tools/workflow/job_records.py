"""What a workflow asks the embedded engine for, as plain frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class ReferenceJob:
    """A reference picture of Load Rehearsal Models: the classes that it is asked for, and which of them, from 0."""

    kinds: tuple[str, ...]
    index: int


@dataclass(frozen=True)
class SubjectJob:
    """One subject: its name, its photo files as LoadImage has them, weight 0..3 and its part of the run; faces: whether
    its faces are prepared; drawn: its references from Load Rehearsal Models.
    """

    name: str
    photos: tuple[str, ...]
    weight: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    faces: bool = False
    drawn: tuple[ReferenceJob, ...] = ()


@dataclass(frozen=True)
class PlaceJob:
    """One Place Subjects node: its widgets, and how many subjects of the cast came before it."""

    subjects: int
    boxes: str
    layout: str
    width: int
    height: int


@dataclass(frozen=True)
class ApplyJob:
    """One Apply node (or Quick Subjects) with what feeds it, the subjects and what places them."""

    adapter: str
    clip_vision: str
    framing: str
    named: bool
    subjects: tuple[SubjectJob, ...]
    places: tuple[PlaceJob, ...] = ()

    @property
    def encoded(self) -> tuple[Any, ...]:
        """What its references are made from: jobs with the same have the same."""
        return self.adapter, self.clip_vision, self.framing, self.named, self.subjects, self.places


@dataclass(frozen=True)
class AttentionJob(ApplyJob):
    """Apply Image Attention with its widgets."""

    weight: float = 0.65
    merge: str = "auto"
    start_percent: float = 0.0
    end_percent: float = 1.0
    box_strength: float = 1.0
    box_end_percent: float = 1.0
    box_feather: float = 0.05
    sharpness: float = 1.0
    background: float = 1.0


@dataclass(frozen=True)
class GatedJob(ApplyJob):
    """Apply Gated Adapter with its widgets."""

    strength: float = 1.0
    end_percent: float = 1.0
    decay_percent: float = 0.0
    use_bbox: str = "auto"


AppliedJob: TypeAlias = AttentionJob | GatedJob  # what is on the model wire


@dataclass(frozen=True)
class WordsJob(ApplyJob):
    """Encode Prompt with Subjects, of the positive prompt, with its widgets."""

    start_percent: float = 0.0
    start_step: int = -1
    quirks: str = "clean"


@dataclass(frozen=True)
class WeightsJob:
    """Apply Adapter Weights; strength_clip is None if no CLIP passes it."""

    adapter: str
    strength_model: float = 1.0
    strength_clip: float | None = None


@dataclass(frozen=True)
class GuidanceJob:
    """Two-Strength Guider beside cfg, read without torch, which `two_strengths.Guidance` needs; text_only: the middle
    is the prompt without its subjects, else the negative."""

    method: str
    second: float
    second_end: float
    start_percent: float
    end_percent: float
    text_only: bool = False


@dataclass(frozen=True)
class Job:
    """A whole run: checkpoint, prompts, size in pixels, sampling, the Apply nodes from the checkpoint on, and what is
    there of subjects in the prompt, weights from adapters and guidance."""

    checkpoint: str
    prompt: str
    negative: str
    width: int
    height: int
    batch: int
    steps: int
    cfg: float
    seed: int
    sampler: str
    scheduler: str
    applied: tuple[AppliedJob, ...]
    words: WordsJob | None = None
    weights: tuple[WeightsJob, ...] = ()
    guidance: GuidanceJob | None = None

    @property
    def encoded(self) -> tuple[ApplyJob, ...]:
        """One job for each Encode node."""
        jobs: list[ApplyJob] = [*self.applied, *([self.words] if self.words else ())]
        return tuple({apply.encoded: apply for apply in jobs}.values())

    @property
    def adapters(self) -> tuple[str, ...]:
        """Every adapter, once."""
        return tuple(
            dict.fromkeys([*(apply.adapter for apply in self.encoded), *(weights.adapter for weights in self.weights)])
        )

    @property
    def subjects(self) -> tuple[SubjectJob, ...]:
        """The subjects of all Encode nodes, in order."""
        return tuple(subject for apply in self.encoded for subject in apply.subjects)
