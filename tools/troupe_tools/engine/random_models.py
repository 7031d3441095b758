"""Small models with random weights, in the layouts of the published files: they prove that everything runs, and nothing
else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..pack import load_pack
from ..workflow.adapter_kinds import GLIGEN, MM_DIFF, SUBJECT_DIFFUSION, UMM, kind_of

ModuleT = TypeVar("ModuleT", bound=nn.Module)
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "projection_dim": 64,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class RandomBase:
    """A base model family.

    context_dim: width of its text; host_unet: the smallest UNet that the host still recognises as this family (it looks
    at width, context and the depths of the input half; sizes as its UNetModel takes them); host_widths: of that UNet's
    cross-attention layers, all equal.
    """

    context_dim: int
    host_unet: dict[str, Any]

    @property
    def host_widths(self) -> tuple[int, ...]:
        """Widths of the host UNet's cross-attention layers."""
        unet = self.host_unet
        depth = (
            sum(unet["transformer_depth"]) + sum(unet["transformer_depth_output"]) + unet["transformer_depth_middle"]
        )
        return (unet["model_channels"],) * depth

    @property
    def host_places(self) -> dict[str, int]:
        """Its transformer blocks as a gated adapter's file names them -> width."""
        unet, places = self.host_unet, {}
        down, up = iter(unet["transformer_depth"]), iter(reversed(unet["transformer_depth_output"]))
        number = 0
        for blocks in unet["num_res_blocks"]:
            places |= {f"input_blocks.{number + 1 + j}.1": next(down) for j in range(blocks)}
            number += blocks + 1  # the last one of a level makes it smaller
        places["middle_block.1"] = unet["transformer_depth_middle"]
        places |= {f"output_blocks.{j}.1": next(up) for j in range(len(unet["transformer_depth_output"]))}
        return {
            f"{place}.transformer_blocks.{k}": unet["model_channels"]
            for place, depth in places.items()
            for k in range(depth)
        }


WHOLE = "SDXL, every block"  # for files that count SDXL's blocks, as MM-Diff's
BASES = {
    "SDXL": RandomBase(
        2048,
        {
            "model_channels": 320,
            "context_dim": 2048,
            "use_linear_in_transformer": True,
            "num_heads": -1,
            "num_head_channels": 64,
            "adm_in_channels": 2816,
            "num_classes": "sequential",
            "channel_mult": [1, 1, 1],
            "num_res_blocks": [1, 1, 1],
            "transformer_depth": [0, 2, 5],
            "transformer_depth_output": [0, 0, 1, 1, 1, 1],
            "transformer_depth_middle": 1,
        },
    ),
    "SD1.5": RandomBase(
        768,
        {
            "model_channels": 320,
            "context_dim": 768,
            "use_linear_in_transformer": False,
            "num_heads": 8,
            "num_head_channels": -1,
            "adm_in_channels": None,
            "channel_mult": [1, 1],
            "num_res_blocks": [1, 1],
            "transformer_depth": [1, 1],
            "transformer_depth_output": [1, 1, 1, 1],
            "transformer_depth_middle": 1,
        },
    ),
    "SD2.x": RandomBase(
        1024,
        {
            "model_channels": 320,
            "context_dim": 1024,
            "use_linear_in_transformer": True,
            "num_heads": -1,
            "num_head_channels": 64,
            "adm_in_channels": None,
            "channel_mult": [1, 1],
            "num_res_blocks": [1, 1],
            "transformer_depth": [1, 1],
            "transformer_depth_output": [1, 1, 1, 1],
            "transformer_depth_middle": 1,
        },
    ),
}
SDXL_BLOCKS = {
    "channel_mult": [1, 1, 1],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}
KINDS = {MM_DIFF: WHOLE, UMM: "SD1.5", SUBJECT_DIFFUSION: "SD2.x"}
SD15_BLOCKS = {
    "channel_mult": [1, 1, 1, 1],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
}
BASES[WHOLE] = RandomBase(2048, {**BASES["SDXL"].host_unet, **SDXL_BLOCKS})
BASES["SD1.5, every block"] = RandomBase(768, {**BASES["SD1.5"].host_unet, **SD15_BLOCKS})


def base_of(adapter: str) -> str:
    """Return the key of BASES for an adapter file: what the catalogue says, else what its name says."""
    load_pack()
    from troupe.model_patches.checkpoints.catalogue import published_file

    kind = kind_of(adapter)
    if kind in KINDS:
        return KINDS[kind]
    known = published_file(adapter)
    said = f"{known.base if known else ''} {adapter}".lower().replace(".", "")
    return "SD1.5" if "sd14" in said or "sd15" in said or (kind == GLIGEN and "xl" not in said) else "SDXL"


