"""Vectors of pictures that scores compare: CLIP, DINO and DINOv2 as papers use them, and Troupe's own encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ...model_patches.scores.dino import SIZE
from ...model_patches.scores.scoring import PictureEncoder
from ...training.data.models import ClipFeatures, loaded
from ...training.data.pictures import open_picture
from ..suites.suite import SuiteError
from .pixels import DINO_READING, read_pictures, reading_of

DINO, DINO_V2 = "vit", "dinov2"  # types of model as transformers calls them


class PictureFeatures(Protocol):
    """Maker of one vector for each picture. name: of the model, for the report."""

    name: str

    def pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the vectors of RGB pictures, [n, E], n >= 1."""
        ...


class PilClip(ClipFeatures):
    """CLIP on pictures that PIL resizes, as published figures were counted.

    cut_down: see `pixels.Reading`; the other arguments as in `ClipFeatures`."""

    def __init__(self, model: Any, processor: Any, name: str = "CLIP", cut_down: bool = False):
        super().__init__(model, processor, name)
        self.reading = reading_of(processor.image_processor, cut_down)

    @classmethod
    def load(cls, name: str, device: str, cut_down: bool = False) -> PilClip:
        """Load a CLIP model by its folder or its name on the Hugging Face hub."""
        from transformers import CLIPModel, CLIPProcessor

        return cls(loaded(CLIPModel, name).to(device), loaded(CLIPProcessor, name), name, cut_down)

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """See PictureFeatures."""
        if self.reading is None:
            return super().pictures(pictures)
        return self.embedded(read_pictures(pictures, self.reading))


class DinoFeatures:
    """DINO or DINOv2: the CLS token after the last norm.

    DINO reads pictures as DreamBooth's and MIP-Adapter's evaluations give them: shorter side to 256 (bicubic), the
    middle 224, ImageNet's mean and deviation. DINOv2 reads them as the processor in its own folder says.

    model: from transformers or `dino.build`; processor: of its folder, None for DINO's own; name: for the report.
    """

    def __init__(self, model: Any, processor: Any, name: str = "DINO"):
        self.model, self.processor, self.name = model.eval(), processor, name
        self.reading = DINO_READING if processor is None else reading_of(processor, cut_down=True)

    @classmethod
    def load(cls, name: str, device: str, called: str = "") -> DinoFeatures:
        """Load a model by its folder or its name on the Hugging Face hub; called: in the report, "" for that name.

        Raises:
            DatasetError: there is no such model.
            SuiteError: it is neither DINO nor DINOv2.
        """
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, ViTModel

        kind = loaded(AutoConfig, name).model_type
        if kind not in (DINO, DINO_V2):
            raise SuiteError(
                f"DINO or DINOv2 in {name}", f"a model of type '{kind}'", "Name facebook/dino-vits16, for example."
            )
        if kind == DINO_V2:
            return cls(loaded(AutoModel, name).to(device), loaded(AutoImageProcessor, name), called or name)
        return cls(loaded(ViTModel, name, add_pooling_layer=False).to(device), None, called or name)

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """See PictureFeatures."""
        if self.reading is None:
            pixels = self.processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        else:
            pixels = read_pictures(pictures, self.reading)
        weight = next(self.model.parameters())
        return self.model(pixel_values=pixels.to(weight)).last_hidden_state[:, 0].float().cpu()


class EncoderFeatures:
    """A `scoring.PictureEncoder` that reads whole pictures.

    encoder: with crops as pictures.
    """

    def __init__(self, encoder: PictureEncoder):
        self.encoder, self.name = encoder, encoder.name

    def pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """See PictureFeatures."""
        with torch.no_grad():
            return self.encoder.vectors(torch.stack([self.encoder.whole(as_tensor(one)) for one in pictures])).cpu()


class FeaturesEncoder:
    """A PictureFeatures as a `scoring.PictureEncoder`, for crops, which are squares already.

    features: of whole pictures.
    """

    size, shares = SIZE, False

    def __init__(self, features: PictureFeatures):
        self.features, self.name = features, features.name

    def vectors(self, pictures: torch.Tensor) -> torch.Tensor:
        """See `scoring.PictureEncoder`."""
        return self.features.pictures([as_picture(one) for one in pictures])

    def whole(self, picture: torch.Tensor) -> torch.Tensor:
        """See `scoring.PictureEncoder`."""
        from torchvision.transforms.v2.functional import resize

        return resize(picture.movedim(-1, 0), [self.size, self.size], antialias=True).movedim(0, -1)


def encoder_of(features: PictureFeatures) -> PictureEncoder:
    """Return the features as an encoder of crops."""
    return features.encoder if isinstance(features, EncoderFeatures) else FeaturesEncoder(features)


class Photos:
    """Vectors of a suite's reference photos, each made once. features: the encoder; folder: the photos' paths are
    relative to it; upright: turn them as their EXIF data say.
    """

    def __init__(self, features: PictureFeatures, folder: Path, upright: bool = True):
        self.features, self.folder, self.upright = features, folder, upright
        self._vectors: dict[str, torch.Tensor] = {}

    def vectors(self, photos: Sequence[str]) -> torch.Tensor:
        """Return the vectors of photos, [p, E]. Raises PictureFault for one that does not open."""
        for photo in photos:
            if photo not in self._vectors:
                self._vectors[photo] = self.features.pictures([open_picture(self.folder / photo, self.upright)])[0]
        return torch.stack([self._vectors[photo] for photo in photos])


def as_tensor(picture: Image.Image) -> torch.Tensor:
    """Return an RGB picture as [H, W, 3] float in 0..1."""
    return torch.from_numpy(np.array(picture)).float() / 255


def as_picture(pixels: torch.Tensor) -> Image.Image:
    """Return [H, W, 3] in 0..1 as an RGB picture."""
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().cpu().numpy())
