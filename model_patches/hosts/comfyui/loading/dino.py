"""DINO encoders from folders in models/dino, as their publishers share them: config.json and model.safetensors. Nothing
is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch

from ....encoding.interfaces import BATCH
from ....errors import CheckpointError
from ....scores import colours, dino

FOLDER = "dino"  # in models
MODEL_TYPES = ("vit", "dinov2", "dinov2_with_registers")  # model_type of config.json
CLIP_VISION = "clip_vision"
GET = (
    "Put a folder with config.json and model.safetensors (for instance of facebook/dinov2-base) into models/dino and "
    "press R, or set 'encoder' to clip_vision."
)
_loaded: dict[tuple[str, int], DinoPictures] = {}  # (file, modified), at most one


class Network(torch.nn.Module):
    """A model of transformers as a part: the host sets `device` on what it moves, which transformers refuses."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.inner: Any = model
        # DINOv2 fits its positions to the size by itself
        self.options = {"interpolate_pos_encoding": True} if self.inner.config.model_type == "vit" else {}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the CLS token after the last norm: [n, 3, S, S] -> [n, E]."""
        weight = next(self.inner.parameters())
        return self.inner(pixel_values=pixels.to(weight.dtype), **self.options).last_hidden_state[:, 0].float()


class DinoPictures:
    """A DINO as a `scoring.PictureEncoder`: the CLS token after the last norm.

    model: from `dino.build`; name: for the report.
    """

    size, shares = dino.SIZE, False

    def __init__(self, model: torch.nn.Module, name: str):
        self.name = name
        self.patcher = comfy.model_patcher.ModelPatcher(
            Network(model).eval(),
            load_device=comfy.model_management.text_encoder_device(),
            offload_device=comfy.model_management.text_encoder_offload_device(),
        )

    @torch.no_grad()
    def vectors(self, pictures: torch.Tensor) -> torch.Tensor:
        """See `scoring.PictureEncoder`; float32 on the host's intermediate device."""
        comfy.model_management.load_models_gpu([self.patcher])
        done = comfy.model_management.intermediate_device()
        parts = dino.dino_pixels(pictures.to(self.patcher.load_device).float()).split(BATCH)
        return torch.cat([self.patcher.model(part).to(done) for part in parts])

    def whole(self, picture: torch.Tensor) -> torch.Tensor:
        """See `scoring.PictureEncoder`."""
        return dino.centre_crop(picture)


def encoder_names() -> list[str]:
    """Return the choices of `encoder`: clip_vision, colours, then every folder in models/dino that has a DINO."""
    return [CLIP_VISION, colours.NAME, *sorted(_folders())]


def load_dino(name: str) -> DinoPictures:
    """Return the DINO of a folder; the same object again while its file is unchanged.

    Raises CheckpointError where it is not there, damaged or of another kind.
    """
    folder = _folders().get(name)
    if folder is None:
        raise CheckpointError(f"a folder '{name}' in models/dino with a DINO", "none", GET)
    file = folder / "model.safetensors"
    key = (str(file), file.stat().st_mtime_ns)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = DinoPictures(_read(folder, name), name)
    return _loaded[key]


def _read(folder: Path, name: str) -> torch.nn.Module:
    from transformers import AutoModel  # only where somebody chose it

    try:
        with torch.inference_mode(False):
            model: Any = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
    except Exception as error:  # transformers and safetensors have exceptions of their own for a damaged file
        raise CheckpointError(
            f"a DINO in models/dino/{name}", f"a folder that could not be read ({type(error).__name__})", GET
        ) from error
    return model


def _folders() -> dict[str, Path]:
    """Every folder in models/dino with a configuration of a known kind and weights, by its name."""
    found: dict[str, Path] = {}
    for place in folder_paths.get_folder_paths(FOLDER):
        for config in sorted(Path(place).glob("*/config.json")):
            if _kind(config) in MODEL_TYPES and (config.parent / "model.safetensors").is_file():
                found.setdefault(config.parent.name, config.parent)
    return found


def _kind(config: Path) -> Any:
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
