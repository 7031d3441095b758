"""Random weights in the layout that each supported family is published in: real tensor names, narrow where the width is
free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

State = dict[str, torch.Tensor]
SD15, SD2, SDXL = 768, 1024, 2048  # text widths
H_HIDDEN, H_POOLED, BIGG_HIDDEN, BIGG_POOLED = 1280, 1024, 1664, 1280
# widths of seven cross-attention layers: indices 1 to 13, of which 11 and 13 sort before 3 as text
NARROW = (8, 8, 16, 16, 24, 24, 8)
UNET_WIDTHS = {  # of the real models, in the order down, up, mid
    SD15: (320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320, 1280),
    SDXL: (640,) * 4 + (1280,) * 20 + (1280,) * 30 + (640,) * 6 + (1280,) * 10,
}


def _tensors(seed: int, **shapes: Sequence[int]) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tuple(shape), generator=generator) * 0.05 for name, shape in shapes.items()}


def image_proj(context: int, embed: int, tokens: int = 4) -> State:
    """Linear to T tokens and a LayerNorm (plain and "light" files)."""
    return _tensors(
        1,
        **{
            "proj.weight": (tokens * context, embed),
            "proj.bias": (tokens * context,),
            "norm.weight": (context,),
            "norm.bias": (context,),
        },
    )


def resampler(
    context: int, embed: int = H_HIDDEN, dim: int = 64, inner: int = 128, tokens: int = 16, depth: int = 2
) -> State:
    """The "plus" projection; published ones have dim 768 or 1280, inner = dim and depth 4."""
    shapes: dict[str, Sequence[int]] = {
        "latents": (1, tokens, dim),
        "proj_in.weight": (dim, embed),
        "proj_in.bias": (dim,),
    }
    shapes |= {
        "proj_out.weight": (context, dim),
        "proj_out.bias": (context,),
        "norm_out.weight": (context,),
        "norm_out.bias": (context,),
    }
    for i in range(depth):
        attention, feed = f"layers.{i}.0.", f"layers.{i}.1."
        shapes |= {f"{attention}{norm}.{kind}": (dim,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        shapes |= {
            f"{attention}to_q.weight": (inner, dim),
            f"{attention}to_kv.weight": (2 * inner, dim),
            f"{attention}to_out.weight": (dim, inner),
        }
        shapes |= {
            f"{feed}0.weight": (dim,),
            f"{feed}0.bias": (dim,),
            f"{feed}1.weight": (4 * dim, dim),
            f"{feed}3.weight": (dim, 4 * dim),
        }
    return _tensors(2, **shapes)


def face_mlp(context: int = SD15, embed: int = H_HIDDEN) -> State:
    """The full-face projection."""
    shapes = {
        "proj.0.weight": (embed, embed),
        "proj.0.bias": (embed,),
        "proj.2.weight": (context, embed),
        "proj.2.bias": (context,),
    }
    return _tensors(3, **shapes, **{"proj.3.weight": (context,), "proj.3.bias": (context,)})


def layers(context: int, widths: Sequence[int] = NARROW, text_gain: bool = False) -> State:
    """Keys and values for each cross-attention layer; MIP-Adapter's `text_to_weight` too."""
    shapes: dict[str, Sequence[int]] = {}
    for j, width in enumerate(widths):
        shapes |= {f"{2 * j + 1}.to_k_ip.weight": (width, context), f"{2 * j + 1}.to_v_ip.weight": (width, context)}
        shapes |= {f"{2 * j + 1}.text_to_weight.weight": (1, width)} if text_gain else {}
    return _tensors(4, **shapes)


def flat(projection: State, attention: State, name: str = "ip_adapter") -> State:
    """As .safetensors hold it."""
    return {f"image_proj.{k}": v for k, v in projection.items()} | {f"{name}.{k}": v for k, v in attention.items()}


def nested(state: State) -> dict[str, State]:
    """As .bin hold it: a dict of two dicts."""
    tree: dict[str, State] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        tree.setdefault(part, {})[rest] = tensor
    return tree


