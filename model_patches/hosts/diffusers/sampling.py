"""One sampling run on a diffusers UNet with references; everything else (VAE, text encoders, base models) is diffusers'
own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler, EulerDiscreteSchedulerOutput

from ...adapter import Adapter
from ...bases import PIXELS_PER_CELL
from ...binding.plan import waits_for_prompt
from ...binding.settings import GatedSettings, ImageAttentionSettings
from ...binding.two_strengths import ROLES, Guidance, check_guidance
from ...errors import MismatchError
from ...relevance.maps import AppliedMaps
from ...subjects import References
from .encoders import Prompt
from .gated import GatedAdapter, apply_gated
from .guidance import branches, factors, of_step
from .image_attention import ImageAttention
from .weights import base_weights

StepCallback = Callable[[int, int, torch.Tensor], None]
Settings = ImageAttentionSettings | GatedSettings


@dataclass(frozen=True)
class SamplingSettings:
    """The settings of a run. width, height in pixels; steps; cfg, 1 leaves the negative prompt out; seed of the noise,
    as ComfyUI draws it; batch: pictures.
    """

    width: int = 1024
    height: int = 1024
    steps: int = 30
    cfg: float = 5.0
    seed: int = 0
    batch: int = 1


def sample(
    unet: UNet2DConditionModel,
    scheduler: EulerDiscreteScheduler,
    positive: Prompt,
    negative: Prompt,
    settings: SamplingSettings,
    applied: Sequence[tuple[References, Settings]] = (),
    callback: StepCallback | None = None,
    *,
    middle: Prompt | None = None,
    guidance: Guidance | None = None,
    weights: Sequence[tuple[Adapter, float]] = (),
    record: list[AppliedMaps] | None = None,
    attention: type[ImageAttention] = ImageAttention,
    warn: Callable[[str], None] | None = None,
) -> torch.Tensor:
    """Sample a latent from noise.

    Arguments:
        applied: references and widgets of each Apply node, in the order of the MODEL wire; positive and middle rows get
            the subjects, negative rows the adapter's empty tokens.
        callback: gets (steps done, steps, latent) after each step.
        middle: of `guidance`'s third branch, None: the negative's text; guidance: None is classifier-free guidance.
        record: gets the relevance maps of each image attention that acted, when the run is over; its references need
            names.
        attention: what puts image attention on the UNet; measurements give another class.
        warn: gets a sentence if two subjects lie in the same place after a third of the steps.
        weights: adapters whose weights for the UNet are on it while the run lasts, with their strengths.
    Returns:
        [batch, 4, height / 8, width / 8] float32, before the VAE's scaling factor is divided out.
    Raises:
        MismatchError: an adapter for another base model, missing names, a number that is not finite, or prompts without
            the pooled output that the UNet reads.
    """
    if guidance is not None:
        check_guidance(settings.cfg, guidance)
    device, dtype, prompts = unet.device, unet.dtype, branches(guidance, positive, negative, middle)
    scheduler.set_timesteps(settings.steps, device=device)
    # ComfyUI's scale; diffusers' own depends on the spacing
    latent = noise(unet, settings).to(device) * (scheduler.sigmas[0].item() ** 2 + 1) ** 0.5
    merged = {adapter.id: strength for adapter, strength in weights}
    conditions: dict[tuple[int, ...], tuple[torch.Tensor, Any]] = {}  # by the prompts in it
    with ExitStack() as stack, torch.no_grad():
        for adapter, strength in weights:
            stack.enter_context(base_weights(unet, adapter.weights, strength))
        bound = [
            stack.enter_context(_apply(unet, references, widgets, merged, record is not None, attention))
            for references, widgets in applied
        ]
        looking = [apply for apply in bound if isinstance(apply, ImageAttention)] if warn is not None else []
        for step, t in enumerate(scheduler.timesteps):
            percent = percent_of(t.item(), scheduler)
            shares = factors(guidance, settings.cfg, percent)
            now = [of_step(prompts[name], step, percent) for name in shares]
            key = tuple(map(id, now))
            if key not in conditions:
                conditions[key] = _condition(unet, now, settings)
            context, extra = conditions[key]
            # for their subjects
            waiting = [prompt is not prompts[name] for name, prompt in zip(shares, now, strict=True)]
            for apply in bound:
                waits = waits_for_prompt(apply.references)
                apply.roles = tuple(
                    None if waits and wait else ROLES[name] for name, wait in zip(shares, waiting, strict=True)
                )
                apply.at(percent)
            for apply in looking:
                apply.look(step, settings.steps, settings.batch, (latent.shape[-2], latent.shape[-1]))
            rows = scheduler.scale_model_input(latent, t).to(dtype).repeat(len(now), 1, 1, 1)
            predictions = (
                unet(rows, t, encoder_hidden_states=context, added_cond_kwargs=extra).sample.float().chunk(len(now))
            )
            if warn is not None:
                for sentence in (sentence for apply in looking for sentence in apply.overlaps_seen()):
                    warn(sentence)
            each = zip(shares.values(), predictions, strict=True)
            guided = cast(torch.Tensor, sum(share * prediction for share, prediction in each))  # of one at least
            latent = cast(EulerDiscreteSchedulerOutput, scheduler.step(guided, t, latent)).prev_sample
            if callback is not None:
                callback(step + 1, settings.steps, latent)
        if record is not None:
            record += [
                maps for apply in bound if isinstance(apply, ImageAttention) and (maps := apply.maps()) is not None
            ]
    return latent


def _apply(
    unet: UNet2DConditionModel,
    references: References,
    settings: Settings,
    merged: Mapping[str, float],
    recording: bool,
    attention: type[ImageAttention],
) -> ImageAttention | GatedAdapter:
    if isinstance(settings, GatedSettings):
        return apply_gated(unet, references, settings)
    return attention(unet, references, settings, merged=merged.get(references.adapter.id, 0.0), recording=recording)


def _condition(
    unet: UNet2DConditionModel, prompts: Sequence[Prompt], settings: SamplingSettings
) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
    """What the UNet reads beside the latent."""
    return join_prompts([p.embeds for p in prompts], settings.batch).to(unet.device, unet.dtype), size_condition(
        unet, prompts, settings
    )


def noise(unet: UNet2DConditionModel, settings: SamplingSettings) -> torch.Tensor:
    """Return standard normal noise [batch, 4, h, w] on the CPU, the same numbers as ComfyUI's for a seed."""
    shape = (
        settings.batch,
        unet.config["in_channels"],
        settings.height // PIXELS_PER_CELL,
        settings.width // PIXELS_PER_CELL,
    )
    return torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed))


