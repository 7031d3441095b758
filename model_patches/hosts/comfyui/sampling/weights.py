"""Weights of the base model that an adapter brings, put on the host's MODEL and CLIP.

No other module of the pack patches weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import comfy.lora
import torch

from ....adapter import LoraPair, PromptSpec
from ....binding.weights_fit import STREAM_LABELS, check_text_encoders, misfit, weights_act
from ....errors import MismatchError
from ..loading.adapters import HostAdapter
from ..messages import info
from .prompt_switch import PromptSwitch

Weight = TypeVar("Weight", torch.Tensor, LoraPair)
MARK = "troupe_weights"
MASKED_CHANNELS = 5  # a UNet whose extra input is the box mask of Subject-Diffusion
INPUT = "input_blocks.0.0.weight"


def apply_weights(
    model: Any,
    adapter: HostAdapter,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
    clip: Any = None,
    warn: Callable[[str], None] = lambda sentence: None,
    done: Callable[[str], None] = info,
) -> tuple[Any, Any]:
    """Clone MODEL and CLIP (None stays None) and add the adapter's weights; one that it has no weights for, or at
    strength 0, is returned unchanged.

    Whole tensors replace the base's own, below everything that other nodes patch there before or after. LoRAs are
    added, at any strength. For an adapter that acts in the prompt the MODEL also learns to change delayed prompts; it
    is often the only Troupe node on that wire. Raises:
        MismatchError: the weights are not of this base, the strength of whole tensors is neither 0 nor 1, or the UNet
            has the five input channels of a subject UNet.
    """
    check_input_channels(model)
    own, file, put = adapter.weights, adapter.spec.file, []
    if adapter.spec.has(PromptSpec):
        model = model.clone()
        PromptSwitch().attach(model)
    if not (own.unet or own.unet_lora or own.text or own.text_lora):
        if adapter.spec.has(PromptSpec):
            done(f"{file} has no weights for the base model. Delayed prompts with its subjects work on this MODEL.")
            return model, clip
        warn(
            f"You can remove Apply Adapter Weights: {file} has no weights for the base model, so the node "
            "changes nothing."
        )
        return model, clip
    if (own.text or own.text_lora) and clip is None and strength_clip:
        what = "a text encoder" if own.text else "LoRAs for the text encoders"
        warn(
            "Connect the checkpoint's CLIP to 'clip', and encode the prompts with this node's 'clip' "
            f"output: {file} also has {what}."
        )
    if (own.unet or own.unet_lora) and weights_act(strength_model, own.unet, "strength_model"):
        whole, pairs = in_unet(model, own.unet, adapter), in_unet(model, own.unet_lora, adapter)
        model = model.clone()
        put += _put(model, whole, pairs, strength_model, adapter.id, "UNet")
    if (own.text or own.text_lora) and clip is not None and weights_act(strength_clip, own.text, "strength_clip"):
        whole, pairs = (
            in_text_encoder(clip.patcher, own.text, adapter),
            in_streams(clip.patcher, own.text_lora, adapter),
        )
        clip = clip.clone()
        put += _put(clip.patcher, whole, pairs, strength_clip, adapter.id, "text encoder")
    if put:
        done(f"{' and '.join(put)} of {file} set on the model.")
    return model, clip


def without_lora(clip: Any, adapter: HostAdapter, stream: str) -> Any:
    """Return a clone of the CLIP without the adapter's LoRA in one text encoder ('l', 'g', 'h'); the CLIP itself where
    there is none of it.
    """
    pairs, strength = adapter.weights.text_lora.get(stream), weights_of(clip.patcher).get(adapter.id, 0.0)
    if not pairs or not strength:
        return clip
    clip = clip.clone()
    _add(clip.patcher, in_streams(clip.patcher, {stream: pairs}, adapter), -strength)
    return clip


def weights_of(patcher: Any) -> Mapping[str, float]:
    """Return the ids of the adapters whose weights are on a MODEL, or on a CLIP's `patcher`, with the strength of their
    LoRAs (whole tensors: 1).
    """
    return patcher.get_attachment(MARK) or {}


def check_input_channels(model: Any) -> None:
    """Raise MismatchError for a UNet with five input channels, which the host can load but not sample."""
    weight = model.model_state_dict().get(f"diffusion_model.{INPUT}")
    if weight is not None and weight.shape[1] == MASKED_CHANNELS:
        remedy = (
            "Load the SD2-base checkpoint it was trained on with Load Checkpoint, and this file with Load "
            "Subject Adapter and Apply Adapter Weights."
        )
        raise MismatchError(
            "a UNet with 4 input channels",
            "5: a Subject-Diffusion UNet with a channel for box masks, loaded as a whole model",
            remedy,
        )


def in_unet(model: Any, weights: Mapping[str, Weight], adapter: HostAdapter) -> dict[str, Weight]:
    """Map LDM names to the MODEL's keys. Raises MismatchError unless every weight has its place and shape."""
    keys = {name: f"diffusion_model.{name}" for name in weights}
    return _placed_patches(
        model.model_state_dict(),
        [keys],
        weights,
        adapter,
        f"a MODEL of the {adapter.spec.base} family",
        f"this {type(model.model.diffusion_model).__name__}",
    )


