from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.attention.merges import MERGES
from ..model_patches.binding.settings import IN_CROPS, ImageAttentionSettings, mixing_for
from ..model_patches.hosts.comfyui.apply import apply_image_attention
from ..model_patches.hosts.comfyui.messages import Messages
from ..model_patches.subjects import References
from .graph import blocked_unless_wired, needed, warn_about_missing_names, warn_about_wires_past
from .types import CATEGORY, FOLDED, ReferencesType, found_by, percent


class ApplyImageAttention(io.ComfyNode):
    """A node that binds the image attention of references to a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeApplyImageAttention",
            display_name="Apply Image Attention",
            **found_by(
                "ip adapter",
                "ipadapter",
                "ipadapter advanced",
                "consistent character",
                "two characters",
                "multiple characters",
                "regional",
                "mask",
                "reference",
            ),
            category=CATEGORY,
            description=(
                "Makes the subjects look like their photos. Each photo only affects the part of the picture "
                "that its subject's name describes (MIP-Adapter). "
                "Connect it between the checkpoint and any sampler. Without 'positive', the references "
                "apply to the sampler's positive prompt."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An SD1.5, SD2.x or SDXL model. Works with LoRAs and other patches, before or after "
                    "this node.",
                ),
                io.Conditioning.Input("positive", optional=True, tooltip="The prompt with the subjects in it."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip=(
                        "The negative prompt. It gets the adapter's empty tokens, as in the published code, "
                        "whether connected or not."
                    ),
                ),
                io.Conditioning.Input(
                    "middle",
                    optional=True,
                    display_name="second positive",
                    tooltip="A second prompt with the subjects in it, for guiders that take two.",
                ),
                ReferencesType.Input("references", optional=True, tooltip="From Encode Subject References."),
                io.Float.Input(
                    "weight",
                    default=0.65,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip=(
                        "How closely all subjects follow their photos. Use 0.5 to 0.65 for several "
                        "subjects; higher values also copy pose and "
                        "lighting. 0 disables the node."
                    ),
                ),
                io.Combo.Input(
                    "merge",
                    options=["auto", *MERGES],
                    default="auto",
                    tooltip=(
                        "How the picture is divided among the subjects. relevance: each subject where its "
                        "name is relevant (MIP-Adapter's published code). "
                        "paper: the formula in the paper. uniform: equal shares. joint: all photos as one "
                        "reference. add: every subject acts on the whole picture "
                        "at full strength, like stacked IPAdapter nodes. auto: joint for MM-Diff, relevance "
                        "for all others."
                    ),
                ),
                percent("start_percent", 0.0, "When the references start to apply: 0 is the first step.", **FOLDED),
                percent(
                    "end_percent",
                    1.0,
                    "When the references stop applying: 1 is the last step. At 0.6 to 0.8 the prompt has "
                    "more influence on details.",
                ),
                io.Float.Input(
                    "box_strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    **FOLDED,
                    tooltip=(
                        "How strictly a subject stays in its box. 1: strictly; 0: boxes are ignored. No "
                        "effect without boxes."
                    ),
                ),
                percent(
                    "box_end_percent",
                    1.0,
                    "When the boxes stop limiting the subjects. After that, only relevance applies.",
                    **FOLDED,
                ),
                io.Float.Input(
                    "box_feather",
                    default=0.05,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    **FOLDED,
                    tooltip="Width of the soft edge of a box, as a fraction of the picture's side.",
                ),
                io.Float.Input(
                    "sharpness",
                    default=1.0,
                    min=0.25,
                    max=8.0,
                    step=0.05,
                    tooltip=(
                        "Exponent of the relevance. 1 as in the published code; higher values divide the picture more "
                        "strictly."
                    ),
                ),
                io.Float.Input(
                    "background",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    **FOLDED,
                    tooltip=(
                        "Strength of the references where no subject is relevant. 1 as in the published "
                        "code; lower values keep the photos out "
                        "of the background. Needs names; no effect with merge uniform."
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
        weight: float,
        merge: str,
        start_percent: float,
        end_percent: float,
        box_strength: float,
        box_end_percent: float,
        box_feather: float,
        sharpness: float,
        background: float,
        in_crops: str = IN_CROPS[0],
        positive: Any = None,
        negative: Any = None,
        middle: Any = None,
        references: References | None = None,
    ) -> io.NodeOutput:
        references = needed(references, "Apply Image Attention", "references", "Encode Subject References")
        messages = Messages()
        warn_about_missing_names(references, cls.hidden, ("positive", "middle"), messages.warn)
        warn_about_wires_past("Apply Image Attention", cls.hidden, messages.warn)
        mixing = mixing_for(references, merge, sharpness, background)
        settings = ImageAttentionSettings(
            weight, mixing, start_percent, end_percent, box_strength, box_end_percent, box_feather, in_crops
        )
        wired = apply_image_attention(model, references, settings, positive, negative, middle, cls.hidden.unique_id)
        return io.NodeOutput(*blocked_unless_wired("Apply Image Attention", *wired), ui=messages.ui())
