"""The published files Troupe knows by name: one table for errors, the README and the loader.

Recognition never uses it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from .hashes import sha256_of

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class PublishedFile:
    """A published file. name: as people save it; folder: below ComfyUI/models; link: direct; size: as published;
    encoder: key of ENCODERS; sha256: '' if unknown; family: adapters of this family are hashed and compared with it.
    """

    name: str
    folder: str
    link: str
    size: str
    base: str
    encoder: str = ""
    sha256: str = ""
    family: str = ""
    licence: str = "Apache-2.0"


@dataclass(frozen=True)
class Encoder:
    """A CLIP vision encoder: width of its hidden states and of its pooled, projected embedding."""

    name: str
    hidden: int
    pooled: int
    file: PublishedFile


def _encoder_file(name: str, path: str, size: str) -> PublishedFile:
    return PublishedFile(name, "clip_vision", f"{HUB}/{path}", size, "all", licence="MIT")


VIT_H = Encoder(
    "CLIP ViT-H/14 (laion2B-s32B-b79K)",
    1280,
    1024,
    _encoder_file(
        "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
        "h94/IP-Adapter/resolve/main/models/image_encoder/model.safetensors",
        "2.53 GB",
    ),
)
VIT_BIGG = Encoder(
    "CLIP ViT-bigG/14 (laion2B-39B-b160k)",
    1664,
    1280,
    _encoder_file(
        "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors",
        "h94/IP-Adapter/resolve/main/sdxl_models/image_encoder/model.safetensors",
        "3.69 GB",
    ),
)
VIT_L = Encoder(
    "CLIP ViT-L/14 (OpenAI)",
    1024,
    768,
    _encoder_file(
        "clip-vit-large-patch14.safetensors", "openai/clip-vit-large-patch14/resolve/main/model.safetensors", "1.71 GB"
    ),
)
ENCODERS = (VIT_H, VIT_BIGG, VIT_L)


def _h94(path: str, size: str, base: str, encoder: Encoder) -> PublishedFile:
    return PublishedFile(
        path.rsplit("/", 1)[1], "ipadapter", f"{HUB}/h94/IP-Adapter/resolve/main/{path}", size, base, encoder.name
    )


ADAPTERS = (
    _h94("sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors", "848 MB", "SDXL", VIT_H),
    _h94("sdxl_models/ip-adapter-plus-face_sdxl_vit-h.safetensors", "848 MB", "SDXL", VIT_H),
    _h94("sdxl_models/ip-adapter_sdxl_vit-h.safetensors", "698 MB", "SDXL", VIT_H),
    _h94("sdxl_models/ip-adapter_sdxl.safetensors", "703 MB", "SDXL", VIT_BIGG),
    PublishedFile(
        "model_sdxl_plus.bin",
        "ipadapter",
        f"{HUB}/hqhQAQ/MIP-Adapter/resolve/main/model_sdxl_plus.bin",
        "848 MB",
        "SDXL (RealVisXL 1.0)",
        VIT_H.name,
    ),
    PublishedFile(
        "model_sdxl.bin",
        "ipadapter",
        f"{HUB}/hqhQAQ/MIP-Adapter/resolve/main/model_sdxl.bin",
        "703 MB",
        "SDXL",
        VIT_BIGG.name,
        "1e0adf1661a382a7023db5fbe0bdeda05b2c1357d57c049a61e13ba83032ea75",
        "mip_adapter",
    ),
    PublishedFile(
        "noobIPAMARK1_mark1.safetensors",
        "ipadapter",
        f"{HUB}/r3gm/noob-ipa/resolve/main/model_G/noobIPAMARK1_mark1.safetensors",
        "see link",
        "Illustrious, NoobAI",
        VIT_BIGG.name,
        licence="see link",
    ),
    _h94("models/ip-adapter-plus_sd15.safetensors", "98 MB", "SD1.5", VIT_H),
    _h94("models/ip-adapter-plus-face_sd15.safetensors", "98 MB", "SD1.5", VIT_H),
    _h94("models/ip-adapter-full-face_sd15.safetensors", "44 MB", "SD1.5", VIT_H),
    _h94("models/ip-adapter_sd15.safetensors", "45 MB", "SD1.5", VIT_H),
    _h94("models/ip-adapter_sd15_light.safetensors", "45 MB", "SD1.5", VIT_H),
    _h94("models/ip-adapter_sd15_vit-G.safetensors", "46 MB", "SD1.5", VIT_BIGG),
)
DEFAULT_ADAPTER = ADAPTERS[0]


def _gligen(
    name: str, path: str, size: str = "see link", encoder: str = "", base: str = "SD1.4, SD1.5"
) -> PublishedFile:
    return PublishedFile(name, "gligen", f"{HUB}/{path}", size, base, encoder, licence="see link")


def _repository(name: str, size: str = "see link", **more: str) -> PublishedFile:
    """The UNet of a diffusers repository, kept in folders as there; the link shows which forms of it there are."""
    return _gligen(
        f"{name.rpartition('/')[2]}/unet/diffusion_pytorch_model.safetensors", f"{name}/tree/main/unet", size, **more
    )


PRUNED = "comfyanonymous/GLIGEN_pruned_safetensors/resolve/main"
OFFICIAL_FILE = "resolve/main/diffusion_pytorch_model.bin"
GATED = (  # official files are all called diffusion_pytorch_model.bin: the names are those of their repositories
    _gligen(
        "gligen_sd14_textbox_pruned_fp16.safetensors", f"{PRUNED}/gligen_sd14_textbox_pruned_fp16.safetensors", "418 MB"
    ),
    _gligen("gligen_sd14_textbox_pruned.safetensors", f"{PRUNED}/gligen_sd14_textbox_pruned.safetensors", "836 MB"),
    _gligen("gligen-generation-text-box.bin", f"gligen/gligen-generation-text-box/{OFFICIAL_FILE}"),
    _gligen(
        "gligen-generation-text-image-box.bin",
        f"gligen/gligen-generation-text-image-box/{OFFICIAL_FILE}",
        "6.79 GB",
        VIT_L.name,
    ),
    _repository("anhnct/Gligen_Text_Image", encoder=VIT_L.name),
    _repository("gligen/diffusers-generation-text-box"),
    _repository("masterful/gligen-1-4-generation-text-box", "4.27 GB, fp16 2.14 GB"),
    _repository("jiuntian/gligen-xl-1024", base="SDXL"),
)
PROJECTION_MATRIX = _gligen(
    "projection_matrix", "gligen/gligen-generation-text-image-box/resolve/main/projection_matrix", "2.36 MB"
)
MM_DIFF = "https://github.com/alibaba/mm-diff"


def _mm_diff(name: str) -> PublishedFile:
    """One of the three files of the published training; the repository says where they are."""
    return PublishedFile(
        f"portrait_generation/{name}.bin",
        "subject_adapters",
        MM_DIFF,
        "see link",
        "SDXL",
        VIT_L.name,
        licence="see link",
    )


PROMPT = (  # subjects in the prompt
    _mm_diff("unet_adapter_weights"),
    _mm_diff("text_encoder_adapter_weights"),
    _mm_diff("custom_weights"),
    PublishedFile(
        "fastcomposer.bin",
        "subject_adapters",
        f"{HUB}/mit-han-lab/fastcomposer/resolve/main/pytorch_model.bin",
        "see link",
        "SD1.5",
        VIT_L.name,
        licence="see link",
    ),
)


def encoder_of_width(kind: str, width: int) -> Encoder | None:
    """Return the published encoder whose `kind` of output ('pooled' or 'penultimate') has that width."""
    return next((e for e in ENCODERS if (e.pooled if kind == "pooled" else e.hidden) == width), None)


def published_file(name: str) -> PublishedFile | None:
    """Return the table row of a file name (case and the folders before it ignored), or None."""
    path = "/" + name.replace("\\", "/").lower()
    return next(
        (
            f
            for f in (*ADAPTERS, *GATED, PROJECTION_MATRIX, *PROMPT, *(e.file for e in ENCODERS))
            if path.endswith(f"/{f.name.lower()}")
        ),
        None,
    )


def where_to_get(file: PublishedFile) -> str:
    """Return 'Download <link> and save it as models/<folder>/<name>'; 'Look on <link> for it ...' where the link is a
    page.
    """
    fetch = f"Look on {file.link} for it" if file.link == MM_DIFF else f"Download {file.link}"
    return f"{fetch} and save it as models/{file.folder}/{file.name}"


def identity(path: str | os.PathLike, family: str) -> str:
    """Return what is known about a file's origin beyond its shapes: 'the published model_sdxl.bin', or that it is not
    known.

    Only files of a family with a published sha256 are hashed, once for each state of the file.
    """
    hashed = [file for file in ADAPTERS if file.sha256 and file.family == family]
    digest = sha256_of(path) if hashed else ""
    match = next((f for f in hashed if f.sha256 == digest), None)
    return f"the published {match.name}" if match else "known by its shapes only"
