"""Tiny random-weight models that the REAL ComfyUI host can load (CPU friendly).

Two families:
  A. "detectable" checkpoints -- unmodified host, loaded by CheckpointLoaderSimple /
     UNETLoader.  model_channels, context_dim, adm_in_channels (and, for SDXL, the
     per-resblock transformer_depth list of the *input* half) must equal the values in
     comfy/supported_models.py; everything else is auto-detected, so width multiplier,
     number of levels, resblocks/level, output depth and middle depth are shrunk.
  B. "micro" models -- in-process only: subclass the supported_models class, override
     unet_config/clip and build a ModelPatcher directly.  ~0.5 MB, for unit tests.
"""

import math


def _init(module, seed=0):
    import torch

    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim >= 2:
                p.copy_(torch.empty(p.shape).normal_(std=0.7 / math.sqrt(p[0].numel()), generator=g))
            elif name.endswith("weight"):
                p.fill_(1.0)
            else:
                p.zero_()
        for name, b in module.named_buffers():
            if b.is_floating_point() and "position_ids" not in name:
                pass
    return module


# ---- family A ---------------------------------------------------------------
# depth lists: one entry per resblock, in level order (same meaning as host detection)
UNETS = {
    # SD1.5: only context_dim=768 and model_channels=320 are checked by the host.
    "sd15": dict(
        model_channels=320,
        context_dim=768,
        use_linear_in_transformer=False,
        num_heads=8,
        num_head_channels=-1,
        channel_mult=[1, 1],
        num_res_blocks=[1, 1],
        transformer_depth=[1, 1],
        transformer_depth_output=[1, 1, 1, 1],
        transformer_depth_middle=1,
    ),
    # same block ids as real SD1.5 (input 1,2,4,5,7,8 / middle / output 3..11), width 320
    "sd15_full_topology": dict(
        model_channels=320,
        context_dim=768,
        use_linear_in_transformer=False,
        num_heads=8,
        num_head_channels=-1,
        channel_mult=[1, 1, 1, 1],
        num_res_blocks=[2, 2, 2, 2],
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        transformer_depth_middle=1,
    ),
    "sd20": dict(
        model_channels=320,
        context_dim=1024,
        use_linear_in_transformer=True,
        num_heads=-1,
        num_head_channels=64,
        channel_mult=[1, 1],
        num_res_blocks=[1, 1],
        transformer_depth=[1, 1],
        transformer_depth_output=[1, 1, 1, 1],
        transformer_depth_middle=1,
    ),
    # SDXL family.  KOALA-700M key = input depth [0,2,5]; output/middle depths are free.
    "sdxl": dict(
        model_channels=320,
        context_dim=2048,
        use_linear_in_transformer=True,
        num_heads=-1,
        num_head_channels=64,
        adm_in_channels=2816,
        channel_mult=[1, 1, 1],
        num_res_blocks=[1, 1, 1],
        transformer_depth=[0, 2, 5],
        transformer_depth_output=[0, 0, 1, 1, 1, 1],
        transformer_depth_middle=1,
    ),
    # Segmind-Vega key = [0,0,1,1,2,2]: true SDXL block ids (4,5,7,8 / middle / 0..5), thin depth
    "sdxl_vega_topology": dict(
        model_channels=320,
        context_dim=2048,
        use_linear_in_transformer=True,
        num_heads=-1,
        num_head_channels=64,
        adm_in_channels=2816,
        channel_mult=[1, 1, 1],
        num_res_blocks=[2, 2, 2],
        transformer_depth=[0, 0, 1, 1, 2, 2],
        transformer_depth_output=[0, 0, 0, 1, 1, 1, 2, 2, 2],
        transformer_depth_middle=1,
    ),
}
for _k in ("sd15", "sdxl"):
    for _c, _n in ((9, "inpaint"),):
        UNETS[f"{_k}_{_n}"] = dict(UNETS[_k], in_channels=_c)


def build_unet_sd(kind, seed=0, dtype=None, prefix="model.diffusion_model."):
    import comfy.ops
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    cfg = dict(UNETS[kind])
    cfg.setdefault("in_channels", 4)
    if cfg.get("adm_in_channels"):
        cfg["num_classes"] = "sequential"
    else:
        cfg["adm_in_channels"] = None
    m = UNetModel(
        image_size=32,
        out_channels=4,
        use_spatial_transformer=True,
        legacy=False,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
        **cfg,
    )
    _init(m, seed)
    dtype = dtype or torch.float16
    return {prefix + k: v.detach().to(dtype).contiguous() for k, v in m.state_dict().items()}


def build_taesd_sd(seed=1, dtype=None, prefix="first_stage_model.", latent_channels=4):
    """TAESD is auto-detected by comfy.sd.VAE (key taesd_decoder.1.weight), ~2.4M params."""
    import torch
    from comfy.taesd.taesd import TAESD

    v = _init(TAESD(latent_channels=latent_channels), seed)
    with torch.no_grad():
        v.vae_scale.fill_(1.0)  # _init zeroed/filled 0-d params
        v.vae_shift.fill_(0.0)
    return {prefix + k: p.detach().to(dtype or torch.float16).contiguous() for k, p in v.state_dict().items()}


