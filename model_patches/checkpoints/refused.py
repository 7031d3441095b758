"""Adapter files that Troupe knows and does not run, so that the refusal says what they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import CheckpointError
from .files import BARE

USE_INSTEAD = (
    "Use an IP-Adapter or MIP-Adapter file of your base model, for SDXL ip-adapter-plus_sdxl_vit-h.safetensors."
)


def other_kind(state: dict[str, torch.Tensor]) -> tuple[str, str] | None:
    """Return what a file of a known kind that is not for this loader is, and what to use instead; None for others."""
    kind = _known(state)
    return None if kind is None else (kind, USE_INSTEAD)


def no_adapter(file: str, found: str, remedy: str, families: Sequence[str]) -> CheckpointError:
    """Return the error about a file of none of the families that this loader takes, given their labels."""
    *most, last = families
    return CheckpointError(f"an {', '.join(most)} or {last} file in '{file}'", found, remedy)


def _known(state: dict[str, torch.Tensor]) -> str | None:
    def shape(name: str) -> tuple[int, ...]:
        return tuple(state[name].shape) if name in state else ()

    if set(state) in ({"project.weight"}, {"projection_matrix"}, {BARE}):
        return "the projection matrix of a GLIGEN text-image file (choose that file; the matrix beside it is found)"
    if any("double_stream" in k or k.startswith("double_blocks.") for k in state):
        return "a file for FLUX (another architecture, without text cross-attention)"
    if "ip_adapter.0.to_k_ip.weight" in state:
        return (
            "an adapter for a diffusion transformer such as FLUX or SD3 (its layers are numbered 0, 1, 2; those "
            "of SD1.5 and SDXL 1, 3, 5)"
        )
    if (
        "ip_adapter.0.to_q_lora.down.weight" in state
        or shape("image_proj.proj.0.weight")[-1:] == (512,)
        or "image_proj.perceiver_resampler.latents" in state
    ):
        return "an IP-Adapter FaceID (it needs InsightFace vectors, whose models are not free for commercial use)"
    if shape("image_proj.proj_in.weight")[-1:] == (512,):
        return "InstantID (it needs InsightFace vectors)"
    if shape("image_proj.layers.0.0.to_out.weight")[:1] == (2048,):
        return "an IP-Adapter for Kolors (its text encoder is ChatGLM, not CLIP)"
    if any(k.startswith(("id_encoder.", "pulid_ca.", "pulid_encoder.")) for k in state):
        return "PuLID (it needs InsightFace vectors)"
    if any(k.startswith(("model.diffusion_model.", "conditioner.", "cond_stage_model.")) for k in state):
        return "a whole checkpoint (it belongs to models/checkpoints and Load Checkpoint)"
    if any(k.startswith(("vision_model.", "visual.")) for k in state):
        return "a CLIP vision encoder (it belongs to models/clip_vision; choose it in 'clip_vision_name')"
    if any("lora_" in k or "_lora." in k for k in state):
        return "a LoRA (it belongs to models/loras and Load LoRA)"
    return None
