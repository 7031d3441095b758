"""Who reads photos and names: the interfaces of a host's encoders, and what is said where one is missing or another
adapter's. Host-free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..adapter import AdapterSpec, PhotoSpec
from ..base_mismatch import base_mismatch
from ..checkpoints.catalogue import encoder_of_width, where_to_get
from ..errors import MismatchError, SubjectError
from ..subjects import Cast, SubjectAdapter

Projector = Callable[..., Any]  # a projection, on one or several tensors, giving one or several
OWN_CLIP = "Wire the CLIP of the checkpoint that you sample with"
BATCH = 32  # photos in one encoder call


class ImageEncoder(Protocol):
    """A CLIP vision encoder: `size` of its square input, widths `hidden` and `pooled`."""

    size: int
    hidden: int
    pooled: int

    def encode(self, pictures: torch.Tensor, kind: str, blank: bool) -> torch.Tensor:
        """Encode photos [n, size, size, 3] as 'pooled' [n, E], 'unprojected' [n, hidden] (CLS after its norm) or
        'penultimate' [n, P, E]; with `blank` one row more, of all-zero pixel values.
        """
        ...

    def encode_patches(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode photos [n, size, size, 3], n >= 1, as the last hidden states without CLS and before their norm [n, P,
        hidden], and the pooled vectors [n, pooled], not normalised; one pass.
        """
        ...

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> ImageEncoder:
        """Return the encoder with these tensors, by transformers' names, in place of its own; it stays itself as it
        was.

        Raises MismatchError.
        """
        ...


class NameEncoder(Protocol):
    """A text encoder for bare names; emphasis is read as in a prompt and then dropped.

    Raises SubjectError for a name over 75 tokens.
    """

    def encode(self, names: Sequence[str]) -> list[torch.Tensor]:
        """Return tokens [L, D] of each name, at the default layer, without BOS, EOS and padding; for "" the tokens
        after BOS, [K, D].
        """
        ...

    def pooled(self, names: Sequence[str]) -> list[torch.Tensor | None]:
        """Return the vector [E] at each name's EOS, before CLIP-L's projection, in SDXL with bigG's projected one
        behind it; None for a name without tokens.
        """
        ...


@dataclass(frozen=True, eq=False)
class EncodeInputs:
    """The inputs with which a family encodes a cast.

    images: the image encoder with the adapter's own weights in it, base_images:
    without them, both None for an adapter that reads no photos; project: the adapter's projection; names: the text
    encoder, or None;
    framing: 'pad', 'center', 'stretch' or 'black'; prompts: known prompt texts.
    """

    adapter: SubjectAdapter
    cast: Cast
    images: Any
    base_images: Any
    project: Projector
    names: NameEncoder | None
    framing: str
    prompts: Sequence[str] = ()


def check_image_encoder(spec: AdapterSpec, images: Any) -> None:
    """Raise MismatchError unless the encoder's widths are the adapter's; the message says which file to fetch.

    An adapter that reads no photos takes any.
    """
    if not spec.has(PhotoSpec):
        return
    need = spec.part(PhotoSpec).encoder
    known = encoder_of_width(need.kind, need.width)
    fetch = (
        f"{where_to_get(known.file)}, then leave 'clip_vision_name' on auto."
        if known
        else "Choose the encoder that the adapter's publisher names."
    )
    if images is None:
        raise MismatchError(
            f"{need.describe()} for {spec.file}",
            "no such CLIP vision encoder in models/clip_vision and none connected",
            fetch,
        )
    if not need.fits(images.hidden, images.pooled):
        raise MismatchError(
            f"{need.describe()} for {spec.file}",
            f"an encoder with hidden size {images.hidden} and projection size {images.pooled}{_known_as(images)}",
            fetch,
        )


def check_clip_width(spec: AdapterSpec, width: int, needed: int) -> None:
    """Raise MismatchError unless what the text encoder gives is of the size that the adapter needs."""
    if width != needed:
        if (error := base_mismatch(spec, width, clip=True)) is not None:
            raise error
        found, remedy = f"size {width}", f"{OWN_CLIP}, or choose an adapter for it."
        raise MismatchError(
            f"a CLIP with text embeddings of size {needed} ({spec.base}), as {spec.file} needs", found, remedy
        )


def check_named(number: int, name: str) -> None:
    """Raise SubjectError for an empty name."""
    if not name:
        raise SubjectError(
            f"a name for subject {number}",
            "an empty one",
            "Type its name as in the prompt (for instance 'cat') into 'name' of this subject.",
        )


def without_words(number: int, name: str) -> SubjectError:
    """Return the error about a name of which the text encoder leaves no tokens."""
    found = f"'{name}', for which the text encoder has no tokens"
    return SubjectError(
        f"a name with words in it for subject {number}", found, "Type its name as in the prompt into 'name'."
    )


def check_vision_weights(weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Raise MismatchError unless each of the weights has a place of its shape among the encoder's own."""
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            found = f"one whose '{name}' is {tuple(own[name].shape)}" if name in own else f"one without '{name}'"
            remedy = "Connect the CLIP vision encoder that the adapter was trained with, or disconnect 'clip_vision'."
            raise MismatchError(
                f"a CLIP vision encoder that fits the adapter's own '{name}' {tuple(value.shape)}", found, remedy
            )


def _known_as(images: Any) -> str:
    known = encoder_of_width("penultimate", images.hidden)
    return f", which is {known.name}" if known and known.pooled == images.pooled else ""
