"""Random weights in the layout that each supported family is published in: real tensor names, narrow where the width is free."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

State = dict[str, torch.Tensor]
SD15, SD2, SDXL = 768, 1024, 2048  # text widths
H_HIDDEN, H_POOLED, BIGG_HIDDEN, BIGG_POOLED = 1280, 1024, 1664, 1280
NARROW = (8, 8, 16, 16, 24, 24, 8)  # widths of seven cross-attention layers: indices 1 to 13, of which 11 and 13 sort before 3 as text
UNET_WIDTHS = {  # of the real models, in the order down, up, mid
    SD15: (320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320, 1280),
    SDXL: (640,) * 4 + (1280,) * 20 + (1280,) * 30 + (640,) * 6 + (1280,) * 10,
}


def _tensors(seed: int, **shapes: Sequence[int]) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tuple(shape), generator=generator) * 0.05 for name, shape in shapes.items()}


def image_proj(context: int, embed: int, tokens: int = 4) -> State:
    """Linear to T tokens and a LayerNorm (plain and "light" files)."""
    return _tensors(1, **{"proj.weight": (tokens * context, embed), "proj.bias": (tokens * context,), "norm.weight": (context,), "norm.bias": (context,)})


def resampler(context: int, embed: int = H_HIDDEN, dim: int = 64, inner: int = 128, tokens: int = 16, depth: int = 2) -> State:
    """The "plus" projection; published ones have dim 768 or 1280, inner = dim and depth 4."""
    shapes: dict[str, Sequence[int]] = {"latents": (1, tokens, dim), "proj_in.weight": (dim, embed), "proj_in.bias": (dim,)}
    shapes |= {"proj_out.weight": (context, dim), "proj_out.bias": (context,), "norm_out.weight": (context,), "norm_out.bias": (context,)}
    for i in range(depth):
        attention, feed = f"layers.{i}.0.", f"layers.{i}.1."
        shapes |= {f"{attention}{norm}.{kind}": (dim,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        shapes |= {f"{attention}to_q.weight": (inner, dim), f"{attention}to_kv.weight": (2 * inner, dim), f"{attention}to_out.weight": (dim, inner)}
        shapes |= {f"{feed}0.weight": (dim,), f"{feed}0.bias": (dim,), f"{feed}1.weight": (4 * dim, dim), f"{feed}3.weight": (dim, 4 * dim)}
    return _tensors(2, **shapes)


def face_mlp(context: int = SD15, embed: int = H_HIDDEN) -> State:
    """The full-face projection."""
    shapes = {"proj.0.weight": (embed, embed), "proj.0.bias": (embed,), "proj.2.weight": (context, embed), "proj.2.bias": (context,)}
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
        return torch.randn((2, width) if kind == "pooled" else (2, 5, width), generator=torch.Generator().manual_seed(9))


H, BIGG = "ViT-H", "ViT-bigG"
FAMILIES: dict[str, Family] = {
    "ip-adapter_sd15 (and light)": Family(flat(image_proj(SD15, H_POOLED), layers(SD15)), "ip_adapter", "ImageProj", "SD1.5", 4, ("pooled", H_POOLED), H),
    "ip-adapter_sd15_vit-G": Family(flat(image_proj(SD15, BIGG_POOLED), layers(SD15)), "ip_adapter", "ImageProj", "SD1.5", 4, ("pooled", BIGG_POOLED), BIGG),
    "ip-adapter-plus_sd15 (and face)": Family(flat(resampler(SD15), layers(SD15)), "ip_adapter", "Resampler", "SD1.5", 16, ("penultimate", H_HIDDEN), H),
    "ip-adapter-full-face_sd15": Family(flat(face_mlp(), layers(SD15)), "ip_adapter", "FaceMLP", "SD1.5", 0, ("penultimate", H_HIDDEN), H),
    "ip-adapter_sd21": Family(flat(image_proj(SD2, H_POOLED), layers(SD2)), "ip_adapter", "ImageProj", "SD2.x", 4, ("pooled", H_POOLED), H),
    "ip-adapter_sdxl": Family(flat(image_proj(SDXL, BIGG_POOLED), layers(SDXL)), "ip_adapter", "ImageProj", "SDXL", 4, ("pooled", BIGG_POOLED), BIGG),
    "ip-adapter_sdxl_vit-h": Family(flat(image_proj(SDXL, H_POOLED), layers(SDXL)), "ip_adapter", "ImageProj", "SDXL", 4, ("pooled", H_POOLED), H),
    "ip-adapter-plus_sdxl_vit-h": Family(flat(resampler(SDXL), layers(SDXL)), "ip_adapter", "Resampler", "SDXL", 16, ("penultimate", H_HIDDEN), H),
    "plus on bigG": Family(flat(resampler(SDXL, BIGG_HIDDEN), layers(SDXL)), "ip_adapter", "Resampler", "SDXL", 16, ("penultimate", BIGG_HIDDEN), BIGG),
    "MIP model_sdxl": Family(flat(image_proj(SDXL, BIGG_POOLED), layers(SDXL, text_gain=True)), "mip_adapter", "ImageProj", "SDXL", 4, ("pooled", BIGG_POOLED), BIGG),
    "MIP model_sdxl_plus": Family(flat(resampler(SDXL), layers(SDXL, text_gain=True)), "mip_adapter", "Resampler", "SDXL", 16, ("penultimate", H_HIDDEN), H),
}


def _faceid(projection: State, lora: bool = True) -> State:
    kv = layers(SD15)
    if lora:
        kv |= _tensors(5, **{f"{i}.to_{name}_lora.{way}.weight": (4, 8) for i in range(14) for name in ("q", "k", "v", "out") for way in ("down", "up")})
    return flat(projection, kv)


_FACE_VECTOR = _tensors(6, **{"proj.0.weight": (1024, 512), "proj.0.bias": (1024,), "proj.2.weight": (4 * SD15, 1024), "proj.2.bias": (4 * SD15,)})
_FACE_VECTOR |= _tensors(6, **{"norm.weight": (SD15,), "norm.bias": (SD15,)})
_EMPTY = torch.zeros(4, 4)
REFUSED: dict[str, tuple[State, str]] = {  # tensors of files that are for something else, and a word the refusal must hold
    "faceid_sd15": (_faceid(_FACE_VECTOR), "FaceID"),
    "faceid-plusv2": (_faceid(_FACE_VECTOR | {f"perceiver_resampler.{k}": v for k, v in resampler(SD15).items()}), "FaceID"),
    "faceid-portrait": (_faceid(_FACE_VECTOR, lora=False), "FaceID"),
    "InstantID": (flat(resampler(SDXL, embed=512), layers(SDXL)), "InstantID"),
    "Kolors plus": (flat(resampler(SDXL, embed=1024, dim=SDXL), layers(SDXL)), "Kolors"),
    "FLUX by XLabs": ({"double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": _EMPTY, "ip_adapter_proj_model.proj.weight": _EMPTY}, "FLUX"),
    "FLUX by InstantX": (flat(_tensors(7, **{"proj.0.weight": (64, 1152), "proj.0.bias": (64,), "proj.2.weight": (4096, 64), "proj.2.bias": (4096,), "norm.weight": (4096,)}),
                              _tensors(8, **{f"{i}.to_{kv}_ip.weight": (8, 4096) for i in range(4) for kv in "kv"})), "FLUX"),
    "FLUX itself": ({"double_blocks.0.img_attn.qkv.weight": _EMPTY, "single_blocks.0.linear1.weight": _EMPTY}, "FLUX"),
    "PuLID": ({"id_encoder.latents": _EMPTY, "pulid_ca.0.to_q.weight": _EMPTY}, "PuLID"),
    "GLIGEN, official": ({"model.input_blocks.1.1.transformer_blocks.0.fuser.linear.weight": _EMPTY, "model.position_net.null_positive_feature": _EMPTY}, "GLIGEN"),
    "GLIGEN, host's": ({"position_net.linears.0.weight": _EMPTY, "input_blocks.1.1.transformer_blocks.0.fuser.alpha_attn": _EMPTY}, "GLIGEN"),
    "LoRA, kohya": ({"lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight": _EMPTY, "lora_unet_down_blocks_1_attentions_0_proj_in.alpha": torch.ones(())}, "LoRA"),
    "LoRA, peft": ({"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": _EMPTY}, "LoRA"),
    "LoRA, old diffusers": ({"down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight": _EMPTY}, "LoRA"),
    "checkpoint SD1.5": ({"model.diffusion_model.input_blocks.0.0.weight": _EMPTY, "first_stage_model.encoder.conv_in.weight": _EMPTY}, "checkpoint"),
    "checkpoint SDXL": ({"model.diffusion_model.input_blocks.0.0.weight": _EMPTY, "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": _EMPTY}, "checkpoint"),
    "CLIP vision, transformers": ({"vision_model.embeddings.class_embedding": _EMPTY, "visual_projection.weight": _EMPTY}, "CLIP vision"),
    "CLIP vision, open_clip": ({"visual.class_embedding": _EMPTY, "visual.proj": _EMPTY}, "CLIP vision"),
    "a ControlNet": ({"control_model.input_blocks.0.0.weight": _EMPTY}, "control_model.input_blocks.0.0.weight"),
    "a VAE": ({"encoder.conv_in.weight": _EMPTY}, "encoder.conv_in.weight"),
}


def vision_encoder(hidden: int, pooled: int, layout: str = "transformers", text: bool = True) -> State:
    """The tensors of a CLIP vision encoder file that tell its widths, with a few others; `text`: a text tower beside it."""
    if layout == "transformers":
        names: dict[str, Sequence[int]] = {"vision_model.embeddings.class_embedding": (hidden,), "visual_projection.weight": (pooled, hidden)}
        names |= {"text_model.final_layer_norm.weight": (pooled,), "text_projection.weight": (pooled, pooled)} if text else {}
    else:
        names = {"visual.class_embedding": (hidden,), "visual.conv1.weight": (hidden, 3, 2, 2), "visual.proj": (hidden, pooled)}
        names |= {"ln_final.weight": (pooled,), "text_projection": (pooled, pooled)} if text else {}
    return _tensors(10, **names)
