"""What the frozen models make of training pictures: latents, text states, image embeddings; kept in memory if asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ...model_patches.encoding.photos import prepare_photo
from ...model_patches.errors import MismatchError
from ...model_patches.hosts.diffusers.encoders import ClipImages, Prompt
from ..examples.example import Example, ExampleSubject
from .base import Base
from .captions import plain

Patches = tuple[torch.Tensor, torch.Tensor]  # of a photo: [P, E] patch tokens before the last norm, [E'] pooled
T = TypeVar("T")


class Features:
    """Frozen features of a base model. cache: keep those that will be asked for again."""

    def __init__(self, base: Base, cache: bool = False):
        self.base, self.cache = base, cache
        self._kept: dict[tuple[str, ...], torch.Tensor | Prompt | Patches] = {}

    @property
    def images(self) -> ClipImages:
        """The image encoder. Raises MismatchError without one."""
        if self.base.images is None:
            do = "Set image_encoder in [base] to the folder of a CLIP vision model in transformers' layout."
            raise MismatchError("an image encoder for this recipe", "none", do)
        return self.base.images

    @torch.no_grad()
    def latents(self, examples: Sequence[Example]) -> torch.Tensor:
        """Return clean latents [B, c, h, w], float32, on the UNet's device."""

        def encode(missing: Sequence[Example]) -> list[torch.Tensor]:
            return list(self.base.encode(torch.stack([example.pixels for example in missing])).float().cpu())

        keys = [("latent", example.key) if example.key else () for example in examples]
        return torch.stack(self._every(examples, keys, encode)).to(self.base.unet.device)

    def prompts(self, captions: Sequence[str]) -> list[Prompt]:
        """Return plain prompts, on the CPU."""
        return self._every(
            captions,
            [("prompt", caption) for caption in captions],
            lambda missing: self.base.texts.encode_prompts([plain(caption) for caption in missing]),
        )

    def names(self, names: Sequence[str]) -> list[torch.Tensor]:
        """Return the states of names' own tokens, [L, D] each, on the CPU; for "" those after BOS."""
        return self._every(
            names,
            [("name", name) for name in names],
            lambda missing: self.base.texts.encode([plain(name) for name in missing]),
        )

    @torch.no_grad()
    def photos(self, subjects: Sequence[ExampleSubject], kind: str, framing: str) -> list[torch.Tensor]:
        """Return the image encoder's output for references, on the CPU. kind: see `ImageEncoder.encode`; framing: see
        `framing.frame`.
        """

        def encode(missing: Sequence[ExampleSubject]) -> list[torch.Tensor]:
            pictures = [prepare_photo(subject.photo, self.images.size, framing) for subject in missing]
            return list(self.images.encode(torch.stack(pictures), kind, blank=False))

        keys = [("photo", kind, framing, subject.key) if subject.key else () for subject in subjects]
        return self._every(subjects, keys, encode)

    @torch.no_grad()
    def patches(self, subjects: Sequence[ExampleSubject], framing: str, inside: int) -> list[Patches]:
        """Return patch tokens and pooled vectors of references, on the CPU. framing, inside: see `prepare_photo`."""

        def encode(missing: Sequence[ExampleSubject]) -> list[Patches]:
            pictures = [prepare_photo(subject.photo, self.images.size, framing, inside) for subject in missing]
            return list(zip(*self.images.encode_patches(torch.stack(pictures)), strict=True))

        keys = [("patches", framing, str(inside), subject.key) if subject.key else () for subject in subjects]
        return self._every(subjects, keys, encode)

    def no_photo(self, kind: str) -> torch.Tensor:
        """Return what replaces a reference that is left out: zeros, or the encoding of zero pixel values for kinds
        with patch tokens.
        """
        if kind == "pooled":
            return torch.zeros(self.images.pooled)
        size = self.images.size
        return self._every(
            [""], [("blank", kind)], lambda _: [self.images.encode(torch.zeros(0, size, size, 3), kind, True)[0]]
        )[0]

    def _every(
        self,
        items: Sequence[T],
        keys: Sequence[tuple[str, ...]],
        make: Callable[[Sequence[T]], Sequence[torch.Tensor | Prompt | Patches]],
    ) -> list:
        """Values of items in order. keys: () for items that never come back.

        With a cache they are made one by one: rounding depends on what else is in a batch, and a training that goes on
        with an empty cache is to get the same values.
        """
        missing = [i for i, key in enumerate(keys) if not key or key not in self._kept]
        parts = [[i] for i in missing] if self.cache else [missing] if missing else []
        made = {i: value for part in parts for i, value in zip(part, make([items[i] for i in part]), strict=True)}
        if self.cache:
            self._kept |= {keys[i]: value for i, value in made.items() if keys[i]}
        return [made[i] if i in made else self._kept[keys[i]] for i in range(len(items))]
