from __future__ import annotations

from comfy_api.latest import io

from ..model_patches.hosts.comfyui.loading import adapters
from .types import CATEGORY, Adapter, found_by


class LoadAdapter(io.ComfyNode):
    """A node that loads a subject adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeLoadAdapter",
            display_name="Load Subject Adapter",
            **found_by("ip adapter", "ipadapter", "mip-adapter", "gligen", "mm-diff", "fastcomposer", "load ipadapter"),
            category=CATEGORY,
            description=(
                "Loads an adapter: IP-Adapter or MIP-Adapter for SD1.5, SD2.x or SDXL (also Illustrious and "
                "NoobAI), GLIGEN for boxes, Subject-Diffusion, "
                "or one that puts subjects into the prompt: MM-Diff, FastComposer, UMM-Diffusion. The file "
                "is recognised by its contents, under any name. "
                "The matching CLIP vision encoder and the other files of a set are found automatically."
            ),
            inputs=[
                io.Combo.Input(
                    "adapter_name",
                    options=adapters.adapter_names(),
                    tooltip=(
                        "A file in models/ipadapter, models/gligen or models/subject_adapters. For a set of "
                        "several files, choose any of them. "
                        "To start with SDXL: ip-adapter-plus_sdxl_vit-h.safetensors."
                    ),
                ),
                io.Combo.Input(
                    "clip_vision_name",
                    options=adapters.clip_vision_names(),
                    default=adapters.AUTO,
                    tooltip=(
                        "auto: the file in models/clip_vision that fits the adapter, recognised by its "
                        "contents, under any name. "
                        "The name of a published encoder also finds that encoder under any name. "
                        "none: connect a CLIP_VISION to Encode Subject References."
                    ),
                ),
            ],
            outputs=[
                Adapter.Output(
                    "adapter_out",
                    display_name="adapter",
                    tooltip=(
                        "Connect to Encode Subject References, and to Apply Adapter Weights if the adapter "
                        "includes weights for the model."
                    ),
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, adapter_name: str | None, clip_vision_name: str | None) -> bool | str:
        return adapters.invalid_names(adapter_name, clip_vision_name) or True

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str | None, clip_vision_name: str | None) -> str:
        return adapters.fingerprint(adapter_name)

    @classmethod
    def execute(cls, adapter_name: str, clip_vision_name: str) -> io.NodeOutput:
        return io.NodeOutput(adapters.load_adapter(adapter_name, clip_vision_name))
