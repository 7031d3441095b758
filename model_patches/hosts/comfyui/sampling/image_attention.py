"""Relevance-weighted image attention on the host's UNet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....attention.decoupled import LayerTokens
from ....attention.limits import Window
from ....binding.layer_tokens import layer_delta
from ....binding.limits import Pictured, limited
from ....binding.plan import ImageStrengths, image_strengths, needs_names, takes_part
from ....binding.run_limits import RunLimits
from ....binding.run_tokens import RunTokens, TextLayers, through_base
from ....binding.settings import ImageAttentionSettings
from ....encoding.summary import counted, who
from ....relevance.overlap_check import OverlapCheck
from ....subjects import References, called
from .attention_patch import AddedRows, Options, install
from .blocks import Block, Grid, grids_of, own_attentions, text_keys, text_values
from .calls import Call, placed, window_of, with_subjects
from .conditioning import ConditioningChunk
from .hook import Hook, model_dtype, spans_of_run
from .other_packs import named, patches_of
from .overlaps import check_of_call, with_check
from .record import RECORDINGS, Observe, Recording, Tally, observer
from .rows import rows_from_options
from .run import Run
from .weights import weights_of


class ImageAttention(Hook):
    """Apply Image Attention's wrappers on a MODEL.

    settings: its widgets; blocks: the UNet's cross-attention layers, in the adapter's order; the others as in `Hook`.
    """

    node = "Apply Image Attention"

    def __init__(
        self,
        references: References,
        settings: ImageAttentionSettings,
        blocks: tuple[Block, ...],
        positive_wired: bool,
        negative_wired: bool,
        node_id: str | None = None,
    ):
        super().__init__(references, positive_wired, negative_wired, node_id)
        self.settings, self.blocks = settings, blocks

    @property
    def patcher(self) -> Any:
        """The adapter's image attention layers."""
        return self.adapter.layers_patcher

    @property
    def key(self) -> str:
        """`troupe.<adapter id>`."""
        return self.adapter.key

    @property
    def in_crops(self) -> str:
        """The widget of that name."""
        return self.settings.in_crops

    def located(self, now: ImageStrengths) -> bool:
        """Return whether a subject that acts now is limited by a region, or by a box while boxes limit."""
        acting = [subject for subject, weight in zip(self.references.subjects, now.weights, strict=True) if weight]
        return limited(acting, now.boxed)

    def strengths(self, run: Run, model_sampling: Any, sigma: torch.Tensor) -> ImageStrengths | None:
        """Return the weight of each subject in this call, or None if nobody acts."""
        return image_strengths(self.settings, self.references.subjects, spans_of_run(run, model_sampling, sigma))

    def bind(
        self, call: Call, chunks: list[ConditioningChunk | None], model: Any, x: torch.Tensor, options: Options
    ) -> Options:
        """Put a delta on every cross-attention layer; rows of role UNCOND are left alone by adapters that have no empty
        tokens.
        """
        chunks = [chunk if chunk and takes_part(self.references, chunk.role) else None for chunk in chunks]
        if not any(chunks):
            return options
        own = call.run.once(
            ("own attention", id(model.diffusion_model)), lambda: own_attentions(model.diffusion_model, self.blocks)
        )
        return install(options, self._deltas(call, chunks, model, x, options), own)

    def _deltas(
        self, call: Call, chunks: list[ConditioningChunk | None], model: Any, x: torch.Tensor, options: Options
    ) -> dict[tuple, LayerDelta]:
        """One delta a block, sharing what does not differ between blocks. chunks: of the rows of x, in order."""
        run, device = call.run, x.device
        kept = self._kept(run, model, device)
        recordings: Sequence[Recording] = options.get(RECORDINGS, ())
        tallies = tuple(tally for recording in recordings if (tally := recording.tally(self)) is not None)
        with_names = needs_names(self.references, self.settings, bool(tallies))
        tokens = kept.groups(tuple(chunk.role for chunk in chunks if chunk), with_names)
        strengths, gains = kept.strengths(call.now.weights), kept.gains()
        acting = kept.acting(call.now.weights) if tallies else None
        shown = placed(chunks, call.size, x)
        if not shown and limited(self.references.subjects, call.now.boxed):
            sentence = f"{named([call.around])} samples the picture in tiles"
            run.explain(f"{sentence}: regions and boxes of {self.node} cannot be mapped to tiles and are ignored.")
        windows = tuple(window_of(chunk.area, call.size) for chunk in chunks if chunk)
        pictured = self._pictured(call, options, device)
        # before the layers ask: in them, making it would break a compiled graph
        for grid in grids_of(self.blocks, (x.shape[-2], x.shape[-1])) if shown else ():
            self.limits(call, windows, grid, device, pictured)
            for tally in tallies:
                tally.prepare(chunks, grid, call.size, device)
        others = [call.around, *patches_of(options, "attn2_patch")]
        check = check_of_call(call, self.references, self.settings, chunks, x) if shown else None
        shared = SharedDelta(self, call, chunks, strengths, shown, tallies, acting, others, windows, pictured, check)
        if with_subjects(chunks) and run.begins():
            self._report(run, kept.images(), kept.names() if with_names else None)
        layers = zip(self.blocks, tokens, gains, strict=True)
        return {block.key: LayerDelta(shared, of_layer, gain) for block, of_layer, gain in layers}

    def _kept(self, run: Run, model: Any, device: torch.device) -> RunTokens:
        """What the run keeps for a UNet on a device, in the present state of its weights."""
        unet, module, merged = model.diffusion_model, self.module(model), 0.0
        if through_base(module):
            merged = weights_of(model.current_patcher).get(self.references.adapter.id, 0.0)
        text = TextLayers(
            [block.heads for block in self.blocks],
            lambda: ((text_keys(unet, block), text_values(unet, block)) for block in self.blocks),
            merged,
            hook_state(model),
            {i for i, block in enumerate(self.blocks) if block.precision == torch.float32},
        )
        return RunTokens(run, self.references, self.settings, module, text, device, model_dtype(model))

    def _pictured(self, call: Call, options: Options, device: torch.device) -> Pictured:
        """The subjects as a call needs their regions."""
        subjects, window = self.references.subjects, pictures_of_window(options)
        pictures = range(call.pictures) if window is None or len(window) != call.pictures else window
        found = self._limits(call.run, device).pictured(pictures, window is None)
        for i in found.wrong:
            region = subjects[i].region
            masks = 0 if region is None else len(region)
            sentence = (
                f"the region of {called(i + 1, subjects[i].name)} has {masks} masks for a "
                f"batch of {counted(len(pictures), 'picture')}"
            )
            call.run.say(
                f"connect one mask for all pictures, or one for each: {sentence}, so every picture gets their union.",
                logging.WARNING,
            )
        return found

    def limits(
        self,
        call: Call,
        windows: Sequence[Window],
        grid: Grid,
        device: torch.device,
        pictured: Pictured,
        apart: bool = True,
    ) -> torch.Tensor | None:
        """Return the m of every subject in a call's layers of a grid, see `RunLimits.on_grid`."""
        return self._limits(call.run, device).on_grid(pictured, grid, call.now.boxed, windows, apart)

    def _limits(self, run: Run, device: torch.device) -> RunLimits:
        # kept, since making it in a layer would break a compiled graph
        return run.once(("run limits", device), lambda: RunLimits(run, self.references.subjects, self.settings, device))

    def _report(self, run: Run, images: Sequence[Any], names: Sequence[torch.Tensor] | None) -> None:
        adapter, merge = self.references.adapter, self.settings.mixing.merge
        kept = sum(t.nbytes for p in images for t in (p.keys, p.values)) + sum(t.nbytes for t in names or ())
        cost = f"keys and values {kept / 2**20:.1f} MB in {run.seconds * 1000:.0f} ms, once for the run"
        run.say(f"{who(self.references)}; merge {merge}, {len(self.blocks)} layers of {adapter.spec.file}, {cost}.")
        if not self.negative_wired:
            run.say(
                "'negative' of Apply Image Attention is not connected: the negative prompt gets the "
                "adapter's empty tokens, as in the published code."
            )


