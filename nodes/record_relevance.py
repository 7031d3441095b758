from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.hosts.comfyui.sampling.record import record_relevance
from ..model_patches.relevance.maps import BLOCKS
from .types import CATEGORY, RecordType, found_by


class RecordRelevance(io.ComfyNode):
    """A node that records relevance during sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeRecordRelevance",
            display_name="Record Relevance",
            **found_by("attention map", "heatmap"),
            category=CATEGORY,
            description=(
                "Records during sampling which part of the picture each subject of Apply Image Attention "
                "affects. The picture is unchanged. "
                "Show the record with Preview Relevance."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The MODEL for the sampler. This node can be before or after Apply Image Attention.",
                ),
                io.Combo.Input(
                    "blocks",
                    options=list(BLOCKS),
                    default=BLOCKS[0],
                    tooltip=(
                        "Which layers are averaged. coarse: layers with cells of 32 pixels or more, which "
                        "decide the layout. fine: layers with cells of 8 or 16 pixels, "
                        "which decide outlines and details. all: both."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model_out",
                    display_name="model",
                    tooltip="Connect to the sampler, directly or through other nodes.",
                ),
                RecordType.Output(
                    "record_out",
                    display_name="record",
                    tooltip="For Preview Relevance. Filled by the last run of this MODEL.",
                ),
            ],
            not_idempotent=True,  # two of these with the same MODEL are two records
        )

    @classmethod
    def execute(cls, model: Any, blocks: str) -> io.NodeOutput:
        return io.NodeOutput(*record_relevance(model, blocks))
