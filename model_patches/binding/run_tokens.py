"""What image attention projects once in a run and reads in all of its calls, the same in every host."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..attention.decoupled import LayerTokens
from ..encoders.decoupled import ImageLayers, layers_of
from ..subjects import References
from .layer_tokens import Base, Projected, call_tokens, gain_weights, project_images, project_names
from .run_cache import RunCache
from .settings import ImageAttentionSettings

KEPT_WEIGHTS = 16  # sets of weights that subjects coming and going make in a run
WEIGHT_STATES = 8  # the UNet's weights may change within a run: keys and values are kept for so many states


@dataclass(frozen=True, eq=False)
class TextLayers:
    """The UNet's cross-attention layers, in the adapter's order, as a run finds them.

    heads: of each; projections: gives each one's own (to_k, to_v), with the LoRAs and hooks that are active now;
    merged: strength at which the adapter's own weights are in them; state: a key that changes whenever the UNet's
    weights change, None if they never do; exact: indices of the layers that attend in float32, since their models
    overflow in float16.
    """

    heads: Sequence[int]
    projections: Callable[[], Iterable[Base]]
    merged: float = 0.0
    state: Any = None
    exact: Collection[int] = ()


@dataclass(frozen=True, eq=False)
class RunTokens:
    """Keys, values and names of the subjects in every layer, made at their first use in a run, on one device in one
    dtype.
    """

    run: RunCache
    references: References
    settings: ImageAttentionSettings
    layers: ImageLayers
    text: TextLayers
    device: torch.device
    dtype: torch.dtype

    def images(self) -> list[Projected]:
        """Return the image keys and values of each layer."""
        there = (self.device, self.dtype)
        if not through_base(self.layers):
            return self.run.once(("images", *there), lambda: project_images(self.layers, self.references, *there))
        bases, merged = self.text.projections, self.text.merged
        return self.run.once(
            ("images", *there, self.text.state),
            lambda: project_images(self.layers, self.references, *there, bases(), merged),
            WEIGHT_STATES,
        )

    def names(self) -> list[torch.Tensor]:
        """Return the keys of the subjects' names in each layer."""
        there = (self.device, self.dtype)
        return self.run.once(
            ("names", *there, self.text.state),
            lambda: project_names((to_k for to_k, _ in self.text.projections()), self.references, *there),
            WEIGHT_STATES,
        )

    def groups(self, roles: tuple[str, ...], with_names: bool) -> list[LayerTokens]:
        """Return each layer's tokens for groups of these roles, COND or UNCOND. with_names: for relevance."""

        def make() -> list[LayerTokens]:
            names = self.names() if with_names else None
            images, heads = self.images(), self.text.heads
            found = call_tokens(self.references, self.settings, images, names, roles, heads, self.device)
            return [tokens.float() if i in self.text.exact else tokens for i, tokens in enumerate(found)]

        return self.run.once(
            ("tokens", roles, with_names, self.device, self.dtype, self.text.state), make, 2 * WEIGHT_STATES
        )

    def gains(self) -> list[torch.Tensor | None]:
        """Return the weights of each layer's text gain, [C], None where it has none."""
        there = (self.device, self.dtype)
        return self.run.once(("gains", *there), lambda: gain_weights(self.layers, *there))

    def strengths(self, weights: tuple[float, ...]) -> torch.Tensor:
        """Return the weight of each subject in a call, [M] float32."""
        made = ("strengths", weights, self.device)
        return self.run.once(made, lambda: torch.tensor(weights, device=self.device), KEPT_WEIGHTS)

    def acting(self, weights: tuple[float, ...]) -> torch.Tensor:
        """Return 1 for each subject that acts in a call with these weights, else 0, [M] float32."""
        made = ("acting", weights, self.device)
        return self.run.once(made, lambda: (self.strengths(weights) != 0).float(), KEPT_WEIGHTS)


def through_base(layers: ImageLayers) -> bool:
    """Return whether an adapter's layers read image tokens through the UNet's own projections."""
    return layers_of(layers)[0].needs_base
