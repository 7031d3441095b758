from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.binding.settings import IN_CROPS, GatedSettings
from ..model_patches.hosts.comfyui.apply import apply_gated
from ..model_patches.hosts.comfyui.messages import Messages
from ..model_patches.subjects import References
from .graph import blocked_unless_wired, needed, warn_about_wires_past
from .types import CATEGORY, FOLDED, ReferencesType, found_by, percent


class ApplyGated(io.ComfyNode):
    """A node that binds an adapter's gated layers to a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeApplyGated",
            display_name="Apply Gated Adapter",
            **found_by("gligen", "box", "bbox", "regional"),
            category=CATEGORY,
            description=(
                "Draws each subject into its box, with a GLIGEN or Subject-Diffusion file. Connect it "
                "between the checkpoint and any sampler. "
                "Set the boxes with Place Subjects first."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A model of the base that the file was made for (SD1.5 for GLIGEN's own files). Works "
                    "with LoRAs and other patches.",
                ),
                io.Conditioning.Input("positive", tooltip="The prompt with the subjects in it."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip=(
                        "The negative prompt. It gets the file's own null objects, as in the published "
                        "code, whether connected or not."
                    ),
                ),
                io.Conditioning.Input(
                    "middle",
                    optional=True,
                    display_name="second positive",
                    tooltip="A second prompt with the subjects in it, for guiders that take two.",
                ),
                ReferencesType.Input(
                    "references",
                    optional=True,
                    tooltip="From Encode Subject References with a GLIGEN or Subject-Diffusion adapter.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip=(
                        "Strength of boxes and photos. 1 as in the published code; at 0.5 to 0.8 the prompt "
                        "has more influence; 0 disables the node."
                    ),
                ),
                percent(
                    "end_percent",
                    1.0,
                    (
                        "Until when they apply at full strength (GLIGEN's tau). Use 0.3 for text boxes: the "
                        "layout is decided early, and the "
                        "base model paints the rest better. Use 1 for photos."
                    ),
                ),
                percent(
                    "decay_percent", 0.0, "Length of the linear decay to 0 after end_percent. 0: no decay.", **FOLDED
                ),
                io.Combo.Input(
                    "use_bbox",
                    options=["auto", "on", "off"],
                    default="auto",
                    **FOLDED,
                    tooltip=(
                        "Subject-Diffusion only: whether the photo tokens include the box. auto: only with "
                        "several subjects, as in the published code. No effect with GLIGEN files."
                    ),
                ),
                io.Combo.Input(
                    "in_crops",
                    optional=True,
                    options=[*IN_CROPS],
                    default=IN_CROPS[0],
                    **FOLDED,
                    tooltip=(
                        "What to do with regions and boxes when only a part of the picture is sampled "
                        "(detailers, tiled upscalers, "
                        "crop and stitch). auto: skip the node for that part, with a warning. apply: "
                        "stretch them over that part. "
                        "skip: skip the node in every img2img run. No effect without regions and boxes."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model"),
                io.Conditioning.Output("positive_out", display_name="positive"),
                io.Conditioning.Output("negative_out", display_name="negative"),
                io.Conditioning.Output("middle_out", display_name="second positive"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        strength: float,
        end_percent: float,
        decay_percent: float,
        use_bbox: str,
        in_crops: str = IN_CROPS[0],
        negative: Any = None,
        middle: Any = None,
        references: References | None = None,
    ) -> io.NodeOutput:
        references = needed(references, "Apply Gated Adapter", "references", "Encode Subject References")
        messages = Messages()
        warn_about_wires_past("Apply Gated Adapter", cls.hidden, messages.warn)
        settings = GatedSettings(strength, end_percent, decay_percent, use_bbox, in_crops)
        wired = apply_gated(model, references, settings, positive, negative, middle, cls.hidden.unique_id)
        return io.NodeOutput(*blocked_unless_wired("Apply Gated Adapter", *wired), ui=messages.ui())
