from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.hosts.comfyui.messages import Messages
from ..model_patches.hosts.comfyui.prompting.encode_prompt import encode_prompt
from ..model_patches.subjects import References
from .graph import used_from
from .types import CATEGORY, FOLDED, ReferencesType, found_by, percent


class EncodePrompt(io.ComfyNode):
    """A node that encodes a prompt with its subjects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeEncodePrompt",
            display_name="Encode Prompt with Subjects",
            **found_by("character", "mm-diff", "fastcomposer", "person", "identity"),
            category=CATEGORY,
            description=(
                "Encodes a prompt with each subject's photo at the place of its name (MM-Diff, "
                "FastComposer; also UMM-Diffusion and "
                "Subject-Diffusion, whose weights were never published). Replaces CLIP Text Encode for the "
                "positive prompt."
            ),
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The CLIP of the checkpoint. Take it from Apply Adapter Weights if the adapter includes "
                    "weights for the text encoder.",
                ),
                ReferencesType.Input("references", tooltip="From Encode Subject References."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip=(
                        "The prompt, with every subject's name in it. If a name occurs several times, the "
                        "first one is used; to choose another, "
                        "put that word in braces."
                    ),
                ),
                percent(
                    "fuse_start_percent",
                    0.0,
                    "When the subjects enter the prompt: 0 is the first step. Earlier steps use the text "
                    "alone, which keeps its layout.",
                ),
                io.Int.Input(
                    "fuse_start_step",
                    default=-1,
                    min=-1,
                    max=10000,
                    tooltip=(
                        "The same as an exact step: the first one with the subjects, counted from 0. -1: "
                        "use fuse_start_percent."
                    ),
                ),
                io.Combo.Input(
                    "quirks",
                    options=["clean", "official"],
                    default="clean",
                    **FOLDED,
                    tooltip=(
                        "clean: as the papers describe. official: as the published MM-Diff pipeline runs, "
                        "including its mistakes: no LoRA in SDXL's second text "
                        "encoder, and subjects in the negative prompt too (connect the positive's text to "
                        "'places_of' of the negative's node)."
                    ),
                ),
                io.String.Input(
                    "places_of",
                    optional=True,
                    force_input=True,
                    tooltip=(
                        "Only with quirks official, for the negative prompt: the positive's text. The "
                        "subjects go to the same token positions in this text."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning_out",
                    display_name="conditioning",
                    tooltip="The prompt with its subjects, for the sampler's positive.",
                ),
                io.Conditioning.Output(
                    "text_only_out",
                    display_name="text_only",
                    tooltip="The same prompt without the subjects, for guiders that take both.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        references: References,
        text: str,
        fuse_start_percent: float,
        fuse_start_step: int,
        quirks: str,
        places_of: str | None = None,
    ) -> io.NodeOutput:
        messages = Messages()
        on_model = used_from(cls.hidden, "TroupeApplyWeights", 0)
        prompts = encode_prompt(
            clip,
            references,
            text,
            fuse_start_percent,
            fuse_start_step,
            quirks,
            places_of or "",
            messages.warn,
            on_model,
            messages.done,
        )
        return io.NodeOutput(*prompts, ui=messages.ui())
