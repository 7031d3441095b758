"""What references do in one model call, decided alike in every host: which subjects act, how strongly, in which rows.

A host only says where the run is: `Inside` answers for spans of it, each (start, end) in ComfyUI's percents, 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..adapter import PromptSpec
from ..attention.gated import scale_at
from ..subjects import References, ReferenceSubject
from .layer_tokens import COND
from .settings import GatedSettings, ImageAttentionSettings

Span = tuple[float, float]
# whether the call lies in each span; (0, 1) is the whole run, a start that is not before the end is never
Inside = Callable[[Sequence[Span]], Sequence[bool]]
WHOLE_RUN: Span = (0.0, 1.0)


def ends_of(span: Span) -> tuple[float | None, float | None] | None:
    """Return the percents at which a span of the run begins and ends, None for an open end; None for an empty span.

    As the ComfyUI host reads them: 0 and 1 are open ends, which no rounding of a step can miss, and a start that is not
    before the end is empty.
    """
    start, end = span
    if start >= end:
        return None
    return (None if start <= 0.0 else start), (None if end >= 1.0 else end)


@dataclass(frozen=True)
class ImageStrengths:
    """Weight of each subject in a call (0..6; 0 outside its steps), and whether boxes limit subjects in it: there
    are some, their strength is not 0, and their end is not reached.
    """

    weights: tuple[float, ...]
    boxed: bool


@dataclass(frozen=True)
class GatedStrengths:
    """Weight of each subject in a call (0..3; 0 outside its steps), and the scale of both gated residuals, 0..2."""

    weights: tuple[float, ...]
    scale: float


def is_idle(strength: float, subjects: Sequence[ReferenceSubject]) -> bool:
    """Return whether an Apply node has no effect in any step: it or every subject has strength 0, or there is no
    subject.
    """
    return strength == 0.0 or not any(subject.weight for subject in subjects)


def image_strengths(
    settings: ImageAttentionSettings, subjects: Sequence[ReferenceSubject], inside: Inside
) -> ImageStrengths | None:
    """Return the strengths of image attention in a call, None if no subject acts.

    Where boxes limit nothing, their end is not looked up: that could make a GPU wait.
    """
    if is_idle(settings.weight, subjects):
        return None
    boxes = settings.box_strength != 0.0 and any(subject.box is not None for subject in subjects)
    box_span = (0.0, settings.box_end_percent) if boxes else WHOLE_RUN
    on, boxed, *active = inside([(settings.start_percent, settings.end_percent), box_span, *_spans(subjects)])
    each = zip(subjects, active, strict=True)
    weights = tuple(settings.weight * subject.weight if on and acts else 0.0 for subject, acts in each)
    return ImageStrengths(weights, boxes and boxed) if any(weights) else None


def gated_strengths(
    settings: GatedSettings, subjects: Sequence[ReferenceSubject], inside: Inside, percent: Callable[[], float]
) -> GatedStrengths | None:
    """Return the strengths of a gated adapter in a call, None if no subject acts.

    percent: gives ComfyUI's percent of the call, 0..1; called only where the scale changes within the run.
    """
    if is_idle(settings.strength, subjects):
        return None
    scale = settings.strength
    if settings.end_percent < 1.0:
        scale *= scale_at(percent(), settings.end_percent, settings.decay_percent)
    each = zip(subjects, inside(_spans(subjects)), strict=True)
    weights = tuple(subject.weight if acts else 0.0 for subject, acts in each)
    return GatedStrengths(weights, scale) if scale and any(weights) else None


def takes_part(references: References, role: str | None) -> bool:
    """Return whether image attention changes rows of a role: COND always, UNCOND if the adapter has empty tokens, None
    never.
    """
    return role == COND or (role is not None and references.uncond_tokens is not None)


def needs_names(references: References, settings: ImageAttentionSettings, recording: bool = False) -> bool:
    """Return whether the keys of the subjects' names are needed: for the merge, or to record relevance."""
    return recording or settings.mixing.needs_relevance(len(references.subjects))


def waits_for_prompt(references: References) -> bool:
    """Return whether the subjects act in the UNet only once they are in the prompt, as MM-Diff was published."""
    spec = references.adapter.spec
    return spec.has(PromptSpec) and spec.part(PromptSpec).fusion.starts_image_attention


def is_delayed(start_percent: float, start_step: int) -> bool:
    """Return whether a prompt begins without its subjects. start_percent: 0..1; start_step: from 0, or -1: the percent
    holds.
    """
    return start_step > 0 if start_step >= 0 else start_percent > 0.0


def _spans(subjects: Sequence[ReferenceSubject]) -> list[Span]:
    return [(subject.start_percent, subject.end_percent) for subject in subjects]
