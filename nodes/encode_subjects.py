from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.encoding.framing import FRAMINGS
from ..model_patches.encoding.summary import summary
from ..model_patches.hosts.comfyui.apply import encode_references
from ..model_patches.hosts.comfyui.loading.adapters import HostAdapter
from ..model_patches.hosts.comfyui.messages import Messages
from ..model_patches.subjects import Cast
from .types import CATEGORY, FOLDED, Adapter, CastType, ReferencesType, found_by


class EncodeSubjects(io.ComfyNode):
    """A node that encodes a cast as references."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeEncodeSubjects",
            display_name="Encode Subject References",
            **found_by("ip adapter", "ipadapter", "ipadapter encoder", "reference"),
            category=CATEGORY,
            description="Encodes the photos and names of a cast for the adapter. Runs once; a new seed or weight "
            "does not repeat it.",
            inputs=[
                Adapter.Input("adapter", tooltip="From Load Subject Adapter."),
                CastType.Input("cast", tooltip="From the last Add Subject, or from Place Subjects."),
                io.Combo.Input(
                    "framing",
                    options=["auto", *FRAMINGS],
                    default="auto",
                    **FOLDED,
                    tooltip=(
                        "How a photo is made square. auto: as in the adapter's published code (white "
                        "borders for IP-Adapter and MIP-Adapter, black borders for MM-Diff and "
                        "FastComposer, the center square for GLIGEN). pad: white borders, nothing is "
                        "cropped. center: crop to the center square. "
                        "stretch: the whole photo, distorted."
                    ),
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "The CLIP of the checkpoint, for the subjects' names. Relevance and GLIGEN's text "
                        "boxes need it. "
                        "Without it, use merge uniform, joint or add, or a GLIGEN text-image file."
                    ),
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Overrides the CLIP vision encoder that was found for the adapter.",
                ),
                io.String.Input(
                    "prompt",
                    optional=True,
                    force_input=True,
                    tooltip="The text of the prompt. Only used to warn about names that are not in it.",
                ),
            ],
            outputs=[
                ReferencesType.Output(
                    "references_out",
                    display_name="references",
                    tooltip=(
                        "Connect to Apply Image Attention; for GLIGEN and Subject-Diffusion to Apply Gated "
                        "Adapter; for adapters that work in the prompt to Encode Prompt with Subjects."
                    ),
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        adapter: HostAdapter,
        cast: Cast,
        framing: str,
        clip: Any = None,
        clip_vision: Any = None,
        prompt: str | None = None,
    ) -> io.NodeOutput:
        messages = Messages()
        references = encode_references(
            adapter, cast, framing, clip, clip_vision, [prompt] if prompt else [], messages.warn
        )
        messages.done(summary(references))
        return io.NodeOutput(references, ui=messages.ui())
