"""From a Cast to References: one pass of the image encoder for all photos, one of the text encoder for all names. Host-free."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from math import ceil
from typing import Any

import torch

from ..adapter import AdapterSpec
from ..prompt.names import duplicate_warnings, missing_warnings
from ..subjects import Cast, Photo, References, ReferenceSubject, Subject
from .framing import bounding_box, flatten_alpha, frame, on_white
from .interfaces import ImageEncoder, NameEncoder, Projector, check_clip_width, check_image_encoder, check_named, without_words
from .object_features import object_doubts, object_features
from .prompt_embeddings import subjects_in_prompt

EMPTY = "Add a subject with Add Subject: the cast is empty, so the picture has no references."


def encode_subjects(adapter: Any, cast: Cast, images: ImageEncoder | None, project: Projector, names: NameEncoder | None, framing: str = "auto",
                    prompts: Sequence[str] = (), warn: Callable[[str], None] = lambda sentence: None) -> References:
    """Encode every subject of the cast for one adapter.

    Arguments:
        adapter: has `.spec` (AdapterSpec) and `.weights` (Weights); it is kept in the result.
        images: the image encoder, None where none was found. Weights for it that the adapter brings act in this call alone.
        project: the adapter's projection on [n, ...] encoder output -> [n, T, D]; for gated layers see `object_features`, for prompts `subjects_in_prompt`.
        names: the text encoder, or None: the references then carry no names.
        framing: 'auto' (as the adapter was published), 'pad', 'center' or 'stretch'.
        prompts: known prompt texts, to warn about names that are not in them.
        warn: receives one sentence for each thing that is allowed but probably not meant.
    Raises:
        SubjectError: an empty name where names are encoded, or one that encodes to nothing.
        MismatchError: the image or text encoder is not the one the adapter was trained with.
    """
    spec: AdapterSpec = adapter.spec
    check_image_encoder(spec, images)
    untouched = images
    if images is not None and adapter.weights.vision:
        images = images.with_weights(adapter.weights.vision)
    framing = spec.framing if framing == "auto" else framing
    if spec.gated is not None:
        references, doubts = _objects(adapter, cast, images, project, names, framing)
    elif spec.prompt is not None:
        references, doubts = _in_prompt(adapter, cast, images, untouched, project, names, framing), _regions(cast)
    else:
        references, doubts = _tokens(adapter, cast, images, project, names, framing), _doubts(cast, prompts, named=names is not None)
    for sentence in doubts if cast.subjects else [EMPTY]:
        warn(sentence)
    return references


def prepare_photo(photo: Photo, size: int, framing: str, inside: int = 0) -> torch.Tensor:
    """One photo as the encoder sees it, [size, size, 3]: alpha and cut-out on white, cropped to the cut-out's box, framed.

    inside: rows and columns of the photo to leave away at the box's bottom and right; 1 as Subject-Diffusion was published.
    """
    image = flatten_alpha(photo.image.unsqueeze(0).float())
    if photo.cutout is not None:
        image = on_white(image, photo.cutout.unsqueeze(0).to(image))
        box = bounding_box(photo.cutout)
        if box is not None:
            (top, left, bottom, right), (h, w) = box, photo.cutout.shape
            y, x = image.shape[1] / h, image.shape[2] / w  # the mask may have another resolution
            top, left, bottom, right = int(top * y), int(left * x), ceil(bottom * y), ceil(right * x)
            image = image[:, top:max(top + 1, bottom - inside), left:max(left + 1, right - inside)]
    return frame(image[0], size, framing)


def _prepared(cast: Cast, images: ImageEncoder, framing: str, inside: int = 0) -> tuple[torch.Tensor, ...]:
    return tuple(prepare_photo(photo, images.size, framing, inside) for subject in cast.subjects for photo in subject.photos)


def _tokens(adapter: Any, cast: Cast, images: ImageEncoder, project: Projector, names: NameEncoder | None, framing: str) -> References:
    """References for image attention."""
    name_tokens, empty = _encode_names(adapter.spec, cast, names)
    previews = _prepared(cast, images, framing)
    tokens, uncond = _encode_photos(adapter.spec, cast, images, project, previews)
    return References(adapter, tuple(map(_subject, count(1), cast.subjects, tokens, name_tokens)), uncond, empty, previews)


def _objects(adapter: Any, cast: Cast, images: ImageEncoder | None, project: Projector, names: NameEncoder | None, framing: str) -> tuple[References, list[str]]:
    """References for gated layers, with what is probably not meant about them."""
    spec: AdapterSpec = adapter.spec
    previews = () if spec.encoder is None else _prepared(cast, images, framing, inside=int(spec.gated.kind == "patches"))
    found = object_features(spec, cast, previews, images, project, names)
    subjects = tuple(_subject(i, s, features=f, words=w) for i, (s, (f, w)) in enumerate(zip(cast.subjects, found, strict=True), 1))
    return References(adapter, subjects, None, None, previews), object_doubts(spec, cast, [f for f, _ in found], named=names is not None)


def _in_prompt(adapter: Any, cast: Cast, images: ImageEncoder, untouched: ImageEncoder, project: Projector, names: NameEncoder | None, framing: str) -> References:
    """References for adapters that act in the prompt; with names where a text encoder is given, for relevance."""
    previews = _prepared(cast, images, framing)
    found = subjects_in_prompt(adapter.spec, cast, previews, lambda other: _prepared(cast, images, other), images, untouched, project)
    name_tokens, empty = _encode_names(adapter.spec, cast, names if adapter.spec.widths else None)
    subjects = (_subject(i, s, f.tokens, n, words=f.words) for i, (s, f, n) in enumerate(zip(cast.subjects, found, name_tokens, strict=True), 1))
    return References(adapter, tuple(subjects), None, empty, previews)


def _subject(number: int, s: Subject, tokens: torch.Tensor | None = None, name_tokens: torch.Tensor | None = None, **rest: Any) -> ReferenceSubject:
    return ReferenceSubject(s.name or f"subject {number}", tokens, name_tokens, s.weight, s.start_percent, s.end_percent, s.region, s.box, **rest)


def _doubts(cast: Cast, prompts: Sequence[str], named: bool) -> list[str]:
    """A sentence for each thing that is allowed but probably not meant; names matter only where they are encoded."""
    names = [s.name for s in cast.subjects]
    sentences = duplicate_warnings(names, [s.box is not None or s.region is not None for s in cast.subjects]) + missing_warnings(names, prompts) if named else []
    return sentences + _regions(cast)


def _regions(cast: Cast) -> list[str]:
    """A sentence for each region in which nobody can appear."""
    nowhere = [f"{i} ('{s.name}')" if s.name else str(i) for i, s in enumerate(cast.subjects, 1) if s.region is not None and not bool(s.region.any())]
    return [f"Paint the region of subject {who} white where its photos may apply, or disconnect 'region': it is black everywhere, so the subject has no effect." for who in nowhere]


def _encode_names(spec: AdapterSpec, cast: Cast, names: NameEncoder | None) -> tuple[list[torch.Tensor | None], torch.Tensor | None]:
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


def _encode_photos(spec: AdapterSpec, cast: Cast, images: ImageEncoder, project: Projector, previews: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Tokens of each subject (mean over its photos, after projection) and uncond tokens. previews: all photos, prepared."""
    pooled = spec.encoder.kind == "pooled"
    pictures = torch.stack(list(previews)) if previews else torch.zeros(0, images.size, images.size, 3)
    features = images.encode(pictures, spec.encoder.kind, blank=not pooled)
    if pooled:  # published: the projection of a zero embedding; the others project the encoding of zero pixel values
        features = torch.cat((features, features.new_zeros(1, images.pooled)))
    projected = project(features).float()
    *mine, uncond = projected.split([len(s.photos) for s in cast.subjects] + [1])
    return [tokens.mean(0) for tokens in mine], uncond[0]