def cast(state: State, dtype: torch.dtype, kv_dtype: torch.dtype | None = None) -> State:
    """Another dtype, and one for the layers if theirs is different."""
    return {k: v.to(dtype if k.startswith("image_proj.") else kv_dtype or dtype) for k, v in state.items()}


@dataclass(frozen=True)
class Family:
    """One kind of published file: its tensors, and what must be read off them."""

    state: State
    family: str
    projection: str
    base: str
    tokens: int
    encoder: tuple[str, int]  # kind of output, width
    encoder_name: str

    @property
    def features(self) -> torch.Tensor:
        """Two encoder outputs of the right shape."""
        kind, width = self.encoder
        return torch.randn(
            (2, width) if kind == "pooled" else (2, 5, width), generator=torch.Generator().manual_seed(9)
        )


H, BIGG = "ViT-H", "ViT-bigG"
FAMILIES: dict[str, Family] = {
    "ip-adapter_sd15 (and light)": Family(
        flat(image_proj(SD15, H_POOLED), layers(SD15)), "ip_adapter", "ImageProj", "SD1.5", 4, ("pooled", H_POOLED), H
    ),
    "ip-adapter_sd15_vit-G": Family(
        flat(image_proj(SD15, BIGG_POOLED), layers(SD15)),
        "ip_adapter",
        "ImageProj",
        "SD1.5",
        4,
        ("pooled", BIGG_POOLED),
        BIGG,
    ),
    "ip-adapter-plus_sd15 (and face)": Family(
        flat(resampler(SD15), layers(SD15)), "ip_adapter", "Resampler", "SD1.5", 16, ("penultimate", H_HIDDEN), H
    ),
    "ip-adapter-full-face_sd15": Family(
        flat(face_mlp(), layers(SD15)), "ip_adapter", "FaceMLP", "SD1.5", 0, ("penultimate", H_HIDDEN), H
    ),
    "ip-adapter_sd21": Family(
        flat(image_proj(SD2, H_POOLED), layers(SD2)), "ip_adapter", "ImageProj", "SD2.x", 4, ("pooled", H_POOLED), H
    ),
    "ip-adapter_sdxl": Family(
        flat(image_proj(SDXL, BIGG_POOLED), layers(SDXL)),
        "ip_adapter",
        "ImageProj",
        "SDXL",
        4,
        ("pooled", BIGG_POOLED),
        BIGG,
    ),
    "ip-adapter_sdxl_vit-h": Family(
        flat(image_proj(SDXL, H_POOLED), layers(SDXL)), "ip_adapter", "ImageProj", "SDXL", 4, ("pooled", H_POOLED), H
    ),
    "ip-adapter-plus_sdxl_vit-h": Family(
        flat(resampler(SDXL), layers(SDXL)), "ip_adapter", "Resampler", "SDXL", 16, ("penultimate", H_HIDDEN), H
    ),
    "plus on bigG": Family(
        flat(resampler(SDXL, BIGG_HIDDEN), layers(SDXL)),
        "ip_adapter",
        "Resampler",
        "SDXL",
        16,
        ("penultimate", BIGG_HIDDEN),
        BIGG,
    ),
    "MIP model_sdxl": Family(
        flat(image_proj(SDXL, BIGG_POOLED), layers(SDXL, text_gain=True)),
        "mip_adapter",
        "ImageProj",
        "SDXL",
        4,
        ("pooled", BIGG_POOLED),
        BIGG,
    ),
    "MIP model_sdxl_plus": Family(
        flat(resampler(SDXL), layers(SDXL, text_gain=True)),
        "mip_adapter",
        "Resampler",
        "SDXL",
        16,
        ("penultimate", H_HIDDEN),
        H,
    ),
}


def _faceid(projection: State, lora: bool = True) -> State:
    kv = layers(SD15)
    if lora:
        kv |= _tensors(
            5,
            **{
                f"{i}.to_{name}_lora.{way}.weight": (4, 8)
                for i in range(14)
                for name in ("q", "k", "v", "out")
                for way in ("down", "up")
            },
        )
    return flat(projection, kv)


