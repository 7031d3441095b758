"""Gated files for a UNet with the blocks of SD, in small."""

import zlib

import torch


def full_topology(base, context):
    """A micro model with the sixteen transformer blocks of SD1.5 and SD2, all 64 wide."""
    import comfy.supported_models as sm

    config = dict(
        model_channels=64,
        context_dim=context,
        in_channels=4,
        out_channels=4,
        image_size=32,
        use_spatial_transformer=True,
        legacy=False,
        channel_mult=[1] * 4,
        num_res_blocks=[2] * 4,
        transformer_depth=[1] * 6 + [0, 0],
        transformer_depth_output=[1] * 9 + [0] * 3,
        transformer_depth_middle=1,
        use_linear_in_transformer=base != "SD15",
        adm_in_channels=None,
        dtype=torch.float32,
    )

    return micro_patcher(getattr(sm, base), config)


def micro_patcher(kind, config):
    """A MODEL of one of the host's model classes with a UNet of this config and random weights."""
    import comfy.model_management as mm
    import comfy.model_patcher

    from support.host import tiny_models

    class Micro(kind):
        unet_extra_config = dict(num_heads=4, num_head_channels=-1)

    chosen = Micro(config)
    chosen.set_inference_dtype(torch.float32, None)
    model = chosen.get_model({}, "", device="cpu")
    tiny_models._init(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(
        model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
    )


def sharp(state):
    """The same names and shapes with weights that keep the signal alive through the layers, seeded by the name."""
    found = {}
    for name, tensor in state.items():
        drawn = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if "alpha_" in name:
            found[name] = torch.full_like(drawn, 0.9)
        elif "norm" in name and name.endswith("weight"):
            found[name] = 1 + 0.1 * drawn
        else:
            found[name] = (
                drawn / tensor[0].numel() ** 0.5 if tensor.ndim > 1 and tensor.is_floating_point() else 0.1 * drawn
            )
    return found
