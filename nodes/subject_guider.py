from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.hosts.comfyui.guider import METHODS, GuidanceSettings, subject_guider
from .types import CATEGORY, found_by, percent


class SubjectGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeSubjectGuider",
            display_name="Subject Guider",
            **found_by("guider", "guidance"),
            category=CATEGORY,
            description=(
                "Guides the picture with two strengths: one for the text, one for the subjects' looks. Method subject_diffusion is as published; umm follows UMM-Diffusion's "
                "paper, which has no published code: the exact formula is our reconstruction. Goes into 'guider' of SamplerCustomAdvanced in place of CFGGuider. A step "
                "costs three predictions where CFGGuider needs two."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model with the subjects on it: from an Apply node. A plain model works too."),
                io.Conditioning.Input("positive", tooltip="The prompt that has the subjects in it."),
                io.Conditioning.Input("negative", tooltip="The negative prompt, from the same Apply node if you wired it there. Leave its text empty if you have none."),
                io.Combo.Input("method", options=list(METHODS), default="subject_diffusion", tooltip=(
                    "How the predictions of a step become one. subject_diffusion: text and subjects each get their own strength, as published with Subject-Diffusion. umm: the "
                    "prompt with its subjects and the prompt without them are mixed."
                )),
                io.Float.Input("cfg", default=7.5, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="How strictly the picture follows the text: the sampler's usual cfg."),
                io.Float.Input("second", default=1.5, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=(
                    "How strongly the subjects' looks are pushed, apart from the text. 1.5 as published; 1 adds no push and saves a prediction; the value of 'cfg' gives "
                    "ordinary guidance. For umm: alpha, the subjects' share, from 0 to 1; try 0.5."
                )),
                io.Float.Input("second_end", default=1.5, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=(
                    "What 'second' has become at end_percent; it changes evenly on the way. The same value as 'second' keeps it constant."
                )),
                percent("start_percent", 0.0, "When the second strength begins: 0 is the first step. Before it, guidance is ordinary."),
                percent("end_percent", 1.0, "When it stops: 1 is the last step. After it, guidance is ordinary and as fast as usual."),
                io.Conditioning.Input("middle", optional=True, tooltip=(
                    "The prompt that shows the subjects alone. Leave it unwired: then it is the negative prompt with the positive's subjects, as published. umm needs it: the "
                    "prompt without its subjects, from Encode Prompt with Subjects."
                )),
            ],
            outputs=[io.Guider.Output("guider_out", display_name="guider", tooltip="Wire into SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model: Any, positive: Any, negative: Any, method: str, cfg: float, second: float, second_end: float, start_percent: float, end_percent: float,
                middle: Any = None) -> io.NodeOutput:
        settings = GuidanceSettings(cfg, second, second_end, start_percent, end_percent)
        return io.NodeOutput(subject_guider(model, positive, negative, middle, method, settings))
