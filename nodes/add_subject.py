from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.subjects import Cast, PreparedFaces, make_subject
from .types import CATEGORY, FOLDED, CastType, Faces, found_by, percent


class AddSubject(io.ComfyNode):
    """A node that adds a subject to a cast."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        more = (
            "Another photo of the same subject, in any size. All photos are averaged (MM-Diff takes the word "
            "from the first)."
        )
        return io.Schema(
            node_id="TroupeAddSubject",
            display_name="Add Subject",
            **found_by("reference", "character", "person", "photo", "multi subject", "mask", "region"),
            category=CATEGORY,
            description="One subject: its photos, and its name as in the prompt. For several subjects, chain "
            "several of these nodes through 'cast'.",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The reference photo. A batch means several photos of this ONE subject, not several "
                    "subjects.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip=(
                        "The subject's name, exactly as in the prompt: 'cat', 'red-haired girl'. Two "
                        "subjects need two different names."
                    ),
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    tooltip=(
                        "Weight of this subject, multiplied by the weight of the Apply node. The other "
                        "subjects are not affected."
                    ),
                ),
                percent("start_percent", 0.0, "When this subject starts to apply: 0 is the first step.", **FOLDED),
                percent("end_percent", 1.0, "When this subject stops applying: 1 is the last step.", **FOLDED),
                CastType.Input(
                    "cast",
                    optional=True,
                    tooltip="The subjects before this one. Leave it unconnected for the first subject.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "Mask of the subject in the photo: white is the subject; everything else is "
                        "replaced with white. "
                        "Load Image returns the transparent part of a PNG as white: add Invert Mask."
                    ),
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip=(
                        "Where in the PICTURE this subject's photos may apply: white is allowed. Any size; "
                        "the mask is stretched over the picture. "
                        "A batch of masks: one for each picture of the batch."
                    ),
                ),
                io.Image.Input("same_subject_2", optional=True, tooltip=more),
                io.Image.Input("same_subject_3", optional=True, tooltip=more),
                io.Image.Input("same_subject_4", optional=True, tooltip=more),
                Faces.Input(
                    "faces",
                    optional=True,
                    tooltip=(
                        "From Prepare Faces with the same photos, for adapters that use faces (MM-Diff). "
                        "Not needed for IP-Adapter and MIP-Adapter."
                    ),
                ),
            ],
            outputs=[CastType.Output("cast_out", display_name="cast", tooltip="All subjects so far.")],
        )

    @classmethod
    def execute(
        cls,
        image: Any,
        name: str,
        weight: float,
        start_percent: float,
        end_percent: float,
        cast: Cast | None = None,
        mask: Any = None,
        region: Any = None,
        same_subject_2: Any = None,
        same_subject_3: Any = None,
        same_subject_4: Any = None,
        faces: PreparedFaces | None = None,
    ) -> io.NodeOutput:
        cast = cast or Cast()
        images = [image, same_subject_2, same_subject_3, same_subject_4]
        subject = make_subject(
            name,
            images,
            mask,
            region,
            len(cast.subjects) + 1,
            weight=weight,
            start_percent=start_percent,
            end_percent=end_percent,
            faces=faces,
        )
        return io.NodeOutput(cast.add(subject))
