from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.binding.settings import ImageAttentionSettings, mixing_for
from ..model_patches.hosts.comfyui.apply import apply_image_attention
from ..model_patches.hosts.comfyui.loading import adapters
from ..model_patches.hosts.comfyui.messages import Messages
from ..model_patches.hosts.comfyui.quick import quick_references, with_relevance_shown
from .graph import blocked_unless_wired, needed, warn_about_missing_names, warn_about_wires_past
from .types import CATEGORY, ReferencesType, found_by


class QuickSubjects(io.ComfyNode):
    """A node that makes references of up to four photos."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        photo, name = "Photo of subject {}.", "Name of subject {}, exactly as in the prompt."
        more = [
            field
            for n in (2, 3, 4)
            for field in (
                io.Image.Input(f"image_{n}", optional=True, tooltip=photo.format(n)),
                io.String.Input(f"name_{n}", default="", optional=True, tooltip=name.format(n)),
            )
        ]
        return io.Schema(
            node_id="TroupeQuickSubjects",
            display_name="Quick Subjects",
            **found_by(
                "ip adapter",
                "ipadapter",
                "reference",
                "character",
                "consistent character",
                "two characters",
                "multiple characters",
                "person",
                "photo",
                "multi subject",
            ),
            category=CATEGORY,
            description=(
                "Up to four subjects, each with a photo and a name, in one node between the checkpoint and "
                "the sampler. Combines Load Subject Adapter, "
                "Add Subject, Encode Subject References and Apply Image Attention with their default settings."
            ),
            inputs=[
                io.Model.Input("model", tooltip="An SD1.5, SD2.x or SDXL model."),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip=(
                        "The prompt with the subjects in it. If not connected, the references apply to the "
                        "sampler's positive prompt."
                    ),
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="The negative prompt."),
                io.Clip.Input("clip", optional=True, tooltip="The CLIP of the same checkpoint, for the names."),
                io.Combo.Input(
                    "adapter_name",
                    options=adapters.adapter_names(),
                    tooltip="An IP-Adapter or MIP-Adapter file for this base model.",
                ),
                io.Float.Input(
                    "weight",
                    default=0.65,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip=(
                        "How closely all subjects follow their photos. Use 0.5 to 0.65 for several "
                        "subjects; 0 disables the node."
                    ),
                ),
                io.Image.Input("image_1", optional=True, tooltip=photo.format(1)),
                io.String.Input("name_1", default="", optional=True, tooltip=name.format(1)),
                *more,
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The CLIP vision encoder. If not connected, the file of clip_vision_name is loaded.",
                ),
                io.Combo.Input(
                    "clip_vision_name",
                    options=adapters.clip_vision_names(),
                    default=adapters.AUTO,
                    optional=True,
                    tooltip=(
                        "auto: the file in models/clip_vision that fits the adapter, recognised by its "
                        "contents, under any name. "
                        "The name of a published encoder also finds that encoder under any name."
                    ),
                ),
                io.Boolean.Input(
                    "show_relevance",
                    default=True,
                    optional=True,
                    tooltip=("Shows on this node, after each run, which part of the picture each subject affected."),
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model"),
                io.Conditioning.Output("positive_out", display_name="positive"),
                io.Conditioning.Output("negative_out", display_name="negative"),
                ReferencesType.Output("references_out", display_name="references"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, adapter_name: str | None, clip_vision_name: str | None = adapters.AUTO) -> bool | str:
        return adapters.invalid_names(adapter_name, clip_vision_name) or True

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str, **kwargs: Any) -> str:
        return adapters.fingerprint(adapter_name)

    @classmethod
    def execute(
        cls,
        model: Any,
        adapter_name: str,
        weight: float,
        positive: Any = None,
        negative: Any = None,
        clip: Any = None,
        image_1: Any = None,
        name_1: str = "",
        image_2: Any = None,
        name_2: str = "",
        image_3: Any = None,
        name_3: str = "",
        image_4: Any = None,
        name_4: str = "",
        clip_vision: Any = None,
        clip_vision_name: str = adapters.AUTO,
        show_relevance: bool = True,
    ) -> io.NodeOutput:
        clip = needed(clip, "Quick Subjects", "clip", "the checkpoint")
        image_1 = needed(image_1, "Quick Subjects", "image_1", "Load Image")
        messages = Messages()
        given = ((image_1, name_1), (image_2, name_2), (image_3, name_3), (image_4, name_4))
        references = quick_references(
            clip,
            adapter_name,
            [pair for pair in given if pair[0] is not None],
            clip_vision,
            messages.warn,
            clip_vision_name,
        )
        warn_about_missing_names(references, cls.hidden, ("positive",), messages.warn)
        warn_about_wires_past("Quick Subjects", cls.hidden, messages.warn)
        settings = ImageAttentionSettings(weight, mixing_for(references, "auto"))
        wired = apply_image_attention(model, references, settings, positive, negative, node_id=cls.hidden.unique_id)
        if show_relevance and weight:
            wired = (with_relevance_shown(wired[0], cls.hidden.unique_id), *wired[1:])
        return io.NodeOutput(*blocked_unless_wired("Quick Subjects", *wired)[:3], references, ui=messages.ui())
