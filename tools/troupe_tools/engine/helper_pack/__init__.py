"""Nodes that tools/run.py links into its own server for a run, beside the pack: a report of the references, and
placeholders for encoders whose files cannot be small.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import comfy.clip_vision
import comfy.sd
import comfy.supported_models
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io

sys.path.append(os.environ["TROUPE_TOOLS"])

from troupe_tools.engine import random_faces, random_models, report

CATEGORY = "Troupe/tools"
CHECKPOINT = os.environ.get("TROUPE_RANDOM_CHECKPOINT")  # a file to be made before the host lists its folders
if CHECKPOINT:
    random_models.write_host_checkpoint(Path(CHECKPOINT), os.environ["TROUPE_RANDOM_BASE"])


class ReportRun(io.ComfyNode):
    """A node that writes the references as the encoder saw them, and facts about them, into the output folder."""

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
        return io.Schema(
            node_id="TroupeToolRandomClip",
            category=CATEGORY,
            inputs=[io.Combo.Input("base", options=list(random_models.BASES))],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, base: str) -> io.NodeOutput:
        kind = {
            "SDXL": comfy.supported_models.SDXL,
            "SD1.5": comfy.supported_models.SD15,
            "SD2.x": comfy.supported_models.SD20,
        }[base.split(",")[0]]
        small = {
            f"{name}_model_config": {"num_hidden_layers": 3, "intermediate_size": 64}
            for name in ("clip_l", "clip_g", "clip_h")
        }
        clip = comfy.sd.CLIP(
            kind({"in_channels": 4}).clip_target(), embedding_directory=None, model_options=small, parameters=1
        )
        random_models.randomise(clip.cond_stage_model, seed=3)
        return io.NodeOutput(clip)


class RandomClipVision(io.ComfyNode):
    """The host's CLIP vision class, three layers deep, with random weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Int.Input("pooled", default=random_models.VISION["projection_dim"])]
        return io.Schema(
            node_id="TroupeToolRandomClipVision", category=CATEGORY, inputs=inputs, outputs=[io.ClipVision.Output()]
        )

    @classmethod
    def execute(cls, pooled: int) -> io.NodeOutput:
        path = Path(folder_paths.get_temp_directory()) / "random_clip_vision.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        config = {
            "model_type": "clip_vision_model",
            "torch_dtype": "float32",
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "num_channels": 3,
        }
        path.write_text(json.dumps({**config, **random_models.VISION, "projection_dim": pooled}))
        vision = comfy.clip_vision.ClipVisionModel(str(path))
        random_models.randomise(vision.model, seed=4)
        return io.NodeOutput(vision)


class RandomFaces(io.ComfyNode):
    """In the place of Prepare Faces, for runs without a face analyser: a random vector and the middle of the photo for
    each face.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Image.Input("image"), *(io.Image.Input(f"image_{n}", optional=True) for n in (2, 3, 4))]
        return io.Schema(
            node_id="TroupeToolRandomFaces",
            category=CATEGORY,
            inputs=inputs,
            outputs=[io.Custom("TROUPE_FACES").Output()],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        image_2: torch.Tensor | None = None,
        image_3: torch.Tensor | None = None,
        image_4: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        photos = [photo for batch in (image, image_2, image_3, image_4) if batch is not None for photo in batch]
        crops = torch.stack([random_faces.face_square(photo[..., :3]) for photo in photos])
        return io.NodeOutput(SimpleNamespace(vectors=random_faces.random_vectors(len(photos), 1), crops=crops))


class HelperPack(ComfyExtension):
    """The helper, as the host sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ReportRun, RandomClip, RandomClipVision, RandomFaces]


async def comfy_entrypoint() -> HelperPack:
    """Return the host's way in."""
    return HelperPack()
