from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.hosts.comfyui.loading.adapters import HostAdapter
from ..model_patches.hosts.comfyui.messages import Messages
from ..model_patches.hosts.comfyui.sampling.weights import apply_weights
from .graph import unless_wired
from .types import CATEGORY, Adapter, found_by


class ApplyAdapterWeights(io.ComfyNode):
    """A node that adds an adapter's weights to a MODEL and a CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeApplyWeights",
            display_name="Apply Adapter Weights",
            **found_by("lora", "adapter lora"),
            category=CATEGORY,
            description=(
                "Some adapters include weights for the model or its text encoder that were trained together "
                "with the adapter. This node applies "
                "them to your checkpoint. LoRAs before or after it keep working. Adapters without such "
                "weights do not need this node."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The checkpoint that the adapter was trained on, from Load Checkpoint."
                ),
                Adapter.Input("adapter", tooltip="From Load Subject Adapter."),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip=(
                        "Strength of the adapter's weights on the model. LoRAs accept any strength; files "
                        "that replace whole weights accept only 1, or 0 to "
                        "leave the model unchanged."
                    ),
                ),
                io.Float.Input(
                    "strength_clip", default=1.0, min=0.0, max=2.0, step=0.05, tooltip="The same for the text encoder."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The checkpoint's CLIP. Encode the prompts with this node's 'clip' output.",
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model"),
                io.Clip.Output("clip_out", display_name="clip"),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, adapter: HostAdapter, strength_model: float, strength_clip: float, clip: Any = None
    ) -> io.NodeOutput:
        messages = Messages()
        model, clip = apply_weights(model, adapter, strength_model, strength_clip, clip, messages.warn, messages.done)
        return io.NodeOutput(model, unless_wired("Apply Adapter Weights", "clip", clip, "CLIP"), ui=messages.ui())
