"""The host's CLIP vision and CLIP behind the interfaces of `model_patches.encode`."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.clip_vision
import comfy.model_management
import torch

from ...errors import MismatchError, SubjectError

BATCH = 32  # photos in one encoder call
BOS_LENGTH = 1
EOS = 49407  # in CLIP's vocabulary
CLIP_STREAMS = {"l", "g", "h"}  # the host's names of CLIP-L, OpenCLIP bigG and OpenCLIP H


class HostImageEncoder:
    """A CLIP_VISION of the host. Pixels go through the host's own preprocessing; zero pixel values need the model itself."""

    def __init__(self, clip_vision: Any):
        try:
            model = clip_vision.model
            self.size = clip_vision.image_size
            self.hidden = model.vision_model.encoder.layers[0].layer_norm1.weight.shape[0]
            self.pooled = model.visual_projection.weight.shape[0]
        except AttributeError:
            found = f"an encoder of another kind ({type(getattr(clip_vision, 'model', clip_vision)).__name__})"
            raise MismatchError("a CLIP vision encoder (ViT-H or ViT-bigG)", found, "Load a CLIP vision file with Load CLIP Vision, or leave the input unwired.") from None
        self._vision = clip_vision

    def encode(self, pictures: torch.Tensor, kind: str, blank: bool) -> torch.Tensor:
        """[n, size, size, 3] 0..1 -> 'pooled' [n, E] or 'penultimate' [n, P, E], float32 on the host's intermediate device."""
        vision = self._vision
        comfy.model_management.load_model_gpu(vision.patcher)
        device, done = vision.load_device, comfy.model_management.intermediate_device()
        pixels = comfy.clip_vision.clip_preprocess(pictures.to(device), size=self.size, mean=vision.image_mean, std=vision.image_std, crop=True).float()
        if blank:
            pixels = torch.cat((pixels, pixels.new_zeros(1, 3, self.size, self.size)))
        found = []
        for part in pixels.split(BATCH) if len(pixels) else ():
            _, penultimate, pooled, _ = vision.model(pixel_values=part, intermediate_output=-2)
            found.append((pooled if kind == "pooled" else penultimate).float().to(done))
        return torch.cat(found) if found else torch.zeros(0, self.pooled)


class HostNameEncoder:
    """A CLIP of the host, at its default layer whatever clip-skip is set."""

    def __init__(self, clip: Any):
        self._clip = clip.clone()
        self._clip.layer_idx = None

    def encode(self, names: Sequence[str]) -> list[torch.Tensor]:
        """See `encode.NameEncoder`; one pass for all names."""
        chunks = [self._tokenize(name) for name in names]
        rows = self._encode(chunks)
        ends = [BOS_LENGTH + _length(chunk) if name.strip() else None for name, chunk in zip(names, chunks, strict=True)]
        return [row[BOS_LENGTH:end] for row, end in zip(rows, ends, strict=True)]

    def _tokenize(self, name: str) -> dict[str, list]:
        """One 77-token chunk in each of the encoder's streams, emphasis read as in a prompt and then dropped."""
        streams = self._clip.tokenize(name)
        if not streams.keys() <= CLIP_STREAMS:
            found = f"a text encoder of another kind ({', '.join(streams)})"
            raise MismatchError("the CLIP of an SD1.5, SD2 or SDXL checkpoint", found, "Wire the CLIP of the checkpoint that you sample with.")
        if any(len(chunks) != 1 for chunks in streams.values()):
            raise SubjectError("a name of at most 75 tokens", f"'{name[:40]}...', which is longer", "Use the few words that name the subject in the prompt.")
        return {stream: [(token, 1.0) for token, *_ in chunks[0]] for stream, chunks in streams.items()}

    def _encode(self, chunks: Sequence[dict[str, list]]) -> torch.Tensor:
        """[n, 77, D]: the chunks as one long prompt, cut up again."""
        joined = {stream: [chunk[stream] for chunk in chunks] for stream in chunks[0]}
        encoded = self._clip.encode_from_tokens(joined)
        return encoded.reshape(len(chunks), -1, encoded.shape[-1])


def _length(chunk: dict[str, list]) -> int:
    """Tokens of a name between BOS and EOS, counted in the CLIP-L stream where there is one (all streams share the vocabulary)."""
    tokens = [token for token, _ in chunk.get("l") or next(iter(chunk.values()))]
    return next((i for i, token in enumerate(tokens[BOS_LENGTH:]) if isinstance(token, int) and token == EOS), len(tokens) - BOS_LENGTH)
