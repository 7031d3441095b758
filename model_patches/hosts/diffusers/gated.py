"""Gated adapters (GLIGEN, Subject-Diffusion) on a diffusers UNet, in its blocks' own fuser place, there only while a
run lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from ...adapter import Adapter, GatedSpec
from ...attention.gated import ObjectTokens
from ...binding.checks import check_blocks, may_act
from ...binding.layer_tokens import COND, UNCOND
from ...binding.plan import GatedStrengths, gated_strengths
from ...binding.run_cache import RunCache
from ...binding.run_objects import RunObjects, groups_of
from ...binding.settings import GatedSettings
from ...encoders.fuser import GatedFuser
from ...encoders.gated import GatedLayers
from ...subjects import References
from .image_attention import check_parts, spans_at
from .unet_blocks import transformer_blocks

GLIGEN_KEY = "gligen"  # diffusers' key in cross_attention_kwargs; without it a block does not call its fuser


class GatedAdapter:
    """The references of one Apply Gated Adapter node on a UNet for one run; a context manager, and the run's state.

    Entering puts the fusers in place, leaving takes away what was added; several may be nested, also with image
    attention. Those entered first act first. Before each model call say where the run is with `at`, and with `roles`
    what the parts of the batch are, where that changes. unet: the model; settings: the widgets.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        references: References,
        settings: GatedSettings,
        roles: Sequence[str | None] = (UNCOND, COND),
    ):
        self.references, self.settings, self.roles = references, settings, tuple(roles)
        self._unet, self._blocks = unet, transformer_blocks(unet)
        self._run = RunCache()
        self._before: list[tuple[BasicTransformerBlock, nn.Module | None]] = []
        self._hooks: list[Any] = []
        self._now: GatedStrengths | None = None
        spec = references.adapter.spec
        self._idle = not may_act(references, settings, "Bind these references with ImageAttention.")
        self._gated = cast(GatedLayers, cast(Adapter, references.adapter).gated)
        self._paths = tuple(spec.part(GatedSpec).block_widths)
        if self._idle:
            return
        check_blocks(
            spec, {path: block.dim for path, block in self._blocks.items()}, unet.config["cross_attention_dim"]
        )
        self.at(0.0)

    def __enter__(self) -> GatedAdapter:
        if self._idle:
            return self
        gated = self._gated
        # it runs once, and in half precision the boxes would lose two digits
        gated.net.to(self._unet.device, torch.float32)
        gated.fusers.to(self._unet.device, self._unet.dtype)
        for index, (path, fuser) in enumerate(zip(self._paths, gated.fusers, strict=True)):
            block = self._blocks[path]
            previous = getattr(block, "fuser", None)
            self._before.append((block, previous))
            block.add_module("fuser", FuserOfBlock(previous, self, index, cast(GatedFuser, fuser)))
            self._hooks.append(block.register_forward_pre_hook(self._announce, with_kwargs=True))
        if gated.mask_conv is not None:
            gated.mask_conv.to(self._unet.device, self._unet.dtype)
            self._hooks.append(self._unet.conv_in.register_forward_hook(self._add_mask))
        return self

    def __exit__(self, *error: Any) -> None:
        for block, previous in self._before:
            if previous is None:
                del block.fuser
            else:
                block.add_module("fuser", previous)
        for hook in self._hooks:
            hook.remove()
        self._before, self._hooks = [], []
        self._run.clear()

    def at(self, percent: float) -> None:
        """Set the position in the run: ComfyUI's percent of the next model call (0 = the first step's noise, 1 = none;
        see `sampling.percent_of`).
        """
        self._now = gated_strengths(self.settings, self.references.subjects, spans_at(percent), lambda: percent)

    @property
    def active(self) -> bool:
        """Whether any subject acts in this step."""
        return self._now is not None and any(self.roles)

    def objects(self, index: int) -> ObjectTokens:
        """Return the keys and values of one layer for the parts of the batch that have a role, [G, M, C]; everything is
        projected once for each set of strengths.
        """
        weights = () if self._now is None else self._now.weights
        return self._objects.objects(groups_of([role for role in self.roles if role], weights))[index]

    @property
    def scale(self) -> float | torch.Tensor:
        """The scale of both gated residuals in this step, 0 if nobody acts."""
        return 0.0 if self._now is None else self._objects.scale(self._now)

    @property
    def _objects(self) -> RunObjects:
        """What is projected once a run. The UNet walks through all of its modules to say its device and its dtype."""

        def make() -> RunObjects:
            there = (self._unet.device, self._unet.dtype)
            return RunObjects(self._run, self.references, self.settings, self._gated, *there)

        return self._run.once(("run objects",), make)

    def _announce(
        self, block: BasicTransformerBlock, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Makes a block call its fuser; objects that the caller gives for diffusers' own fuser stay as they are."""
        given = kwargs.get("cross_attention_kwargs") or {}
        if not self.active or given.get(GLIGEN_KEY) is not None:
            return None
        return args, {**kwargs, "cross_attention_kwargs": {**given, GLIGEN_KEY: {"objs": None}}}

    def _add_mask(self, conv: nn.Conv2d, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        """Subject-Diffusion's fifth input channel, which adds to the first convolution; rows without the subjects have
        a mask of zeros.
        """
        if self._now is None or not self.active or COND not in self.roles:
            return None
        mask = self._objects.mask(self._now.weights, (args[0].shape[-2], args[0].shape[-1]))
        if mask is None:
            return None
        parts = in_parts(output, self.roles)
        return torch.cat([part + mask if role == COND else part for part, role in zip(parts, self.roles, strict=True)])


def apply_gated(
    unet: UNet2DConditionModel,
    references: References,
    settings: GatedSettings,
    roles: Sequence[str | None] = (UNCOND, COND),
) -> GatedAdapter:
    """Bind the references to the UNet: `with apply_gated(...) as gated:`. Strength 0, or a cast that is empty or all at
    weight 0, leaves it unchanged.

    Raises:
        MismatchError: the adapter has no gated layers, or is for another base model, or a number is not finite.
    """
    return GatedAdapter(unet, references, settings, roles)


class FuserOfBlock(nn.Module):
    """The module that a block calls between its self- and its cross-attention: the fuser that was there before, then
    Troupe's.

    previous: that fuser, or None; owner: the adapter of the run; index: of the layer; fuser: its own.
    """

    def __init__(self, previous: nn.Module | None, owner: GatedAdapter, index: int, fuser: GatedFuser):
        super().__init__()
        self._parts = (previous, owner, index, fuser)  # in a tuple, so that no weight is listed as the UNet's own

    def forward(self, x: torch.Tensor, objects: Any) -> torch.Tensor:
        """Map visual tokens [B, N, C] to [B, N, C]. objects: for diffusers' own fuser, None if the caller
        gave none.
        """
        previous, owner, index, fuser = self._parts
        if isinstance(previous, FuserOfBlock) or (previous is not None and objects is not None):
            x = previous(x, objects)
        if not owner.active:
            return x
        roles, tokens = owner.roles, owner.objects(index)
        parts = in_parts(x, roles)
        if all(roles):
            return fuser(x, tokens, owner.scale)
        acted = iter(
            fuser(
                torch.cat([part for part, role in zip(parts, roles, strict=True) if role]), tokens, owner.scale
            ).chunk(sum(map(bool, roles)))
        )
        return torch.cat([next(acted) if role else part for part, role in zip(parts, roles, strict=True)])


def in_parts(x: torch.Tensor, roles: Sequence[str | None]) -> tuple[torch.Tensor, ...]:
    """Return the equal parts of a batch. Raises MismatchError if it has none of that number."""
    check_parts(x.shape[0], roles)
    return x.chunk(len(roles))
