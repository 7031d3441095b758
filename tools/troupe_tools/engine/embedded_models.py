"""Models for the embedded engine: random ones of a size that a CPU runs in seconds, or the files of a ComfyUI models
folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage] - a public name
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from ..errors import RunError
from ..pack import load_pack
from ..workflow.adapter_kinds import GLIGEN, MM_DIFF, SUBJECT_DIFFUSION, UMM, kind_of
from ..workflow.job_records import Job
from ..workflow.needed import VISION as VISION_FOLDER
from ..workflow.needed import Needed, adapter_file
from .base_models import FAMILIES, load_base
from .embedded import Models
from .random_models import WHOLE, base_of, randomise, vision_of, write_adapter, write_gligen
from .random_prompt_files import clip_text, write_mm_diff, write_subject_diffusion, write_umm

load_pack()

from troupe.model_patches.adapter import AdapterSpec, PhotoSpec  # noqa: E402
from troupe.model_patches.checkpoints.clip_vision import encoder_widths  # noqa: E402
from troupe.model_patches.hosts.diffusers.cross_layers import cross_layers  # noqa: E402
from troupe.model_patches.hosts.diffusers.encoders import ClipImages, ClipTexts, load_adapter  # noqa: E402
from troupe.model_patches.hosts.diffusers.unet_blocks import transformer_blocks  # noqa: E402

TEXT_WIDTHS = (64, 128)  # of the two small text encoders
CLIP_L = 768  # width of the real first one
HEADS_OF = {1280: 16, 1664: 16, 1024: 16}  # hidden width of a published vision tower -> heads
OPENAI_L = 1024  # hidden width of the one that was trained with quick_gelu


def random_models(job: Job, folder: Path) -> Models:
    """Make random models of the job's base family; each adapter is written into `folder` in the published layout and
    loaded from there.
    """
    base = base_of(job.adapters[0])
    texts, pooled = _random_texts(base, wide=any(kind_of(name) == UMM for name in job.adapters))
    context = sum(tower.model.config.hidden_size for tower in texts.towers)
    unet = _random_unet(base, context, pooled)
    adapters = {name: load_adapter(_write(name, folder, unet, texts)) for name in job.adapters}
    images = {
        name: ClipImages(randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**vision_of(name, context))), seed=4))
        for name in job.adapters
    }
    return Models(unet, texts, _random_vae(), adapters, images, random=True)


def _write(name: str, folder: Path, unet: UNet2DConditionModel, texts: ClipTexts) -> Path:
    """A random file for these models under the adapter's name."""
    path, kind = folder.joinpath(*adapter_file(name)), kind_of(name)
    widths, places = (
        [layer.attention.to_q.out_features for layer in cross_layers(unet)],
        {path: block.dim for path, block in transformer_blocks(unet).items()},
    )
    text = {tower.stream: tower.model.config.hidden_size for tower in texts.towers}
    context = sum(text.values())
    if kind == GLIGEN:
        return write_gligen(path, places, context, context)
    if kind == MM_DIFF:
        return write_mm_diff(path, widths, text)
    if kind == UMM:
        return write_umm(path, vision_of(name, context)["projection_dim"], context)
    if kind == SUBJECT_DIFFUSION:
        return write_subject_diffusion(
            path,
            places,
            unet.conv_in.out_channels,
            clip_text(context, texts.towers[0].model.config.intermediate_size),
            context,
        )
    return write_adapter(path, widths, context)


def real_models(job: Job, needed: Sequence[Needed]) -> Models:
    """Load the job's own files, on the GPU in half precision where there is one.

    Raises RunError if one of them cannot be read.
    """
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    paths = {(file.folder, file.name): file.path for file in needed if file.path is not None}
    by_value = {value: path for (folder, name), path in paths.items() for value in (name, f"{folder}/{name}")}
    family = FAMILIES.get(base_of(job.adapters[0]).split(",")[0])
    if family is None:
        raise RunError(
            f"The embedded engine reads {' and '.join(FAMILIES)} checkpoints, and '{job.adapters[0]}' is "
            f"for {base_of(job.adapters[0])}. Run the workflow in ComfyUI."
        )
    base = load_base(paths["checkpoints", job.checkpoint.replace("\\", "/")], family, device, dtype)
    adapters = {name: load_adapter(by_value[name.replace("\\", "/")]) for name in job.adapters}
    images = {name: _images_for(name, adapter.spec, needed, device, dtype) for name, adapter in adapters.items()}
    return Models(base.unet, base.texts, base.vae, adapters, images, base.prediction)


def _images_for(
    name: str, spec: AdapterSpec, needed: Sequence[Needed], device: str, dtype: torch.dtype
) -> ClipImages | None:
    """The image encoder of an adapter, None for one that reads no photos."""
    if not spec.has(PhotoSpec):
        return None
    need = spec.part(PhotoSpec).encoder
    encoder = next(
        (
            file.path
            for file in needed
            if file.folder == VISION_FOLDER
            and file.path is not None
            and need.fits(*(encoder_widths(file.path) or (0, 0)))
        ),
        None,
    )
    if encoder is None:
        raise RunError(
            f"Which CLIP vision encoder '{name}' needs is not known for a file of this name. Run the "
            "workflow in ComfyUI, which finds it."
        )
    model = load_vision(encoder)
    return ClipImages(
        model.to(device, dtype)  # pyright: ignore[reportArgumentType] - transformers' wrapper of `to` loses self
    )


