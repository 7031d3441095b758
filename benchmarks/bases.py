"""Base models with random weights: full size as they are published, and thin ones of the same blocks, all with 320
channels, that a CPU samples in a second.
"""

from __future__ import annotations

from typing import Any

import torch

SD15_DEPTHS = {
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
}
SDXL_DEPTHS = {
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}
SD15 = {"context_dim": 768, "use_linear_in_transformer": False, "adm_in_channels": None, **SD15_DEPTHS}
SDXL = {
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    **SDXL_DEPTHS,
}
UNETS = {  # name -> (family of the host, sizes)
    "sd15": ("SD15", {**SD15, "channel_mult": [1, 2, 4, 4]}),
    "sd15-thin": ("SD15", {**SD15, "channel_mult": [1, 1, 1, 1]}),
    "sdxl": ("SDXL", {**SDXL, "channel_mult": [1, 2, 4]}),
    "sdxl-thin": ("SDXL", {**SDXL, "channel_mult": [1, 1, 1]}),
    "micro": (
        "SD15",
        {
            **SD15,
            "channel_mult": [1, 1],
            "num_res_blocks": [1, 1],
            "transformer_depth": [1, 1],
            "transformer_depth_output": [1] * 4,
            "model_channels": 32,
        },
    ),
}


def base(name: str, dtype: torch.dtype) -> Any:
    """Return a ModelPatcher of the host around its own UNet with random weights. name: a key of UNETS."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    family, sizes = UNETS[name]
    known = getattr(comfy.supported_models, family)
    config = {
        "model_channels": 320,
        "in_channels": 4,
        "out_channels": 4,
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "dtype": dtype,
        **sizes,
    }
    heads = (
        {"num_heads": 8, "num_head_channels": -1} if family == "SD15" else {"num_heads": -1, "num_head_channels": 64}
    )
    found = type(name, (known,), {"unet_extra_config": heads})(config)
    found.set_inference_dtype(dtype, None)
    device = comfy.model_management.get_torch_device()
    model = found.get_model({}, "", device=device)
    randomise(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(
        model, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Fill a module with random weights in place, on its own device, scaled so that activations stay bounded. Weights
    of norms are set to 1, biases to 0.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.7 / parameter[0].numel() ** 0.5)
            else:
                parameter.fill_(float(name.endswith("weight")))


def prompts(patcher: Any) -> tuple[list, list]:
    """Return random positive and negative conditioning, 77 tokens each, as the host's nodes exchange it."""
    context = next(
        m.to_k.in_features for name, m in patcher.model.diffusion_model.named_modules() if name.endswith("attn2")
    )
    generator = torch.Generator().manual_seed(1)
    return tuple(
        [
            [
                torch.randn(1, 77, context, generator=generator),
                {"pooled_output": torch.randn(1, 1280, generator=generator)},
            ]
        ]
        for _ in range(2)
    )
