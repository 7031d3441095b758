"""Subjects for adapters that act in the prompt: what replaces or changes a subject's word there. Host-free."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..adapter import PhotoSpec, PromptSpec
from ..subjects import References
from .image_tokens import reference_subject
from .interfaces import EncodeInputs, check_named
from .photos import prepared_photos
from .warnings import region_warnings


def check_all_named(given: EncodeInputs) -> None:
    """Raise SubjectError unless every subject has a name: its place in the prompt is found by it."""
    for number, subject in enumerate(given.cast.subjects, 1):
        check_named(number, subject.name)


def prompt_vectors(
    given: EncodeInputs, vectors_of: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[References, list[str]]:
    """Encode each subject as the mean over its photos of vectors [K, D] for the adapter's one text encoder.

    vectors_of: photo embeddings [n, E] -> [n, K, D]. Raises SubjectError: a subject without a name.
    """
    cast, spec = given.cast, given.adapter.spec
    previews = prepared_photos(cast, given.images.size, given.framing)
    check_all_named(given)
    subjects = []
    if cast.subjects:
        embeds = given.images.encode(torch.stack(list(previews)), spec.part(PhotoSpec).encoder.kind, blank=False)
        (stream,) = spec.part(PromptSpec).streams
        each = vectors_of(embeds).float().split([len(s.photos) for s in cast.subjects])
        subjects = [
            reference_subject(i, s, words={stream: mine.mean(0)})
            for i, (s, mine) in enumerate(zip(cast.subjects, each, strict=True), 1)
        ]
    return References(given.adapter, tuple(subjects), None, None, previews), region_warnings(cast)