def load_vision(path: Path) -> CLIPVisionModelWithProjection:
    """Load a CLIP vision file in the transformers or the open_clip layout, its sizes read off the tensors.

    Raises RunError for another one.
    """
    from troupe.model_patches.checkpoints.clip_vision import with_transformers_names
    from troupe.model_patches.checkpoints.files import read_state

    state: dict[str, torch.Tensor] = with_transformers_names(read_state(path))
    try:
        hidden, _, patch, _ = state["vision_model.embeddings.patch_embedding.weight"].shape
        positions = len(state["vision_model.embeddings.position_embedding.weight"])
        inner, projection = (
            len(state["vision_model.encoder.layers.0.mlp.fc1.weight"]),
            len(state["visual_projection.weight"]),
        )
    except KeyError as missing:
        raise RunError(
            f"{path.name} lacks {missing}: the embedded engine reads CLIP vision files as h94/IP-Adapter or "
            "open_clip publish them. Download one of those."
        ) from None
    depth = len({name.split(".")[3] for name in state if name.startswith("vision_model.encoder.layers.")})
    config = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=depth,
        num_attention_heads=HEADS_OF.get(hidden, hidden // 64),
        patch_size=patch,
        image_size=round((positions - 1) ** 0.5) * patch,
        projection_dim=projection,
        hidden_act="quick_gelu" if hidden == OPENAI_L else "gelu",
    )
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(config)
    return _filled(model, state, path)


def _filled(model: Any, state: dict[str, torch.Tensor], path: Path) -> Any:
    """The model with the file's tensors; position numbers, which files may leave out, are counted."""
    positions = torch.arange(model.vision_model.embeddings.num_positions)[None]
    ours = {name: value for name, value in state.items() if name in model.state_dict()}
    missing, _ = model.load_state_dict(ours, strict=False, assign=True)
    model.vision_model.embeddings.position_ids = positions
    if missing:
        raise RunError(
            f"{path.name} lacks {len(missing)} tensors of a CLIP vision encoder, such as {missing[0]}. "
            "Download it again."
        )
    return model.eval()


def _random_texts(base: str, wide: bool = False) -> tuple[ClipTexts, int]:
    """Text encoders with the real vocabulary, and the width of the pooled text (0: none); wide: as CLIP-L's, for files
    that take no other.
    """

    def config(width: int) -> CLIPTextConfig:
        sizes: dict[str, Any] = {
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "projection_dim": width,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        }
        return CLIPTextConfig(vocab_size=49408, eos_token_id=49407, **sizes)

    small, large = TEXT_WIDTHS
    first = randomise(CLIPTextModel(config(CLIP_L if wide else small)), seed=3)
    if base == "SD1.5":
        return ClipTexts.sd15(first), 0
    if base == "SD2.x":
        return ClipTexts.sd2(first), 0
    return ClipTexts.sdxl(first, randomise(CLIPTextModelWithProjection(config(large)), seed=6)), large


def _random_unet(base: str, context: int, pooled: int) -> UNet2DConditionModel:
    """Two levels, cross-attention in the lower one and in the middle, or all of SDXL's blocks; with SDXL's pooled text
    and sizes where `pooled` is not 0.
    """
    added = (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 32,
            "projection_class_embeddings_input_dim": pooled + 6 * 32,
        }
        if pooled
        else {}
    )
    blocks = {
        "block_out_channels": (64, 128),
        "layers_per_block": 1,
        "attention_head_dim": (2, 4),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    if base == WHOLE:
        blocks = {
            "block_out_channels": (32, 32, 64),
            "layers_per_block": 2,
            "attention_head_dim": (2, 2, 4),
            "transformer_layers_per_block": (1, 2, 10),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        }
    unet = UNet2DConditionModel(
        sample_size=32,
        cross_attention_dim=context,
        norm_num_groups=32,
        use_linear_projection=base != "SD1.5",
        **blocks,
        **added,
    )
    return randomise(unet, seed=0).eval()


def _random_vae() -> AutoencoderKL:
    levels = (16, 16, 32, 32)
    down, up = ("DownEncoderBlock2D",) * len(levels), ("UpDecoderBlock2D",) * len(levels)
    vae = AutoencoderKL(
        block_out_channels=levels,  # pyright: ignore[reportArgumentType] - diffusers writes Tuple[int] for any length
        down_block_types=down,  # pyright: ignore[reportArgumentType] - the same, Tuple[str]
        up_block_types=up,  # pyright: ignore[reportArgumentType] - the same, Tuple[str]
        norm_num_groups=8,
        latent_channels=4,
    )
    return randomise(vae, seed=1).eval()
