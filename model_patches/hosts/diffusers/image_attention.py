"""Relevance-weighted image attention on a diffusers UNet, as attention processors that are there only while a run
lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.nn.functional import scaled_dot_product_attention

from ...adapter import Adapter
from ...attention.decoupled import LayerTokens
from ...attention.limits import WHOLE
from ...binding.checks import check_names, check_widths, may_act
from ...binding.layer_tokens import COND, UNCOND, layer_delta
from ...binding.plan import ImageStrengths, Inside, ends_of, image_strengths, needs_names, takes_part
from ...binding.run_cache import RunCache
from ...binding.run_limits import RunLimits
from ...binding.run_tokens import RunTokens, TextLayers, through_base
from ...binding.settings import ImageAttentionSettings
from ...binding.stack import DeltaStack, at_first_call
from ...encoders.decoupled import ImageLayers
from ...errors import MismatchError
from ...relevance.maps import AppliedMaps
from ...relevance.overlap_check import OverlapLook, look_in_step
from ...relevance.sums import LimitedSums
from ...subjects import References
from .cross_layers import CrossLayer, TextAttention, cross_layers

# what the equal parts of a batch get, in order: UNCOND, COND, or None (no references)
BatchRoles = tuple[str | None, ...]
PLAIN_PROCESSORS = (AttnProcessor, AttnProcessor2_0)
PERCENT_ROUNDING = 1e-6  # a step that lies on the end of a range belongs to it, whatever float32 made of its timestep


class ImageAttention:
    """The references of one Apply node on a UNet for one run; a context manager, and the run's state.

    Entering sets processors on the attn2 layers, leaving restores what was there; several may be nested, their deltas
    never feed each other. Weight 0, or a cast that is empty or all at weight 0,
    leaves the UNet unchanged. Before each model call say where the run
    is with `at`, and with `roles` what the parts of the batch are, where that changes.

    unet: the model; settings: the widgets; merged: strength at which
    `base_weights` has the adapter's own weights on the UNet; recording: whether `maps` can say afterwards which
    positions each subject affected.

    Raises:
        MismatchError: the adapter is for another base model, or the merge needs names and the references carry none,
            or a number is not finite.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        references: References,
        settings: ImageAttentionSettings,
        roles: Sequence[str | None] = (UNCOND, COND),
        merged: float = 0.0,
        recording: bool = False,
    ):
        self.references, self.settings, self.roles, self.merged = references, settings, tuple(roles), merged
        self.recording, self._seen = recording, LimitedSums(references, settings.mixing)
        self._look: OverlapLook | None = None
        self._unet, self._layers = unet, cross_layers(unet)
        self._run = RunCache()
        self._grids: dict[Transformer2DModel, tuple[int, int]] = {}
        self._before: list[tuple[TextAttention, Any]] = []
        self._hooks: list[Any] = []
        self._now: ImageStrengths | None = None
        # whose file has them, as check_widths finds
        self._image_layers = cast("ImageLayers", cast(Adapter, references.adapter).layers)
        self._idle = not may_act(references, settings, "Bind these references with GatedAdapter.")
        if self._idle:
            return
        check_widths(
            references.adapter.spec,
            [layer.attention.to_q.out_features for layer in self._layers],
            self._layers[0].attention.to_k.in_features,
        )
        check_names(references, settings)
        self.at(0.0)

    def __enter__(self) -> ImageAttention:
        if self._idle:
            return self
        self._image_layers.to(
            self._unet.device, torch.float32 if through_base(self._image_layers) else self._unet.dtype
        )
        for index, layer in enumerate(self._layers):
            self._before.append((layer.attention, layer.attention.processor))
            layer.attention.set_processor(
                CrossAttentionProcessor.on(layer.attention.processor, LayerDelta(self, index, layer))
            )
        for transformer in dict.fromkeys(layer.transformer for layer in self._layers):
            self._hooks.append(transformer.register_forward_pre_hook(self._see_grid, with_kwargs=True))
        return self

    def __exit__(self, *error: Any) -> None:
        for attention, processor in self._before:
            attention.set_processor(processor)
        for hook in self._hooks:
            hook.remove()
        self._before, self._hooks = [], []
        self._run.clear()

    def at(self, percent: float) -> None:
        """Set the position in the run: ComfyUI's percent of the next model call (0 = the first step's noise, 1 = none;
        see `sampling.percent_of`).
        """
        self._now = image_strengths(self.settings, self.references.subjects, spans_at(percent))

    @property
    def active(self) -> bool:
        """Whether any subject acts in this step."""
        return self._now is not None and any(self.acting)

    @property
    def acting(self) -> BatchRoles:
        """The roles, with None for parts that get nothing: those of role UNCOND where the adapter has no empty
        tokens.
        """
        return tuple(role if takes_part(self.references, role) else None for role in self.roles)

    @property
    def strengths(self) -> torch.Tensor:
        """[M] float32, weight of each subject in this step, in which somebody acts."""
        return self._tokens.strengths(() if self._now is None else self._now.weights)

    def tokens(self, index: int) -> LayerTokens:
        """Return the keys, values and name keys of one layer for the parts of the batch that have a role, [G, ...]."""
        roles = tuple(role for role in self.acting if role)
        return self._tokens.groups(roles, needs_names(self.references, self.settings, self.recording))[index]

    def gain_weights(self, index: int) -> torch.Tensor | None:
        """Return the weights of one layer's text gain, [C], or None if the adapter has none."""
        return self._tokens.gains()[index]

    def limits(self, transformer: Transformer2DModel, positions: int, pictures: int) -> torch.Tensor | None:
        """Return the m of every subject, [1, 1 or B, M, N], or None if nothing limits or the layer's positions are
        not its transformer's grid.
        """
        grid, now = self._grids.get(transformer), self._now
        if now is None or grid is None or grid[0] * grid[1] != positions:
            return None
        kept = RunLimits(self._run, self.references.subjects, self.settings, self._tokens.device)
        return kept.on_grid(kept.pictured(range(pictures), True), grid, now.boxed)

    def observer(
        self, transformer: Transformer2DModel, roles: Sequence[str]
    ) -> Callable[[torch.Tensor, torch.Tensor], None] | None:
        """Return the callback that takes the shares and the relevance of a layer of this transformer, [G, B, M, N] for
        groups of these roles; None unless somebody listens.
        """
        grid = self._grids.get(transformer)
        check = self._look.check if self._look is not None and grid == self._look.check.grid else None
        if grid is None or COND not in roles or not (self.recording or check is not None):
            return None

        weights = () if self._now is None else self._now.weights
        shown = [WHOLE if role == COND else None for role in roles]

        def observe(limited_shares: torch.Tensor, relevance: torch.Tensor) -> None:
            if check is not None:
                check.add(relevance[roles.index(COND)])
            if self.recording:
                self._seen.add(limited_shares, self._tokens.acting(weights), grid, shown)

        return observe

    def look(self, step: int, steps: int, pictures: int, latent: tuple[int, int]) -> None:
        """Add up the relevance of the next model call, if it belongs to the checked step, see `look_in_step`."""
        weights = () if self._now is None or not self.active else self._now.weights
        subjects, mixing, device = self.references.subjects, self.settings.mixing, self._unet.device
        self._look = look_in_step(step, steps, subjects, weights, mixing, pictures, latent, device)

    def overlaps_seen(self) -> list[str]:
        """Return a warning for each picture in which `look` found two subjects in one place."""
        look, self._look = self._look, None
        return [] if look is None else look.warnings()

    def maps(self) -> AppliedMaps | None:
        """Return each subject's share of the positions, averaged over the run; None if nobody acted or nothing was
        recorded.
        """
        return self._seen.maps()

    @property
    def _tokens(self) -> RunTokens:
        """What is projected once a run. The UNet walks through all of its modules to say its device and its dtype."""

        def make() -> RunTokens:
            each = [layer.attention for layer in self._layers]
            text = TextLayers(
                [attention.heads for attention in each],
                lambda: ((attention.to_k, attention.to_v) for attention in each),
                self.merged,
            )
            there = (self._unet.device, self._unet.dtype)
            return RunTokens(self._run, self.references, self.settings, self._image_layers, text, *there)

        return self._run.once(("run tokens",), make)

    def _see_grid(self, transformer: Transformer2DModel, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]  # B, C, h, w
        self._grids[transformer] = (hidden.shape[-2], hidden.shape[-1])


