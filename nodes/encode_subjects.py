from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.encoders.framing import FRAMINGS
from ..model_patches.hosts.comfyui.apply import encode_references
from ..model_patches.hosts.comfyui.notice import notifier
from .types import CATEGORY, Adapter, CastType, ReferencesType


class EncodeSubjects(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeEncodeSubjects",
            display_name="Encode Subject References",
            category=CATEGORY,
            description="Turns the photos and names of a cast into what the adapter attends to. Runs once; sampling again with another seed does not repeat it.",
            inputs=[
                Adapter.Input("adapter", tooltip="From Load Subject Adapter."),
                CastType.Input("cast", tooltip="From the last Add Subject (or Place Subjects)."),
                io.Combo.Input("framing", options=["auto", *FRAMINGS], default="auto", tooltip=(
                    "How a photo becomes a square. auto: as the adapter was published (white borders for IP-Adapter and MIP-Adapter, the middle square for GLIGEN). "
                    "pad: white borders, nothing is lost. center: crops the ends. stretch: distorts."
                )),
                io.Clip.Input("clip", optional=True, tooltip=(
                    "The CLIP of the checkpoint, for the subjects' names: relevance and GLIGEN's phrases need it. "
                    "Without it use merge uniform, joint or add, or a GLIGEN text-image file."
                )),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="Overrides the CLIP vision encoder that was found for the adapter."),
                io.String.Input("prompt", optional=True, force_input=True, tooltip="The prompt's text, to warn about names that are not in it."),
            ],
            outputs=[ReferencesType.Output("references_out", display_name="references", tooltip=(
                "Wire into Apply Image Attention, or into Apply Gated Adapter for GLIGEN and Subject-Diffusion."
            ))],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, adapter: Any, cast: Any, framing: str, clip: Any = None, clip_vision: Any = None, prompt: str | None = None) -> io.NodeOutput:
        return io.NodeOutput(encode_references(adapter, cast, framing, clip, clip_vision, [prompt] if prompt else [], notifier(cls.hidden.unique_id)))
