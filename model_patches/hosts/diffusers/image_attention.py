"""Relevance-weighted image attention on a diffusers UNet, as attention processors that are there only while a run lasts."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch.nn.functional import scaled_dot_product_attention

from ...attention.decoupled import LayerTokens, image_delta
from ...binding.checks import check_names, check_widths, limited, limits_on_grid, with_masks_for
from ...binding.layer_tokens import COND, UNCOND, image_columns, layer_tokens, name_segments, project_images, project_names
from ...binding.settings import ImageAttentionSettings
from ...errors import MismatchError
from ...relevance.maps import AppliedMaps, Part, applied_maps
from ...subjects import References

Roles = tuple[str | None, ...]  # what the equal parts of a batch get, in order: UNCOND, COND, or None (no references)
PARTS = ("down_blocks", "up_blocks", "mid_block")  # order of published adapters
PLAIN = (AttnProcessor, AttnProcessor2_0)
PERCENT_ROUNDING = 1e-6  # a step that lies on the end of a range belongs to it, whatever float32 made of its timestep
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CrossLayer:
    """One text cross-attention layer (`attn2`) and the transformer it is in, which knows the grid."""

    attention: Attention
    transformer: Transformer2DModel


def cross_layers(unet: UNet2DConditionModel) -> tuple[CrossLayer, ...]:
    """All text cross-attention layers in checkpoint order (down, up, mid): layer j has the published index 2j + 1.

    Raises:
        MismatchError: the model has none.
    """
    transformers = (m for part in PARTS for m in getattr(unet, part).modules() if isinstance(m, Transformer2DModel))
    found = tuple(CrossLayer(block.attn2, t) for t in transformers for block in t.transformer_blocks if block.attn2 is not None)
    if not found:
        raise MismatchError("a UNet of the SD1.5, SD2 or SDXL family", f"a {type(unet).__name__} without text cross-attention", "Load the 'unet' folder of such a model.")
    return found


class ImageAttention:
    """The references of one Apply node on a UNet for one run; a context manager, and the run's state.

    Entering sets processors on the attn2 layers, leaving restores what was there; several may be nested, their deltas never feed each other.
    Before each model call say where the run is with `at`, and with `roles` what the parts of the batch are, where that changes. merged: strength at
    which `base_weights` has the adapter's own weights on the UNet; recording: whether `maps` can tell afterwards who owned which positions.
    """

    def __init__(self, unet: UNet2DConditionModel, references: References, settings: ImageAttentionSettings, roles: Sequence[str | None] = (UNCOND, COND), merged: float = 0.0,
                 recording: bool = False):
        self.references, self.settings, self.roles, self.merged = references, settings, tuple(roles), merged
        self.recording, self._seen = recording, {}
        self._unet, self._layers = unet, cross_layers(unet)
        self._cache: dict[Any, Any] = {}
        self._grids: dict[Transformer2DModel, tuple[int, int]] = {}
        self._before: list[tuple[Attention, Any]] = []
        self._hooks: list[Any] = []
        self._strengths: tuple[float, ...] = ()
        self.boxed = False
        if self._idle:
            return
        check_widths(references.adapter.spec, [layer.attention.to_q.out_features for layer in self._layers], self._layers[0].attention.to_k.in_features)
        check_names(references, settings)
        self.at(0.0)

    def __enter__(self) -> ImageAttention:
        if self._idle:
            return self
        self.references.adapter.layers.to(self._unet.device, torch.float32 if self._through_base else self._unet.dtype)
        for index, layer in enumerate(self._layers):
            self._before.append((layer.attention, layer.attention.processor))
            layer.attention.set_processor(CrossAttentionProcessor.on(layer.attention.processor, LayerDelta(self, index, layer)))
        for transformer in dict.fromkeys(layer.transformer for layer in self._layers):
            self._hooks.append(transformer.register_forward_pre_hook(self._see_grid, with_kwargs=True))
        return self

    def __exit__(self, *error: Any) -> None:
        for attention, processor in self._before:
            attention.set_processor(processor)
        for hook in self._hooks:
            hook.remove()
        self._before, self._hooks = [], []
        self._cache.clear()

    def at(self, percent: float) -> None:
        """Say where the run is: ComfyUI's percent of the next model call (0 = the first step's noise, 1 = none; see `sampling.percent_of`)."""
        s = self.settings
        ours = inside(percent, s.start_percent, s.end_percent)
        self._strengths = tuple(s.weight * x.weight if ours and inside(percent, x.start_percent, x.end_percent) else 0.0 for x in self.references.subjects)
        self.boxed = inside(percent, 0.0, s.box_end_percent)

    @property
    def active(self) -> bool:
        """Whether anybody acts in this step."""
        return any(self._strengths) and any(self.acting)

    @property
    def acting(self) -> Roles:
        """The roles, with None for parts that get nothing: those of role UNCOND where the adapter has no empty tokens."""
        return tuple(role if role == COND or self.references.uncond_tokens is not None else None for role in self.roles)

    @property
    def strengths(self) -> torch.Tensor:
        """[M] float32, weight of each subject in this step."""
        return self._once(("strengths", self._strengths), lambda: torch.tensor(self._strengths, device=self._place[0]))

    def tokens(self, index: int) -> LayerTokens:
        """Keys, values and name keys of one layer for the parts of the batch that have a role, [G, ...]; everything is projected once a run."""
        device, dtype = self._place
        bases = [(layer.attention.to_k, layer.attention.to_v) for layer in self._layers] if self._through_base else None
        images = self._once("images", lambda: project_images(self.references.adapter.layers, self.references, device, dtype, bases, self.merged))
        names = segments = None
        if self.recording or self.settings.mixing.needs_relevance(len(self.references.subjects)):
            names = self._once("names", lambda: project_names((layer.attention.to_k for layer in self._layers), self.references, device, dtype))[index]
            segments = self._once("segments", lambda: name_segments(self.references, device))
        roles = tuple(role for role in self.acting if role)
        without_absent = self.settings.mixing.merge == self.references.adapter.spec.merge == "joint"  # as such adapters mask them
        columns = self._once("columns", lambda: image_columns(self.references, without_absent, device))
        return self._once(("tokens", index, roles), lambda: layer_tokens(images[index], names, segments, roles, columns).prepared(self._layers[index].attention.heads))

    def gain_weights(self, index: int) -> torch.Tensor | None:
        """[C], what the text gain of one layer is made with, or None where the adapter has none."""
        layers = self.references.adapter.layers.layers
        return self._once("gains", lambda: [layer.gain_weights(*self._place) for layer in layers])[index]

    def limits(self, transformer: Transformer2DModel, positions: int, pictures: int) -> torch.Tensor | None:
        """m of every subject, [1, 1 or B, M, N], or None where nothing limits or the layer's positions are not its transformer's grid."""
        grid = self._grids.get(transformer)
        if grid is None or grid[0] * grid[1] != positions or not limited(self.references.subjects, self.boxed):
            return None
        subjects, _ = with_masks_for(self.references.subjects, range(pictures), True)
        numbers = tuple(range(pictures)) if any(s.region is not None and s.region.ndim == 3 for s in subjects) else ()
        return self._once(("limits", grid, self.boxed, numbers),
                          lambda: limits_on_grid(subjects, self.settings, grid, self.boxed, self._place[0], pictures=numbers)[None])

    def observer(self, transformer: Transformer2DModel, roles: Sequence[str]) -> Callable[[torch.Tensor], None] | None:
        """What a layer of this transformer is to tell who owns its positions, [G, B, M, N] for groups of these roles; None unless recording."""
        grid = self._grids.get(transformer)
        if not self.recording or grid is None or COND not in roles:
            return None

        def observe(owned: torch.Tensor) -> None:
            acting = (self.strengths != 0).float()
            total, count = self._seen.setdefault(grid, (torch.zeros(len(acting), grid[0] * grid[1], device=owned.device), torch.zeros_like(acting)))
            for group, role in enumerate(roles):
                if role == COND:
                    total.addcmul_(owned[group].mean(0), acting.unsqueeze(1))
                    count.add_(acting)

        return observe

    def maps(self) -> AppliedMaps | None:
        """Who owned which positions, averaged over what the run saw; None where nobody acted or nothing was recorded."""
        parts = [Part(total.cpu().unflatten(1, grid), count.cpu()) for grid, (total, count) in self._seen.items()]
        return applied_maps(self.references, self.settings.mixing.merge, parts)

    @property
    def _place(self) -> tuple[torch.device, torch.dtype]:
        """The UNet's device and dtype, looked up once a run: the UNet walks through all of its modules for each."""
        return self._once("place", lambda: (self._unet.device, self._unet.dtype))

    @property
    def _idle(self) -> bool:
        return self.settings.weight == 0.0 or not any(subject.weight for subject in self.references.subjects)

    @property
    def _through_base(self) -> bool:
        """Whether the layers read image tokens through the UNet's own projections."""
        return self.references.adapter.layers.layers[0].needs_base

    def _see_grid(self, transformer: Transformer2DModel, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]  # B, C, h, w
        self._grids[transformer] = tuple(hidden.shape[-2:])

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


