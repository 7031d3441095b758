from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.attention.decoupled import MERGES
from ..model_patches.hosts.comfyui.apply import apply_image_attention
from ..model_patches.hosts.comfyui.notice import Messages
from ..model_patches.settings import IN_CROPS, ImageAttentionSettings, mixing_for
from .graph import blocked_unless_wired, needed, warn_about_missing_names, warn_about_wires_past
from .types import CATEGORY, FOLDED, ReferencesType, found_by, percent


class ApplyImageAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeApplyImageAttention",
            display_name="Apply Image Attention",
            **found_by("ip adapter", "ipadapter", "ipadapter advanced", "consistent character", "two characters", "multiple characters", "regional", "mask", "reference"),
            category=CATEGORY,
            description=(
                "Lets the subjects' photos steer the picture, each where its own name is relevant (MIP-Adapter). Goes between the checkpoint and any sampler. With "
                "'positive' unwired it works on the MODEL wire alone: the references then act on the sampler's positive prompt."
            ),
            inputs=[
                io.Model.Input("model", tooltip="An SD1.5, SD2.x or SDXL model, LoRAs and other patches welcome, before or after."),
                io.Conditioning.Input("positive", optional=True, tooltip="The prompt that has the subjects in it."),
                io.Conditioning.Input("negative", optional=True, tooltip="The negative prompt. It gets the adapter's empty tokens, as published; wired or not."),
                io.Conditioning.Input("middle", optional=True, display_name="second positive", tooltip="A second prompt with the subjects in it, for guiders that take two."),
                ReferencesType.Input("references", optional=True, tooltip="From Encode Subject References."),
                io.Float.Input("weight", default=0.65, min=0.0, max=2.0, step=0.05, tooltip=(
                    "How strongly all subjects look like their photos. 0.5 to 0.65 suits several subjects; higher copies the photo's pose and light too. 0 switches the "
                    "node off."
                )),
                io.Combo.Input("merge", options=["auto", *MERGES], default="auto", tooltip=(
                    "Who gets which part of the picture. relevance: each subject where its name is relevant (MIP-Adapter as published). paper: the formula printed in the paper. "
                    "uniform: equal shares. joint: all photos as one reference. add: everybody everywhere at full strength, as stacked IPAdapter nodes. auto: as the "
                    "adapter was published: joint for MM-Diff, relevance for all others."
                )),
                percent("start_percent", 0.0, "When the references begin to act: 0 is the first step.", **FOLDED),
                percent("end_percent", 1.0, "When they stop: 1 is the last step. Ending at 0.6 to 0.8 gives the prompt more say in details."),
                io.Float.Input("box_strength", default=1.0, min=0.0, max=1.0, step=0.05, **FOLDED, tooltip=(
                    "How strictly a subject keeps to its box. 1 strictly; 0 ignores the boxes. No effect without boxes."
                )),
                percent("box_end_percent", 1.0, "When the boxes stop limiting; relevance alone decides after that.", **FOLDED),
                io.Float.Input("box_feather", default=0.05, min=0.0, max=0.5, step=0.01, **FOLDED, tooltip="Softness of a box's edge, as a part of the picture's side."),
                io.Float.Input("sharpness", default=1.0, min=0.25, max=8.0, step=0.05, tooltip=(
                    "Raises the relevance to this power. 1 as published; 2 to 4 separates similar subjects more clearly."
                )),
                io.Float.Input("background", default=1.0, min=0.0, max=1.0, step=0.05, **FOLDED, tooltip=(
                    "How much the references act where no subject is relevant. 1 as published; lower keeps the photos out of the background. Needs names; no effect with "
                    "merge uniform."
                )),
                io.Combo.Input("in_crops", optional=True, options=[*IN_CROPS], default=IN_CROPS[0], **FOLDED, tooltip=(
                    "What to do with regions and boxes if only a part of the picture is sampled, as by detailers, tiled upscalers or crop and stitch. auto: skip the node there, "
                    "with a warning. apply: stretch them over that part. skip: skip the node in every img2img run. No effect without regions and boxes."
                )),
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
    def execute(cls, model: Any, weight: float, merge: str, start_percent: float, end_percent: float, box_strength: float, box_end_percent: float,
                box_feather: float, sharpness: float, background: float, in_crops: str = IN_CROPS[0], positive: Any = None, negative: Any = None, middle: Any = None,
                references: Any = None) -> io.NodeOutput:
        references = needed(references, "Apply Image Attention", "references", "Encode Subject References")
        messages = Messages()
        warn_about_missing_names(references, cls.hidden, ("positive", "middle"), messages.warn)
        warn_about_wires_past("Apply Image Attention", cls.hidden, messages.warn)
        mixing = mixing_for(references, merge, sharpness, background)
        settings = ImageAttentionSettings(weight, mixing, start_percent, end_percent, box_strength, box_end_percent, box_feather, in_crops)
        wired = apply_image_attention(model, references, settings, positive, negative, middle, cls.hidden.unique_id)
        return io.NodeOutput(*blocked_unless_wired("Apply Image Attention", *wired), ui=messages.ui())
