from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..model_patches.hosts.comfyui.loading.dino import encoder_names
from ..model_patches.hosts.comfyui.messages import Messages
from ..model_patches.hosts.comfyui.sampling.record import RelevanceRecord
from ..model_patches.hosts.comfyui.scoring import Given, score
from ..model_patches.scores.pictures import draw_matrices
from ..model_patches.scores.report import score_report, to_json
from ..model_patches.subjects import Cast, References
from .types import CATEGORY, CastType, RecordType, ReferencesType, found_by

BOX_TYPES = [io.Custom(name) for name in ("BOUNDING_BOX", "BOUNDING_BOXES", "BBOX")]


class ScoreSubjects(io.ComfyNode):
    """A node that scores each subject of a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeScoreSubjects",
            display_name="Score Subjects",
            **found_by(
                "score", "similarity", "likeness", "evaluate", "rate", "clip score", "dino", "swapped", "compare faces"
            ),
            category=CATEGORY,
            description="Compares each subject in a finished picture with every subject's photos, and says whose looks "
            "it has: right, swapped, mixed, cloned or missing.",
            inputs=[
                io.Image.Input("image", tooltip="The decoded picture, or a batch: each picture gets its own score."),
                io.Combo.Input(
                    "encoder",
                    options=encoder_names(),
                    default="clip_vision",
                    tooltip="What compares the pictures. clip_vision: the connected encoder, or the one that the "
                    "adapter uses. colours: the colours alone, which needs no model. The others are folders in "
                    "models/dino.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Likeness (cosine) from which on a crop shows a subject at all. Below it the subject is "
                    "missing. It depends on the encoder: look at the numbers of a few pictures first.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="The prompt, for CLIP-T: how well the picture fits the text. Needs 'clip' too.",
                ),
                ReferencesType.Input(
                    "references",
                    optional=True,
                    tooltip="From Encode Subject References: the subjects and their photos.",
                ),
                CastType.Input(
                    "cast",
                    optional=True,
                    tooltip="From the last Add Subject or Place Subjects. Its photos are used instead of those of "
                    "'references', in full size.",
                ),
                RecordType.Input(
                    "record",
                    optional=True,
                    tooltip="From Record Relevance of the sampler that made the picture. Each subject is looked for "
                    "where its map is bright.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="An image encoder to compare with, in place of the one that the adapter uses.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For CLIP-T: a CLIP with the text encoder that belongs to the image encoder.",
                ),
                io.MultiType.Input(
                    "bounding_boxes",
                    types=BOX_TYPES,
                    optional=True,
                    extra_dict={"forceInput": True},
                    tooltip="Where the subjects are, in pixels, from a detector. A box whose label is a subject's name "
                    "is that subject's, the others go in order. A subject without a box is missing.",
                ),
                io.Custom("SEGS").Input(
                    "segs",
                    optional=True,
                    tooltip="Segments from a detector, labelled as in 'bounding_boxes'. What is outside of a segment "
                    "is not compared.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="A mask for each subject, in their order, or that for each picture. An empty mask: the "
                    "subject is missing.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "scores_out", display_name="scores", tooltip="All numbers as JSON. Connect to Keep Best."
                ),
                io.Float.Output(
                    "score_out",
                    display_name="score",
                    is_output_list=True,
                    tooltip="A number for each picture, 0 to 1: first how many subjects are right, then how alike.",
                ),
                io.Boolean.Output(
                    "all_right_out",
                    display_name="all_right",
                    is_output_list=True,
                    tooltip="For each picture whether every subject is right.",
                ),
                io.Image.Output(
                    "matrix_out",
                    display_name="matrix",
                    tooltip="For each picture: the crops in rows, the references in columns, and how alike they are.",
                ),
                io.String.Output(
                    "report_out", display_name="report", tooltip="The verdict on each subject, and what to do."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        image: Any,
        encoder: str,
        threshold: float,
        prompt: str,
        references: References | None = None,
        cast: Cast | None = None,
        record: RelevanceRecord | None = None,
        clip_vision: Any = None,
        clip: Any = None,
        bounding_boxes: Any = None,
        segs: Any = None,
        masks: Any = None,
    ) -> io.NodeOutput:
        messages = Messages()
        given = Given(references, cast, record, clip_vision, clip, prompt, bounding_boxes, segs, masks)
        scores, without_clip_t = score(image, given, encoder, threshold, messages.warn)
        lines, matrix = score_report(scores, without_clip_t), draw_matrices(scores)
        for line in lines:
            (messages.warn if line.warning else messages.done)(line.text)
        text = "\n".join(line.text for line in lines)
        return io.NodeOutput(
            to_json(scores),
            [picture.score for picture in scores.pictures],
            [picture.all_right for picture in scores.pictures],
            matrix,
            text,
            ui={**ui.PreviewImage(matrix, cls=cls).as_dict(), **ui.PreviewText(text).as_dict(), **messages.ui()},
        )