def vision_of(adapter: str, context_dim: int) -> dict[str, Any]:
    """Return the sizes of the image encoder that a random file reads: GLIGEN's photos share a space with its phrases,
    UMM-Diffusion reads CLIP-L's width.
    """
    widths = {GLIGEN: context_dim, UMM: 768}
    return {**VISION, "projection_dim": widths.get(kind_of(adapter), VISION["projection_dim"])}


def randomise(module: ModuleT, seed: int) -> ModuleT:
    """Fill matrices with noise that keeps activations in bounds, norms with ones, biases with zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim >= 2:
                noise = torch.empty(parameter.shape).normal_(std=0.7 / parameter[0].numel() ** 0.5, generator=generator)
                parameter.copy_(noise)
            else:
                parameter.fill_(1.0 if name.endswith(("weight", "scale")) else 0.0)
    return module


def write_adapter(
    path: Path, widths: Sequence[int], context_dim: int, seed: int = 5, vision: Mapping[str, Any] = VISION
) -> Path:
    """Write a random IP-Adapter in the published layout, 'plus' or plain as its name says, for an encoder of `vision`'s
    widths.
    """
    load_pack()
    from troupe.model_patches.encoders.decoupled import DecoupledLayers
    from troupe.model_patches.encoders.projections import ImageProj, Resampler

    plus = "plus" in path.name.lower()
    resampler = {"dim": 64, "depth": 2, "inner": 64, "tokens": 16, "ff_inner": 128, "embed_dim": vision["hidden_size"]}
    projection = (
        Resampler(**resampler, context_dim=context_dim) if plus else ImageProj(vision["projection_dim"], context_dim, 4)
    )
    layers = DecoupledLayers(context_dim, widths, text_gain=False)
    state = {
        f"image_proj.{name.replace('latents.weight', 'latents')}": value
        for name, value in randomise(projection, seed).state_dict().items()
    }
    for j, layer in enumerate(randomise(layers, seed + 1).layers):
        state |= {f"ip_adapter.{2 * j + 1}.{name}": value for name, value in layer.state_dict().items()}
    return save_tensors({name: value.detach().contiguous() for name, value in state.items()}, path)


def write_gligen(path: Path, places: Mapping[str, int], object_dim: int, feature_dim: int, seed: int = 7) -> Path:
    """Write random GLIGEN layers in the published layout, text-image boxes (then with a projection matrix beside) or
    text boxes as its name says.

    places: as in `GatedSpec`; feature_dim: of the text encoder's pooled vectors and of the image encoder's.
    """
    load_pack()
    from troupe.model_patches.checkpoints.gated_tensors import gated_names
    from troupe.model_patches.encoders.gated import GatedLayers
    from troupe.model_patches.encoders.grounding import TextImagePositionNet, TextPositionNet

    photos = "image" in path.name.lower()
    layers = randomise(
        GatedLayers(
            (TextImagePositionNet if photos else TextPositionNet)(feature_dim, object_dim),
            list(places.values()),
            object_dim,
        ),
        seed,
    )
    names = gated_names(layers, list(places), "", "position_net.")
    if photos:
        matrix = torch.linalg.qr(torch.randn(feature_dim, feature_dim, generator=torch.Generator().manual_seed(seed)))[
            0
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(matrix, path.parent / "projection_matrix")
    tensors = {names[name]: value.detach().contiguous() for name, value in layers.state_dict().items()}
    return save_tensors(tensors, path)


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    """Save a safetensors file, or a pickle if its name says so."""
    import safetensors.torch

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".safetensors", ".sft"):
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def write_host_checkpoint(path: Path, base: str) -> Path:
    """Write a random checkpoint (UNet and VAE) that the host's own loader recognises; only inside the host's
    process.
    """
    import comfy.ops
    import safetensors.torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.taesd.taesd import TAESD

    config = BASES[base].host_unet
    kind = {"image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False}
    unet = UNetModel(**kind, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init, **config)
    vae = randomise(TAESD(latent_channels=4), seed=1)
    vae.vae_scale.data.fill_(1.0)
    vae.vae_shift.data.fill_(0.0)
    state = {f"model.diffusion_model.{name}": value for name, value in randomise(unet, seed=0).state_dict().items()}
    state |= {f"first_stage_model.{name}": value for name, value in vae.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(
        {name: value.detach().half().contiguous() for name, value in state.items()},
        path,
        metadata={"note": "random weights, for tests only"},
    )
    return path