_FACE_VECTOR = _tensors(
    6,
    **{
        "proj.0.weight": (1024, 512),
        "proj.0.bias": (1024,),
        "proj.2.weight": (4 * SD15, 1024),
        "proj.2.bias": (4 * SD15,),
    },
)
_FACE_VECTOR |= _tensors(6, **{"norm.weight": (SD15,), "norm.bias": (SD15,)})
_EMPTY = torch.zeros(4, 4)
# tensors of files that are for something else, and a word the refusal must hold
REFUSED: dict[str, tuple[State, str]] = {
    "faceid_sd15": (_faceid(_FACE_VECTOR), "FaceID"),
    "faceid-plusv2": (
        _faceid(_FACE_VECTOR | {f"perceiver_resampler.{k}": v for k, v in resampler(SD15).items()}),
        "FaceID",
    ),
    "faceid-portrait": (_faceid(_FACE_VECTOR, lora=False), "FaceID"),
    "InstantID": (flat(resampler(SDXL, embed=512), layers(SDXL)), "InstantID"),
    "Kolors plus": (flat(resampler(SDXL, embed=1024, dim=SDXL), layers(SDXL)), "Kolors"),
    "FLUX by XLabs": (
        {
            "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": _EMPTY,
            "ip_adapter_proj_model.proj.weight": _EMPTY,
        },
        "FLUX",
    ),
    "FLUX by InstantX": (
        flat(
            _tensors(
                7,
                **{
                    "proj.0.weight": (64, 1152),
                    "proj.0.bias": (64,),
                    "proj.2.weight": (4096, 64),
                    "proj.2.bias": (4096,),
                    "norm.weight": (4096,),
                },
            ),
            _tensors(8, **{f"{i}.to_{kv}_ip.weight": (8, 4096) for i in range(4) for kv in "kv"}),
        ),
        "FLUX",
    ),
    "FLUX itself": ({"double_blocks.0.img_attn.qkv.weight": _EMPTY, "single_blocks.0.linear1.weight": _EMPTY}, "FLUX"),
    "PuLID": ({"id_encoder.latents": _EMPTY, "pulid_ca.0.to_q.weight": _EMPTY}, "PuLID"),
    "LoRA, kohya": (
        {
            "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight": _EMPTY,
            "lora_unet_down_blocks_1_attentions_0_proj_in.alpha": torch.ones(()),
        },
        "LoRA",
    ),
    "LoRA, peft": ({"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": _EMPTY}, "LoRA"),
    "LoRA, old diffusers": (
        {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight": _EMPTY},
        "LoRA",
    ),
    "checkpoint SD1.5": (
        {"model.diffusion_model.input_blocks.0.0.weight": _EMPTY, "first_stage_model.encoder.conv_in.weight": _EMPTY},
        "checkpoint",
    ),
    "checkpoint SDXL": (
        {
            "model.diffusion_model.input_blocks.0.0.weight": _EMPTY,
            "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": _EMPTY,
        },
        "checkpoint",
    ),
    "CLIP vision, transformers": (
        {"vision_model.embeddings.class_embedding": _EMPTY, "visual_projection.weight": _EMPTY},
        "CLIP vision",
    ),
    "CLIP vision, open_clip": ({"visual.class_embedding": _EMPTY, "visual.proj": _EMPTY}, "CLIP vision"),
    "a ControlNet": ({"control_model.input_blocks.0.0.weight": _EMPTY}, "control_model.input_blocks.0.0.weight"),
    "a VAE": ({"encoder.conv_in.weight": _EMPTY}, "encoder.conv_in.weight"),
}


def vision_encoder(hidden: int, pooled: int, layout: str = "transformers", text: bool = True) -> State:
    """The tensors of a CLIP vision encoder file that tell its widths, with a few others; `text`: a text tower beside
    it.
    """
    if layout == "transformers":
        names: dict[str, Sequence[int]] = {
            "vision_model.embeddings.class_embedding": (hidden,),
            "visual_projection.weight": (pooled, hidden),
        }
        names |= (
            {"text_model.final_layer_norm.weight": (pooled,), "text_projection.weight": (pooled, pooled)}
            if text
            else {}
        )
    else:
        names = {
            "visual.class_embedding": (hidden,),
            "visual.conv1.weight": (hidden, 3, 2, 2),
            "visual.proj": (hidden, pooled),
        }
        names |= {"ln_final.weight": (pooled,), "text_projection": (pooled, pooled)} if text else {}
    return _tensors(10, **names)


# ---- gated adapters --------------------------------------------------------------------------------------------------

SD_PLACES = {  # diffusers -> LDM, the sixteen transformers of SD1.5 and SD2, in the order of the layers
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.attentions.1": "input_blocks.2.1",
    "down_blocks.1.attentions.0": "input_blocks.4.1",
    "down_blocks.1.attentions.1": "input_blocks.5.1",
    "down_blocks.2.attentions.0": "input_blocks.7.1",
    "down_blocks.2.attentions.1": "input_blocks.8.1",
    "up_blocks.1.attentions.0": "output_blocks.3.1",
    "up_blocks.1.attentions.1": "output_blocks.4.1",
    "up_blocks.1.attentions.2": "output_blocks.5.1",
    "up_blocks.2.attentions.0": "output_blocks.6.1",
    "up_blocks.2.attentions.1": "output_blocks.7.1",
    "up_blocks.2.attentions.2": "output_blocks.8.1",
    "up_blocks.3.attentions.0": "output_blocks.9.1",
    "up_blocks.3.attentions.1": "output_blocks.10.1",
    "up_blocks.3.attentions.2": "output_blocks.11.1",
    "mid_block.attentions.0": "middle_block.1",
}
SDXL_PLACES = {  # with the number of transformer blocks in each
    "down_blocks.1.attentions.0": ("input_blocks.4.1", 2),
    "down_blocks.1.attentions.1": ("input_blocks.5.1", 2),
    "down_blocks.2.attentions.0": ("input_blocks.7.1", 10),
    "down_blocks.2.attentions.1": ("input_blocks.8.1", 10),
    "up_blocks.0.attentions.0": ("output_blocks.0.1", 10),
    "up_blocks.0.attentions.1": ("output_blocks.1.1", 10),
    "up_blocks.0.attentions.2": ("output_blocks.2.1", 10),
    "up_blocks.1.attentions.0": ("output_blocks.3.1", 2),
    "up_blocks.1.attentions.1": ("output_blocks.4.1", 2),
    "up_blocks.1.attentions.2": ("output_blocks.5.1", 2),
    "mid_block.attentions.0": ("middle_block.1", 10),
}
SD_WIDTHS = {f"{ldm}.transformer_blocks.0": 64 for ldm in SD_PLACES.values()}  # as narrow as heads of 64 channels allow
SDXL_WIDTHS = {f"{ldm}.transformer_blocks.{k}": 64 for ldm, depth in SDXL_PLACES.values() for k in range(depth)}
GLIGEN_PREFIXES = {"ldm": "", "wrapped": "model.", "checkpoint": "model.diffusion_model.", "diffusers": ""}


def diffusers_path(ldm: str) -> str:
    """'input_blocks.1.1.transformer_blocks.0' -> 'down_blocks.0.attentions.0.transformer_blocks.0', for the places of
    SD and SDXL with the same number.
    """
    spatial, _, depth = ldm.partition(".transformer_blocks.")
    return f"{next(name for name, there in SD_PLACES.items() if there == spatial)}.transformer_blocks.{depth}"


def sdxl_path(ldm: str) -> str:
    """The same in an SDXL UNet."""
    spatial, _, depth = ldm.partition(".transformer_blocks.")
    return f"{next(name for name, (there, _) in SDXL_PLACES.items() if there == spatial)}.transformer_blocks.{depth}"


def fuser(width: int, context: int, seed: int = 20) -> State:
    """One gated layer by its published names."""
    shapes: dict[str, Sequence[int]] = {
        "linear.weight": (width, context),
        "linear.bias": (width,),
        "alpha_attn": (),
        "alpha_dense": (),
    }
    shapes |= {f"attn.to_{name}.weight": (width, width) for name in "qkv"} | {
        "attn.to_out.0.weight": (width, width),
        "attn.to_out.0.bias": (width,),
    }
    shapes |= {
        "ff.net.0.proj.weight": (8 * width, width),
        "ff.net.0.proj.bias": (8 * width,),
        "ff.net.2.weight": (width, 4 * width),
        "ff.net.2.bias": (width,),
    }
    return _tensors(
        seed, **shapes, **{f"{norm}.{leaf}": (width,) for norm in ("norm1", "norm2") for leaf in ("weight", "bias")}
    )


def position_net(kind: str, feature: int, context: int, hidden: int = 512) -> State:
    """GLIGEN's net for text boxes ('text') or text-image boxes ('text_image')."""
    stacks, nulls = {
        "text": (["linears"], ["positive"]),
        "text_image": (["linears_text", "linears_image"], ["text", "image"]),
    }[kind]
    widths = (feature + 64, hidden, hidden, context)
    shapes: dict[str, Sequence[int]] = {f"null_{name}_feature": (feature,) for name in nulls} | {
        "null_position_feature": (64,)
    }
    for stack in stacks:
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            shapes |= {f"{stack}.{2 * i}.weight": (b, a), f"{stack}.{2 * i}.bias": (b,)}
    return _tensors(21, **shapes)


def gligen_state(
    kind: str = "text",
    widths: dict[str, int] | None = None,
    layout: str = "ldm",
    context: int = SD15,
    feature: int = SD15,
    whole: bool = False,
    sdxl: bool = False,
    hidden: int = 16,
    channels: int = 4,
) -> State:
    """A GLIGEN file.

    Arguments:
        kind: 'text' or 'text_image'; widths: of the layer at each place (LDM path of its transformer block), default
            those of SD or SDXL, narrow.
        layout: 'ldm', 'wrapped' (the official files' dict, beside other models), 'checkpoint' or 'diffusers' (which
            lists the middle block last; among its places must be a third attention of a level, as output_blocks.5.1,
            8.1 or 11.1: it tells how a level is numbered).
        whole: with some of the UNet's own tensors; channels: that its first convolution reads; hidden: of the position
            net, 512 in published ones.
    """
    widths = widths or (SDXL_WIDTHS if sdxl else SD_WIDTHS)
    prefix, state = GLIGEN_PREFIXES[layout], {}
    name = (sdxl_path if sdxl else diffusers_path) if layout == "diffusers" else str
    order = ("input", "output", "middle") if layout == "diffusers" else ("input", "middle", "output")
    for place, width in sorted(widths.items(), key=lambda item: order.index(item[0].partition("_")[0])):
        own = _tensors(22, **{f"attn2.to_{kv}.weight": (width, context) for kv in "kv"}) if whole else {}
        number = list(widths).index(place)
        state |= {f"{prefix}{name(place)}.{leaf}": tensor for leaf, tensor in own.items()}
        state |= {
            f"{prefix}{name(place)}.fuser.{leaf}": tensor
            for leaf, tensor in fuser(width, context, 100 + number).items()
        }
    if whole:
        first, start = (
            next(iter(widths.values())),
            f"{prefix}{'conv_in' if layout == 'diffusers' else 'input_blocks.0.0'}.",
        )
        state |= _tensors(23, **{f"{start}weight": (first, channels, 3, 3), f"{start}bias": (first,)})
    state |= {
        f"{prefix}position_net.{leaf}": tensor for leaf, tensor in position_net(kind, feature, context, hidden).items()
    }
    others = {
        "autoencoder.encoder.conv_in.weight": (4, 3),
        "text_encoder.transformer.text_model.final_layer_norm.weight": (4,),
        "diffusion.betas": (10,),
    }
    return state | (_tensors(24, **others) if layout == "wrapped" else {})


def clip_text(width: int, layers: int = 1, inner: int = 32, vocabulary: int = 16) -> State:
    """A text encoder by transformers' names, with the position ids that old versions saved."""
    shapes: dict[str, Sequence[int]] = {
        "embeddings.token_embedding.weight": (vocabulary, width),
        "embeddings.position_embedding.weight": (77, width),
    }
    for i in range(layers):
        start = f"encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{start}self_attn.{name}.weight": (width, width), f"{start}self_attn.{name}.bias": (width,)}
        shapes |= {
            f"{start}mlp.fc1.weight": (inner, width),
            f"{start}mlp.fc1.bias": (inner,),
            f"{start}mlp.fc2.weight": (width, inner),
            f"{start}mlp.fc2.bias": (width,),
        }
        shapes |= {
            f"{start}{norm}.{leaf}": (width,) for norm in ("layer_norm1", "layer_norm2") for leaf in ("weight", "bias")
        }
    shapes |= {"final_layer_norm.weight": (width,), "final_layer_norm.bias": (width,)}
    state = {f"text_model.{name}": tensor for name, tensor in _tensors(30, **shapes).items()}
    return state | {"text_model.embeddings.position_ids": torch.arange(77).unsqueeze(0)}


