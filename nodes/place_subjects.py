from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io, ui

from ..model_patches.boxes import fault_in
from ..model_patches.hosts.comfyui.notice import Messages
from ..model_patches.layouts import LAYOUTS
from ..model_patches.place_preview import draw_cast
from ..model_patches.placing import boxes_of, empty_latent, place_subjects
from ..model_patches.subjects import Cast
from .types import CATEGORY, CastType, found_by

BOX_TYPES = [io.Custom(name) for name in ("BOUNDING_BOX", "BOUNDING_BOXES", "BBOX", "SEGS")]


class PlaceSubjects(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupePlaceSubjects",
            display_name="Place Subjects",
            **found_by("region", "regional", "box", "bbox", "bounding box", "mask", "layout", "gligen"),
            category=CATEGORY,
            description=(
                "Says where in the picture each subject stands: with boxes you draw, with the boxes of a detector, or with a ready layout. Apply Image Attention keeps each "
                "subject's photos to its box, Apply Gated Adapter draws it there."
            ),
            inputs=[
                CastType.Input("cast", tooltip="From the last Add Subject."),
                io.Int.Input("width", default=1024, min=64, max=8192, step=8, tooltip="Width of the picture to be made, in pixels. Boxes in pixels are measured in it."),
                io.Int.Input("height", default=1024, min=64, max=8192, step=8, tooltip="Height of the picture to be made, in pixels."),
                io.String.Input("boxes", default="[]", multiline=True, tooltip=(
                    "A box for each subject, in the order of the cast, as parts of the picture from its top left corner: x, y, w, h, from 0 to 1. null: this subject has "
                    "none. The editor writes it; the help page shows an example."
                )),
                io.Combo.Input("layout", options=list(LAYOUTS), default="none", tooltip=(
                    "Places for the subjects that have no box. none: they may stand anywhere. row: side by side. column: below each other. grid: rows and columns. thirds: "
                    "left, right and middle third."
                )),
                io.MultiType.Input("bounding_boxes", types=BOX_TYPES, optional=True, extra_dict={"forceInput": True}, tooltip=(
                    "Boxes of another node, in pixels, for the subjects that have none in 'boxes': by label where it is a subject's name, else in order."
                )),
                io.Image.Input("background", optional=True, tooltip="A picture to show the boxes on, stretched to width and height. It changes nothing else."),
                io.Latent.Input("latent", optional=True, tooltip="The latent that will be sampled: its size is taken instead of width and height."),
            ],
            outputs=[
                CastType.Output("cast_out", display_name="cast", tooltip="The cast with its boxes. Wire into Encode Subject References."),
                io.String.Output("boxes_out", display_name="boxes", tooltip="The boxes as text, for 'boxes' of another Place Subjects."),
                io.Image.Output("preview_out", display_name="preview", tooltip="The boxes with the subjects' numbers and names."),
                io.Latent.Output("latent_out", display_name="latent", tooltip="An empty latent of this size, for a sampler; the wired one where there is one."),
                io.Int.Output("width_out", display_name="width", tooltip="For Empty Latent Image."),
                io.Int.Output("height_out", display_name="height", tooltip="For Empty Latent Image."),
            ],
        )

    @classmethod
    def validate_inputs(cls, boxes: str | None = None) -> bool | str:
        return (boxes is not None and fault_in(boxes)) or True

    @classmethod
    def execute(cls, cast: Any, width: int, height: int, boxes: str, layout: str, bounding_boxes: Any = None, background: Any = None, latent: Any = None) -> io.NodeOutput:
        messages = Messages()
        placed, preview, width, height = place_subjects(cast, width, height, boxes, layout, bounding_boxes, background, latent, messages.warn)
        found = (placed, json.dumps(boxes_of(placed)), preview, empty_latent(width, height) if latent is None else latent, width, height)
        return io.NodeOutput(*found, ui={**EditorPreview(placed, preview, width, height, background, cls).as_dict(), **messages.ui()})


class EditorPreview(ui.PreviewImage):
    """The preview, and what only a run can tell the box editor: names, boxes, size, and the background without boxes."""

    def __init__(self, cast: Cast, preview: Any, width: int, height: int, background: Any, node: type[io.ComfyNode]):
        super().__init__(preview, cls=node)
        self.places = {"names": [s.name for s in cast.subjects], "boxes": boxes_of(cast), "size": [width, height]}
        if background is not None:
            self.places["background"] = dict(ui.PreviewImage(draw_cast(Cast(), width, height, background), cls=node).values[0])

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "troupe_places": [json.dumps(self.places)]}  # a string: newer hosts count dictionaries as pictures of the job
