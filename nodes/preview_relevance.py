from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..model_patches.hosts.comfyui.messages import Messages
from ..model_patches.hosts.comfyui.sampling.record import RelevanceRecord
from ..model_patches.relevance.maps import findings, report
from ..model_patches.relevance.pictures import draw_maps
from .types import CATEGORY, RecordType, found_by


class PreviewRelevance(io.ComfyNode):
    """A node that shows recorded relevance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupePreviewRelevance",
            display_name="Preview Relevance",
            **found_by("attention map", "heatmap", "mask"),
            category=CATEGORY,
            description="Shows which part of the picture each subject affected: a map for each subject, and a "
            "report with numbers.",
            inputs=[
                RecordType.Input("record", tooltip="From Record Relevance."),
                io.Latent.Input(
                    "latent",
                    tooltip="The latent from the sampler that used that Record Relevance, so that this node runs "
                    "after it.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The decoded picture. If connected, the maps are also shown over it.",
                ),
            ],
            outputs=[
                io.Image.Output("maps_out", display_name="maps", tooltip="One picture with a row for each subject."),
                io.String.Output(
                    "report_out",
                    display_name="report",
                    tooltip="The subjects' shares of the picture, their overlaps, and warnings.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, record: RelevanceRecord, latent: Any, image: Any = None) -> io.NodeOutput:
        run, samples = record.run, latent["samples"]
        maps, text, messages = (
            draw_maps(run, (samples.shape[-2], samples.shape[-1]), image),
            report(run, samples),
            Messages(),
        )
        for line in (line for paragraph in findings(run, samples) for line in paragraph):
            (messages.warn if line.warning else messages.done)(line.text)
        return io.NodeOutput(
            maps,
            text,
            ui={**ui.PreviewImage(maps, cls=cls).as_dict(), **ui.PreviewText(text).as_dict(), **messages.ui()},
        )
