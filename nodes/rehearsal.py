from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.hosts.comfyui.loading import rehearsal
from ..rehearsal.files import OFFERED
from ..rehearsal.sprites import CLASSES
from .types import CATEGORY, Adapter, found_by

SHOWN = ("cat", "robot", "bird")


class LoadRehearsalModels(io.ComfyNode):
    """A node that loads the small models that come with Troupe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeRehearsal",
            display_name="Load Rehearsal Models",
            **found_by("start here", "example", "demo", "tutorial", "test model"),
            category=CATEGORY,
            description=(
                "Loads the small models that come with Troupe: no download, a picture in seconds on a CPU. "
                "They only know a drawn world of ten classes "
                "at 128x128 pixels. Use them to try the nodes and settings. Real photos need a real "
                "checkpoint and adapter."
            ),
            inputs=[
                io.Combo.Input(
                    "adapter",
                    options=list(OFFERED),
                    default="mip_adapter",
                    tooltip=(
                        "Which adapter to load. mip_adapter: trained on pictures of several subjects, with "
                        "relevance (MIP-Adapter). ip_adapter: trained on one "
                        "reference at a time, like most published IP-Adapters. fastcomposer, umm_diffusion, "
                        "subject_diffusion and mm_diff put the subjects into the prompt: see the templates "
                        "research_*_rehearsal."
                    ),
                ),
                *(
                    io.Combo.Input(
                        f"subject_{n}",
                        options=list(CLASSES),
                        default=kind,
                        tooltip=(
                            f"What the reference picture 'image_{n}' shows. Use the same word as name in "
                            "Add Subject and in the prompt. Choosing a class twice "
                            "gives two different individuals."
                        ),
                    )
                    for n, kind in enumerate(SHOWN, 1)
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model_out",
                    display_name="model",
                    tooltip="Use it at 128x128 pixels with 20 steps, sampler euler, scheduler 'simple' and cfg 5.",
                ),
                io.Clip.Output(
                    "clip_out",
                    display_name="clip",
                    tooltip="The text encoder. It only knows the words of its drawn world and ignores all others.",
                ),
                io.Vae.Output("vae_out", display_name="vae", tooltip="For VAE Decode and VAE Encode."),
                io.ClipVision.Output(
                    "clip_vision_out",
                    display_name="clip_vision",
                    tooltip=(
                        "The image encoder. Encode Subject References and Quick Subjects find it "
                        "automatically for the rehearsal adapters."
                    ),
                ),
                Adapter.Output("adapter_out", display_name="adapter", tooltip="Connect to Encode Subject References."),
                *(
                    io.Image.Output(
                        f"image_{n}_out",
                        display_name=f"image_{n}",
                        tooltip=(
                            f"The reference picture of subject_{n}, for Add Subject. No adapter was trained "
                            "on this individual."
                        ),
                    )
                    for n in range(1, len(SHOWN) + 1)
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str, **subjects: str) -> str:
        return rehearsal.rehearsal_fingerprint(OFFERED[adapter])

    @classmethod
    def execute(cls, adapter: str, **subjects: str) -> io.NodeOutput:
        models: Any = rehearsal.load_host_models(OFFERED[adapter])
        return io.NodeOutput(*models, *rehearsal.reference_pictures(list(subjects.values())))
