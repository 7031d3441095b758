"""Subjects for image attention: tokens of their photos and of their names. Host-free."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import torch

from ..adapter import AdapterSpec, PhotoSpec
from ..subjects import Cast, References, ReferenceSubject, Subject
from .interfaces import EncodeInputs, ImageEncoder, NameEncoder, Projector, check_clip_width, check_named, without_words
from .photos import prepared_photos


def image_tokens(given: EncodeInputs) -> References:
    """Return References with image tokens, and with name tokens where a text encoder is given.

    Raises:
        SubjectError: an empty name where names are encoded, or one that encodes to nothing.
        MismatchError: the text encoder is not the one of the adapter's base model.
    """
    spec, cast = given.adapter.spec, given.cast
    name_tokens, empty = encode_names(spec, cast, given.names)
    previews = prepared_photos(cast, given.images.size, given.framing)
    tokens, uncond = _encode_photos(spec, cast, given.images, given.project, previews)
    return References(
        given.adapter,
        tuple(map(reference_subject, count(1), cast.subjects, tokens, name_tokens)),
        uncond,
        empty,
        previews,
    )


def reference_subject(
    number: int, s: Subject, tokens: torch.Tensor | None = None, name_tokens: torch.Tensor | None = None, **rest: Any
) -> ReferenceSubject:
    """Return a subject of the cast with the tokens that an adapter made of it. number: in the cast, from 1; the name of
    one without a name.
    """
    return ReferenceSubject(
        s.name or f"subject {number}",
        tokens,
        name_tokens,
        s.weight,
        s.start_percent,
        s.end_percent,
        s.region,
        s.box,
        **rest,
    )


def encode_names(
    spec: AdapterSpec, cast: Cast, names: NameEncoder | None
) -> tuple[list[torch.Tensor | None], torch.Tensor | None]:
    """Encode the name tokens [L, D] float32 of each subject and those of the empty prompt; None for all if no text
    encoder is given.

    Raises:
        SubjectError: an empty name, or one that encodes to nothing.
        MismatchError: a text encoder of another width than the adapter's base model has.
    """
    if names is None:
        return [None] * len(cast.subjects), None
    for number, subject in enumerate(cast.subjects, 1):
        check_named(number, subject.name)
    *encoded, empty = names.encode([s.name for s in cast.subjects] + [""])
    check_clip_width(spec, empty.shape[-1], spec.context_dim)
    for number, (subject, tokens) in enumerate(zip(cast.subjects, encoded, strict=True), 1):
        if not len(tokens):
            raise without_words(number, subject.name)
    return [t.float() for t in encoded], empty.float()


def _encode_photos(
    spec: AdapterSpec, cast: Cast, images: ImageEncoder, project: Projector, previews: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Tokens of each subject (mean over its photos, after projection) and uncond tokens. previews: all photos,
    prepared.
    """
    kind = spec.part(PhotoSpec).encoder.kind
    pooled = kind == "pooled"
    pictures = torch.stack(list(previews)) if previews else torch.zeros(0, images.size, images.size, 3)
    features = images.encode(pictures, kind, blank=not pooled)
    if pooled:  # published: the projection of a zero embedding; the others project the encoding of zero pixel values
        features = torch.cat((features, features.new_zeros(1, images.pooled)))
    projected = project(features).float()
    *mine, uncond = projected.split([len(s.photos) for s in cast.subjects] + [1])
    return [tokens.mean(0) for tokens in mine], uncond[0]