@dataclass(frozen=True, eq=False)
class SharedDelta:
    """The state that the deltas of one model call share. placed: its rows show what the host says, not tiles of it;
    tallies: of those who record; acting: [M], 1 for subjects that act now, or None if nobody records; others: patches
    and wrappers of other packs that can change rows and positions; windows: the part of the picture that each chunk
    which takes part shows; pictured: the subjects with regions that fit the call's pictures; check: where this call's
    relevance is added up, or None.
    """

    owner: ImageAttention
    call: Call
    chunks: list[ConditioningChunk | None]
    strengths: torch.Tensor
    placed: bool
    tallies: tuple[Tally, ...]
    acting: torch.Tensor | None
    others: Sequence[Any]
    windows: tuple[Window, ...]
    pictured: Pictured
    check: OverlapCheck | None


@dataclass(frozen=True, eq=False)
class LayerDelta:
    """The part that the subjects add to one layer in one model call."""

    shared: SharedDelta
    tokens: LayerTokens
    gain_weights: torch.Tensor | None

    def __call__(self, q: torch.Tensor, text: Callable[[], torch.Tensor], options: Options) -> list[AddedRows]:
        """q [rows, N, C] -> parts (first row, rows, [rows, N, H, d])."""
        shared = self.shared
        rows = rows_from_options(q.shape[0], options, len(shared.chunks))
        if rows is None:
            sentence = (
                f"{named(shared.others)} changed the batch size from {options['activations_shape'][0]} to "
                f"{q.shape[0]}, so rows cannot be matched to prompts"
            )
            shared.call.run.explain(f"{sentence}: {shared.owner.node} skips those layers.")
            return []
        active = [(place, chunk) for place, chunk in zip(rows, shared.chunks, strict=True) if chunk is not None]
        grid = tuple(options["activations_shape"][-2:])
        whole = shared.placed and grid[0] * grid[1] == q.shape[1]
        pictures = shared.pictured.pictures
        apart = all(length == len(pictures) for (_, length), _ in active)
        if pictures and not apart:
            sentence = f"{named(shared.others)} repeated the pictures of the batch"
            shared.call.run.explain(
                f"{sentence}: in those layers of {shared.owner.node} every picture gets the union of a region's masks."
            )
        limits = (
            shared.owner.limits(shared.call, shared.windows, grid, q.device, shared.pictured, apart) if whole else None
        )
        if shared.placed and not whole and limited(shared.owner.references.subjects, shared.call.now.boxed):
            sentence = f"{named(shared.others)} rearranged the positions of the picture"
            shared.call.run.explain(
                f"{sentence}: regions and boxes of {shared.owner.node} are ignored in those layers."
            )
        length = active[0][0][1]
        if all(place[1] == length for place, _ in active) and len(active) * length == q.shape[0]:
            plain = None if self.gain_weights is None else text().unflatten(0, (-1, length))
            observe = self._observer([chunk for _, chunk in active], shared.windows, grid, whole)
            return [
                (
                    0,
                    q.shape[0],
                    self._delta(q.unflatten(0, (-1, length)), self.tokens, limits, plain, options, observe).flatten(
                        0, 1
                    ),
                )
            ]
        parts = []
        for g, ((start, length), chunk) in enumerate(active):
            plain = None if self.gain_weights is None else text()[None, start : start + length]
            limit = limits if limits is None or len(limits) == 1 else limits[g : g + 1]
            observe = self._observer([chunk], shared.windows[g : g + 1], grid, whole)
            delta = self._delta(q[None, start : start + length], self.tokens.group(g), limit, plain, options, observe)
            parts.append((start, length, delta[0]))
        return parts

    def _observer(
        self, chunks: Sequence[ConditioningChunk], windows: Sequence[Window], grid: Grid, whole: bool
    ) -> Observe | None:
        shared = self.shared
        recorder = observer(shared.tallies, chunks, windows, shared.acting, grid, shared.call.size, whole)
        if not whole or torch.compiler.is_compiling():  # another graph for the one step that is looked at is too dear
            return recorder
        return with_check(recorder, shared.check, chunks, grid)

    def _delta(
        self,
        q: torch.Tensor,
        tokens: LayerTokens,
        limits: torch.Tensor | None,
        plain: torch.Tensor | None,
        options: Options,
        observe: Observe | None,
    ) -> torch.Tensor:
        dtype, gain, mixing = q.dtype, self.gain_weights, self.shared.owner.settings.mixing
        if options["attn_precision"] == torch.float32:  # of models whose attention overflows in float16, such as SD2.x
            q, tokens = q.float(), tokens.float()
        return layer_delta(
            q, tokens, self.shared.strengths, options["n_heads"], mixing, limits, gain, plain, observe
        ).to(dtype)


def pictures_of_window(options: Options) -> tuple[int, ...] | None:
    """Return the numbers of the pictures in a call that has only a part of the batch, as the host's context windows and
    AnimateDiff-Evolved say; None: all.
    """
    window = options.get("context_window")
    if window is not None and getattr(window, "dim", None) == 0:
        return tuple(window.index_list)
    parts = (options.get("ad_params") or {}).get("sub_idxs")
    return None if parts is None else tuple(map(int, parts))


def hook_state(model: Any) -> Any:
    """Return the state of the UNet's weights within a run: the active hook group and its present strengths."""
    hooks = getattr(model.current_patcher, "current_hooks", None)
    return None if hooks is None else (hooks, tuple(getattr(hook, "strength", 1.0) for hook in hooks.hooks))
