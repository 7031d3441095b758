"""The host's CLIP vision and CLIP behind the interfaces of `model_patches.encoding.interfaces`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import comfy.clip_vision
import comfy.model_management
import torch

from ....encoding.interfaces import BATCH, check_vision_weights
from ....errors import MismatchError
from ....prompt.tokens import EOS, name_too_long

CLS_LENGTH = BOS_LENGTH = 1
CLIP_STREAMS = ("l", "g", "h")  # the host's names of CLIP-L, OpenCLIP bigG and OpenCLIP H


class HostImageEncoder:
    """A CLIP_VISION of the host.

    Pixels go through the host's own preprocessing; zero pixel values need the model itself.

    clip_vision: the CLIP_VISION. Raises MismatchError if it is an encoder of another kind.
    """

    def __init__(self, clip_vision: Any):
        try:
            model = clip_vision.model
            self.size = clip_vision.image_size
            self.hidden = model.vision_model.encoder.layers[0].layer_norm1.weight.shape[0]
            self.pooled = model.visual_projection.weight.shape[0]
        except AttributeError:
            found = f"an encoder of another kind ({type(getattr(clip_vision, 'model', clip_vision)).__name__})"
            raise MismatchError(
                "a CLIP vision encoder (ViT-H or ViT-bigG)",
                found,
                "Load a CLIP vision file with Load CLIP Vision, or leave the input unconnected.",
            ) from None
        self._vision = clip_vision

    def encode(self, pictures: torch.Tensor, kind: str, blank: bool) -> torch.Tensor:
        """See `interfaces.ImageEncoder`; float32 on the host's intermediate device."""
        found = [
            {"pooled": pooled, "penultimate": penultimate, "unprojected": last[:, 0]}[kind]
            for last, penultimate, pooled in self._passes(pictures, blank)
        ]
        if not found:
            return torch.zeros(0, self.pooled)
        return self._normed(torch.cat(found)) if kind == "unprojected" else torch.cat(found)

    def encode_patches(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `interfaces.ImageEncoder`; float32 on the host's intermediate device."""
        last, _, pooled = zip(*self._passes(pictures, blank=False), strict=True)
        return torch.cat(last)[:, CLS_LENGTH:], torch.cat(pooled)

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> HostImageEncoder:
        """See `interfaces.ImageEncoder`: patches on a clone of the host's patcher, which the host takes off again when
        it loads the other one.
        """
        vision = copy(self._vision)
        check_vision_weights(weights, vision.model.state_dict())
        vision.patcher = self._vision.patcher.clone()
        vision.patcher.add_patches({name: ("set", (value,)) for name, value in weights.items()})
        return HostImageEncoder(vision)

    def _passes(self, pictures: torch.Tensor, blank: bool) -> Iterator[list[torch.Tensor]]:
        """Last and penultimate hidden states and pooled vectors of at most BATCH pictures at a time."""
        vision = self._vision
        comfy.model_management.load_model_gpu(vision.patcher)
        device, done = vision.load_device, comfy.model_management.intermediate_device()
        pixels = comfy.clip_vision.clip_preprocess(
            pictures.to(device), size=self.size, mean=vision.image_mean, std=vision.image_std, crop=True
        ).float()
        if blank:
            pixels = torch.cat((pixels, pixels.new_zeros(1, 3, self.size, self.size)))
        for part in pixels.split(BATCH) if len(pixels) else ():
            yield [found.float().to(done) for found in vision.model(pixel_values=part, intermediate_output=-2)[:3]]

    def _normed(self, cls: torch.Tensor) -> torch.Tensor:
        """CLS [n, hidden] of the last hidden states through the encoder's last norm."""
        return self._vision.model.vision_model.post_layernorm(cls.to(self._vision.load_device)).float().to(cls.device)


class HostNameEncoder:
    """A CLIP of the host, at its default layer whatever clip-skip is set."""

    def __init__(self, clip: Any):
        self._clip = clip.clone()
        self._clip.layer_idx = None

    @property
    def width(self) -> int:
        """Channels of the tokens that `encode` returns, without a pass. Raises MismatchError as `encode` does."""
        towers = [getattr(self._clip.cond_stage_model, f"clip_{stream}") for stream in self._tokenize("")]
        return sum(tower.transformer.get_input_embeddings().weight.shape[1] for tower in towers)

    def encode(self, names: Sequence[str]) -> list[torch.Tensor]:
        """See `interfaces.NameEncoder`; one pass for all names."""
        chunks = [self._tokenize(name) for name in names]
        rows = self._encode(chunks)
        ends = [
            BOS_LENGTH + _length(chunk) if name.strip() else None for name, chunk in zip(names, chunks, strict=True)
        ]
        return [row[BOS_LENGTH:end] for row, end in zip(rows, ends, strict=True)]

    def pooled(self, names: Sequence[str]) -> list[torch.Tensor | None]:
        """See `interfaces.NameEncoder`; one pass for all names.

        The host's own call gives one vector, of the first chunk and one encoder.
        """
        chunks = [self._tokenize(name) for name in names]
        model = self._clip.cond_stage_model
        self._clip.load_model()
        found = []
        try:
            for stream in (stream for stream in CLIP_STREAMS if stream in chunks[0]):
                tower = getattr(model, f"clip_{stream}")
                tower.set_clip_options({"projected_pooled": stream == "g"})
                found.append(tower.encode([[token for token, _ in chunk[stream]] for chunk in chunks])[1].float())
        finally:
            model.reset_clip_options()
        vectors = torch.cat(found, -1).to(comfy.model_management.intermediate_device())
        return [vector if _length(chunk) else None for vector, chunk in zip(vectors, chunks, strict=True)]

    def _tokenize(self, name: str) -> dict[str, list]:
        """One 77-token chunk in each of the encoder's streams, emphasis read as in a prompt and then dropped."""
        streams = self._clip.tokenize(name)
        if not streams.keys() <= set(CLIP_STREAMS):
            found = f"a text encoder of another kind ({', '.join(streams)})"
            raise MismatchError(
                "the CLIP of an SD1.5, SD2 or SDXL checkpoint",
                found,
                "Wire the CLIP of the checkpoint that you sample with.",
            )
        if any(len(chunks) != 1 for chunks in streams.values()):
            raise name_too_long(name)
        return {stream: [(token, 1.0) for token, *_ in chunks[0]] for stream, chunks in streams.items()}

    def _encode(self, chunks: Sequence[dict[str, list]]) -> torch.Tensor:
        """[n, 77, D]: the chunks as one long prompt, cut up again."""
        joined = {stream: [chunk[stream] for chunk in chunks] for stream in chunks[0]}
        encoded = self._clip.encode_from_tokens(joined)
        return encoded.reshape(len(chunks), -1, encoded.shape[-1])


def _length(chunk: dict[str, list]) -> int:
    """Tokens of a name between BOS and EOS, counted in the CLIP-L stream where there is one (all streams share the
    vocabulary).
    """
    tokens = [token for token, _ in chunk.get("l") or next(iter(chunk.values()))]
    return next(
        (i for i, token in enumerate(tokens[BOS_LENGTH:]) if isinstance(token, int) and token == EOS),
        len(tokens) - BOS_LENGTH,
    )