def in_text_encoder(patcher: Any, tensors: Mapping[str, torch.Tensor], adapter: HostAdapter) -> dict[str, torch.Tensor]:
    """Map names in the file to the CLIP's keys, in the text encoder where all shapes fit.

    Raises MismatchError if there is none.
    """
    state, first = patcher.model_state_dict(), next(iter(tensors), None)
    encoders = [key.removesuffix(first) for key in state if key.endswith(f".{first}")] if tensors else []
    choices = [{name: f"{encoder}{name}" for name in tensors} for encoder in encoders]
    return _placed_patches(
        state,
        choices,
        tensors,
        adapter,
        f"the CLIP of a {adapter.spec.base} checkpoint",
        f"this {type(patcher.model).__name__}",
    )


def in_streams(patcher: Any, loras: Mapping[str, Mapping[str, LoraPair]], adapter: HostAdapter) -> dict[str, LoraPair]:
    """Map names in each text encoder ('l', 'g', 'h') to the CLIP's keys.

    Raises MismatchError if the CLIP has not all of them.
    """
    state = patcher.model_state_dict()
    placed: dict[str, LoraPair] = {}
    there = [stream for stream in STREAM_LABELS if any(key.startswith(f"clip_{stream}.") for key in state)]
    remedy = (
        f"Wire the CLIP of the {adapter.spec.base} checkpoint that {adapter.spec.file} was trained on, as "
        "Load Checkpoint gives it."
    )
    check_text_encoders(loras, there, adapter.spec.file, remedy)
    for stream, pairs in loras.items():
        choice = {name: f"clip_{stream}.transformer.{name}" for name in pairs}
        placed |= _placed_patches(
            state,
            [choice],
            pairs,
            adapter,
            f"the CLIP of a {adapter.spec.base} checkpoint",
            f"this {type(patcher.model).__name__}",
        )
    return placed


def _placed_patches(
    state: Mapping[str, torch.Tensor],
    choices: Iterable[dict[str, str]],
    weights: Mapping[str, Weight],
    adapter: HostAdapter,
    wanted: str,
    found: str,
) -> dict[str, Weight]:
    """The weights at the choice of keys where all of them fit. Raises MismatchError if there is none."""
    if not weights:
        return {}
    differs = f"without a weight named '{next(iter(weights))}'"
    for keys in choices:
        differs = misfit(weights, {name: state[key].shape for name, key in keys.items() if key in state})
        if not differs:
            return {key: weights[name] for name, key in keys.items()}
    remedy = (
        f"Wire the checkpoint that {adapter.spec.file} was trained on ({adapter.spec.base}), as Load Checkpoint "
        "gives it."
    )
    raise MismatchError(f"{wanted} for the weights of {adapter.spec.file}", f"{found} {differs}", remedy)


def _put(
    patcher: Any,
    whole: Mapping[str, torch.Tensor],
    pairs: Mapping[str, LoraPair],
    strength: float,
    adapter_id: str,
    part: str,
) -> list[str]:
    """Put weights, by the host's keys, on a cloned ModelPatcher, and mark it. Returns what there is to tell.

    A LoRA that is put there again adds up, as the host's do, and so does its mark.
    """
    _replace(patcher, whole)
    _add(patcher, pairs, strength)
    before = weights_of(patcher)
    patcher.set_attachments(MARK, {**before, adapter_id: strength + before.get(adapter_id, 0.0) if pairs else 1.0})
    return [f"{len(found)} {what} of the {part}" for found, what in ((whole, "tensors"), (pairs, "LoRAs")) if found]


def _add(patcher: Any, pairs: Mapping[str, LoraPair], strength: float) -> None:
    """Low-rank changes through the host's own LoRAs, which its other LoRA nodes know how to go along with."""
    tensors = {
        f"{key}.{name}": tensor
        for key, pair in pairs.items()
        for name, tensor in (("lora_up.weight", pair.up), ("lora_down.weight", pair.down))
    }
    tensors |= {f"{key}.alpha": torch.tensor(pair.alpha) for key, pair in pairs.items() if pair.alpha is not None}
    patcher.add_patches(comfy.lora.load_lora(tensors, {key: key for key in pairs}), strength)


def _replace(patcher: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put whole tensors on a cloned ModelPatcher, where nothing that was patched before is lost to them.

    A patch that sets the tensor hides those before it: ours comes behind the last of that kind, and before everything
    else.
    """
    patcher.add_patches({key: ("set", (tensor,)) for key, tensor in tensors.items()})
    for key in tensors:
        *others, ours = patcher.patches[key]
        hidden = max((i + 1 for i, patch in enumerate(others) if _sets_all(patch)), default=0)
        patcher.patches[key] = [*others[:hidden], ours, *others[hidden:]]


def _sets_all(patch: tuple) -> bool:
    """Whether a host patch (strength, value, strength of the model, offset, function) sets its whole tensor."""
    _, value, _, offset, _ = patch
    return offset is None and isinstance(value, tuple) and len(value) == 2 and value[0] == "set"
