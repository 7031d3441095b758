"""Relevance-weighted image attention on the host's UNet: nothing is put on the MODEL but wrappers, which bind it anew at every model call."""
from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import torch
from comfy.patcher_extension import WrappersMP

from ...attention.decoupled import LayerTokens, image_delta
from ...attention.limits import WHOLE, Window
from ...binding import limited, limits_on_grid
from ...encoders.decoupled import DecoupledLayer
from ...layer_tokens import Projected, layer_tokens, name_segments, project_images, project_names
from ...settings import ImageAttentionSettings
from ...subjects import References
from .attention_patch import Options, Part, install
from .blocks import Block, text_keys
from .clock import FULL, Clock, sigma_range
from .conditioning import KEY, Chunk, Roles, foreign_ids
from .rows import rows_from_options, tiles_in
from .run import Run

Grid = tuple[int, int]
APPLY_IDS = "troupe_apply_ids"
REFINING = 0.3  # a run that begins after this percent keeps the layout of its latent: upscaling is no mistake
WEIGHT_STATES = 8  # hook schedules change the UNet's weights within a run; the keys of so many states are kept


@dataclass(frozen=True, eq=False)
class Call:
    """One guided prediction: the run, what each entry's rows get, how strong each subject is now, and the latents' number and full size (h, w)."""

    run: Run
    table: dict[tuple[int, Any], Chunk]
    strengths: tuple[float, ...]
    boxed: bool
    pictures: int
    size: Grid


