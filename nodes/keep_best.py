from __future__ import annotations

from comfy_api.latest import io

from ..model_patches.hosts.comfyui.messages import Messages
from ..model_patches.scores.choice import keep_best
from .types import CATEGORY, found_by


class KeepBest(io.ComfyNode):
    """A node that keeps the best pictures of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeKeepBest",
            display_name="Keep Best",
            **found_by("best of batch", "pick", "select image", "choose", "filter", "rank", "score"),
            category=CATEGORY,
            description="Keeps the best of several pictures, by the scores of Score Subjects: of a batch, or of a list "
            "of pictures.",
            inputs=[
                io.Image.Input("image", tooltip="The pictures that were scored: a batch, or a list."),
                io.MultiType.Input(
                    "scores",
                    types=[io.String, io.Float],
                    extra_dict={"forceInput": True},
                    tooltip="'scores' of Score Subjects, or a FLOAT for each picture from any node; the largest is the "
                    "best.",
                ),
                io.Int.Input("keep", default=1, min=1, max=64, tooltip="How many pictures to keep, the best first."),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The latents of the pictures. Those of the best are handed on, for a second pass.",
                ),
            ],
            outputs=[
                io.Image.Output("image_out", display_name="image", tooltip="The best pictures, as a batch."),
                io.Latent.Output(
                    "latent_out", display_name="latent", tooltip="Their latents. Nothing where none are connected."
                ),
                io.Int.Output("index_out", display_name="index", tooltip="Number of the best picture, from 0."),
                io.Float.Output("score_out", display_name="score", tooltip="Score of the best picture."),
            ],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, image: list, scores: list, keep: list[int], latent: list | None = None) -> io.NodeOutput:
        messages = Messages()
        kept = keep_best(image, scores, keep[0], latent)
        messages.done(kept.sentence)
        return io.NodeOutput(kept.pictures, kept.latent, kept.indices[0], kept.scores[0], ui=messages.ui())