def _mlp(into: int, hidden: int, out: int, prefix: str = "") -> dict[str, Sequence[int]]:
    shapes: dict[str, Sequence[int]] = {
        "layernorm.weight": (into,),
        "layernorm.bias": (into,),
        "fc1.weight": (hidden, into),
        "fc1.bias": (hidden,),
    }
    return {
        f"{prefix}{name}": shape for name, shape in (shapes | {"fc2.weight": (out, hidden), "fc2.bias": (out,)}).items()
    }


def subject_diffusion_members(
    widths: dict[str, int] | None = None,
    context: int = SD2,
    pooled: int = H_POOLED,
    feature: int = H_HIDDEN,
    tokens: int = 256,
    hidden: int = 16,
    text_layers: int = 1,
) -> dict[str, State]:
    """Subject-Diffusion's four modules as its training saves them; widths as in `gligen_state`; hidden: of both MLPs,
    1024 in real ones.
    """
    widths = widths or SD_WIDTHS
    first = next(iter(widths.values()))
    unet = _tensors(
        31,
        **{"conv_in.weight": (first, 5, 3, 3), "conv_in.bias": (first,), "time_embedding.linear_1.weight": (8, first)},
    )
    # diffusers lists the middle block last
    for place, width in sorted(widths.items(), key=lambda item: item[0].startswith("middle")):
        start, number = f"{diffusers_path(place)}.", list(widths).index(place)
        own = {
            f"attn{i}.to_{name}.weight": (width, context if i == 2 and name in "kv" else width)
            for i in (1, 2)
            for name in "qkv"
        }
        unet |= {f"{start}{name}": tensor for name, tensor in _tensors(200 + number, **own).items()}
        unet |= {f"{start}fuser.{name}": tensor for name, tensor in fuser(width, context, 300 + number).items()}
    proj = _tensors(
        32,
        **_mlp(feature + 64, hidden, context, "linears_image."),
        null_image_feature=(1, 1, tokens, feature),
        null_position_feature=(1, 1, tokens, 64),
    )
    return {
        "unet": unet,
        "clip_text": clip_text(context, text_layers),
        "mlp": _tensors(33, **_mlp(pooled, hidden, context)),
        "proj": proj,
    }