def write_checkpoint(kind, path, dtype=None, seed=0):
    import safetensors.torch

    sd = build_unet_sd(kind, seed, dtype)
    sd.update(build_taesd_sd(dtype=dtype))
    safetensors.torch.save_file(sd, path, metadata={"note": "random weights, test only"})
    return path


# ---- tiny CLIP text encoders (real tokenizer, real class, 2-3 layers) -----------
def tiny_clip(kind="sd15", layers=3, ffn=64, seed=3):
    import comfy.sd
    import comfy.supported_models as sm

    cls = {"sd15": sm.SD15, "sd20": sm.SD20, "sdxl": sm.SDXL}[kind]
    over = {"num_hidden_layers": layers, "intermediate_size": ffn}
    opts = {f"{n}_model_config": over for n in ("clip_l", "clip_g", "clip_h")}
    target = cls(dict(in_channels=4)).clip_target()
    clip = comfy.sd.CLIP(target, embedding_directory=None, model_options=opts, parameters=1)
    _init(clip.cond_stage_model, seed)
    return clip


def tiny_clip_vision(seed=4, image_size=32, hidden=32, layers=3, projection=16, tmp="tiny_clipvision.json", patch=8):
    import json

    import comfy.clip_vision

    cfg = dict(
        attention_dropout=0.0,
        dropout=0.0,
        hidden_act="gelu",
        hidden_size=hidden,
        image_size=image_size,
        intermediate_size=hidden * 2,
        layer_norm_eps=1e-5,
        model_type="clip_vision_model",
        num_attention_heads=4,
        num_channels=3,
        num_hidden_layers=layers,
        patch_size=patch,
        projection_dim=projection,
        torch_dtype="float32",
    )
    with open(tmp, "w") as file:
        json.dump(cfg, file)
    cv = comfy.clip_vision.ClipVisionModel(tmp)
    _init(cv.model, seed)
    return cv


# ---- family B: micro models ----------------------------------------------------
# the published block tables: SD1.5 attends in input 1,2,4,5,7,8 / middle / output 3..11, SDXL in input 4,5,7,8 / middle
# / output 0..5, ten deep in the lowest
TOPOLOGIES = {
    "SD15": dict(
        channel_mult=[1, 1, 1, 1],
        num_res_blocks=[2, 2, 2, 2],
        transformer_depth=[1] * 6 + [0] * 2,
        transformer_depth_output=[1] * 9 + [0] * 3,
    ),
    "SDXL": dict(
        channel_mult=[1, 1, 1],
        num_res_blocks=[2, 2, 2],
        transformer_depth=[0, 0, 2, 2, 10, 10],
        transformer_depth_output=[0] * 3 + [2] * 3 + [10] * 3,
        transformer_depth_middle=10,
    ),
}


def micro_model(
    base="SD15",
    model_channels=32,
    context_dim=64,
    seed=0,
    in_channels=4,
    levels=2,
    mult=None,
    whole=False,
    dtype=None,
    compute=None,
    depths=None,
):
    """A ModelPatcher around the host's own UNetModel/BaseModel, a few 100k params.

    mult: width of each level in model_channels, else 1; whole: with every block of the published model (TOPOLOGIES);
    dtype: of the weights (None: float32), cast to `compute` where that is given; depths: transformer blocks of each
    level, 1 where not given."""
    import comfy.model_management as mm
    import comfy.model_patcher
    import comfy.supported_models as sm
    import torch

    cls = getattr(sm, base)
    cfg = dict(
        model_channels=model_channels,
        context_dim=context_dim,
        in_channels=in_channels,
        out_channels=4,
        image_size=32,
        use_spatial_transformer=True,
        legacy=False,
        channel_mult=list(mult or [1] * levels),
        num_res_blocks=[1] * levels,
        transformer_depth=depths or [1] * levels,
        transformer_depth_output=[depth for depth in depths or [1] * levels for _ in range(2)],
        transformer_depth_middle=1,
        use_linear_in_transformer=base != "SD15",
        adm_in_channels=None,
        dtype=torch.float32,
    )
    cfg.update(TOPOLOGIES[base] if whole else {})

    class Micro(cls):
        unet_extra_config = dict(num_heads=4, num_head_channels=-1)

    if base == "SDXL":
        # SDXL.encode_adm = pooled(1280) + 6*256 -> keep adm 2816
        cfg.update(num_classes="sequential", adm_in_channels=2816)
    mc = Micro(cfg)
    mc.set_inference_dtype(dtype or torch.float32, compute)
    model = mc.get_model({}, "", device="cpu")
    _init(model.diffusion_model, seed)
    return comfy.model_patcher.ModelPatcher(
        model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
    )


def random_cond(tokens=77, dim=768, pooled=1280, seed=5, **extra):
    import torch

    g = torch.Generator().manual_seed(seed)
    d = {"pooled_output": torch.randn(1, pooled, generator=g)}
    d.update(extra)
    return [[torch.randn(1, tokens, dim, generator=g), d]]
