"""The per-layer weights of an IP-Adapter or MIP-Adapter: keys and values of image tokens, and MIP's text gain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import nn

from ..attention.lora import Projection


class ImageLayer(Protocol):
    """The interface of an image attention layer. needs_base: whether keys and values are made with the UNet's own
    projections, which it must then be given.
    """

    needs_base: bool

    def keys(self, tokens: torch.Tensor, to_k: Projection | None, merged: float) -> torch.Tensor:
        """Map [..., S, D] image tokens to [..., S, C]; to_k: the UNet's own, merged: strength of the LoRA that is in
        it.
        """
        ...

    def values(self, tokens: torch.Tensor, to_v: Projection | None, merged: float) -> torch.Tensor:
        """Map [..., S, D] image tokens to [..., S, C], as `keys`."""
        ...

    def gain_weights(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the weights of the text gain, [C], or None if there is none."""
        ...


class DecoupledLayer(nn.Module):
    """One cross-attention layer's `to_k_ip`, `to_v_ip` (no bias) and, in MIP-Adapter files, `text_to_weight` (C -> 1,
    no bias).

    Arguments:
        context_dim: D, size of the image tokens.
        width: C, channels of the layer.
        text_gain: whether the file has `text_to_weight`.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    needs_base = False  # whether keys and values are made with the UNet's own projections

    def __init__(self, context_dim: int, width: int, text_gain: bool, operations: Any = nn):
        super().__init__()
        self.to_k_ip = operations.Linear(context_dim, width, bias=False)
        self.to_v_ip = operations.Linear(context_dim, width, bias=False)
        self.text_to_weight = operations.Linear(width, 1, bias=False) if text_gain else None

    def keys(self, tokens: torch.Tensor, to_k: Projection | None = None, merged: float = 0.0) -> torch.Tensor:
        """Map [..., S, D] image tokens to [..., S, C].

        What layers with `needs_base` are given, the UNet's `to_k` and the LoRA in it, is not used.
        """
        return self.to_k_ip(tokens)

    def values(self, tokens: torch.Tensor, to_v: Projection | None = None, merged: float = 0.0) -> torch.Tensor:
        """Map [..., S, D] image tokens to [..., S, C], as `keys`."""
        return self.to_v_ip(tokens)

    def gain_weights(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the weights of the text gain, [C], or None: its logits are plain text attention times these.

        None if the file has no such weights (f = 1).
        """
        if self.text_to_weight is None:
            return None
        return self.text_to_weight(torch.eye(self.text_to_weight.in_features, device=device, dtype=dtype)).squeeze(-1)


class ImageLayers(nn.Module):
    """The image attention layers of an adapter, in checkpoint order: down, up, then mid.

    Arguments:
        context_dim: D, size of the image tokens.
        widths: C of each layer.
        text_gain: whether the layers have a text gain.
        layers: an `ImageLayer` each.
    """

    def __init__(self, context_dim: int, widths: Sequence[int], text_gain: bool, layers: Iterable[nn.Module]):
        super().__init__()
        self.context_dim, self.widths, self.text_gain = context_dim, tuple(widths), text_gain
        self.layers = nn.ModuleList(layers)


class DecoupledLayers(ImageLayers):
    """All layers of an IP-Adapter or MIP-Adapter; layer j has the published index 2j + 1.

    Arguments:
        context_dim: D, size of the image tokens.
        widths: C of each layer, in checkpoint order.
        text_gain: whether the layers have `text_to_weight`.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, context_dim: int, widths: Sequence[int], text_gain: bool, operations: Any = nn):
        layers = (DecoupledLayer(context_dim, width, text_gain, operations) for width in widths)
        super().__init__(context_dim, widths, text_gain, layers)


def layers_of(layers: ImageLayers) -> Sequence[ImageLayer]:
    """Return the layers, typed as what they are."""
    return cast("Sequence[ImageLayer]", layers.layers)  # torch types what a ModuleList holds as Module