def save_members(
    members: dict[str, State], folder: Path, step: str = "0_449999", flat: bool = False
) -> dict[str, Path]:
    """Written as the training does, `unet_0_449999/pytorch_model.bin`, or flat as `unet_0_449999.bin`; paths by
    member.
    """
    paths = {name: folder / (f"{name}_{step}.bin" if flat else f"{name}_{step}/pytorch_model.bin") for name in members}
    for name, state in members.items():
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, paths[name])
    return paths


# ---- adapters that put subjects into the prompt ----------------------------------------------------------------------

CLIP_L, BIGG = 768, 1280  # widths of SDXL's text encoders
SDXL_HIDDEN = (640, 1280)  # of SDXL's two levels with attention


def mm_diff_unet(
    context: int = SDXL, hidden: Sequence[int] = SDXL_HIDDEN, rank: int = 2, image_rank: int = 3, entries: int = 140
) -> State:
    """`unet_adapter_weights`: numbered pairs; hidden: channels of the two levels."""
    shapes: dict[str, Sequence[int]] = {}
    widths = [
        hidden[
            0
            if ldm
            in ("input_blocks.4.1", "input_blocks.5.1", "output_blocks.3.1", "output_blocks.4.1", "output_blocks.5.1")
            else 1
        ]
        for ldm, depth in SDXL_PLACES.values()
        for _ in range(2 * depth)
    ]
    for i, width in zip(range(entries), (widths + widths)[:entries], strict=True):
        for name in ("q", "k", "v", "out", *(("k", "v") if i % 2 else ())):
            kind, r = ("lora", rank) if f"{i}.to_{name}_lora.down.weight" not in shapes else ("lora_image", image_rank)
            into = context if i % 2 and name in "kv" else width
            shapes |= {f"{i}.to_{name}_{kind}.down.weight": (r, into), f"{i}.to_{name}_{kind}.up.weight": (width, r)}
    return _tensors(40, **shapes)


