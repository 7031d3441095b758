from __future__ import annotations

from comfy_api.latest import io

from ..model_patches.hosts.comfyui import adapters
from .types import CATEGORY, Adapter, found_by


class LoadAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeLoadAdapter",
            display_name="Load Subject Adapter",
            **found_by("ip adapter", "ipadapter", "mip-adapter", "gligen", "mm-diff", "fastcomposer", "load ipadapter"),
            category=CATEGORY,
            description=(
                "Loads an IP-Adapter or MIP-Adapter file for SD1.5, SD2.x or SDXL (Illustrious and NoobAI too), a GLIGEN file for boxes, Subject-Diffusion's, or one that puts "
                "subjects into the prompt: MM-Diff, FastComposer, UMM-Diffusion. The kind of file is read from its tensors, so its name does not matter. The matching CLIP vision "
                "encoder, and files that belong to the chosen one, are found by themselves."
            ),
            inputs=[
                io.Combo.Input("adapter_name", options=adapters.adapter_names(), tooltip=(
                    "A file in models/ipadapter, models/gligen or models/subject_adapters; of files that belong together, any. "
                    "Good start for SDXL: ip-adapter-plus_sdxl_vit-h.safetensors."
                )),
                io.Combo.Input("clip_vision_name", options=adapters.clip_vision_names(), default=adapters.AUTO, tooltip=(
                    "auto: the file in models/clip_vision whose contents fit the adapter, whatever it is called. A published encoder is found under any name too. "
                    "none: you wire a CLIP_VISION into Encode Subject References."
                )),
            ],
            outputs=[Adapter.Output("adapter_out", display_name="adapter", tooltip=(
                "Wire into Encode Subject References, and into Apply Adapter Weights where the adapter brings weights of the model."
            ))],
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
