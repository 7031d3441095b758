from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.binding.two_strengths import Guidance
from ..model_patches.hosts.comfyui.prompting.guider import METHODS, subject_guider
from .types import CATEGORY, found_by, percent


class SubjectGuider(io.ComfyNode):
    """A node that makes a guider with two strengths."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TroupeSubjectGuider",
            display_name="Two-Strength Guider",
            **found_by("guider", "guidance"),
            category=CATEGORY,
            description=(
                "Guidance with two strengths: one for the text, one for the subjects' looks. Method "
                "subject_diffusion follows the published code; umm follows "
                "UMM-Diffusion's paper, which has no published code, so the exact formula is our "
                "reconstruction. Connect to 'guider' of SamplerCustomAdvanced in place of "
                "CFGGuider. Needs three predictions per step; CFGGuider needs two."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model from an Apply node. A plain model also works."),
                io.Conditioning.Input("positive", tooltip="The prompt with the subjects in it."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="The negative prompt, from the same Apply node if it is connected there. Its text may "
                    "be empty.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="subject_diffusion",
                    tooltip=(
                        "How the predictions of a step are combined. subject_diffusion: separate strengths "
                        "for text and subjects, as in Subject-Diffusion's published code. "
                        "umm: mixes the prompt with its subjects and the prompt without them."
                    ),
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How strictly the picture follows the text: the usual cfg of a sampler.",
                ),
                io.Float.Input(
                    "second",
                    default=1.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip=(
                        "Guidance strength for the subjects' looks. 1.5 as in the published code; 1 adds "
                        "nothing and saves a prediction; the value of 'cfg' "
                        "gives ordinary guidance. For umm: alpha, the subjects' share, from 0 to 1; try 0.5."
                    ),
                ),
                io.Float.Input(
                    "second_end",
                    default=1.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip=(
                        "Value of 'second' at end_percent; interpolated linearly from start_percent. Use "
                        "the same value as 'second' to keep it constant."
                    ),
                ),
                percent(
                    "start_percent",
                    0.0,
                    "When the second strength starts to apply: 0 is the first step. Before that, guidance is ordinary.",
                ),
                percent(
                    "end_percent",
                    1.0,
                    "When the second strength stops applying: 1 is the last step. After that, guidance is "
                    "ordinary, at the usual speed.",
                ),
                io.Conditioning.Input(
                    "middle",
                    optional=True,
                    tooltip=(
                        "Prompt for the subjects alone. If not connected: the negative prompt with the "
                        "positive's subjects, as in the published code. "
                        "umm needs it: the prompt without its subjects, from Encode Prompt with Subjects."
                    ),
                ),
            ],
            outputs=[
                io.Guider.Output("guider_out", display_name="guider", tooltip="Connect to SamplerCustomAdvanced.")
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        method: str,
        cfg: float,
        second: float,
        second_end: float,
        start_percent: float,
        end_percent: float,
        middle: Any = None,
    ) -> io.NodeOutput:
        guidance = Guidance(method, second, second_end, start_percent, end_percent)
        return io.NodeOutput(subject_guider(model, positive, negative, middle, guidance, cfg))