def clip_lora(
    encoder: str,
    width: int,
    layers: int = 2,
    rank: int = 2,
    spelling: str = "new",
    mlp: bool = False,
    alpha: float | None = None,
) -> State:
    """A text encoder's LoRA; encoder: 'text_encoder' or 'text_encoder_2'; spelling: 'new' (lora_linear_layer) or 'old'
    (to_q_lora).
    """
    shapes: dict[str, Sequence[int]] = {}
    alphas: State = {}
    for i in range(layers):
        start = f"{encoder}.text_model.encoder.layers.{i}."
        sizes = {
            f"self_attn.to_{name}_lora" if spelling == "old" else f"self_attn.{name}_proj.lora_linear_layer": (
                width,
                width,
            )
            for name in ("q", "k", "v", "out")
        }
        sizes |= (
            {"mlp.fc1.lora_linear_layer": (width, 4 * width), "mlp.fc2.lora_linear_layer": (4 * width, width)}
            if mlp
            else {}
        )
        for name, (into, out) in sizes.items():
            shapes |= {f"{start}{name}.down.weight": (rank, into), f"{start}{name}.up.weight": (out, rank)}
            alphas |= {} if alpha is None else {f"{start}{name}.alpha": torch.tensor(alpha)}
    return _tensors(41 + len(encoder), **shapes) | alphas


