"""Nodes that tools/run.py links into its own server for a run, beside the pack: a report of the references, and stand-ins for encoders whose files cannot be small."""
from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import comfy.clip_vision
import comfy.sd
import comfy.supported_models
import folder_paths
from comfy_api.latest import ComfyExtension, io

sys.path.append(os.environ["TROUPE_TOOLS"])

import random_models  # noqa: E402
import report  # noqa: E402

CATEGORY = "Troupe/tools"
CHECKPOINT = os.environ.get("TROUPE_RANDOM_CHECKPOINT")  # a file to be made before the host lists its folders
if CHECKPOINT:
    random_models.write_host_checkpoint(Path(CHECKPOINT), os.environ["TROUPE_RANDOM_BASE"])


class Report(io.ComfyNode):
    """Writes the references as the encoder saw them and what can be told of them into the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Custom("TROUPE_REFERENCES").Input("references"), io.Int.Input("number", default=1)]
        return io.Schema(node_id="TroupeToolReport", category=CATEGORY, is_output_node=True, inputs=inputs, outputs=[])

    @classmethod
    def execute(cls, references: object, number: int) -> io.NodeOutput:
        folder = Path(folder_paths.get_output_directory()) / f"references_{number}"
        report.save_previews(references, folder)
        (folder / "facts.json").write_text(json.dumps(report.facts_of(references)))
        return io.NodeOutput()


class RandomClip(io.ComfyNode):
    """The host's tokenizer and text encoder classes, three layers deep, with random weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TroupeToolRandomClip", category=CATEGORY, inputs=[io.Combo.Input("base", options=list(random_models.BASES))], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls, base: str) -> io.NodeOutput:
        kind = {"SDXL": comfy.supported_models.SDXL, "SD1.5": comfy.supported_models.SD15}[base]
        small = {f"{name}_model_config": {"num_hidden_layers": 3, "intermediate_size": 64} for name in ("clip_l", "clip_g")}
        clip = comfy.sd.CLIP(kind({"in_channels": 4}).clip_target(), embedding_directory=None, model_options=small, parameters=1)
        random_models.randomise(clip.cond_stage_model, seed=3)
        return io.NodeOutput(clip)


class RandomClipVision(io.ComfyNode):
    """The host's CLIP vision class, three layers deep, with random weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Int.Input("pooled", default=random_models.VISION["projection_dim"])]
        return io.Schema(node_id="TroupeToolRandomClipVision", category=CATEGORY, inputs=inputs, outputs=[io.ClipVision.Output()])

    @classmethod
    def execute(cls, pooled: int) -> io.NodeOutput:
        path = Path(folder_paths.get_temp_directory()) / "random_clip_vision.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        config = {"model_type": "clip_vision_model", "torch_dtype": "float32", "attention_dropout": 0.0, "dropout": 0.0, "num_channels": 3}
        path.write_text(json.dumps({**config, **random_models.VISION, "projection_dim": pooled}))
        vision = comfy.clip_vision.ClipVisionModel(str(path))
        random_models.randomise(vision.model, seed=4)
        return io.NodeOutput(vision)


class HelperPack(ComfyExtension):
    """The helper, as the host sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Report, RandomClip, RandomClipVision]


async def comfy_entrypoint() -> HelperPack:
    """The host's way in."""
    return HelperPack()
