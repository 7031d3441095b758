"""Subjects for Subject-Diffusion: patch tokens for its gated layers, and a vector for the placeholder in the prompt.

Host-free.
"""

from __future__ import annotations

import torch

from ...adapter import GatedSpec, PhotoSpec
from ...encoding.image_tokens import reference_subject
from ...encoding.interfaces import EncodeInputs
from ...encoding.photos import prepared_photos
from ...encoding.warnings import box_warnings
from ...errors import MismatchError
from ...subjects import ObjectFeatures, References
from .layout import stream_of

INSIDE = 1  # rows and columns left away at the right and bottom of a cut-out's box, as published


def encode(given: EncodeInputs) -> tuple[References, list[str]]:
    """Encode patch tokens [T, E] and the vector for the prompt [1, D], each the mean over a subject's photos, the
    vector after the projection, as image tokens are. Published is one photo a subject.

    Raises MismatchError: an image encoder with another number of patches.
    """
    cast, spec = given.cast, given.adapter.spec
    previews = prepared_photos(cast, given.images.size, given.framing, INSIDE)
    stream, subjects = stream_of(spec.context_dim), []
    if cast.subjects:
        patches, pooled = given.images.encode_patches(torch.stack(list(previews)))
        gated = spec.part(GatedSpec)
        if patches.shape[1] != gated.tokens:
            found, remedy = (
                f"one with {patches.shape[1]}",
                "Disconnect 'clip_vision' and set 'clip_vision_name' to auto.",
            )
            raise MismatchError(
                f"{spec.part(PhotoSpec).encoder.describe()} with {gated.tokens} patches for {spec.file}", found, remedy
            )
        counts = [len(s.photos) for s in cast.subjects]
        both = zip(
            cast.subjects, patches.float().split(counts), given.project(pooled).float().split(counts), strict=True
        )
        for number, (s, tokens, vectors) in enumerate(both, 1):
            features, words = ObjectFeatures(image=tokens.mean(0)), {stream: vectors.mean(0, keepdim=True)}
            subjects.append(reference_subject(number, s, features=features, words=words))
    alone = len(cast.subjects) == 1  # published: one subject has no position
    return References(given.adapter, tuple(subjects), None, None, previews), box_warnings(
        cast, [alone] * len(cast.subjects)
    )