def subject_head(
    context: int,
    vector: int = 512,
    hidden: int = 16,
    tokens: int = 4,
    patches: int = 1024,
    inner: int = 256,
    depth: int = 2,
) -> State:
    """`face_embeds_proj`; published: hidden 1024, inner 2048, depth 4."""
    norms = ("layer_norm", "refiner.norm_out")
    out = tokens * context
    shapes: dict[str, Sequence[int]] = {
        "proj.0.weight": (hidden, vector),
        "proj.0.bias": (hidden,),
        "proj.2.weight": (out, hidden),
        "proj.2.bias": (out,),
    }
    shapes |= {
        "refiner.proj_in.weight": (context, patches),
        "refiner.proj_in.bias": (context,),
        "refiner.proj_out.weight": (context, context),
        "refiner.proj_out.bias": (context,),
    }
    for i in range(depth):
        attention, feed = f"refiner.layers.{i}.0.", f"refiner.layers.{i}.1."
        norms += (f"{attention}norm1", f"{attention}norm2", f"{feed}0")
        shapes |= {
            f"{attention}to_q.weight": (inner, context),
            f"{attention}to_kv.weight": (2 * inner, context),
            f"{attention}to_out.weight": (context, inner),
        }
        shapes |= {f"{feed}1.weight": (2 * context, context), f"{feed}3.weight": (context, 2 * context)}
    return _tensors(42, **shapes, **{f"{norm}.{leaf}": (context,) for norm in norms for leaf in ("weight", "bias")})


