"""From a Cast to References: one pass of the image encoder for all photos, one of the text encoder for all names. Host-free."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, Protocol

import torch

from .adapter import AdapterSpec, base_name
from .checkpoints.catalogue import encoder_of_width, where_to_get
from .encoders.framing import bounding_box, flatten_alpha, frame, on_white
from .errors import MismatchError, SubjectError
from .prompt.names import duplicate_warnings, missing_warnings
from .subjects import Cast, Photo, References, ReferenceSubject

Projector = Callable[[torch.Tensor], torch.Tensor]


class ImageEncoder(Protocol):
    """A CLIP vision encoder: `size` of its square input, widths `hidden` and `pooled`."""

    size: int
    hidden: int
    pooled: int

    def encode(self, pictures: torch.Tensor, kind: str, blank: bool) -> torch.Tensor:
        """[n, size, size, 3] -> 'pooled' [n, E] or 'penultimate' [n, P, E]; with `blank` one row more, of all-zero pixel values."""
        ...


class NameEncoder(Protocol):
    """A text encoder for bare names, at its default layer."""

    def encode(self, names: Sequence[str]) -> list[torch.Tensor]:
        """Tokens [L, D] of each name without BOS, EOS and padding; for "" the tokens after BOS, [K, D]."""
        ...


def encode_subjects(adapter: Any, cast: Cast, images: ImageEncoder | None, project: Projector, names: NameEncoder | None, framing: str = "auto",
                    prompts: Sequence[str] = (), warn: Callable[[str], None] = lambda sentence: None) -> References:
    """Encode every subject of the cast for one adapter.

    Arguments:
        adapter: has `.spec` (AdapterSpec); it is kept in the result.
        images: the image encoder, None where none was found.
        project: the adapter's projection on [n, ...] encoder output -> [n, T, D].
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
    name_tokens, empty = _encode_names(spec, cast, names)
    tokens, uncond, previews = _encode_photos(spec, cast, images, project, spec.framing if framing == "auto" else framing)
    for sentence in _doubts(cast, prompts, named=names is not None):
        warn(sentence)
    subjects = tuple(
        ReferenceSubject(s.name or f"subject {i + 1}", tokens[i], name_tokens[i], s.weight, s.start_percent, s.end_percent, s.region, s.box) for i, s in enumerate(cast.subjects)
    )
    return References(adapter, subjects, uncond, empty, previews)


def check_image_encoder(spec: AdapterSpec, images: ImageEncoder | None) -> None:
    """Raise MismatchError unless the encoder's widths are the adapter's; the message says which file to fetch."""
    need, known = spec.encoder, encoder_of_width(spec.encoder.kind, spec.encoder.width)
    fetch = f"{where_to_get(known.file)}, then leave 'clip_vision_name' on auto." if known else "Choose the encoder that the adapter's publisher names."
    if images is None:
        raise MismatchError(f"{need.describe()} for {spec.file}", "no CLIP vision encoder of these widths in models/clip_vision and none wired", fetch)
    if not need.fits(images.hidden, images.pooled):
        raise MismatchError(f"{need.describe()} for {spec.file}", f"an encoder {images.hidden} wide inside and {images.pooled} at its output{_known_as(images)}", fetch)


def prepare_photo(photo: Photo, size: int, framing: str) -> torch.Tensor:
    """One photo as the encoder sees it, [size, size, 3]: alpha and cut-out on white, cropped to the cut-out's box, framed."""
    image = flatten_alpha(photo.image.unsqueeze(0).float())
    if photo.cutout is not None:
        image = on_white(image, photo.cutout.unsqueeze(0).to(image))
        box = bounding_box(photo.cutout)
        if box is not None:
            (top, left, bottom, right), (h, w) = box, photo.cutout.shape
            y, x = image.shape[1] / h, image.shape[2] / w  # the mask may have another resolution
            image = image[:, int(top * y):ceil(bottom * y), int(left * x):ceil(right * x)]
    return frame(image[0], size, framing)


def _doubts(cast: Cast, prompts: Sequence[str], named: bool) -> list[str]:
    """A sentence for each thing that is allowed but probably not meant; names matter only where they are encoded."""
    if not cast.subjects:
        return ["The cast is empty: the picture will be made without references. Add a subject with Add Subject."]
    names = [s.name for s in cast.subjects]
    sentences = duplicate_warnings(names, [s.box is not None or s.region is not None for s in cast.subjects]) + missing_warnings(names, prompts) if named else []
    nowhere = [f"{i} ('{s.name}')" if s.name else str(i) for i, s in enumerate(cast.subjects, 1) if s.region is not None and not bool(s.region.any())]
    return sentences + [f"The region of subject {who} is black everywhere, so it acts nowhere. Paint white where it may appear, or unwire 'region'." for who in nowhere]


def _known_as(images: ImageEncoder) -> str:
    known = encoder_of_width("penultimate", images.hidden)
    return f", which is {known.name}" if known and known.pooled == images.pooled else ""


def _encode_names(spec: AdapterSpec, cast: Cast, names: NameEncoder | None) -> tuple[list[torch.Tensor | None], torch.Tensor | None]:
    if names is None:
        return [None] * len(cast.subjects), None
    for number, subject in enumerate(cast.subjects, 1):
        if not subject.name:
            raise SubjectError(f"a name for subject {number}", "an empty one", "Type the noun as it stands in the prompt (for instance 'cat') into this subject's 'name'.")
    *encoded, empty = names.encode([s.name for s in cast.subjects] + [""])
    width = empty.shape[-1]
    if width != spec.context_dim:
        found, do = f"one {width} wide, for {base_name(width)}", "Wire the CLIP of the checkpoint that you sample with, or choose an adapter for it."
        raise MismatchError(f"a CLIP for {spec.base} ({spec.context_dim} wide), as {spec.file} is", found, do)
    for number, (subject, tokens) in enumerate(zip(cast.subjects, encoded, strict=True), 1):
        if not len(tokens):
            found = f"'{subject.name}', which the text encoder reads as nothing"
            raise SubjectError(f"a name with words in it for subject {number}", found, "Type the noun as it stands in the prompt into 'name'.")
    return [t.float() for t in encoded], empty.float()


def _encode_photos(spec: AdapterSpec, cast: Cast, images: ImageEncoder, project: Projector, framing: str) -> tuple[list[torch.Tensor], torch.Tensor, tuple[torch.Tensor, ...]]:
    """Tokens of each subject (mean over its photos, after projection), uncond tokens, and what the encoder saw."""
    previews = tuple(prepare_photo(photo, images.size, framing) for subject in cast.subjects for photo in subject.photos)
    pooled = spec.encoder.kind == "pooled"
    pictures = torch.stack(previews) if previews else torch.zeros(0, images.size, images.size, 3)
    features = images.encode(pictures, spec.encoder.kind, blank=not pooled)
    if pooled:  # published: the projection of a zero embedding; the others project the encoding of zero pixel values
        features = torch.cat((features, features.new_zeros(1, images.pooled)))
    projected = project(features).float()
    *mine, uncond = projected.split([len(s.photos) for s in cast.subjects] + [1])
    return [tokens.mean(0) for tokens in mine], uncond[0], previews
