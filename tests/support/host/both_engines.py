"""The same weights, references and noise on ComfyUI and on diffusers."""

from contextlib import ExitStack
from dataclasses import replace

TOLERANCE = 1e-4  # of the peak

SIZE = (13, 20)  # latent cells, odd on purpose

PIXELS = {"height": SIZE[0] * 8, "width": SIZE[1] * 8}


def twin_unet(patcher, base):
    """The diffusers UNet with the weights of a micro model of the host."""
    import comfy.utils
    from diffusers import UNet2DConditionModel

    config = patcher.model.model_config.unet_config
    names = comfy.utils.unet_to_diffusers(
        {**config, **{k: list(config[k]) for k in ("transformer_depth", "transformer_depth_output")}}
    )
    width, context = config["model_channels"], config["context_dim"]
    more = (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": config["adm_in_channels"],
        }
        if base == "SDXL"
        else {}
    )
    blocks = config["num_res_blocks"][0]
    depths = config["transformer_depth"][::blocks]  # of each level
    attends = ["CrossAttn" if depth else "" for depth in depths]
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=[width * factor for factor in config["channel_mult"]],
        layers_per_block=blocks,
        transformer_layers_per_block=[depth or 1 for depth in depths],
        cross_attention_dim=context,
        attention_head_dim=config["num_heads"],
        use_linear_projection=config["use_linear_in_transformer"],
        down_block_types=[f"{kind}DownBlock2D" for kind in attends],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(attends)],
        **more,
    )
    host = patcher.model.diffusion_model.state_dict()
    renamed = {name: host[names[name]].view(value.shape) for name, value in unet.state_dict().items() if name in names}
    embedding = (
        {
            f"add_embedding.linear_{i + 1}.{k}": host[f"label_emb.0.{2 * i}.{k}"]
            for i in (0, 1)
            for k in ("weight", "bias")
        }
        if more
        else {}
    )
    unet.load_state_dict({**renamed, **embedding})
    return unet.eval().requires_grad_(False)


def schedule():
    """Stable Diffusion's noise levels."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def both(base, text_gain=False):
    """A stage and the twin of its UNet; 64 channels, since group norm over single channels would hide the time and size
    embeddings.
    """
    from support.host.small_casts import CONTEXT, stage
    from support.host.tiny_models import micro_model

    st = stage(base, text_gain, patcher=micro_model(base, model_channels=64, context_dim=CONTEXT))
    for entries in (st.positive, st.negative):
        entries[0][1].update(PIXELS)
    return st, twin_unet(st.patcher, base)


def host_calls(unet, wired, **sampling):
    """Inputs and outputs of every call of the UNet in a run of the host's KSampler. wired: (model, positive, negative)
    after the Apply nodes.
    """
    from support.host.small_casts import ksample

    calls = []

    def keep(unet, args, kwargs, output):
        calls.append((args, kwargs, output))

    hook = unet.register_forward_hook(keep, with_kwargs=True)
    try:
        ksample(*wired, SIZE, steps=3, **sampling)
    finally:
        hook.remove()
    return calls


def same_predictions(unet, applied, calls, st):
    """Each of the host's calls once more in the embedded engine, with the references and without; see `compare`.
    applied: apply_... of that engine.
    """
    from troupe.model_patches.binding.layer_tokens import COND, UNCOND
    from troupe.model_patches.hosts.diffusers.encoders import Prompt
    from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, percent_of, size_condition

    acted = []
    with ExitStack() as stack:
        bound = [stack.enter_context(apply) for apply in applied]
        for (x, t, *_), kwargs, expected in calls:
            order = kwargs["transformer_options"]["cond_or_uncond"]
            percent = percent_of(float(t[0]), schedule())
            prompts = [
                Prompt(kwargs["context"][:1], (st.negative if i else st.positive)[0][1]["pooled_output"]) for i in order
            ]
            given = {
                "encoder_hidden_states": kwargs["context"],
                "added_cond_kwargs": size_condition(
                    unet, prompts, SamplingSettings(**PIXELS, batch=len(x) // len(order))
                ),
            }
            for apply in bound:
                apply.roles = tuple(UNCOND if i else COND for i in order)
                apply.at(percent)
            found = unet(x, t, **given).sample
            assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()
            for apply in bound:
                apply.roles = (None,) * len(order)
            without = unet(x, t, **given).sample
            effect = float((without - expected).abs().max() / expected.abs().max())
            assert effect < TOLERANCE or effect > 100 * TOLERANCE, "the references' effect is too small to be compared"
            if effect > TOLERANCE:
                acted.append(round(percent, 2))
    return acted


def embedded_gated(references):
    """The same references with the gated layers on plain torch."""
    from troupe.model_patches.adapter import Adapter, GatedSpec
    from troupe.model_patches.encoders.gated import GatedLayers
    from troupe.model_patches.encoders.grounding import GroundingNet, TextImagePositionNet, TextPositionNet

    from support.host.small_gated_casts import published

    spec, module = references.adapter.spec, references.adapter.gated_patcher.model
    described = spec.part(GatedSpec)
    net = {"text": TextPositionNet, "text_image": TextImagePositionNet, "patches": GroundingNet}[described.kind]
    mask_width = None if module.mask_conv is None else module.mask_conv.out_channels
    layers = GatedLayers(
        net(**net.widths(published(module.net.state_dict()))),
        list(described.block_widths.values()),
        described.object_dim,
        mask_width,
    )
    layers.load_state_dict(module.state_dict())
    return replace(references, adapter=Adapter(spec, None, None, layers.eval().requires_grad_(False)))


def text_twin(tower, hidden_act, projection):
    """The transformers model with the weights of one of the host's text encoders."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    state = {name: value.float() for name, value in tower.transformer.state_dict().items()}
    width = state["text_model.final_layer_norm.weight"].shape[0]
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=width // 64,
        hidden_act=hidden_act,
        projection_dim=width,
        eos_token_id=49407,
    )
    if projection:
        return loaded(CLIPTextModelWithProjection(config), state)
    return loaded(
        CLIPTextModel(config),
        {name.removeprefix("text_model."): value for name, value in state.items() if "text_projection" not in name},
    )


def loaded(model, state):
    wanted = set(model.state_dict()) - {name for name in model.state_dict() if name.endswith("position_ids")}
    model.load_state_dict({name: value for name, value in state.items() if name in wanted}, strict=False)
    assert not wanted - set(state)
    return model


def texts(kind):
    """(the host's CLIP, our ClipTexts) with the same weights."""
    from troupe.model_patches.hosts.diffusers.encoders import ClipTexts

    from support.host import tiny_models

    clip = tiny_models.tiny_clip(kind)
    inner = clip.cond_stage_model
    if kind == "sd15":
        return clip, ClipTexts.sd15(text_twin(inner.clip_l, "quick_gelu", False))
    if kind == "sd20":
        return clip, ClipTexts.sd2(text_twin(inner.clip_h, "gelu", False))
    return clip, ClipTexts.sdxl(text_twin(inner.clip_l, "quick_gelu", False), text_twin(inner.clip_g, "gelu", True))


def close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()