def mm_diff_members(
    context: int = SDXL,
    hidden: Sequence[int] = SDXL_HIDDEN,
    text: Sequence[int] = (CLIP_L, BIGG),
    pooled: int = 768,
    vector: int = 512,
    tokens: int = 4,
    patches: int = 1024,
    **lora,
) -> dict[str, State]:
    """MM-Diff's three files, flat; lora: of the text encoders, as `clip_lora` has it."""
    words: dict[str, Sequence[int]] = {
        "layernorm.weight": (pooled,),
        "layernorm.bias": (pooled,),
        "fc.weight": (pooled, pooled),
        "fc.bias": (pooled,),
    }
    words |= {
        f"proj_{i + 1}.{leaf}": shape
        for i, d in enumerate(text)
        for leaf, shape in (("weight", (d, pooled)), ("bias", (d,)))
    }
    custom = {f"obj_embeds_proj.{name}": tensor for name, tensor in _tensors(43, **words).items()}
    custom |= {
        f"face_embeds_proj.{name}": tensor
        for name, tensor in subject_head(context, vector, tokens=tokens, patches=patches).items()
    }
    for name, d in zip(("mm_fuse_one.", "mm_fuse_two."), text, strict=True):
        custom |= _tensors(44, **_mlp(2 * d, d, d, name))
    custom |= _tensors(
        45,
        **{
            "image_encoder.vision_model.pre_layrnorm.weight": (patches,),
            "image_encoder.visual_projection.weight": (pooled, patches),
        },
    )
    loras = {
        name: tensor
        for encoder, d in zip(("text_encoder", "text_encoder_2"), text, strict=True)
        for name, tensor in clip_lora(encoder, d, **lora).items()
    }
    return {
        "unet_adapter_weights": mm_diff_unet(context, hidden),
        "text_encoder_adapter_weights": loras,
        "custom_weights": custom,
    }


def save_mm_diff(members: dict[str, State], folder: Path, extension: str = ".bin") -> dict[str, Path]:
    """As published: three pickles, of which the last holds a dict of state dicts; paths by member."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}{extension}" for name in members}
    for name, state in members.items():
        torch.save(nested(state) if name == "custom_weights" else state, paths[name])
    return paths


def umm_state(
    widths: Sequence[int] = (768, 32, 768), tokens: int = 1, input_norm: bool = False, output_norm: int = 0
) -> State:
    """A mapping of UMM-Diffusion; widths: in, hidden, out without the words, which multiply the last."""
    widths = (*widths[:-1], tokens * widths[-1])
    shapes: dict[str, Sequence[int]] = {}
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        shapes |= {f"mapping.layers.{i}.weight": (b, a), f"mapping.layers.{i}.bias": (b,)}
    norms = {"input_norm": widths[0] if input_norm else 0, "output_norm": output_norm}
    return _tensors(
        46,
        **shapes,
        **{f"mapping.{norm}.{leaf}": (width,) for norm, width in norms.items() if width for leaf in ("weight", "bias")},
    )


def fastcomposer_state(
    channels: Sequence[int] = (32, 64, 96, 96), text: int = CLIP_L, pooled: int = 768, hidden: int = 8
) -> State:
    """FastComposer's one file, with a UNet like SD1.5's: diffusers' own, of four levels; what is not read is
    there too.
    """
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(47)
        unet = UNet2DConditionModel(block_out_channels=tuple(channels), cross_attention_dim=text, attention_head_dim=8)
    state = {f"unet.{name}": tensor.detach() for name, tensor in unet.state_dict().items()}
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
            "text_encoder.final_layer_norm.weight": (text,),
            "vae.decoder.mid_block.attentions.0.query.weight": (4, 4),
        },
    )
    return state | {"image_encoder.vision_model.embeddings.position_ids": torch.arange(3)}
