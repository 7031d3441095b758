"""Other packs and core nodes beside Troupe: each kind of Troupe node, and the four pictures (neither, each alone, both)
that show whether both act.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache

import torch
from troupe.model_patches.adapter import GatedSpec
from troupe.model_patches.binding.settings import GatedSettings
from troupe.model_patches.hosts.comfyui.apply import apply_gated, apply_image_attention
from troupe.model_patches.hosts.comfyui.sampling.prompt_switch import PROMPT_KEY, FusedPrompt, PromptSwitch

from . import tiny_models
from .small_casts import CONTEXT, ksample, noise_of, random, settings, stage
from .small_gated_casts import GatedStage, gated_adapter, published

SIZE, STEPS = (8, 12), 3


def core(module: str, name: str, **inputs):
    """Call a core node as the host's executor does, of either API; its one output, or a tuple of them. module: "nodes"
    or a file of comfy_extras.
    """
    cls = getattr(importlib.import_module(module if module == "nodes" else f"comfy_extras.{module}"), name)
    if hasattr(cls, "define_schema"):
        cls.GET_SCHEMA()
        made = cls.EXECUTE_NORMALIZED(**inputs).result
    else:
        made = getattr(cls(), cls.FUNCTION)(**inputs)
    return made[0] if len(made) == 1 else made


def fused(model, positive, negative):
    """A prompt whose subjects enter it at step 1, as Encode Prompt with Subjects and any Troupe node on the MODEL leave
    it.
    """
    model = model.clone()
    PromptSwitch().attach(model)
    vectors = random(*positive[0][0].shape, seed=8, gain=6.0)
    return (
        model,
        [
            [vectors, {**options, PROMPT_KEY: FusedPrompt(vectors, text, None, start_step=1)}]
            for text, options in positive
        ],
        negative,
    )


class Troupe:
    """One model of two widths, and every kind of Troupe node to put on it: a function (model, positive, negative) ->
    the same three.
    """

    def __init__(self, patcher=None):
        self.patcher = patcher or tiny_models.micro_model("SD15", model_channels=64, context_dim=CONTEXT, mult=(1, 2))
        self.stage = stage(patcher=self.patcher)
        self.gated = GatedStage(self.patcher, gated_adapter(self.patcher), self.stage.positive, self.stage.negative)
        self.plain = self.patcher, self.stage.positive, self.stage.negative
        self.kinds = {"attention": self._attention, "gated": self._gated, "prompt": fused}
        self._alone, self._theirs = {}, {}

    def _attention(self, model, positive, negative):
        return apply_image_attention(model, self.stage.references(2), settings(weight=0.2), positive, negative)[:3]

    def _gated(self, model, positive, negative):
        return apply_gated(model, self.gated.references(2), GatedSettings(), positive, negative)[:3]

    def alone(self, kind):
        """Pictures without and with this kind of node, and nobody else; sampled once."""
        if kind not in self._alone:
            self._alone[kind] = sampled(*self.plain), sampled(*self.kinds[kind](*self.plain))
        return self._alone[kind]

    def theirs(self, partner):
        """The picture with a partner and none of these nodes; sampled once."""
        if partner not in self._theirs:
            self._theirs[partner] = sampled(*partner(*self.plain))
        return self._theirs[partner]


@cache
def troupe(channels: int = 4) -> Troupe:
    """Made once; nothing is ever changed on it."""
    return Troupe(
        None
        if channels == 4
        else tiny_models.micro_model("SD15", model_channels=64, context_dim=CONTEXT, mult=(1, 2), in_channels=channels)
    )


def change(found: torch.Tensor, without: torch.Tensor) -> float:
    """How far a picture is from another, in units of the other: root mean squares."""
    return float((found - without).pow(2).mean().sqrt() / without.pow(2).mean().sqrt())


@dataclass(frozen=True)
class Four:
    """Pictures with neither, the partner alone, Troupe alone, both (the partner's node before Troupe's), both (after
    it).
    """

    neither: torch.Tensor
    partner: torch.Tensor
    ours: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor

    @property
    def effects(self) -> tuple[float, float]:
        """What the partner alone and Troupe alone change."""
        return change(self.partner, self.neither), change(self.ours, self.neither)

    @property
    def partner_acts(self) -> float:
        """What the partner changes in a picture with Troupe, in units of what it changes alone; the smaller of both
        orders.
        """
        return min(change(both, self.ours) for both in (self.before, self.after)) / self.effects[0]

    @property
    def we_act(self) -> float:
        """What Troupe changes in a picture with the partner, in units of what it changes alone."""
        return min(change(both, self.partner) for both in (self.before, self.after)) / self.effects[1]

    @property
    def order(self) -> float:
        """What the order of the nodes changes, in units of the smaller effect."""
        return change(self.after, self.before) / min(self.effects)


def sampled(model, positive, negative, steps=STEPS, size=SIZE, batch=1) -> torch.Tensor:
    """KSampler's latent; whoever draws random numbers in the model draws the same ones."""
    torch.manual_seed(0)
    return ksample(model, positive, negative, size=size, steps=steps, batch=batch)


