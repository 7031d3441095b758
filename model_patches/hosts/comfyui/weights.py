"""Weights of the base model that an adapter brings, put on the host's MODEL and CLIP. No other module of the pack patches weights."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ...errors import MismatchError
from .adapters import HostAdapter

log = logging.getLogger("troupe")
MARK = "troupe_weights"
MASKED_CHANNELS = 5  # a UNet whose extra input is the box mask of Subject-Diffusion
INPUT = "input_blocks.0.0.weight"


def apply_weights(model: Any, adapter: HostAdapter, strength_model: float = 1.0, strength_clip: float = 1.0, clip: Any = None,
                  warn: Callable[[str], None] = lambda sentence: None) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP (None stays None) with the weights that the adapter brings; what it brings none for, or at strength 0, comes back as it was.

    Whole tensors replace the base's own, below everything that other nodes patch there before or after.
    Raises:
        MismatchError: the tensors are not of this base, the strength is neither 0 nor 1, or the UNet has the five input channels of a subject UNet.
    """
    check_input_channels(model)
    unet, text = adapter.weights.unet, adapter.weights.text
    if not unet and not text:
        warn(f"{adapter.spec.file} brings no weights of a base model: Apply Adapter Weights leaves everything as it is. The other nodes need nothing of it; you can take it out.")
        return model, clip
    if text and clip is None and strength_clip:
        warn(f"{adapter.spec.file} brings a text encoder too: wire the checkpoint's CLIP into 'clip', and the prompts from its 'clip' output.")
    counts = {}
    if unet and _on(strength_model, "strength_model"):
        model, counts["UNet"] = model.clone(), len(unet)
        _replace(model, unet_keys(model, unet, adapter), unet, adapter.id)
    if text and clip is not None and _on(strength_clip, "strength_clip"):
        clip, counts["text encoder"] = clip.clone(), len(text)
        _replace(clip.patcher, text_keys(clip.patcher, text, adapter), text, adapter.id)
    if counts:
        log.info("Troupe: %s of %s set on the model.", " and ".join(f"{count} tensors of the {part}" for part, count in counts.items()), adapter.spec.file)
    return model, clip


def weights_of(patcher: Any) -> frozenset[str]:
    """Ids of the adapters whose weights are on a MODEL, or on a CLIP's `patcher`."""
    return patcher.get_attachment(MARK) or frozenset()


def check_input_channels(model: Any) -> None:
    """Raise MismatchError for a UNet with five input channels, which the host can load but not sample."""
    weight = model.model_state_dict().get(f"diffusion_model.{INPUT}")
    if weight is not None and weight.shape[1] == MASKED_CHANNELS:
        do = "Load the SD2-base checkpoint it was trained on with Load Checkpoint, and this file with Load Subject Adapter and Apply Adapter Weights."
        raise MismatchError("a UNet with 4 input channels", "one with 5: a subject UNet with a box mask channel, loaded as a whole model", do)


def unet_keys(model: Any, tensors: Mapping[str, torch.Tensor], adapter: HostAdapter) -> dict[str, str]:
    """Name in the file -> the MODEL's key. Raises MismatchError unless every tensor has its place and shape."""
    state = model.model_state_dict()
    keys = {name: f"diffusion_model.{name}" for name in tensors}
    _check(state, [keys], tensors, adapter, f"a MODEL of the {adapter.spec.base} family", f"this {type(model.model.diffusion_model).__name__}")
    return keys


def text_keys(patcher: Any, tensors: Mapping[str, torch.Tensor], adapter: HostAdapter) -> dict[str, str]:
    """Name in the file -> the CLIP's key, in the text encoder where all shapes fit. Raises MismatchError where there is none."""
    state = patcher.model_state_dict()
    first = next(iter(tensors))
    encoders = [key.removesuffix(first) for key in state if key.endswith(f".{first}")]
    choices = [{name: f"{encoder}{name}" for name in tensors} for encoder in encoders]
    return _check(state, choices, tensors, adapter, f"the CLIP of a {adapter.spec.base} checkpoint", f"this {type(patcher.model).__name__}")


def _check(state: Mapping[str, torch.Tensor], choices: Iterable[dict[str, str]], tensors: Mapping[str, torch.Tensor], adapter: HostAdapter,
           wanted: str, found: str) -> dict[str, str]:
    """The choice of keys at which all tensors fit. Raises MismatchError."""
    misfit = f"'{next(iter(tensors))}', which it has not"
    for keys in choices:
        misfits = [name for name, key in keys.items() if key not in state or state[key].shape != tensors[name].shape]
        if not misfits:
            return keys
        name = misfits[0]
        have = state.get(keys[name])
        misfit = f"{len(misfits)} of {len(tensors)} tensors, as '{name}' {list(tensors[name].shape)}, " + ("which it has not" if have is None else f"there {list(have.shape)}")
    do = f"Wire the checkpoint that {adapter.spec.file} was trained on ({adapter.spec.base}), as Load Checkpoint gives it."
    raise MismatchError(f"{wanted} for the weights of {adapter.spec.file}", f"{found}: it has no place for {misfit}", do)


def _on(strength: float, widget: str) -> bool:
    """Whether whole tensors are set: at strength 1; 0 leaves the base as it is. Raises MismatchError for anything between."""
    if strength not in (0.0, 1.0):
        do = f"Set '{widget}' to 1, or to 0 to leave the model as it is."
        raise MismatchError("strength 1, since full weights replace the model's own", f"'{widget}' at {strength:g}", do)
    return bool(strength)


def _replace(patcher: Any, keys: Mapping[str, str], tensors: Mapping[str, torch.Tensor], adapter_id: str) -> None:
    """Put whole tensors on a cloned ModelPatcher, where nothing that was patched before is lost to them, and mark it.

    A patch that sets the tensor hides those before it: ours comes behind the last of that kind, and before everything else.
    """
    patcher.add_patches({keys[name]: ("set", (tensor,)) for name, tensor in tensors.items()})
    for key in keys.values():
        *others, ours = patcher.patches[key]
        hidden = max((i + 1 for i, patch in enumerate(others) if _sets_all(patch)), default=0)
        patcher.patches[key] = [*others[:hidden], ours, *others[hidden:]]
    patcher.set_attachments(MARK, weights_of(patcher) | {adapter_id})


def _sets_all(patch: tuple) -> bool:
    """Whether a host patch (strength, value, strength of the model, offset, function) sets its whole tensor."""
    _, value, _, offset, _ = patch
    return offset is None and isinstance(value, tuple) and len(value) == 2 and value[0] == "set"
