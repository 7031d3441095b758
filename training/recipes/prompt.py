"""What recipes share that put subjects into the prompt: the pack's own fusion, with gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...model_patches.adapter import Adapter, AdapterSpec, PhotoSpec
from ...model_patches.bases import REHEARSAL_BASE, SD15_BASE
from ...model_patches.errors import MismatchError
from ...model_patches.hosts.diffusers.prompt import TextsPromptEncoder
from ...model_patches.hosts.diffusers.sampling import join_prompts
from ...model_patches.prompt.fusion import fuse_prompts
from ...model_patches.subjects import References, ReferenceSubject
from ..examples.draws import Draw
from ..examples.example import ExampleSubject
from ..model.base import Base
from ..model.captions import unmarked
from ..model.features import Features
from .recipe import Batch, PassSettings, Trainee


@dataclass(frozen=True, eq=False)
class Words:
    """Ingredients of a batch's subjects.

    captions: "" where dropped; subjects: of each picture, () where its caption is dropped; photos: [n, E] of the image
    encoder on the UNet's device, of all of them in order; more: what the recipe adds.
    """

    captions: tuple[str, ...]
    subjects: tuple[tuple[ExampleSubject, ...], ...]
    photos: torch.Tensor
    more: Any = None


class PromptTrainee(Trainee):
    """An adapter in training that acts in the prompt of SD1.5. spec: as the loader makes it; options: has drop_text.

    The other arguments as in `Trainee`.
    """

    in_prompt = True

    def __init__(self, base: Base, features: Features, settings: PassSettings, options: Any, spec: AdapterSpec):
        super().__init__(base, features, settings)
        self.options, self.spec = options, spec

    @abstractmethod
    def vectors(self, photos: torch.Tensor) -> torch.Tensor:
        """Return what represents subjects in the prompt, [n, K, D], from the image encoder's output [n, E]."""

    def fusion(self) -> nn.ModuleDict | None:
        """Return the modules that fuse photos with words, by text encoder, or None."""
        return None

    def kept(self, draw: Draw) -> Sequence[ExampleSubject]:
        """Return the subjects of a picture that are put into its prompt."""
        return draw.example.subjects

    def captions(self, draws: Sequence[Draw]) -> list[str]:
        """Return captions, some of them dropped."""
        return ["" if self._dropped(draw) else draw.example.caption for draw in draws]

    def add(self, draws: Sequence[Draw]) -> Words:
        """Return the image encoder's view of every subject that is put into a prompt."""
        subjects = tuple(() if self._dropped(draw) else tuple(self.kept(draw)) for draw in draws)
        read = self.spec.part(PhotoSpec)
        found = self.features.photos([s for row in subjects for s in row], read.encoder.kind, read.framing)
        photos = torch.stack(found) if found else torch.zeros(0, read.encoder.width)
        return Words(
            tuple(self.captions(draws)), subjects, photos.to(self.base.unet.device), self.add_more(draws, subjects)
        )

    def add_more(self, draws: Sequence[Draw], subjects: Sequence[Sequence[ExampleSubject]]) -> Any:
        """Return what the recipe's other losses need. subjects: see `Words`."""
        return None

    def context(self, batch: Batch) -> torch.Tensor:
        """Return text states with the subjects in them, [B, L, D]."""
        words: Words = batch.extra
        shell = Adapter(self.spec, None, None, fusion=self.fusion())
        found, each = [prompt.embeds for prompt in batch.prompts], iter(self.vectors(words.photos))
        fused = {}
        for i, (caption, subjects) in enumerate(zip(words.captions, words.subjects, strict=True)):
            made = tuple(ReferenceSubject(s.name, None, None, words={"l": next(each)}) for s in subjects)
            if made:
                fused[i] = (References(shell, made, None), unmarked(caption))
        if fused:
            encoder = TextsPromptEncoder(self.base.texts, shell.fusion)
            for i, ((text,), _) in zip(fused, fuse_prompts(list(fused.values()), encoder), strict=True):
                found[i] = text.fused.states
        return self.join(found).to(self.base.unet.device) + self._unused()

    def join(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join prompts, each [1, T_i, D], to [B, L, D]."""
        return join_prompts(states, 1)

    def _dropped(self, draw: Draw) -> bool:
        return draw.chance("drop").random() < self.options.drop_text

    def _unused(self) -> torch.Tensor:
        """0, with gradients of 0 for what makes the words: in a batch without subjects it has no others."""
        parameters = [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("unet.")]
        return torch.stack([0.0 * p.sum() for p in parameters]).sum()


def check_small_base(base: Base, method: str) -> None:
    """Raise MismatchError unless the base has one text encoder, SD1.5's or the rehearsal world's."""
    if base.context not in (SD15_BASE.width, REHEARSAL_BASE.width) or len(base.texts.towers) != 1:
        found = f"text embeddings of size {base.context} from {len(base.texts.towers)} text encoders"
        do = 'Set kind = "diffusers" and the folder of SD1.5 in [base], or kind = "rehearsal".'
        raise MismatchError(f"SD1.5 as the base of {method}, whose files are for it alone", found, do)