def inside(percent: float, start: float, end: float) -> bool:
    """Return whether a model call at `percent` lies in a span of the run, see `plan.ends_of`, both ends included."""
    if (ends := ends_of((start, end))) is None:
        return False
    first, last = ends
    after = first is None or percent >= first - PERCENT_ROUNDING
    return after and (last is None or percent <= last + PERCENT_ROUNDING)


def check_parts(rows: int, roles: Sequence[str | None]) -> None:
    """Raise MismatchError unless a batch of so many rows has an equal part for each role."""
    if rows % len(roles):
        raise MismatchError(
            f"a batch of {len(roles)} equal parts (roles {tuple(roles)})",
            f"{rows} rows",
            "Give 'roles' as the batch is made up.",
        )


def spans_at(percent: float) -> Inside:
    """Return a key of the spans of the run that a model call at `percent` lies in."""
    return lambda spans: [inside(percent, *span) for span in spans]


@dataclass(frozen=True, eq=False)
class LayerDelta:
    """The part that one Apply node adds to one layer."""

    owner: ImageAttention
    index: int
    place: CrossLayer

    @property
    def active(self) -> bool:
        """Whether it adds anything in this step."""
        return self.owner.active

    def __call__(self, query: torch.Tensor, text: Callable[[], torch.Tensor]) -> torch.Tensor:
        """query [B, N, C] -> what is added to plain text attention, [B, N, C], 0 in rows without a role; text() gives
        that attention.
        """
        owner, roles = self.owner, self.owner.acting
        check_parts(query.shape[0], owner.roles)
        q, taking = query.unflatten(0, (len(roles), -1)), [g for g, role in enumerate(roles) if role]
        gain = owner.gain_weights(self.index)
        plain = None if gain is None else text().unflatten(0, (len(roles), -1))
        if len(taking) < len(roles):
            q = torch.stack([q[g] for g in taking])
            plain = None if plain is None else torch.stack([plain[g] for g in taking])
        limits = owner.limits(self.place.transformer, query.shape[1], q.shape[1])
        observe = owner.observer(self.place.transformer, [role for role in roles if role])
        delta = layer_delta(
            q,
            owner.tokens(self.index),
            owner.strengths,
            self.place.attention.heads,
            owner.settings.mixing,
            limits,
            gain,
            plain,
            observe,
        )
        if len(taking) < len(roles):
            rest = torch.zeros_like(delta[0])
            delta = torch.stack([delta[taking.index(g)] if g in taking else rest for g in range(len(roles))])
        return delta.flatten(0, 1).flatten(-2)


