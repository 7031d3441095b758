"""The rehearsal models as the host's own objects, built in process: its checkpoint loader fixes the sizes of text
encoders and VAEs, so no file can hold these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch

from .....rehearsal import codec, files
from .....rehearsal.cast import is_known
from .....rehearsal.sizes import CHANNELS, CONTEXT, HEAD, TEXT, VISION, VISION_FILE, WIDTHS
from .....rehearsal.sprites import CLASSES
from .....rehearsal.world import PIXELS
from ....adapter import AdapterSpec, EncoderNeed, PhotoSpec
from ....subjects import Photo, Subject

UNET_CONFIG = {
    "model_channels": WIDTHS[0],
    "context_dim": CONTEXT,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "image_size": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "channel_mult": [width // WIDTHS[0] for width in WIDTHS],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [1, 1, 0],
    "transformer_depth_output": [1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
}
AUTOENCODER = {  # only what the host builds around it is used, its own weights are replaced by the codec
    "embed_dim": CHANNELS,
    "ddconfig": {
        "double_z": True,
        "z_channels": CHANNELS,
        "resolution": 32,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}
MOST_COLOURS = 32  # of a drawing; the shipped references have about five
BYTES = 16  # for a colour of a pixel while the codec works: a few copies of four bytes
_made: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()  # what some node still holds


class RehearsalLatents(comfy.latent_formats.LatentFormat):
    """Twelve channels as the UNet was trained on; each step's preview is the average colour of a latent cell."""

    latent_channels = CHANNELS

    def __init__(self):
        # [13, 3]
        colours = codec.decode(torch.cat((torch.zeros(1, CHANNELS), torch.eye(CHANNELS)))[..., None, None]).mean(
            (-1, -2)
        )
        self.latent_rgb_factors = (colours[1:] - colours[0]).tolist()
        self.latent_rgb_factors_bias = colours[0].tolist()


class RehearsalConfig(comfy.supported_models.SD15):
    """SD1.5 in small, with v-prediction."""

    unet_extra_config = {"num_heads": -1, "num_head_channels": HEAD}
    latent_format = RehearsalLatents

    def model_type(self, state_dict: Any, prefix: str = "") -> Any:
        return comfy.model_base.ModelType.V_PREDICTION

    def inpaint_model(self) -> bool:
        return False  # more than four channels, yet no mask among them


class Codec(torch.nn.Module):
    """`rehearsal.codec` as a VAE's first stage."""

    def __init__(self):
        super().__init__()
        # the host moves modules that hold something
        self.place = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pictures [b, 3, 8h, 8w] in -1..1 as latents [b, 12, h, w]."""
        return codec.encode(pixels)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode latents [b, 12, h, w] to pictures [b, 3, 8h, 8w] in about -1..1."""
        return codec.decode(latent)


def model() -> Any:
    """Return the MODEL. Raises CheckpointError if its file is missing or damaged."""
    return shared(_model, files.UNET)


def clip() -> Any:
    """Return the CLIP. Raises CheckpointError if its file is missing or damaged."""
    return shared(_clip, files.TEXTS)


def vae() -> Any:
    """Return the VAE."""
    return shared(_vae)


def clip_vision() -> Any:
    """Return the CLIP_VISION. Raises CheckpointError if its file is missing or damaged."""
    return shared(_clip_vision, files.IMAGES)


def is_read_by(spec: AdapterSpec) -> bool:
    """Return whether an adapter was made for the rehearsal models, their image encoder included."""
    own = (EncoderNeed("pooled", VISION["projection_dim"]), EncoderNeed("last", VISION["hidden_size"]))
    return spec.context_dim == CONTEXT and spec.has(PhotoSpec) and spec.part(PhotoSpec).encoder in own


def unknown_subjects(spec: AdapterSpec, subjects: Sequence[Subject]) -> list[str]:
    """Return a sentence for each subject with a name or a photo of a kind that the rehearsal models were not trained
    on; none for other adapters.
    """
    if not is_read_by(spec):
        return []
    own = "For your own photos, load a real checkpoint and adapter."
    known = f"The rehearsal models only know drawings of {', '.join(CLASSES)}"
    drawn = f"not one of the rehearsal world's drawings ({PIXELS}x{PIXELS} pixels), so its look comes out at random"
    return [
        f"{known}, not '{subject.name}'. {own}"
        if subject.name and not is_known(subject.name)
        else f"The photo of '{subject.name}' is {drawn}. {own}"
        for subject in subjects
        if (subject.name and not is_known(subject.name)) or not all(map(_may_be_drawn, subject.photos))
    ]


def _may_be_drawn(photo: Photo) -> bool:
    """Whether a photo has the size of the world's drawings and as few colours."""
    height, width, _ = photo.image.shape
    if (height, width) != (PIXELS, PIXELS):
        return False
    colours = (photo.image[..., :3].float() * 255).round().flatten(0, 1).unique(dim=0)
    return len(colours) <= MOST_COLOURS


def shared(make: Callable[[Path], Any], *names: str) -> Any:
    """Return what `make` builds from the files `names`, or the same object again if it is still in use and the files
    are unchanged.
    """
    folder = files.FOLDER
    key = (make, folder, files.state_of(*names))
    found = _made.get(key)
    if found is None:
        found = _made[key] = make(folder)
    return found


def _model(folder: Path, disable_dynamic: bool = False) -> Any:
    state = files.read(files.UNET, folder)
    names = comfy.utils.unet_to_diffusers(UNET_CONFIG)
    config = RehearsalConfig(UNET_CONFIG)
    config.set_inference_dtype(torch.float32, None)
    inner = config.get_model({}, "")
    files.load_into(inner.diffusion_model, {names.get(name, name): value for name, value in state.items()}, files.UNET)
    plain = comfy.model_patcher.ModelPatcher
    make = plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)
    patcher = make(
        inner,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    if hasattr(patcher, "cached_patcher_init"):  # by which newer hosts make one more of it, for another device
        patcher.cached_patcher_init = (_model, (folder,))
    return patcher


def _clip(folder: Path) -> Any:
    state = files.full_table(files.read(files.TEXTS, folder))
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    options = {"clip_l_model_config": TEXT, "dtype": torch.float32}
    built = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=sum(value.numel() for value in state.values()),
        model_options=options,
    )
    transformer = built.cond_stage_model.clip_l.transformer
    files.load_into(transformer.text_model, state, files.TEXTS)
    transformer.text_projection.load_state_dict({"weight": torch.eye(CONTEXT)})
    return built


def _vae(folder: Path) -> Any:
    state = comfy.sd.AutoencoderKL(**AUTOENCODER).state_dict()
    built = comfy.sd.VAE(sd=state, config={"params": AUTOENCODER}, dtype=torch.float32)
    built.first_stage_model, built.latent_channels = Codec(), CHANNELS
    built.memory_used_encode = lambda shape, dtype: 3 * BYTES * shape[-1] * shape[-2]
    built.memory_used_decode = lambda shape, dtype: 3 * codec.FACTOR**2 * BYTES * shape[-1] * shape[-2]
    built.patcher = comfy.model_patcher.ModelPatcher(
        built.first_stage_model, load_device=built.device, offload_device=comfy.model_management.vae_offload_device()
    )
    return built


def _clip_vision(folder: Path) -> Any:
    state = files.read(files.IMAGES, folder)
    built = comfy.clip_vision.ClipVisionModel(str(VISION_FILE))
    files.load_into(built.model, state, files.IMAGES)
    return built
