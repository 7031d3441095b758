"""How an Apply node hangs on a MODEL: wrappers that find out, at every model call, whose rows are whose and how strong
each subject is now.

Nothing else is put on the MODEL; what acts in the UNet is bound anew at every model call. Subclasses say what that is.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, cast
from uuid import uuid4

import torch
from comfy.patcher_extension import WrappersMP

from ....bases import BASES, PIXELS_PER_CELL
from ....binding.plan import Inside, Span, waits_for_prompt
from ....prompt.graph_crops import samples_a_part
from ....subjects import References
from ..loading.adapters import HostAdapter
from .attention_patch import Options
from .calls import Call, texts_of, whose, with_subjects
from .clock import Clock, sigma_range
from .conditioning import KEY, ConditioningChunk, Lists, Roles, foreign_ids
from .execution import executing, first_time
from .other_packs import named
from .overlaps import tell_overlaps
from .prompt_switch import AFTER, BEFORE, PHASE, PromptSwitch
from .rows import tiles_in
from .run import Run
from .weights import weights_of

APPLY_IDS = "troupe_apply_ids"
REFINING = 0.3  # a run that begins after this percent keeps the layout of its latent: upscaling is no mistake


class Hook(ABC):
    """One Apply node's wrappers on a MODEL. Immutable; what changes lives in the Run.

    references: of the node; positive_wired, negative_wired: whether these inputs are connected; node_id: the node that
        shows messages, or None.
    """

    node = ""  # display name

    def __init__(self, references: References, positive_wired: bool, negative_wired: bool, node_id: str | None = None):
        self.id = uuid4().hex
        self.references, self.positive_wired, self.negative_wired, self.node_id = (
            references,
            positive_wired,
            negative_wired,
            node_id,
        )

    @property
    def adapter(self) -> HostAdapter:
        """The references' adapter."""
        return cast(HostAdapter, self.references.adapter)  # Load Subject Adapter of this host gives no other

    # ---- what subclasses say -----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def patcher(self) -> Any:
        """The adapter's modules that sample with the MODEL, under the host's memory management."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Name under which they are attached to the MODEL."""

    @property
    @abstractmethod
    def in_crops(self) -> str:
        """The widget of that name, one of `binding.settings.IN_CROPS`."""

    @abstractmethod
    def located(self, now: Any) -> bool:
        """Return whether a subject that acts in this call is limited by a region or box. now: what `strengths` gave."""

    @abstractmethod
    def strengths(self, run: Run, model_sampling: Any, sigma: torch.Tensor) -> Any | None:
        """Return the strengths in this call, or None if nothing acts."""

    @abstractmethod
    def bind(
        self, call: Call, chunks: list[ConditioningChunk | None], model: Any, x: torch.Tensor, options: Options
    ) -> Options:
        """Return a copy of the options with what acts in this model call. chunks: of the rows of x, in order."""

    # ---- the three moments -------------------------------------------------------------------------------------------

    def attach(self, model: Any) -> None:
        """Put the wrappers and the adapter's memory on a clone of the MODEL (a host ModelPatcher)."""
        PromptSwitch().attach(model)  # before ours, which then see the entries of the present phase
        for kind, wrapper in (
            (WrappersMP.OUTER_SAMPLE, self.outer_sample),
            (WrappersMP.CALC_COND_BATCH, self.calc_cond_batch),
            (WrappersMP.APPLY_MODEL, self.apply_model),
        ):
            model.add_wrapper_with_key(kind, f"{KEY}.{self.id}", wrapper)
        model.set_additional_models(self.key, [self.patcher])
        model.model_options["transformer_options"][APPLY_IDS] = known_ids(model.model_options) + (self.id,)

    def outer_sample(
        self,
        executor: Any,
        noise: torch.Tensor,
        latent_image: Any,
        sampler: Any,
        sigmas: torch.Tensor,
        denoise_mask: Any = None,
        callback: Callable | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Begin and end a run."""
        guider = executor.class_obj
        run = self._new_run(Lists.of(guider), sigmas, sampler)
        options = guider.model_options["transformer_options"]
        options[KEY] = {**options.get(KEY, {}), self.id: run}
        try:
            self._warn_without_weights(run, guider.model_patcher)
            refining = run.clock.first_sigma() < float(
                guider.model_patcher.get_model_object("model_sampling").percent_to_sigma(REFINING)
            )
            run.part = self._part(noise, latent_image, refining)
            run.from_noise = not refining and run.clock.direction < 0
            if not refining:
                self._warn_about_size(run, noise)
            found = executor(
                noise, latent_image, sampler, sigmas, denoise_mask, run.clock.wrap(callback), *args, **kwargs
            )
            if not run.acted and not run.explained and self.positive_wired:
                if run.due:
                    run.say(
                        f"connect 'positive' of {self.node} to the sampler: without it the node had no "
                        "effect in this run.",
                        logging.WARNING,
                    )
                else:  # as in the second of two samplers, after the layout is made
                    run.say(
                        f"{self.node} had no effect in this run: none of the steps is in the range of the "
                        "node or of a subject."
                    )
            return found
        finally:
            run.end()

    def calc_cond_batch(
        self,
        executor: Any,
        model: Any,
        conds: Sequence[Sequence[dict] | None],
        x_in: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict,
    ) -> Any:
        """Decide which entries take part in this prediction and how strong each subject is now."""
        options = dict(model_options.get("transformer_options", {}))
        own = dict(options.get(KEY, {}))
        state = own.pop(self.id, None)
        run = state.run if isinstance(state, Call) else state or self._new_run(Lists(), None, None)
        tell_overlaps(run)
        now = self.strengths(run, model.model_sampling, timestep)
        waiting = self._waiting(conds)
        if now is not None:
            run.due = run.due or not waiting
        if now is not None and run.part and self.located(now):
            if with_subjects(list(run.roles.table(conds).values())):
                run.explain(run.part, again=first_time((self.id, run.part)))
        elif now is not None:
            table = {row: chunk for row, chunk in run.roles.table(conds).items() if row not in waiting}
            own[self.id] = Call(
                run,
                table,
                now,
                x_in.shape[0],
                (x_in.shape[-2], x_in.shape[-1]),
                model_options.get("model_function_wrapper"),
                texts_of(conds),
            )
        options[KEY] = own
        for lost in foreign_ids(conds, set(known_ids(model_options))):
            remedy = "connect 'model' and 'positive' of the same Apply node to the sampler"
            sentence = (
                f"{remedy}: a prompt has references of an Apply node ({lost[:6]}) whose 'model' output is not "
                "sampled, so they have no effect."
            )
            run.say(sentence, logging.WARNING)
        return executor(model, conds, x_in, timestep, {**model_options, "transformer_options": options})

    def apply_model(
        self,
        executor: Any,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Options | None = None,
        **kwargs: Any,
    ) -> Any:
        """Bind what acts in this model call."""
        options = transformer_options or {}
        call = options.get(KEY, {}).get(self.id)
        if isinstance(call, Call):
            chunks = whose(call, options, x, c_crossattn)
            if not chunks:
                sentence = (
                    f"{named([call.around])} splits the batch of a model call, so rows cannot be matched to prompts"
                )
                call.run.explain(f"{sentence}: {self.node} is skipped for them.")
            if any(chunks):
                options = self.bind(
                    call, chunks * tiles_in(x.shape[0], call.pictures * len(chunks)), executor.class_obj, x, options
                )
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    # ---- their parts -------------------------------------------------------------------------------------------------

    def module(self, model: Any) -> Any:
        """Return the adapter's modules, from the patcher that is sampling: right on clones and on other devices."""
        patcher = model.current_patcher
        attached = patcher.get_additional_models_with_key(self.key) if patcher is not None else []
        return (attached[-1] if attached else self.patcher).model

    def _waiting(self, conds: Sequence[Sequence[dict] | None]) -> set[tuple[int, Any]]:
        """Entries whose subjects are not in the prompt yet, for an adapter that acts there too and begins with it, as
        MM-Diff was published.
        """
        if not waits_for_prompt(self.references):
            return set()
        return {
            (index, entry["uuid"])
            for index, entries in enumerate(conds)
            for entry in entries or ()
            if entry.get(PHASE, (None, AFTER))[1] is BEFORE
        }

    def _new_run(self, lists: Lists, sigmas: torch.Tensor | None, sampler: Any) -> Run:
        return Run(
            Clock(sigmas, sampler), Roles(self.id, self.positive_wired, self.negative_wired, lists), self.node_id
        )

    def _warn_without_weights(self, run: Run, model: Any) -> None:
        """Say so where the adapter was trained with weights in the UNet that are not on the MODEL, at any point of its
        wire where they were to be put.
        """
        adapter = self.references.adapter
        if (adapter.weights.unet or adapter.weights.unet_lora) and adapter.id not in weights_of(model):
            sentence = (
                f"add Apply Adapter Weights to the MODEL wire: {adapter.spec.file} needs its own model "
                "weights, which this MODEL does not have."
            )
            run.say(f"{sentence} Without them the subjects are hardly recognisable.", logging.WARNING)

    def _part(self, noise: torch.Tensor, latent_image: torch.Tensor, refining: bool) -> str:
        """Why regions and boxes would be stretched over a part of the picture in this run, '' if they are not.

        A part is known by the graph. Where no graph is known, as in a script, every run that keeps the layout of a
        picture is taken for one.
        """
        how = self.in_crops
        if how == "apply" or all(s.region is None and s.box is None for s in self.references.subjects):
            return ""
        graph, node = executing()
        if part := samples_a_part(graph, node):
            because = f"{part} samples a part of the picture"
        elif how == "skip" and _begins_from_a_picture(noise, latent_image):
            because = "this is an img2img run, and 'in_crops' is 'skip'"
        elif refining and graph is None and _begins_from_a_picture(noise, latent_image):
            because = (
                "this img2img run may sample a part of a larger picture, which cannot be checked without a workflow"
            )
        else:
            return ""
        remedy = "Set 'in_crops' to 'apply' if you drew them for exactly this part."
        return (
            f"{because}: regions and boxes of {self.node} cannot be mapped to it, so {self.node} is skipped in "
            f"this run. {remedy}"
        )

    def _warn_about_size(self, run: Run, noise: torch.Tensor) -> None:
        spec = self.references.adapter.spec
        base, (h, w) = BASES.get(spec.context_dim), (PIXELS_PER_CELL * side for side in noise.shape[-2:])
        if base and not 0.5 <= (w * h) / base.side**2 <= 3.0:
            sentence = f"Generate near {base.side}x{base.side}, which {spec.base} was made for, and upscale afterwards"
            run.say(f"{sentence}: at {w}x{h} subjects are often missing or doubled.", logging.WARNING)


def spans_of_run(run: Run, model_sampling: Any, sigma: torch.Tensor) -> Inside:
    """Return what tells which spans of the run a call with this sigma [rows] lies in; a run asks for the same spans at
    each of its calls.
    """

    def inside(spans: Sequence[Span]) -> list[bool]:
        return run.clock.inside(
            run.once(("ranges",), lambda: [sigma_range(model_sampling, *span) for span in spans]), sigma
        )

    return inside


def _begins_from_a_picture(noise: torch.Tensor, latent_image: torch.Tensor) -> bool:
    """Whether a run begins from a picture and noise: not from an empty latent, nor from one that another sampler has
    begun, to which no noise is added.
    """
    return bool(latent_image.any()) and bool(noise.any())


def model_dtype(model: Any) -> torch.dtype:
    """Return the dtype in which the host's model computes."""
    return model.manual_cast_dtype or model.get_dtype()


def known_ids(model_options: dict) -> tuple[str, ...]:
    """Return the ids of the Apply nodes whose wrappers are on the model."""
    return tuple(model_options.get("transformer_options", {}).get(APPLY_IDS, ()))
