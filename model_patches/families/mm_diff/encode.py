"""Subjects for MM-Diff: vectors for their words in the prompt, and image tokens. Host-free."""

from __future__ import annotations

import torch

from ...adapter import ImageAttentionSpec, PhotoSpec, PromptSpec
from ...encoding.image_tokens import encode_names, reference_subject
from ...encoding.interfaces import EncodeInputs
from ...encoding.photos import prepared_photos
from ...encoding.prompt_vectors import check_all_named
from ...encoding.warnings import region_warnings
from ...errors import SubjectError
from ...subjects import PreparedFaces, References, Subject, called

# heads that make image tokens of photos -> what they read; others read faces
IDENTITY_FEATURES = {"ObjectHead": "pooled", "CLSHead": "unprojected"}


def encode(given: EncodeInputs) -> tuple[References, list[str]]:
    """Encode the first photo for the word, as published, and the faces of all photos for the image tokens, one photo's
    behind another's.

    With a head for objects, which is our reconstruction, the photos themselves take the place of the faces.
    Raises:
        SubjectError: a subject without a name, or without the faces that the adapter reads.
        MismatchError: a text encoder of another base model.
    """
    spec, cast = given.adapter.spec, given.cast
    previews = prepared_photos(cast, given.images.size, given.framing)
    check_all_named(given)
    found = _words_and_tokens(given, previews) if cast.subjects else []
    name_tokens, empty = encode_names(spec, cast, given.names if spec.has(ImageAttentionSpec) else None)
    both = zip(cast.subjects, found, name_tokens, strict=True)
    subjects = (
        reference_subject(i, s, tokens, names, words=words) for i, (s, (words, tokens), names) in enumerate(both, 1)
    )
    return References(given.adapter, tuple(subjects), None, empty, previews), region_warnings(cast)


def _words_and_tokens(
    given: EncodeInputs, previews: tuple[torch.Tensor, ...]
) -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Of each subject: vectors [1, D] by text encoder, and image tokens [T, C]."""
    spec, cast = given.adapter.spec, given.cast
    counts = [len(s.photos) for s in cast.subjects]
    firsts = torch.stack([previews[sum(counts[:i])] for i in range(len(counts))])
    pooled = given.images.encode(firsts, spec.part(PhotoSpec).encoder.kind, blank=False)
    head = spec.part(ImageAttentionSpec).projection
    if head in IDENTITY_FEATURES:
        looks = torch.stack(list(prepared_photos(cast, given.base_images.size, "pad")))
        who = given.base_images.encode(looks, IDENTITY_FEATURES[head], blank=False)
    else:
        faces = [_faces_of(number, subject) for number, subject in enumerate(cast.subjects, 1)]
        who, looks = torch.cat([f.vectors for f in faces]), torch.cat([f.crops for f in faces])
    *words, tokens = given.project(pooled, who, given.base_images.encode(looks, "penultimate", blank=False))
    by_stream = dict(zip(spec.part(PromptSpec).streams, (vectors.float().split(1) for vectors in words), strict=True))
    each = enumerate(tokens.float().split(counts))
    return [({stream: found[i] for stream, found in by_stream.items()}, mine.flatten(0, 1)) for i, mine in each]


def _faces_of(number: int, subject: Subject) -> PreparedFaces:
    if subject.faces is None:
        remedy = "Connect its photos to Prepare Faces, and 'faces' of that node to 'faces' of Add Subject."
        raise SubjectError(
            f"prepared faces for {called(number, subject.name)}, which this adapter needs", "none", remedy
        )
    return subject.faces
