"""What travels between the nodes. Everything is frozen: the host caches and shares these objects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .errors import SubjectError

if TYPE_CHECKING:
    from .adapter import AdapterSpec, Weights

MAX_SUBJECTS = 30  # the slots that GLIGEN was trained with
MIN_PHOTO_SIDE = 8  # pixels
WHITE_FROM = 0.5  # a mask's value above which a pixel belongs to the subject
NUMBERS = ("weight", "start_percent", "end_percent")
Image = torch.Tensor  # [n, H, W, C], float 0..1
Mask = torch.Tensor  # [n, H, W], float 0..1


class SubjectAdapter(Protocol):
    """The interface of every host's adapter; each host adds what holds the modules."""

    @property
    def spec(self) -> AdapterSpec:
        """What its file turned out to be."""
        ...

    @property
    def weights(self) -> Weights:
        """Weights of the base model that it brings."""
        ...

    @property
    def id(self) -> str:
        """Tells it from every other loaded adapter."""
        ...


class PreparedFaces(Protocol):
    """The faces in a subject's photos, as `encoding.faces.prepare_faces` finds them."""

    @property
    def vectors(self) -> torch.Tensor:
        """[n, V], who it is, one a photo."""
        ...

    @property
    def crops(self) -> torch.Tensor:
        """[n, S, S, 3], one a photo."""
        ...


@dataclass(frozen=True)
class Box:
    """A rectangle in the picture, 0..1, origin top left."""

    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True, eq=False)
class Photo:
    """One reference photo, [H, W, 3 or 4], and the cut-out of the subject in it, [h, w] (1 = subject), or None."""

    image: torch.Tensor
    cutout: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """One subject as the artist gave it.

    name: the noun as in the prompt; weight: 0..3, multiplies the Apply node's; start_percent, end_percent:
    ComfyUI's (0 = first step); region: mask of where it may appear in the picture, [h, w], or [n, h, w]: one for each
    picture of a batch, or None; box: where it is to be, or None; faces: prepared faces.
    """

    name: str
    photos: tuple[Photo, ...]
    weight: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    region: torch.Tensor | None = None
    box: Box | None = None
    faces: PreparedFaces | None = None


@dataclass(frozen=True, eq=False)
class Cast:
    """The subjects of one picture, in order; the order is what boxes and messages count by."""

    subjects: tuple[Subject, ...] = ()

    def add(self, subject: Subject) -> Cast:
        """Return a new cast with one more subject. Raises SubjectError beyond MAX_SUBJECTS."""
        if len(self.subjects) >= MAX_SUBJECTS:
            found = f"'{subject.name}' as number {len(self.subjects) + 1}"
            raise SubjectError(
                f"at most {MAX_SUBJECTS} subjects in a cast",
                found,
                "Take a subject out of the chain, or make the picture in two passes.",
            )
        return replace(self, subjects=self.subjects + (subject,))


@dataclass(frozen=True, eq=False)
class ObjectFeatures:
    """One subject as gated layers' nets see it; None for what it has not.

    text: [E], its phrase; image: [E], its photo (GLIGEN), or [T, E], its patch tokens (Subject-Diffusion). float32.
    """

    text: torch.Tensor | None = None
    image: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class ReferenceSubject:
    """One subject as an adapter sees it: `tokens` [T, D] float32 for image attention, `name_tokens` [L, D] float32
    (None if no CLIP was given), `features` for gated layers (None for adapters without any), `words`: what represents
    it in the prompt, by text encoder ('l', 'g', 'h'), [K, D] float32 each.
    """

    name: str
    tokens: torch.Tensor | None
    name_tokens: torch.Tensor | None
    weight: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    region: torch.Tensor | None = None
    box: Box | None = None
    features: ObjectFeatures | None = None
    words: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class References:
    """Encoded subjects with the adapter that encoded them.

    uncond_tokens: [T, D] float32, what rows without the subjects get, None for adapters without image attention;
    uncond_name_tokens: [>= max L, D], the tokens of the empty prompt after its BOS, or None; previews: [S, S, 3]
    pictures as the encoder saw them, one a photo; photo_counts: how many of them each subject has.
    """

    adapter: SubjectAdapter
    subjects: tuple[ReferenceSubject, ...]
    uncond_tokens: torch.Tensor | None
    uncond_name_tokens: torch.Tensor | None = None
    previews: tuple[torch.Tensor, ...] = field(default=(), repr=False)
    photo_counts: tuple[int, ...] = ()

    @property
    def named(self) -> bool:
        """Whether relevance can be computed."""
        return self.uncond_name_tokens is not None and all(s.name_tokens is not None for s in self.subjects)


def called(number: int, name: str = "") -> str:
    """Return how messages call a subject: "subject 2 ('cat')", counted from 1."""
    return f"subject {number} ('{name.strip()}')" if name.strip() else f"subject {number}"


