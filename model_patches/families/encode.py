"""From a Cast to References with whatever adapter was loaded. Host-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..adapter import PhotoSpec
from ..encoding.interfaces import EncodeInputs, ImageEncoder, NameEncoder, Projector, check_image_encoder
from ..subjects import Cast, References, SubjectAdapter
from .registry import family_of

EMPTY_CAST = "Add a subject with Add Subject: the cast is empty, so the picture has no references."


def encode_subjects(
    adapter: SubjectAdapter,
    cast: Cast,
    images: ImageEncoder | None,
    project: Projector,
    names: NameEncoder | None,
    framing: str = "auto",
    prompts: Sequence[str] = (),
    warn: Callable[[str], None] = lambda sentence: None,
) -> References:
    """Encode every subject of the cast for one adapter: one pass of the image encoder for all photos, one of the text
    encoder for all names.

    Arguments:
        adapter: has `.spec` (AdapterSpec) and `.weights` (Weights); it is kept in the result.
        images: the image encoder, None if none was found. Weights for it that the adapter brings act in this call
            alone.
        project: the adapter's projection on one or several tensors; what it takes and gives is the family's.
        names: the text encoder, or None: the references then carry no names.
        framing: 'auto' (as the adapter was published), 'pad', 'center' or 'stretch'.
        prompts: known prompt texts, to warn about names that are not in them.
        warn: receives one sentence for each thing that is allowed but probably not meant.
    Raises:
        SubjectError: an empty name where names are encoded, or one that encodes to nothing.
        MismatchError: the image or text encoder is not the one the adapter was trained with.
    """
    spec = adapter.spec
    check_image_encoder(spec, images)
    own = images.with_weights(adapter.weights.vision) if images is not None and adapter.weights.vision else images
    if framing == "auto":
        framing = spec.part(PhotoSpec).framing if spec.has(PhotoSpec) else PhotoSpec.framing
    references, warnings = family_of(spec).encode(
        EncodeInputs(adapter, cast, own, images, project, names, framing, prompts)
    )
    for sentence in warnings if cast.subjects else [EMPTY_CAST]:
        warn(sentence)
    return replace(references, photo_counts=tuple(len(subject.photos) for subject in cast.subjects))
