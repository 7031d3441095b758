"""Subjects for GLIGEN's gated layers: their phrases and photos as features. Host-free."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...adapter import AdapterSpec, GatedSpec, PhotoSpec
from ...encoding.image_tokens import reference_subject
from ...encoding.interfaces import OWN_CLIP, EncodeInputs, NameEncoder, check_clip_width, check_named, without_words
from ...encoding.photos import prepared_photos
from ...encoding.warnings import box_warnings
from ...errors import MismatchError
from ...subjects import Cast, ObjectFeatures, References


def encode(given: EncodeInputs) -> tuple[References, list[str]]:
    """Encode phrases [E], and photos [E] for a text-image file: mean photo embeddings projected into the space of the
    phrases.

    Raises:
        SubjectError: a file of phrases and boxes has a subject without a name, or a name encodes to nothing.
        MismatchError: such a file without a text encoder, or one of another base model.
    """
    spec, cast = given.adapter.spec, given.cast
    reads_photos = spec.has(PhotoSpec)
    previews = prepared_photos(cast, given.images.size, given.framing) if reads_photos else ()
    texts = _phrases(spec, cast, given.names, needed=not reads_photos) if cast.subjects else []
    photos = _photos(given, previews) if reads_photos and cast.subjects else [None] * len(texts)
    features = [ObjectFeatures(*pair) for pair in zip(texts, photos, strict=True)]
    subjects = tuple(
        reference_subject(i, s, features=f) for i, (s, f) in enumerate(zip(cast.subjects, features, strict=True), 1)
    )
    return References(given.adapter, subjects, None, None, previews), _warnings(given, reads_photos, texts)


def _warnings(given: EncodeInputs, reads_photos: bool, texts: Sequence[torch.Tensor | None]) -> list[str]:
    file, sentences = given.adapter.spec.file, []
    if not reads_photos:
        sentences.append(f"To use the photos, load a GLIGEN text-image file: {file} only uses names and boxes.")
    elif given.names is None and any(s.name for s in given.cast.subjects):
        remedy = f"{OWN_CLIP} into 'clip'"
        sentences.append(
            f"{remedy}: without it {file} gets no names, and a photo without a box sets the style of the picture."
        )
    style = [reads_photos and text is None for text in texts]  # published: a photo with neither phrase nor box
    return sentences + box_warnings(given.cast, style)


def _phrases(spec: AdapterSpec, cast: Cast, names: NameEncoder | None, needed: bool) -> list[torch.Tensor | None]:
    """[E] of each subject's name; None if it has none and its photo can be used alone, or no text encoder was given
    and photos can.
    """
    if names is None:
        if needed:
            raise MismatchError(
                f"a CLIP for {spec.base}, which encodes the names for {spec.file}", "none", f"{OWN_CLIP} into 'clip'."
            )
        return [None] * len(cast.subjects)
    for number, subject in enumerate(cast.subjects, 1):
        if needed:
            check_named(number, subject.name)
    named = [(number, s.name) for number, s in enumerate(cast.subjects) if s.name]
    found: list[torch.Tensor | None] = [None] * len(cast.subjects)
    for (number, name), vector in zip(named, names.pooled([name for _, name in named]) if named else [], strict=True):
        if vector is None:
            raise without_words(number + 1, name)
        check_clip_width(spec, len(vector), spec.part(GatedSpec).feature_dim)
        found[number] = vector.float()
    return found


def _photos(given: EncodeInputs, previews: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """[E] of each subject, projected from the mean of its photos' embeddings, each of length 1 (the published form), so
    that every photo counts the same; the projection then gives every subject the same length."""
    counts = [len(s.photos) for s in given.cast.subjects]
    unit = torch.nn.functional.normalize(
        given.images.encode(torch.stack(list(previews)), "pooled", blank=False).float(), dim=-1
    )
    return list(given.project(torch.stack([embeds.mean(0) for embeds in unit.split(counts)])).float())