def four(place: Troupe, kind: str, partner, sample=sampled, without=sampled) -> Four:
    """The four pictures of a kind of Troupe node and a partner, a function (model, positive, negative) -> the same
    three; sample and without: how to sample with the partner and without it."""
    plain, ours = place.plain, place.kinds[kind]
    alone = place.alone(kind) if without is sampled else (without(*plain), without(*ours(*plain)))
    theirs = place.theirs(partner) if sample is sampled else sample(*partner(*plain))
    return Four(alone[0], theirs, alone[1], sample(*ours(*partner(*plain))), sample(*partner(*ours(*plain))))


def guided(guider) -> torch.Tensor:
    """SamplerCustomAdvanced's latent for a guider, from the noise and the sigmas of `sampled`."""
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", STEPS)
    return guider.sample(
        noise_of(SIZE), torch.zeros(1, 4, *SIZE), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True
    )


def text_boxes(patcher):
    """The host's own GLIGEN for a model, with random weights; and a CLIP for its node."""
    import comfy.model_patcher
    from comfy import gligen

    adapter = gated_adapter(patcher, "text", seed=900, hidden=512, features=CONTEXT)
    layers, state = adapter.gated_patcher.model, {}
    for name, tensor in published(layers.fusers.state_dict()).items():
        i, rest = name.split(".", 1)
        state[f"{list(adapter.spec.part(GatedSpec).block_widths)[int(i)]}.fuser.{rest}"] = tensor
    state |= {f"position_net.{name}": tensor for name, tensor in published(layers.net.state_dict()).items()}

    class Clip:
        def tokenize(self, text):
            return text

        def encode_from_tokens(self, text, return_pooled=None):
            return None, random(1, CONTEXT, seed=3)

    return comfy.model_patcher.ModelPatcher(
        gligen.load_gligen(state), load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    ), Clip()


def control_net():
    """A small ControlNet of the host with random weights, for `troupe()`'s model."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    net = comfy.cldm.cldm.ControlNet(
        image_size=32,
        in_channels=4,
        model_channels=64,
        hint_channels=3,
        num_res_blocks=[1, 1],
        channel_mult=(1, 2),
        num_heads=4,
        use_spatial_transformer=True,
        transformer_depth=[1, 1],
        transformer_depth_middle=1,
        context_dim=CONTEXT,
        legacy=False,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    return comfy.controlnet.ControlNet(tiny_models._init(net, seed=5), load_device=torch.device("cpu"))


def lora_file(patcher, path) -> None:
    """Random LoRA pairs for every attention projection of the model, in the usual file format."""
    import safetensors.torch

    state = {}
    for i, (name, weight) in enumerate(patcher.model.diffusion_model.state_dict().items()):
        if ".attn" in name and name.endswith(".weight"):
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            up, down = (
                random(weight.shape[0], 4, seed=i, gain=0.5),
                random(4, weight.shape[1], seed=1000 + i, gain=weight.shape[1] ** -0.5),
            )
            state |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(4.0)}
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state, path)
