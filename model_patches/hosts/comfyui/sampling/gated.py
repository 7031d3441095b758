"""Gated adapters (GLIGEN, Subject-Diffusion) on the host's UNet: one patch between self- and cross-attention, and
Subject-Diffusion's mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....attention.gated import ObjectTokens
from ....binding.layer_tokens import COND
from ....binding.plan import GatedStrengths, gated_strengths
from ....binding.run_objects import RunObjects, groups_of
from ....binding.settings import GatedSettings
from ....encoders.fuser import GatedFuser
from ....encoding.summary import counted
from ....subjects import References
from .attention_patch import Options
from .blocks import Key
from .calls import Call, placed, window_of, with_subjects
from .clock import percent_reader
from .conditioning import ConditioningChunk
from .hook import Hook, model_dtype, spans_of_run
from .other_packs import named, patches_of
from .rows import rows_from_options, rows_of_chunks
from .run import Run

FIRST_CONVOLUTION = ("input", 0)  # the UNet's first convolution, as the host names it


class GatedAdapter(Hook):
    """Apply Gated Adapter's wrappers on a MODEL.

    settings: its widgets; keys: the host's key of each layer's transformer block, in the adapter's order; the others as
    in `Hook`, with positive always wired.
    """

    node = "Apply Gated Adapter"

    def __init__(
        self,
        references: References,
        settings: GatedSettings,
        keys: Sequence[Key],
        negative_wired: bool,
        node_id: str | None = None,
    ):
        super().__init__(references, True, negative_wired, node_id)
        self.settings, self.keys = settings, tuple(keys)

    @property
    def patcher(self) -> Any:
        """The adapter's gated layers."""
        return self.adapter.gated_patcher

    @property
    def key(self) -> str:
        """`troupe.<adapter id>.gated`."""
        return f"{self.adapter.key}.gated"

    @property
    def in_crops(self) -> str:
        """The widget of that name."""
        return self.settings.in_crops

    def located(self, now: GatedStrengths) -> bool:
        """Return whether a subject that acts now has a box."""
        return any(
            subject.box is not None
            for subject, weight in zip(self.references.subjects, now.weights, strict=True)
            if weight
        )

    def strengths(self, run: Run, model_sampling: Any, sigma: torch.Tensor) -> GatedStrengths | None:
        """Return the weights and scale of this call, or None if nothing acts."""

        def percent() -> float:
            return run.clock.percent(run.once(("percents",), lambda: percent_reader(model_sampling)), sigma)

        return gated_strengths(
            self.settings, self.references.subjects, spans_of_run(run, model_sampling, sigma), percent
        )

    def bind(
        self, call: Call, chunks: list[ConditioningChunk | None], model: Any, x: torch.Tensor, options: Options
    ) -> Options:
        """Append our patches to the host's lists, so that those of other packs act too."""
        if not placed(chunks, call.size, x):
            call.run.explain(
                f"{named([call.around])} samples the picture in tiles: boxes cannot be mapped to tiles, so "
                f"{self.node} is skipped."
            )
            return options
        module, weights = self.module(model), call.now.weights
        kept = RunObjects(call.run, self.references, self.settings, module, x.device, model_dtype(model))
        shown = [(chunk.role, window_of(chunk.area, call.size)) for chunk in chunks if chunk]
        objects = kept.objects(groups_of([role for role, _ in shown], weights, [window for _, window in shown]))
        layers = {
            key: GatedLayer(fuser, mine) for key, fuser, mine in zip(self.keys, module.fusers, objects, strict=True)
        }
        others = [call.around, *patches_of(options, "attn1_patch", "attn1_output_patch", "middle_patch")]
        patches: dict[str, GatedPatch | MaskPatch] = {
            "middle_patch": GatedPatch(call.run, chunks, layers, kept.scale(call.now), others)
        }
        if module.mask_conv is not None:
            patches["input_block_patch"] = MaskPatch(
                chunks,
                [
                    kept.mask(weights, call.size, chunk.area) if chunk and chunk.role == COND else None
                    for chunk in chunks
                ],
            )
        if with_subjects(chunks) and call.run.begins():
            self._report(call.run, objects)
        lists = options.get("patches", {})
        return {
            **options,
            "patches": {**lists, **{name: [*lists.get(name, ()), patch] for name, patch in patches.items()}},
        }

    def _report(self, run: Run, objects: Sequence[ObjectTokens]) -> None:
        subjects, spec = self.references.subjects, self.references.adapter.spec
        who = ", ".join(f"'{s.name}'" + ("" if s.box else " (no box)") for s in subjects)
        kept = sum(t.nbytes for o in objects for t in (o.keys, o.values)) / 2**20
        cost = f"keys and values {kept:.1f} MB in {run.seconds * 1000:.0f} ms, once for the run"
        run.say(
            f"{counted(len(subjects), 'subject')}: {who}; {len(self.keys)} gated layers of {spec.file}, "
            f"{objects[0].keys.shape[1]} object tokens, {cost}."
        )


@dataclass(frozen=True, eq=False)
class GatedLayer:
    """One block's fuser, and its objects for the chunks that take part, group by group."""

    fuser: GatedFuser
    objects: ObjectTokens


@dataclass(frozen=True, eq=False)
class GatedPatch:
    """A `middle_patch`: the fuser of whatever block calls it. chunks: of a call's rows, None for rows that take no
    part; scale: of both residuals;
    others: patches and wrappers of other packs that can change the rows."""

    run: Run
    chunks: Sequence[ConditioningChunk | None]
    layers: Mapping[Key, GatedLayer]
    scale: float | torch.Tensor
    others: Sequence[Any] = ()

    def __call__(self, x: torch.Tensor, options: Options) -> torch.Tensor:
        """x [rows, N, C] -> [rows, N, C]."""
        layer = self.layers.get((*options["block"], options["block_index"]))
        if layer is None:
            return x
        rows = rows_from_options(x.shape[0], options, len(self.chunks))
        if rows is None:
            sentence = (
                f"{named(self.others)} changed the batch size from {options['activations_shape'][0]} to "
                f"{x.shape[0]}, so rows cannot be matched to prompts"
            )
            self.run.explain(f"{sentence}: {GatedAdapter.node} skips those layers.")
            return x
        if all(self.chunks) and len({length for _, length in rows}) == 1:
            return layer.fuser(x, layer.objects, self.scale)
        group, parts = 0, []
        for (start, length), chunk in zip(rows, self.chunks, strict=True):
            part = x[start : start + length]
            if chunk is not None:
                part = layer.fuser(part, layer.objects.group(group), self.scale)
                group += 1
            parts.append(part)
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class MaskPatch:
    """An `input_block_patch`: adds what the mask channel gives, before the host stores the skip."""

    chunks: Sequence[ConditioningChunk | None]
    added: Sequence[torch.Tensor | None]

    def __call__(self, h: torch.Tensor, options: Options) -> torch.Tensor:
        """h [rows, C, H, W] -> the same shape; only the first block is changed, and only where the rows are the chunks'
        (GatedPatch says if not).
        """
        if options["block"] != FIRST_CONVOLUTION or all(a is None for a in self.added):
            return h
        each = rows_of_chunks(
            len(h), len(h), options["cond_or_uncond"] * (len(self.added) // len(options["cond_or_uncond"]))
        )
        if each is None:
            return h
        return torch.cat(
            [
                h[start : start + length] if a is None else h[start : start + length] + a
                for (start, length), a in zip(each, self.added, strict=True)
            ]
        )