def apply_image_attention(unet: UNet2DConditionModel, references: References, settings: ImageAttentionSettings, roles: Sequence[str | None] = (UNCOND, COND),
                          merged: float = 0.0, recording: bool = False) -> ImageAttention:
    """`with apply_image_attention(...) as attention:` binds the references to the UNet; weight 0 and an empty cast leave it untouched.

    Raises:
        MismatchError: the adapter is for another base model, or the merge needs names and the references carry none.
    """
    return ImageAttention(unet, references, settings, roles, merged, recording)


def inside(percent: float, start: float, end: float) -> bool:
    """Whether a model call at `percent` lies in [start, end] as the ComfyUI host reads it: 0 and 1 are open ends, start >= end is empty."""
    if start >= end:
        return False
    return (start <= 0.0 or percent >= start - PERCENT_ROUNDING) and (end >= 1.0 or percent <= end + PERCENT_ROUNDING)


@dataclass(frozen=True, eq=False)
class LayerDelta:
    """What one Apply node adds to one layer."""

    owner: ImageAttention
    index: int
    place: CrossLayer

    @property
    def active(self) -> bool:
        """Whether it adds anything in this step."""
        return self.owner.active

    def __call__(self, query: torch.Tensor, text: Callable[[], torch.Tensor]) -> torch.Tensor:
        """query [B, N, C] -> what is added to plain text attention, [B, N, C], 0 in rows without a role; text() gives that attention."""
        owner, roles = self.owner, self.owner.acting
        if query.shape[0] % len(roles):
            raise MismatchError(f"a batch of {len(roles)} equal parts (roles {owner.roles})", f"{query.shape[0]} rows", "Give 'roles' as the batch is made up.")
        q, taking = query.unflatten(0, (len(roles), -1)), [g for g, role in enumerate(roles) if role]
        gain_weights = owner.gain_weights(self.index)
        plain = text().unflatten(0, (len(roles), -1)) if gain_weights is not None else None
        if len(taking) < len(roles):
            q, plain = (None if x is None else torch.stack([x[g] for g in taking]) for x in (q, plain))
        logits = None if plain is None else plain @ gain_weights
        limits = owner.limits(self.place.transformer, query.shape[1], q.shape[1])
        observe = owner.observer(self.place.transformer, [role for role in roles if role])
        delta = image_delta(q, owner.tokens(self.index), owner.strengths, self.place.attention.heads, owner.settings.mixing, limits, plain, logits, observe)
        if len(taking) < len(roles):
            rest = torch.zeros_like(delta[0])
            delta = torch.stack([delta[taking.index(g)] if g in taking else rest for g in range(len(roles))])
        return delta.flatten(0, 1).flatten(-2)


