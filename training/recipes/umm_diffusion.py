"""UMM-Diffusion (arXiv 2303.09319): an MLP from a photo to pseudo words, trained by the diffusion loss alone.

No code was published. What the paper leaves open follows `families.umm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...model_patches.adapter import Adapter, PhotoSpec
from ...model_patches.bases import REHEARSAL_BASE
from ...model_patches.encoders.pseudo_words import ACTIVATIONS, PseudoWords
from ...model_patches.encoding.interfaces import check_image_encoder
from ...model_patches.errors import MismatchError
from ...model_patches.families.registry import read_adapter
from ...model_patches.families.umm import FEATURES, MAPPING_BASES
from ...model_patches.families.umm import build as build_adapter
from ..config.setting import chance, setting
from ..model.base import Base
from ..model.features import Features
from .prompt import PromptTrainee, check_small_base
from .recipe import Exported, PassSettings, Trainee

uses_every_parameter = True


@dataclass(frozen=True)
class Options:
    """`[recipe]` of umm_diffusion."""

    start: str = ""  # a mapping that the training begins with
    feature: str = setting(
        "projected", choices=tuple(FEATURES)
    )  # what the mapping reads; openai/clip-vit-large-patch14
    hidden: int = setting(768, least=1)  # size of the layers between, without a start
    depth: int = setting(2, least=1)  # linear layers, without a start
    activation: str = setting("gelu", choices=tuple(ACTIVATIONS))
    normalize: bool = False  # bring the photo's embedding to length 1 first
    tokens: int = setting(1, least=1, most=99)  # pseudo words of a subject
    drop_text: float = chance(0.1)  # part of the pictures whose caption is empty


class UmmTrainee(PromptTrainee):
    """A mapping in training.

    options: of the recipe; mapping: the module; the other arguments as in `Trainee`.
    """

    def __init__(self, base: Base, features: Features, settings: PassSettings, options: Options, mapping: PseudoWords):
        target = base_of_mappings(base)
        metadata = {
            "format": "umm_diffusion",
            "version": "1",
            "base": target,
            "image_encoder": MAPPING_BASES[target].image_encoder,
            "image_feature": options.feature,
            "normalize": str(mapping.normalize).lower(),
            "activation": mapping.activation,
            "tokens": str(mapping.tokens),
        }
        spec = build_adapter(_state(mapping), "the mapping in training", metadata=metadata).spec
        super().__init__(base, features, settings, options, spec)
        self.mapping, self.metadata = mapping, metadata

    def vectors(self, photos: torch.Tensor) -> torch.Tensor:
        """Return pseudo words."""
        return self.mapping(photos)

    def export(self) -> Exported:
        """Return `mapping.*` with the metadata that the loader reads."""
        return Exported(_state(self.mapping), self.metadata)

    def adapter(self) -> Adapter:
        """Return the mapping as the loader reads it."""
        return build_adapter(self.export().state, "the mapping in training", metadata=self.metadata)


def build(base: Base, features: Features, settings: PassSettings, options: Any) -> Trainee:
    """Return a mapping to train. Raises TroupeError if the base or the image encoder does not
    fit, and MismatchError if the start does not.
    """
    check_small_base(base, "UMM-Diffusion")
    target = MAPPING_BASES[base_of_mappings(base)]
    if options.start:
        start = read_adapter(Path(options.start))
        if not isinstance(start.projection, PseudoWords):
            do = "Choose a UMM-Diffusion mapping as 'start', or leave it out."
            raise MismatchError("a UMM-Diffusion mapping to start from", start.spec.describe(), do)
        mapping = start.projection.float()
        if start.spec.part(PhotoSpec).encoder != target.features[options.feature]:
            do = "Set 'feature' as in the start's metadata."
            raise MismatchError(f"a start that reads the feature '{options.feature}'", "one that reads another", do)
    else:
        width = target.features[options.feature].width
        widths = (width, *[options.hidden] * (options.depth - 1), options.tokens * target.text)
        mapping = PseudoWords(widths, options.tokens, options.activation, options.normalize)
    trainee = UmmTrainee(base, features, settings, options, mapping)
    check_image_encoder(trainee.spec, features.images)
    return trainee


def base_of_mappings(base: Base) -> str:
    """Return which of MAPPING_BASES a base is."""
    return "rehearsal" if base.context == REHEARSAL_BASE.width else "sd15"


def _state(mapping: PseudoWords) -> dict[str, torch.Tensor]:
    return {f"mapping.{name}": value.detach().float().cpu().clone() for name, value in mapping.state_dict().items()}