class ImageAttention:
    """One Apply node's wrappers on a MODEL. Immutable; what changes lives in the Run."""

    def __init__(self, references: References, settings: ImageAttentionSettings, blocks: tuple[Block, ...], positive_wired: bool, negative_wired: bool):
        self.id = uuid4().hex
        self.references, self.settings, self.blocks = references, settings, blocks
        self.positive_wired, self.negative_wired = positive_wired, negative_wired

    def attach(self, model: Any) -> None:
        """Put the wrappers and the adapter's memory on a clone of the MODEL (a host ModelPatcher)."""
        for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, self.outer_sample), (WrappersMP.CALC_COND_BATCH, self.calc_cond_batch), (WrappersMP.APPLY_MODEL, self.apply_model)):
            model.add_wrapper_with_key(kind, f"{KEY}.{self.id}", wrapper)
        adapter = self.references.adapter
        model.set_additional_models(adapter.key, [adapter.layers_patcher])
        model.model_options["transformer_options"][APPLY_IDS] = known_ids(model.model_options) + (self.id,)

    # ---- the three moments -------------------------------------------------------------------------------------------------------------

    def outer_sample(self, executor: Any, noise: torch.Tensor, latent_image: Any, sampler: Any, sigmas: torch.Tensor, denoise_mask: Any = None,
                     callback: Callable | None = None, *args: Any, **kwargs: Any) -> Any:
        """Begins and ends a run."""
        guider = executor.class_obj
        names = {entry["uuid"]: name for name, entries in guider.conds.items() for entry in entries}
        run = self._new_run(names, sigmas, sampler)
        options = guider.model_options["transformer_options"]
        options[KEY] = {**options.get(KEY, {}), self.id: run}
        try:
            if run.clock.first_sigma() >= float(guider.model_patcher.get_model_object("model_sampling").percent_to_sigma(REFINING)):
                self._warn_about_size(run, noise)
            found = executor(noise, latent_image, sampler, sigmas, denoise_mask, run.clock.wrap(callback), *args, **kwargs)
            if not run.acted and self.settings.weight > 0 and self.references.subjects and self.positive_wired:
                run.say("an Apply node did nothing in this run: its 'positive' output did not reach the sampler, or its step range held no step.", logging.WARNING)
            return found
        finally:
            run.end()

    def calc_cond_batch(self, executor: Any, model: Any, conds: Sequence[Sequence[dict] | None], x_in: torch.Tensor, timestep: torch.Tensor, model_options: dict) -> Any:
        """Decides which entries take part in this prediction and how strong each subject is now."""
        options = dict(model_options.get("transformer_options", {}))
        own = dict(options.get(KEY, {}))
        state = own.pop(self.id, None)
        run = state.run if isinstance(state, Call) else state or self._new_run({}, None, None)
        strengths, boxed = self._strengths(run, model.model_sampling, timestep)
        if any(strengths):
            own[self.id] = Call(run, run.roles.table(conds), strengths, boxed, x_in.shape[0], tuple(x_in.shape[-2:]))
        options[KEY] = own
        for lost in foreign_ids(conds, set(known_ids(model_options))):
            sentence = f"a conditioning carries references of an Apply node ({lost[:6]}) whose 'model' output is not the MODEL being sampled: they do nothing."
            run.say(f"{sentence} Wire 'model' and 'positive' of the same Apply node.", logging.WARNING)
        return executor(model, conds, x_in, timestep, {**model_options, "transformer_options": options})

    def apply_model(self, executor: Any, x: torch.Tensor, t: torch.Tensor, c_concat: Any = None, c_crossattn: Any = None, control: Any = None,
                    transformer_options: Options | None = None, **kwargs: Any) -> Any:
        """Puts the deltas of this model call on the blocks."""
        options = transformer_options or {}
        call = options.get(KEY, {}).get(self.id)
        if isinstance(call, Call):
            chunks = [call.table.get(row) for row in zip(options["cond_or_uncond"], options["uuids"], strict=True)]
            if any(chunks):
                options = install(options, self._deltas(call, chunks * tiles_in(x.shape[0], call.pictures * len(chunks)), executor.class_obj, x))
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    # ---- their parts -------------------------------------------------------------------------------------------------------------------

    def _new_run(self, names: dict[Any, str], sigmas: torch.Tensor | None, sampler: Any) -> Run:
        return Run(Clock(sigmas, sampler), Roles(self.id, self.positive_wired, self.negative_wired, names))

    def _strengths(self, run: Run, model_sampling: Any, sigma: torch.Tensor) -> tuple[tuple[float, ...], bool]:
        """Weight of each subject in this call (0 outside its range) and whether boxes still limit."""
        s, subjects = self.settings, self.references.subjects
        if s.weight == 0.0 or not any(subject.weight for subject in subjects):
            return (0.0,) * len(subjects), False

        def ranges() -> list[tuple[float, float]]:
            spans = [(s.start_percent, s.end_percent), (0.0, s.box_end_percent)] + [(x.start_percent, x.end_percent) for x in subjects]
            found = [sigma_range(model_sampling, *span) for span in spans]
            if s.box_strength == 0.0 or all(x.box is None for x in subjects):
                found[1] = FULL
            return found

        ours, boxed, *active = run.clock.inside(run.once(("ranges",), ranges), sigma)
        return tuple(s.weight * x.weight if ours and on else 0.0 for x, on in zip(subjects, active, strict=True)), boxed

    def _deltas(self, call: Call, chunks: list[Chunk | None], model: Any, x: torch.Tensor) -> dict[tuple, LayerDelta]:
        """One delta a block, sharing what does not differ between blocks. chunks: of the rows of x, in order."""
        run, dtype, module, device = call.run, model.manual_cast_dtype or model.get_dtype(), self._adapter_module(model), x.device
        images = run.once(("images", device, dtype), lambda: project_images(module, self.references, device, dtype))
        names, weights = None, hook_state(model)
        if self.settings.mixing.needs_relevance(len(self.references.subjects)):
            keys = (text_keys(model.diffusion_model, block) for block in self.blocks)
            names = run.once(("names", device, dtype, weights), lambda: project_names(keys, self.references, device, dtype), WEIGHT_STATES)
        roles = tuple(chunk.role for chunk in chunks if chunk)
        tokens = run.once(("tokens", roles, device, dtype, weights), lambda: self._tokens(images, names, roles, device), 2 * WEIGHT_STATES)
        strengths = run.once(("strengths", call.strengths, device), lambda: torch.tensor(call.strengths, device=device))
        placed = all(shown_size(chunk.area, call.size) == tuple(x.shape[-2:]) for chunk in chunks if chunk)
        if not placed and limited(self.references.subjects, call.boxed):
            run.say("another pack samples the picture in tiles: regions and boxes cannot be placed in them and rest.", logging.WARNING)
        shared = SharedDelta(self, call, chunks, strengths, placed)
        if not run.acted:
            self._report(run, images, names)
        return {block.key: LayerDelta(shared, tokens[j], layer) for j, (block, layer) in enumerate(zip(self.blocks, module.layers, strict=True))}

    def _tokens(self, images: Sequence[Projected], names: Sequence[torch.Tensor] | None, roles: Sequence[str], device: torch.device) -> list[LayerTokens]:
        """Every layer's tokens for the roles of a call's chunks."""
        if names is None:
            return [layer_tokens(image, None, None, roles) for image in images]
        segments = name_segments(self.references, device)
        return [layer_tokens(image, name, segments, roles) for image, name in zip(images, names, strict=True)]

    def _adapter_module(self, model: Any) -> Any:
        """The adapter's layers, from the patcher that is sampling: right on clones and on other devices."""
        patcher, adapter = model.current_patcher, self.references.adapter
        attached = patcher.get_additional_models_with_key(adapter.key) if patcher is not None else []
        return (attached[-1] if attached else adapter.layers_patcher).model

    def limits(self, call: Call, areas: tuple[tuple[int, ...] | None, ...], grid: Grid, device: torch.device) -> torch.Tensor | None:
        """m of every subject for the chunks, [1 or G, 1, M, N], or None where no region or box limits anybody."""
        subjects = self.references.subjects
        if not limited(subjects, call.boxed):
            return None
        areas = areas[:1] if len(set(areas)) == 1 else areas

        def maps() -> torch.Tensor:
            found = [limits_on_grid(subjects, self.settings, grid, call.boxed, device, window_of(area, call.size)) for area in areas]
            return torch.stack(found).unsqueeze(1)

        return call.run.once(("limits", areas, call.size, grid, call.boxed, device), maps)

    def _report(self, run: Run, images: Sequence[Any], names: Sequence[torch.Tensor] | None) -> None:
        run.acted = True
        adapter, merge = self.references.adapter, self.settings.mixing.merge
        who = ", ".join(f"'{s.name}'" + (f" ({counted(len(s.name_tokens), 'name token')})" if s.name_tokens is not None else "") for s in self.references.subjects)
        kept = sum(t.nbytes for p in images for t in (p.keys, p.values)) + sum(t.nbytes for t in names or ())
        cost = f"keys and values {kept / 2**20:.1f} MB in {run.seconds * 1000:.0f} ms, once for the run"
        run.say(f"{counted(len(self.references.subjects), 'subject')}: {who}; merge {merge}, {len(self.blocks)} layers of {adapter.spec.file}, {cost}.")
        if not self.negative_wired:
            run.say("no 'negative' is wired into Apply Image Attention: rows of the negative prompt get the adapter's own empty tokens, as published.")

    def _warn_about_size(self, run: Run, noise: torch.Tensor) -> None:
        native = {768: 512, 1024: 640, 2048: 1024}.get(self.references.adapter.spec.context_dim)
        h, w = noise.shape[-2] * 8, noise.shape[-1] * 8
        if native and not 0.5 <= (w * h) / native**2 <= 3.0:
            sentence = f"the picture is {w}x{h}, far from the {native}x{native} that {self.references.adapter.spec.base} was trained on: subjects are often lost or doubled there."
            run.say(f"{sentence} Sample near {native}x{native} and upscale after.", logging.WARNING)


