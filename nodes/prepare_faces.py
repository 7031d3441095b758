from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_patches.encoding.faces import PICKS, prepare_faces
from ..model_patches.hosts.comfyui.messages import Messages
from .types import CATEGORY, Faces, found_by

ANALYSERS = [io.Custom(name) for name in ("INSIGHTFACE", "FACEANALYSIS", "ANALYSIS_MODELS")]


class PrepareFaces(io.ComfyNode):
    """A node that prepares the faces of a subject's photos."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        more = "Another photo of the same subject, of any size, as in Add Subject."
        return io.Schema(
            node_id="TroupeFaces",
            display_name="Prepare Faces",
            **found_by("face", "faceid", "person", "portrait"),
            category=CATEGORY,
            description=(
                "For adapters that use faces: extracts the face in each photo of a subject as an identity "
                "vector and an aligned crop. Needs a face "
                "analyser loaded by another pack, or your own vectors and crops. Nothing is downloaded."
            ),
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The photos of ONE subject, the same as in its Add Subject. One face is used from each "
                    "photo.",
                ),
                io.MultiType.Input(
                    "analysis",
                    types=ANALYSERS,
                    optional=True,
                    tooltip=(
                        "An InsightFace analyser from another pack, for instance IPAdapter InsightFace "
                        "Loader with buffalo_l. InsightFace's models are for "
                        "non-commercial research only."
                    ),
                ),
                io.AnyType.Input(
                    "embeds",
                    optional=True,
                    tooltip=(
                        "Face vectors from another node (ArcFace, 512 numbers for each photo). Used instead "
                        "of the analyser's."
                    ),
                ),
                io.Image.Input(
                    "crops",
                    optional=True,
                    tooltip="Aligned square face crops from another node, one for each photo. Used instead of the "
                    "analyser's.",
                ),
                io.Combo.Input(
                    "pick",
                    options=list(PICKS),
                    default=PICKS[0],
                    tooltip=(
                        "Which face to use if a photo shows several. largest: the largest face. first: the "
                        "analyser's first face, as in MM-Diff's script."
                    ),
                ),
                io.Image.Input("same_subject_2", optional=True, tooltip=more),
                io.Image.Input("same_subject_3", optional=True, tooltip=more),
                io.Image.Input("same_subject_4", optional=True, tooltip=more),
            ],
            outputs=[
                Faces.Output(
                    "faces_out", display_name="faces", tooltip="Connect to 'faces' of this subject's Add Subject."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Any,
        pick: str,
        analysis: Any = None,
        embeds: Any = None,
        crops: Any = None,
        same_subject_2: Any = None,
        same_subject_3: Any = None,
        same_subject_4: Any = None,
    ) -> io.NodeOutput:
        messages = Messages()
        faces = prepare_faces(
            [image, same_subject_2, same_subject_3, same_subject_4],
            analysis,
            embeds,
            crops,
            pick,
            messages.warn,
            messages.done,
        )
        return io.NodeOutput(faces, ui=messages.ui())