class CrossAttentionProcessor:
    """Plain text attention plus deltas, or, where a foreign processor was there before, its result plus the deltas."""

    def __init__(self, previous: Any, deltas: tuple[LayerDelta, ...]):
        self.previous, self.deltas = previous, deltas

    @classmethod
    def on(cls, previous: Any, delta: LayerDelta) -> CrossAttentionProcessor:
        """A processor on top of the layer's present one; one of ours takes the delta in instead of being called."""
        if isinstance(previous, cls):
            return cls(previous.previous, previous.deltas + (delta,))
        return cls(previous, (delta,))

    def __call__(self, attention: Attention, hidden_states: torch.Tensor, encoder_hidden_states: Any = None,
                 attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        """hidden_states [B, N, C], encoder_hidden_states [B, text tokens, D] -> [B, N, C], after `to_out`."""
        deltas = [delta for delta in self.deltas if delta.active]
        if not deltas:
            return self.previous(attention, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        query, plain = attention.to_q(hidden_states), []

        def text() -> torch.Tensor:
            if not plain:
                plain.append(text_attention(attention, query, encoder_hidden_states, attention_mask))
            return plain[0]

        added = sum(delta(query, text) for delta in deltas)
        to_out, dropout = attention.to_out
        if isinstance(self.previous, PLAIN):
            return dropout(to_out(text() + added))
        before = self.previous(attention, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        return before + dropout(to_out(added) - to_out.bias)


def text_attention(attention: Attention, query: torch.Tensor, states: torch.Tensor | tuple, mask: torch.Tensor | None) -> torch.Tensor:
    """Z_text: query [B, N, C], text states [B, text tokens, D] (a tuple that begins with them, where diffusers' own IP-Adapter is loaded) -> [B, N, C]."""
    states = states[0] if isinstance(states, tuple) else states
    q, k, v = (x.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in (query, attention.to_k(states), attention.to_v(states)))
    if mask is not None:  # B, 1, text tokens (added to the logits)
        mask = attention.prepare_attention_mask(mask, states.shape[1], len(states)).unflatten(0, (len(states), attention.heads))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
