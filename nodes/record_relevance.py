from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.hosts.comfyui.record import record_relevance
from ..model_patches.relevance_maps import BLOCKS
from .types import CATEGORY, RecordType, found_by


class RecordRelevance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeRecordRelevance",
            display_name="Record Relevance",
            **found_by("attention map", "heatmap"),
            category=CATEGORY,
            description=(
                "Notes, while this MODEL samples, which part of the picture each subject of Apply Image Attention owns. It changes no pixel. Preview Relevance shows what it "
                "noted."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that goes to the sampler. Before or after Apply Image Attention makes no difference."),
                io.Combo.Input("blocks", options=list(BLOCKS), default=BLOCKS[0], tooltip=(
                    "Which layers are averaged. coarse: those that see the picture in cells of 32 pixels or more, where the layout is made. fine: cells of 8 or 16 pixels, "
                    "where outlines and details are made. all: both."
                )),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model", tooltip="Wire it to the sampler, also through other nodes."),
                RecordType.Output("record_out", display_name="record", tooltip="For Preview Relevance. Filled by the last run of this MODEL."),
            ],
            not_idempotent=True,  # two of these with the same MODEL are two records
        )

    @classmethod
    def execute(cls, model: Any, blocks: str) -> io.NodeOutput:
        return io.NodeOutput(*record_relevance(model, blocks))
