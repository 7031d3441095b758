"""One small valid file, or folder of files, in every layout that the loader takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import torch
from troupe.model_patches.checkpoints.unet_layout import sd_shapes
from troupe.model_patches.families.mm_diff import layout as mm_diff
from troupe.model_patches.families.mm_diff.layout import MEMBERS as MM_DIFF
from troupe.model_patches.families.subject_diffusion import layout as subject_diffusion

from .file_mutations import Bag, State
from .published_layouts import (
    _mlp,
    _tensors,
    face_mlp,
    flat,
    gligen_state,
    image_proj,
    layers,
    mm_diff_members,
    resampler,
    subject_diffusion_members,
    umm_state,
)

PLACES = {f"{path}.transformer_blocks.0": 8 for path in ("input_blocks.1.1", "output_blocks.5.1", "middle_block.1")}
WIDER = dict.fromkeys(PLACES, 64)  # heads of 64 channels, as in all but SD 1
CONTEXT, PHOTO = 16, 24
STEP = "0_449999"


@dataclass(frozen=True)
class Folder:
    """Files by their paths in a folder; chosen: the one that is loaded; target: the one to damage."""

    files: dict[str, Bag]
    chosen: str
    target: str


def _one(name: str, state: State, container: str = "safetensors", tree: bool = False, **metadata: str) -> Folder:
    return Folder({name: Bag(state, container, metadata, tree)}, name, name)


def _ip(projection: State, file: str, container: str = "safetensors", gain: bool = False, **more) -> Folder:
    return _one(
        file, flat(projection, layers(CONTEXT, (2, 4, 2), gain), **more), container, tree=container != "safetensors"
    )


def _half(state: State) -> State:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def gligen(kind: str, layout: str, name: str, container: str = "safetensors", whole: bool = False) -> Folder:
    wide = layout == "diffusers"
    state = _half(
        gligen_state(
            kind,
            WIDER if wide else PLACES,
            layout,
            context=CONTEXT if wide else 768,
            feature=CONTEXT,
            whole=whole,
            hidden=4,
        )
    )
    files = {name: Bag(state, container, tree=layout == "wrapped")}
    if kind == "text_image":
        matrix = torch.randn(CONTEXT, CONTEXT, generator=torch.Generator().manual_seed(3))
        files |= (
            {"image_project/diffusion_pytorch_model.safetensors": Bag({"project.weight": matrix})}
            if wide
            else {"projection_matrix": Bag({"tensor": matrix}, "zip")}
        )
    return Folder(files, name, name)


def matrix(kind: str) -> Folder:
    folder = gligen(
        "text_image", kind, "unet/diffusion_pytorch_model.safetensors" if kind == "diffusers" else "m.safetensors"
    )
    return Folder(folder.files, folder.chosen, next(name for name in folder.files if "proj" in name))


def subject_members(member: str, container: str = "zip", step_folders: bool = True) -> Folder:
    members = subject_diffusion_members(WIDER, CONTEXT, PHOTO, PHOTO, tokens=3, hidden=4) | {
        "clip_visual": _tensors(
            9,
            **{
                "ln_post.weight": (8,),
                "ln_post.bias": (8,),
                "proj": (8, PHOTO),
                "transformer.resblocks.23.attn.in_proj_weight": (24, 8),
                "transformer.resblocks.23.ln_1.weight": (8,),
            },
        )
    }
    files = {
        f"{name}_{STEP}/pytorch_model.bin" if step_folders else f"{name}_{STEP}.bin": Bag(_half(state), container)
        for name, state in members.items()
    }
    return Folder(files, next(iter(files)), next(name for name in files if name.startswith(member)))


def subject_bundle() -> Folder:
    members = subject_diffusion_members(WIDER, CONTEXT, PHOTO, PHOTO, tokens=3, hidden=4)
    return _one(
        "bundle.safetensors",
        _half(subject_diffusion.needed(members)),
        format="subject_diffusion",
        version="1",
        slots="2",
    )


@cache
def _mm_diff() -> dict[str, State]:
    return {
        name: _half(state)
        for name, state in mm_diff_members(context=8, hidden=(2, 4), text=(4, 6), pooled=6, patches=10).items()
    }


def mm_diff_member(member: str) -> Folder:
    files = {f"{name}.bin": Bag(state, "zip", tree=name == "custom_weights") for name, state in _mm_diff().items()}
    if member != MM_DIFF[0]:
        files[f"{MM_DIFF[0]}.safetensors"] = Bag(files.pop(f"{MM_DIFF[0]}.bin").state)  # 1400 tensors, quicker to read
    return Folder(files, f"{MM_DIFF[2]}.bin", f"{member}.bin")


def fast_composer() -> Folder:
    text, pooled, hidden = 4, 6, 5
    state = {f"unet.{name}": tensor for name, tensor in _tensors(47, **sd_shapes((2, 2, 2, 2), text)).items()}
    state |= _tensors(
        48,
        **_mlp(text + pooled, text, text, "postfuse_module.mlp1."),
        **_mlp(text, text, text, "postfuse_module.mlp2."),
    )
    state |= _tensors(49, **{f"postfuse_module.layer_norm.{leaf}": (text,) for leaf in ("weight", "bias")})
    state |= _tensors(
        50,
        **{
            "image_encoder.visual_projection.weight": (pooled, hidden),
            "image_encoder.vision_model.embeddings.class_embedding": (hidden,),
            "vae.x.weight": (4, 4),
        },
    )
    return _one("pytorch_model.bin", _half(state), "zip")


def in_parts() -> Folder:
    whole = gligen("text", "diffusers", "m.safetensors").files["m.safetensors"].state
    names = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = [dict(list(whole.items())[:30]), dict(list(whole.items())[30:])]
    return Folder({name: Bag(half) for name, half in zip(names, halves, strict=True)}, names[0], names[1])


def _umm() -> Folder:
    state = {name: tensor.half() for name, tensor in umm_state((768, 3, 768), input_norm=True, output_norm=768).items()}
    return _one(
        "umm.safetensors",
        state,
        format="umm_diffusion",
        version="1",
        base="sd15",
        image_feature="projected",
        normalize="true",
        activation="relu",
        tokens="1",
    )


PLUS = resampler(CONTEXT, embed=PHOTO, dim=8, inner=64, tokens=3, depth=2)
PLAIN = image_proj(CONTEXT, PHOTO, 2)
FORMATS = {  # every layout that the loader takes
    "IP-Adapter": partial(_ip, PLAIN, "ip.safetensors"),
    "IP-Adapter .bin": partial(_ip, PLAIN, "ip.bin", "zip"),
    "IP-Adapter old .bin": partial(_ip, PLAIN, "ip.bin", "old"),
    "IP-Adapter, adapter_modules": partial(_ip, PLAIN, "ip.sft", name="adapter_modules"),
    "plus": partial(_ip, PLUS, "plus.safetensors"),
    "plus .pt": partial(_ip, PLUS, "plus.pt", "zip"),
    "full face": partial(_ip, face_mlp(CONTEXT, PHOTO), "face.safetensors"),
    "MIP .bin": partial(_ip, PLAIN, "mip.bin", "zip", gain=True),
    "MIP plus": partial(_ip, PLUS, "mip.safetensors", gain=True),
    "GLIGEN text, pruned": partial(gligen, "text", "ldm", "gligen.safetensors"),
    "GLIGEN text, official": partial(gligen, "text", "wrapped", "gligen.pth", "zip"),
    "GLIGEN text, old .ckpt": partial(gligen, "text", "ldm", "gligen.ckpt", "old", whole=True),
    "GLIGEN text, checkpoint": partial(gligen, "text", "checkpoint", "gligen.ckpt", "zip", whole=True),
    "GLIGEN text, diffusers": partial(
        gligen, "text", "diffusers", "unet/diffusion_pytorch_model.bin", "zip", whole=True
    ),
    "GLIGEN photos": partial(gligen, "text_image", "ldm", "photos.safetensors"),
    "GLIGEN photos, diffusers": partial(gligen, "text_image", "diffusers", "unet/diffusion_pytorch_model.safetensors"),
    "projection_matrix": partial(matrix, "ldm"),
    "image_project": partial(matrix, "diffusers"),
    "in parts": in_parts,
    **{
        f"Subject-Diffusion {name}": partial(subject_members, name)
        for name in ("unet", "clip_text", "mlp", "proj", "clip_visual")
    },
    "Subject-Diffusion flat, old": partial(subject_members, "mlp", "old", False),
    "Subject-Diffusion bundle": subject_bundle,
    **{f"MM-Diff {name}": partial(mm_diff_member, name) for name in MM_DIFF},
    "MM-Diff bundle": lambda: _one("bundle.safetensors", mm_diff.bundled(_mm_diff()), format="mm_diff", version="1"),
    "UMM-Diffusion": _umm,
    "FastComposer": fast_composer,
}


FEW = {  # names of transformer blocks: channels
    f"{path}.transformer_blocks.0": width
    for path, width in (
        ("input_blocks.1.1", 64),
        ("output_blocks.3.1", 128),
        ("output_blocks.11.1", 64),
        ("middle_block.1", 128),
    )
}
