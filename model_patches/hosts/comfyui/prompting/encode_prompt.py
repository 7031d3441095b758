"""The host's CLIP behind `model_patches.prompt.fusion`, and conditioning with subjects in its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import comfy.model_management
import torch

from ....adapter import PromptSpec
from ....bases import BASES
from ....binding.checks import check_kind
from ....prompt.fusion import Encoded, FusedText, Streams, fuse_prompt
from ....prompt.tokens import word_embeddings
from ....subjects import References, called
from ..loading.adapters import HostAdapter
from ..messages import info
from ..sampling.conditioning import Conditioning
from ..sampling.prompt_switch import PROMPT_KEY, FusedPrompt
from ..sampling.weights import weights_of, without_lora

OFFICIAL_QUIRKS = "official"


class HostPromptEncoder:
    """A CLIP of the host with an adapter's fusion modules beside it.

    clip: the CLIP; adapter: has the modules.
    """

    def __init__(self, clip: Any, adapter: HostAdapter):
        self._clip, self._adapter = clip, adapter

    def tokenize(self, text: str) -> Streams:
        """See `fusion.PromptEncoder`."""
        return self._clip.tokenize(text)

    def embed(self, stream: str, tokens: Sequence[Any]) -> torch.Tensor:
        """Return word embeddings [n, d] float32, LoRAs on them included; vectors of an embedding file as they are."""
        self._clip.load_model()
        table = getattr(self._clip.cond_stage_model, f"clip_{stream}").transformer.get_input_embeddings()
        device = self._clip.patcher.load_device
        found = word_embeddings(tokens, lambda ids: table(torch.tensor(ids, device=device), out_dtype=torch.float32))
        return found.to(comfy.model_management.intermediate_device())

    def encode(self, prompts: Sequence[Streams]) -> list[list[Encoded]]:
        """See `fusion.PromptEncoder`; one for each part of the CLIP's own schedule."""
        return [self._encode(streams) for streams in prompts]

    def _encode(self, streams: Streams) -> list[Encoded]:
        found = []
        for states, rest in self._clip.encode_from_tokens_scheduled(streams):
            others = {key: value for key, value in rest.items() if key != "pooled_output"}
            found.append(Encoded(states, rest.get("pooled_output"), others))
        return found

    def fuse(self, stream: str, words: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """See `fusion.PromptEncoder`; on the device of the host's choice, float32."""
        patcher = self._adapter.fusion_patcher
        comfy.model_management.load_models_gpu([patcher])
        device = patcher.load_device
        return patcher.model[stream](words.to(device, torch.float32), vectors.to(device, torch.float32)).to(
            words.device
        )


def encode_prompt(
    clip: Any,
    references: References,
    text: str,
    start_percent: float = 0.0,
    start_step: int = -1,
    quirks: str = "clean",
    places_of: str = "",
    warn: Callable[[str], None] = lambda sentence: None,
    on_model: bool = True,
    done: Callable[[str], None] = info,
) -> tuple[Conditioning, Conditioning]:
    """Return the prompt's conditioning with the subjects in it, and without them.

    The first carries the second, so that the change between them at `start_percent` (ComfyUI's) or `start_step`
    (counted from the run's first step; -1: the percent) happens while it is sampled. quirks: 'clean', or 'official':
    places_of counts, and MM-Diff's second text encoder goes without its LoRA, as in the published pipeline. on_model:
    False if it is known that no weights of an adapter are put on a MODEL. Raises:
        MismatchError: the adapter puts nothing into prompts, or the CLIP is of another base model.
        SubjectError: see `fusion.fuse_prompt`.
    """
    adapter = cast(HostAdapter, references.adapter)  # Load Subject Adapter of this host gives no other
    remedy = f"Encode the prompt with CLIP Text Encode, and wire these references into {adapter.spec.node}."
    check_kind(adapter.spec, PromptSpec, remedy)
    for sentence in _prompt_warnings(references, clip, on_model):
        warn(sentence)
    if quirks == OFFICIAL_QUIRKS:
        clip = without_lora(clip, adapter, "g")
    texts, said = fuse_prompt(
        references, text, HostPromptEncoder(clip, adapter), places_of if quirks == OFFICIAL_QUIRKS else "", warn
    )
    if said:
        done(f"{adapter.spec.file}: {said}.")
    return [_entry(t, start_percent, start_step) for t in texts], [[t.plain.states, _rest(t.plain)] for t in texts]


def _prompt_warnings(references: References, clip: Any, on_model: bool) -> list[str]:
    """A sentence for each thing that is allowed but probably not meant."""
    spec, sentences, own = references.adapter.spec, [], references.adapter.weights
    alone = spec.acts_in_prompt_only  # what acts in the UNet too says so itself, in the run
    missing = {
        "CLIP": bool(own.text or own.text_lora) and references.adapter.id not in weights_of(clip.patcher),
        "MODEL": alone and bool(own.unet or own.unet_lora) and not on_model,
    }
    if references.subjects and any(missing.values()):
        where = " and ".join(name for name, there in missing.items() if there)
        remedy = "Add Apply Adapter Weights after the checkpoint, and use its outputs 'model' and 'clip'"
        sentences.append(
            f"{remedy}: {spec.file} needs its own weights on the {where}. Without them the subjects are hardly "
            "recognisable."
        )
    base = BASES.get(spec.context_dim)
    if references.subjects and base is not None and clip.layer_idx not in (None, base.clip_layer):
        sentence = (
            f"{spec.file} was trained with that layer; with layer {clip.layer_idx} the subjects may not be "
            "recognisable."
        )
        sentences.append(f"Remove CLIP Set Last Layer, or set it to {base.clip_layer}: {sentence}")
    if alone:
        for number, s in enumerate(references.subjects, 1):
            given = {
                "a range of steps": (s.start_percent, s.end_percent) != (0.0, 1.0),
                "a region": s.region is not None,
                "a box": s.box is not None,
            }
            if idle := " and ".join(what for what, there in given.items() if there):
                sentences.append(
                    f"{spec.file} only works in the prompt, from 'fuse_start_percent' on: it ignores {idle} "
                    f"of {called(number, s.name)}."
                )
    return sentences


def _entry(text: FusedText, start_percent: float, start_step: int) -> list[Any]:
    """One conditioning entry of the fused prompt, with what it was made from where there is a change in the run."""
    rest = _rest(text.fused)
    prompt = FusedPrompt(
        text.fused.states, text.plain.states, text.plain.pooled, start_percent, start_step, text.fused.pooled
    )
    return [
        text.fused.states,
        {**rest, PROMPT_KEY: prompt} if prompt.delayed and text.plain is not text.fused else rest,
    ]


def _rest(encoded: Encoded) -> dict[str, Any]:
    return {"pooled_output": encoded.pooled, **encoded.rest}
