"""A tiny SDXL model with an MM-Diff of random numbers, and references for it."""

import torch

CONTEXT, RANK, TEXT_RANK = 64, 6, 5

PARTS = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}


def make(merge="joint", seed=40, operations=torch.nn):
    """(patcher, adapter): a tiny SDXL model and random pairs for every attention of it."""
    from troupe.model_patches.adapter import (
        Adapter,
        AdapterSpec,
        EncoderNeed,
        ImageAttentionSpec,
        LoraPair,
        PhotoSpec,
        Weights,
    )
    from troupe.model_patches.encoders.mm_diff import LoraLayers
    from troupe.model_patches.hosts.comfyui.loading.adapters import host_adapter
    from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks

    from support.host import tiny_models
    from support.host.small_casts import random

    patcher = tiny_models.micro_model("SDXL", model_channels=64, context_dim=CONTEXT)
    unet, pairs = patcher.model.diffusion_model, {}
    blocks = attention_blocks(unet)
    for i, block in enumerate(blocks):
        for j, attn in enumerate(("attn1", "attn2")):
            for k, name in enumerate(PARTS):
                path = f"{block.path.removesuffix('attn2')}{attn}.{name}.weight"
                out, into = unet.get_submodule(path.removesuffix(".weight")).weight.shape
                down, up = (
                    random(*shape, seed=seed + 100 * i + 10 * j + k + 5 * n, gain=0.4 * shape[1] ** -0.5)
                    for n, shape in enumerate(((TEXT_RANK, into), (out, TEXT_RANK)))
                )
                pairs[path] = LoraPair(down, up)
    layers = LoraLayers(CONTEXT, [b.width for b in blocks], [RANK] * len(blocks), [TEXT_RANK] * len(blocks), operations)
    with torch.no_grad():
        for i, (layer, block) in enumerate(zip(layers.layers, blocks, strict=True)):
            for kv in "kv":
                text = pairs[f"{block.path}.to_{kv}.weight"]
                getattr(layer, f"to_{kv}_lora").down.weight.copy_(text.down)
                getattr(layer, f"to_{kv}_lora").up.weight.copy_(text.up)
                image = getattr(layer, f"to_{kv}_lora_image")
                for part in (image.down, image.up):
                    part.weight.copy_(
                        random(
                            *part.weight.shape,
                            seed=seed + 7000 + 10 * i + len(kv) + part.weight.shape[0],
                            gain=1.5 * part.weight.shape[1] ** -0.5,
                        )
                    )
    attention = ImageAttentionSpec("FaceHead", tuple(b.width for b in blocks), 4, text_gain=False, merge=merge)
    spec = AdapterSpec("mm_diff", "mm_diff.bin", CONTEXT, (PhotoSpec(EncoderNeed("pooled", 768)), attention))
    return patcher, host_adapter(Adapter(spec, None, layers.requires_grad_(False), weights=Weights(unet_lora=pairs)))


def references_of(adapter, counts, weights=None):
    """Subjects with `counts[i]` photos, four tokens each."""
    from troupe.model_patches.subjects import References, ReferenceSubject

    from support.host.small_casts import random

    subjects = tuple(
        ReferenceSubject(
            f"subject {i}",
            random(4 * n, CONTEXT, seed=1000 + i),
            random(1 + i, CONTEXT, seed=2000 + i),
            (weights or [1.0] * len(counts))[i],
        )
        for i, n in enumerate(counts)
    )
    return References(adapter, subjects, None, random(76, CONTEXT, seed=3001))


def mm_diff_scene(delayed, patcher=None):
    """With its LoRA in the UNet (of a given model, else one of its own), and, where delayed, its subjects in the prompt
    from the second step on.
    """
    import comfy.ops
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention
    from troupe.model_patches.hosts.comfyui.sampling.prompt_switch import PROMPT_KEY, FusedPrompt
    from troupe.model_patches.hosts.comfyui.sampling.weights import apply_weights

    from support.host import tiny_models
    from support.host.small_casts import settings
    from support.host.small_mm_diff import CONTEXT, make, references_of

    own, adapter = make(operations=comfy.ops.manual_cast)
    patcher = patcher or own
    ((fused, options),), ((text, _),), negative = (tiny_models.random_cond(77, CONTEXT, seed=i) for i in (1, 3, 2))
    if delayed:
        options = {**options, PROMPT_KEY: FusedPrompt(fused, text, None, start_step=1)}
    model, _ = apply_weights(patcher, adapter)
    model, positive, negative, _ = apply_image_attention(
        model, references_of(adapter, [2, 1]), settings("joint"), [[fused, options]], negative
    )
    return model, positive, negative, adapter.key