def make_subject(
    name: str,
    images: list[Image | None],
    mask: Mask | None = None,
    region: Mask | None = None,
    number: int = 1,
    faces: PreparedFaces | None = None,
    **rest: Any,
) -> Subject:
    """Return a checked Subject made of the node's inputs.

    Arguments:
        name: may be empty here; Encode asks for it where a name is needed.
        images: the `image` input (a batch is several photos) and further ones of other sizes; None entries are skipped.
        mask: cut-outs, one for each photo, or one for all photos of `image`; an empty mask (the host's placeholder for
            "none") is ignored.
        region: [n, h, w]; where the subject may appear, one mask for all pictures of a batch or one for each.
        number: position in the cast, for messages.
        faces: prepared faces (faces.Faces), one for each photo, or None.
    Raises:
        SubjectError: an image that is empty, tiny, not finite, masks or faces that do not match, or a number that is
            not finite.
    """
    label = called(number, name)
    batches = [image for image in images if image is not None]
    photos = [photo for batch in batches for photo in (batch if batch.ndim else ())]
    if not photos:
        raise SubjectError(f"at least one photo for {label}", "none", "Wire a Load Image node into 'image'.")
    for i, photo in enumerate(photos, 1):
        check_photo(photo, f"photo {i} of {label}")
    if faces is not None and len(faces.vectors) != len(photos):
        remedy = "Connect the same photos to Prepare Faces and Add Subject, in the same order."
        raise SubjectError(
            f"one prepared face for each of the {len(photos)} photos of {label}", f"{len(faces.vectors)}", remedy
        )
    for what in NUMBERS:
        if not _is_finite_number(rest.get(what, 0.0)):
            raise SubjectError(
                f"a finite number as '{what}' of {label}",
                f"{rest[what]!r:.40}",
                "Look at the node that makes this number, or type one in.",
            )
    cutouts = _cutouts(mask, len(batches[0]), len(photos), label)
    if region is not None:
        layers = _mask_layers(region, f"the region mask of {label}").clamp(0, 1).cpu()
        region = layers[0] if len(layers) == 1 else layers
    return Subject(
        name.strip(),
        tuple(Photo(p, c) for p, c in zip(photos, cutouts, strict=True)),
        region=region,
        faces=faces,
        **rest,
    )


def check_photo(photo: torch.Tensor, what: str) -> None:
    """Raise SubjectError if a photo [H, W, C] is tiny, of whole numbers, no picture, or not finite; `what` names it."""
    if photo.ndim != 3:
        remedy = "Wire an IMAGE output, not a mask, a latent or a video."
        raise SubjectError(
            f"{what} to be an IMAGE with height, width and colour channels", f"the shape {list(photo.shape)}", remedy
        )
    h, w = photo.shape[:2]
    if min(h, w) < MIN_PHOTO_SIDE:
        raise SubjectError(
            f"{what} to be at least {MIN_PHOTO_SIDE}x{MIN_PHOTO_SIDE} pixels",
            f"{w}x{h}",
            "Load a real photo (224 pixels or more on each side is best).",
        )
    if not photo.is_floating_point():
        found = f"whole numbers ({str(photo.dtype).removeprefix('torch.')})"
        raise SubjectError(
            f"{what} to be an IMAGE with values from 0 to 1", found, "Divide by 255 in the node that makes it."
        )
    if photo.shape[-1] not in (1, 3, 4):
        raise SubjectError(
            f"{what} to have 3 colour channels (or 4 with alpha)",
            f"{photo.shape[-1]}",
            "Wire an IMAGE output, not a latent or a mask.",
        )
    _check_finite(photo, what)


def _check_finite(tensor: torch.Tensor, what: str) -> None:
    if not torch.isfinite(tensor).all():
        remedy = (
            "Check the node before this one: its output is broken (often a VAE in fp16). Load the photo from a "
            "file, or decode it in fp32."
        )
        raise SubjectError(f"{what} to be a picture of finite numbers", "NaN or infinite pixels", remedy)


def _is_finite_number(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except (OverflowError, TypeError):  # an integer beyond every float, or no number
        return False


def _mask_layers(mask: Mask, what: str) -> torch.Tensor:
    """The layers of a mask, [n, h, w] float32.

    Raises SubjectError if it has none, no size, or numbers that are not finite; `what` names it.
    """
    if mask.ndim < 2 or not mask.numel():
        raise SubjectError(
            f"{what} to be a MASK", f"the shape {list(mask.shape)}", "Connect a MASK output with the size of a picture."
        )
    _check_finite(mask, what)
    return mask.reshape(-1, *mask.shape[-2:]).float()


def _cutouts(mask: Mask | None, first_batch: int, total: int, label: str) -> list[torch.Tensor | None]:
    """One cut-out (or None) for each photo."""
    if mask is None:
        return [None] * total
    masks = list(_mask_layers(mask, f"the mask of {label}"))
    if len(masks) == 1:
        masks = masks * first_batch
    if len(masks) not in (first_batch, total):
        raise SubjectError(
            f"one mask, or one for each of the {total} photos of {label}",
            f"{len(masks)} masks",
            "Give as many masks as photos, in the same order.",
        )
    for m in masks:
        if 0.0 < float(m.max()) <= WHITE_FROM:
            raise SubjectError(
                f"the mask of {label} to be white where the subject is",
                f"nothing brighter than {float(m.max()):.0%}",
                "Paint the subject white, or disconnect 'mask'.",
            )
    return [m if bool(m.any()) else None for m in masks] + [None] * (total - len(masks))