@dataclass(frozen=True, eq=False)
class SharedDelta:
    """What the deltas of one model call have in common. placed: its rows show what the host says, not tiles of it."""

    owner: ImageAttention
    call: Call
    chunks: list[Chunk | None]
    strengths: torch.Tensor
    placed: bool


@dataclass(frozen=True, eq=False)
class LayerDelta:
    """What the subjects add to one layer in one model call."""

    shared: SharedDelta
    tokens: LayerTokens
    layer: DecoupledLayer

    def __call__(self, q: torch.Tensor, text: Callable[[], torch.Tensor], options: Options) -> list[Part]:
        """q [rows, N, C] -> parts (first row, rows, [rows, N, C])."""
        shared = self.shared
        rows = rows_from_options(q.shape[0], options, len(shared.chunks))
        if rows is None:
            sentence = f"another pack has turned {options['activations_shape'][0]} rows into {q.shape[0]} in a way that cannot be followed"
            shared.call.run.say(f"{sentence}: the references rest in those layers.", logging.WARNING)
            return []
        active = [(place, chunk) for place, chunk in zip(rows, shared.chunks, strict=True) if chunk is not None]
        grid = tuple(options["activations_shape"][-2:])
        whole = shared.placed and grid[0] * grid[1] == q.shape[1]
        limits = shared.owner.limits(shared.call, tuple(chunk.area for _, chunk in active), grid, q.device) if whole else None
        if shared.placed and not whole and limited(shared.owner.references.subjects, shared.call.boxed):
            shared.call.run.say("another pack has rearranged the picture's positions: regions and boxes rest in those layers.", logging.WARNING)
        length = active[0][0][1]
        if all(place[1] == length for place, _ in active) and len(active) * length == q.shape[0]:
            plain = text().unflatten(0, (-1, length)) if self._needs_text else None
            return [(0, q.shape[0], self._delta(q.unflatten(0, (-1, length)), self.tokens, limits, plain, options).flatten(0, 1))]
        parts = []
        for g, ((start, length), _) in enumerate(active):
            plain = text()[None, start:start + length] if self._needs_text else None
            limit = limits if limits is None or len(limits) == 1 else limits[g:g + 1]
            delta = self._delta(q[None, start:start + length], self.tokens.group(g), limit, plain, options)
            parts.append((start, length, delta[0]))
        return parts

    @property
    def _needs_text(self) -> bool:
        return self.layer.text_to_weight is not None

    def _delta(self, q: torch.Tensor, tokens: LayerTokens, limits: torch.Tensor | None, plain: torch.Tensor | None, options: Options) -> torch.Tensor:
        logits = None if plain is None else self.layer.text_logits(plain)
        dtype, mixing = q.dtype, self.shared.owner.settings.mixing
        if options["attn_precision"] == torch.float32:  # of models whose attention overflows in float16, such as SD2.x
            q, tokens = q.float(), tokens.float()
        return image_delta(q, tokens, self.shared.strengths, options["n_heads"], mixing, limits, plain, logits).to(dtype)


def window_of(area: tuple[int, ...] | None, size: Grid) -> Window:
    """A conditioning area (h, w, y, x in latent cells) as the part of the picture that its rows show."""
    if area is None:
        return WHOLE
    (h, w, y, x), (height, width) = area, size
    return y / height, x / width, min(y + h, height) / height, min(x + w, width) / width


def shown_size(area: tuple[int, ...] | None, size: Grid) -> Grid:
    """Latent cells (h, w) that an entry's rows show, as the host cuts them out."""
    return size if area is None else (min(area[0], size[0] - area[2]), min(area[1], size[1] - area[3]))


def counted(number: int, noun: str) -> str:
    """'1 subject', '2 subjects'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def known_ids(model_options: dict) -> tuple[str, ...]:
    """Ids of the Apply nodes whose wrappers are on the model."""
    return tuple(model_options.get("transformer_options", {}).get(APPLY_IDS, ()))


def hook_state(model: Any) -> Any:
    """What tells one state of the UNet's weights from another within a run: the active hook group and its present strengths."""
    hooks = getattr(model.current_patcher, "current_hooks", None)
    return None if hooks is None else (hooks, tuple(getattr(hook, "strength", 1.0) for hook in hooks.hooks))
