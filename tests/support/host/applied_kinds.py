"""Every kind of image attention and gated layers, applied with two subjects to a small model."""

import torch

ATTENTION, GATED = ["relevance", "text_to_weight", "mm_diff"], ["text", "text_image", "patches"]

E4M3, E5M2, HALF, BRAIN, FULL = torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32


def applied(kind, patcher, adapter=None):
    """(model, positive, negative, plain model, adapter) with references of two subjects, on a patcher; adapter: one
    made before, of the same kind.
    """
    from troupe.model_patches.binding.settings import GatedSettings

    from support.host.small_casts import settings, stage
    from support.host.small_gated_casts import GatedStage, gated_adapter

    st = stage(patcher=patcher, text_gain=kind == "text_to_weight")
    if kind in GATED:
        st = GatedStage(patcher, adapter or gated_adapter(patcher, kind), st.positive, st.negative)
        return *st.apply(st.references(2, weights=[1.0, 0.6]), GatedSettings(0.8)), patcher, st.adapter
    if kind == "mm_diff":
        return with_lora(patcher, adapter, st)
    st.adapter = adapter or st.adapter
    return *st.apply(st.references(2), settings()), patcher, st.adapter


def with_lora(patcher, adapter, st):
    """MM-Diff, with its LoRA in the UNet where the adapter is not given (else it is there)."""
    import comfy.ops
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention
    from troupe.model_patches.hosts.comfyui.sampling.weights import apply_weights

    from support.host.small_casts import settings
    from support.host.small_mm_diff import make, references_of

    if adapter is None:
        adapter = make(operations=comfy.ops.manual_cast)[1]
        patcher, _ = apply_weights(patcher, adapter)
    model, positive, negative, _ = apply_image_attention(
        patcher, references_of(adapter, [2, 1]), settings("joint"), st.positive, st.negative
    )
    return model, positive, negative, patcher, adapter


def micro(kind, dtype=FULL, compute=None):
    from support.host import tiny_models

    return tiny_models.micro_model(
        "SDXL" if kind == "mm_diff" else "SD15", model_channels=64, dtype=dtype, compute=compute
    )