class CrossAttentionProcessor(DeltaStack[LayerDelta]):
    """Plain text attention plus deltas, or, where a foreign processor was there before, its result plus the deltas."""

    def __call__(
        self,
        attention: TextAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """hidden_states [B, N, C], encoder_hidden_states [B, text tokens, D] -> [B, N, C], after `to_out`."""
        deltas = [delta for delta in self.deltas if delta.active]
        if not deltas:
            return self.previous(attention, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        query = attention.to_q(hidden_states)
        text = at_first_call(lambda: text_attention(attention, query, encoder_hidden_states, attention_mask))
        added = sum(delta(query, text) for delta in deltas)
        to_out, dropout = attention.to_out
        if isinstance(self.previous, PLAIN_PROCESSORS):
            return dropout(to_out(text() + added))
        before = self.previous(attention, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        return before + dropout(to_out(added) - to_out.bias)


def text_attention(
    attention: TextAttention, query: torch.Tensor, states: torch.Tensor | tuple, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return Z_text, given query [B, N, C], text states [B, text tokens, D] (a tuple that begins with them, where
    diffusers' own IP-Adapter is loaded) -> [B, N, C].
    """
    states = states[0] if isinstance(states, tuple) else states
    q, k, v = (
        x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for x in (query, attention.to_k(states), attention.to_v(states))
    )
    if mask is not None:  # B, 1, text tokens (added to the logits)
        mask = attention.prepare_attention_mask(mask, states.shape[1], len(states)).unflatten(
            0, (len(states), attention.heads)
        )
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