def percent_of(timestep: float, scheduler: Any) -> float:
    """Return ComfyUI's percent of a model call at a timestep: 0 at the noisiest one, 1 at the last."""
    return 1.0 - timestep / (scheduler.config.num_train_timesteps - 1)


def join_prompts(embeds: Sequence[torch.Tensor], batch: int) -> torch.Tensor:
    """Join prompts [1, T_i, D] to [len * batch, T, D]; shorter ones are repeated to a common length, which leaves
    attention to them as it is.
    """
    length = math.lcm(*(e.shape[1] for e in embeds))
    return torch.cat([e.repeat(batch, length // e.shape[1], 1) for e in embeds])


def size_condition(
    unet: UNet2DConditionModel, prompts: Sequence[Prompt], settings: SamplingSettings
) -> dict[str, torch.Tensor] | None:
    """Return SDXL's pooled text and sizes (original, crop 0 0, target), one row a picture and prompt; None for a UNet
    without them. Raises MismatchError where it has them and the prompts have no pooled text.
    """
    if unet.config["addition_embed_type"] != "text_time":
        return None
    each = [prompt.pooled for prompt in prompts if prompt.pooled is not None]
    if len(each) < len(prompts):
        raise MismatchError(
            "prompts with the pooled output of SDXL's second text encoder",
            "prompts without it",
            "Encode them with ClipTexts.sdxl.",
        )
    pooled = torch.cat([pooled.expand(settings.batch, -1) for pooled in each]).to(unet.device, unet.dtype)
    size = (settings.height, settings.width)
    times = torch.tensor([[*size, 0, 0, *size]], device=unet.device, dtype=unet.dtype)
    return {"text_embeds": pooled, "time_ids": times.expand(len(pooled), -1)}
