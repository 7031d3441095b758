from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io, ui

from ..model_patches.bases import PIXELS_PER_CELL
from ..model_patches.hosts.comfyui.messages import Messages
from ..model_patches.placement.boxes import fault_in
from ..model_patches.placement.layouts import LAYOUTS
from ..model_patches.placement.placing import boxes_of, empty_latent, place_subjects
from ..model_patches.placement.preview import draw_cast
from ..model_patches.subjects import Cast
from .types import CATEGORY, CastType, found_by

BOX_TYPES = [io.Custom(name) for name in ("BOUNDING_BOX", "BOUNDING_BOXES", "BBOX", "SEGS")]


class PlaceSubjects(io.ComfyNode):
    """A node that gives each subject of a cast a box."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupePlaceSubjects",
            display_name="Place Subjects",
            **found_by("region", "regional", "box", "bbox", "bounding box", "mask", "layout", "gligen"),
            category=CATEGORY,
            description=(
                "Gives each subject a box in the picture: drawn by you, from a detector, or from a layout. "
                "Apply Image Attention limits each "
                "subject's photos to its box; Apply Gated Adapter draws the subject there."
            ),
            inputs=[
                CastType.Input("cast", tooltip="From the last Add Subject."),
                io.Int.Input(
                    "width",
                    default=1024,
                    min=64,
                    max=8192,
                    step=PIXELS_PER_CELL,
                    tooltip="Width of the generated picture in pixels. Boxes in pixels refer to it.",
                ),
                io.Int.Input(
                    "height",
                    default=1024,
                    min=64,
                    max=8192,
                    step=PIXELS_PER_CELL,
                    tooltip="Height of the generated picture in pixels.",
                ),
                io.String.Input(
                    "boxes",
                    default="[]",
                    multiline=True,
                    tooltip=(
                        "One box for each subject, in the order of the cast: x, y, w, h as fractions of the "
                        "picture (0 to 1), from the top left corner. "
                        "null: no box for this subject. The editor writes this text; the help page has an example."
                    ),
                ),
                io.Combo.Input(
                    "layout",
                    options=list(LAYOUTS),
                    default="none",
                    tooltip=(
                        "Boxes for the subjects without one. none: no boxes. row: side by side. column: one "
                        "below the other. "
                        "grid: rows and columns. thirds: left, right and middle third."
                    ),
                ),
                io.MultiType.Input(
                    "bounding_boxes",
                    types=BOX_TYPES,
                    optional=True,
                    extra_dict={"forceInput": True},
                    tooltip=(
                        "Boxes from another node, in pixels, for subjects without one in 'boxes'. A box "
                        "whose label is a subject's name goes to that subject, "
                        "the others in order."
                    ),
                ),
                io.Image.Input(
                    "background",
                    optional=True,
                    tooltip="A picture behind the boxes in the preview, stretched to width and height. Has no other "
                    "effect.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The latent that will be sampled. Its size is used instead of width and height.",
                ),
            ],
            outputs=[
                CastType.Output(
                    "cast_out",
                    display_name="cast",
                    tooltip="The cast with its boxes. Connect to Encode Subject References.",
                ),
                io.String.Output(
                    "boxes_out",
                    display_name="boxes",
                    tooltip="The boxes as text, for 'boxes' of another Place Subjects.",
                ),
                io.Image.Output(
                    "preview_out", display_name="preview", tooltip="The boxes with the subjects' numbers and names."
                ),
                io.Latent.Output(
                    "latent_out",
                    display_name="latent",
                    tooltip="An empty latent of this size for the sampler, or the connected latent.",
                ),
                io.Int.Output("width_out", display_name="width", tooltip="For Empty Latent Image."),
                io.Int.Output("height_out", display_name="height", tooltip="For Empty Latent Image."),
            ],
        )

    @classmethod
    def validate_inputs(cls, boxes: str | None = None) -> bool | str:
        return (boxes is not None and fault_in(boxes)) or True

    @classmethod
    def execute(
        cls,
        cast: Cast,
        width: int,
        height: int,
        boxes: str,
        layout: str,
        bounding_boxes: Any = None,
        background: Any = None,
        latent: Any = None,
    ) -> io.NodeOutput:
        messages = Messages()
        placed, preview, width, height = place_subjects(
            cast, width, height, boxes, layout, bounding_boxes, background, latent, messages.warn
        )
        found = (
            placed,
            json.dumps(boxes_of(placed)),
            preview,
            empty_latent(width, height) if latent is None else latent,
            width,
            height,
        )
        return io.NodeOutput(
            *found, ui={**EditorPreview(placed, preview, width, height, background, cls).as_dict(), **messages.ui()}
        )


class EditorPreview(ui.PreviewImage):
    """The preview, and what only a run can tell the box editor: names, boxes, size, and the background without
    boxes.

    cast: with its boxes; preview: IMAGE with the boxes, background: IMAGE without, or None; width, height: in pixels;
        node: the class that shows it.
    """

    def __init__(self, cast: Cast, preview: Any, width: int, height: int, background: Any, node: type[io.ComfyNode]):
        super().__init__(preview, cls=node)
        self.places = {"names": [s.name for s in cast.subjects], "boxes": boxes_of(cast), "size": [width, height]}
        if background is not None:
            self.places["background"] = dict(
                ui.PreviewImage(draw_cast(Cast(), width, height, background), cls=node).values[0]
            )

    def as_dict(self) -> dict[str, Any]:
        # a string: newer hosts count dictionaries as pictures of the job
        return {**super().as_dict(), "troupe_places": [json.dumps(self.places)]}
