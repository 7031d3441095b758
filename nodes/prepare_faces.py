from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.faces import PICKS, prepare_faces
from ..model_patches.hosts.comfyui.notice import Messages
from .types import CATEGORY, Faces, found_by

ANALYSERS = [io.Custom(name) for name in ("INSIGHTFACE", "FACEANALYSIS", "ANALYSIS_MODELS")]


class PrepareFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        more = "Another photo of the same subject, of any size, as in Add Subject."
        return io.Schema(
            node_id="TroupeFaces",
            display_name="Prepare Faces",
            **found_by("face", "faceid", "person", "portrait"),
            category=CATEGORY,
            description=(
                "For adapters that read faces: the face in each photo of a subject, as a vector that says who it is and as an upright crop. The face is found by an analyser "
                "that another pack loads, or you give vectors and crops. Nothing is downloaded."
            ),
            inputs=[
                io.Image.Input("image", tooltip="The photos of ONE subject, the same that go into its Add Subject. One face is taken from each."),
                io.MultiType.Input("analysis", types=ANALYSERS, optional=True, tooltip=(
                    "An InsightFace analyser of another pack, for instance IPAdapter InsightFace Loader with buffalo_l. InsightFace's models are for non-commercial research only."
                )),
                io.AnyType.Input("embeds", optional=True, tooltip=(
                    "Face vectors that another node made (ArcFace, 512 numbers for each photo). They are taken instead of the analyser's."
                )),
                io.Image.Input("crops", optional=True, tooltip="Aligned square faces that another node made, one for each photo. They are taken instead of the analyser's."),
                io.Combo.Input("pick", options=list(PICKS), default=PICKS[0], tooltip=(
                    "Which face of a photo that shows several. largest: the one that takes up most room. first: the analyser's first, as MM-Diff's own script does."
                )),
                io.Image.Input("same_subject_2", optional=True, tooltip=more),
                io.Image.Input("same_subject_3", optional=True, tooltip=more),
                io.Image.Input("same_subject_4", optional=True, tooltip=more),
            ],
            outputs=[Faces.Output("faces_out", display_name="faces", tooltip="Wire into 'faces' of this subject's Add Subject.")],
        )

    @classmethod
    def execute(cls, image: Any, pick: str, analysis: Any = None, embeds: Any = None, crops: Any = None, same_subject_2: Any = None, same_subject_3: Any = None,
                same_subject_4: Any = None) -> io.NodeOutput:
        messages = Messages()
        faces = prepare_faces([image, same_subject_2, same_subject_3, same_subject_4], analysis, embeds, crops, pick, messages.warn, messages.done)
        return io.NodeOutput(faces, ui=messages.ui())
