"""Weights of the base model that an adapter brings, in the places of the base's own on diffusers' UNet and
transformers' text encoders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from ...adapter import LoraPair, Weights
from ...binding.weights_fit import check_text_encoders, misfit, weights_act
from ...checkpoints.unet_layout import ldm_names
from ...errors import MismatchError
from .encoders import ClipTexts

WHOSE = "the adapter"
TRAINED_ON = "Use the base model that the adapter was trained on."
# which some versions of transformers' text models have before their tensors' names, and some not
TEXT_MODEL = "text_model."


@contextmanager
def base_weights(unet: UNet2DConditionModel, weights: Weights, strength: float = 1.0) -> Iterator[None]:
    """Apply the adapter's weights (LDM names) to the UNet while the context is open, and restore the UNet's own
    afterwards.

    strength: of the low-rank changes; whole tensors are set at 1 and left out at 0.
    Raises:
        MismatchError: the UNet has no tensor of such a name or shape, or whole tensors at another strength.
    """
    own = dict(unet.named_parameters())
    with exchanged(
        {ldm: own[name] for name, ldm in ldm_names(own).items()}, weights.unet, weights.unet_lora, strength, "a UNet"
    ):
        yield


@contextmanager
def text_encoder_weights(texts: ClipTexts, weights: Weights, strength: float = 1.0) -> Iterator[None]:
    """Apply the adapter's weights to the text encoders while the context is open; strength as in `base_weights`.

    Raises:
        MismatchError: see `base_weights`; also text encoders of another base model.
    """
    known = {tower.stream: tower.model for tower in texts.towers}
    if strength:
        check_text_encoders(weights.text_lora, known, WHOSE, TRAINED_ON)
        if weights.text and len(known) > 1:
            found = f"{len(known)} of them"
            raise MismatchError(f"a base model with one text encoder for the weights of {WHOSE}", found, TRAINED_ON)
    with ExitStack() as stack:
        for stream, model in known.items():
            places = {
                name if name.startswith(TEXT_MODEL) else f"{TEXT_MODEL}{name}": parameter
                for name, parameter in model.named_parameters()
            }
            pairs = weights.text_lora.get(stream, {})
            stack.enter_context(exchanged(places, weights.text, pairs, strength, f"a text encoder '{stream}'"))
        yield


@contextmanager
def exchanged(
    places: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    pairs: Mapping[str, LoraPair],
    strength: float,
    what: str,
) -> Iterator[None]:
    """Replace parameters by whole tensors, or add low-rank changes to them, while the context is open. what: whose
    parameters they are, for messages. Raises MismatchError: a tensor has no place, or another shape.
    """
    if not weights_act(strength, tensors):
        yield
        return
    shapes = {name: parameter.shape for name, parameter in places.items()}
    for part in (tensors, pairs):
        if differs := misfit(part, shapes):
            raise MismatchError(f"{what} for the weights of {WHOSE}", f"one {differs}", TRAINED_ON)
    before = {name: places[name].data for name in (*tensors, *pairs)}
    try:
        for name in before:
            if name in tensors:
                places[name].data = tensors[name].to(places[name])
            if name in pairs:
                places[name].data = (places[name].float() + strength * change(pairs[name]).to(places[name].device)).to(
                    places[name].dtype
                )
        yield
    finally:
        for name, tensor in before.items():
            places[name].data = tensor


def change(pair: LoraPair) -> torch.Tensor:
    """Return the change of a low-rank pair, `(alpha / r) up down`, float32."""
    return (1.0 if pair.alpha is None else pair.alpha / len(pair.down)) * (pair.up.float() @ pair.down.float())
