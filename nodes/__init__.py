"""The nodes, in the order in which an artist meets them."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..model_patches.hosts.comfyui.loading import dino
from ..model_patches.hosts.comfyui.loading.adapters import FOLDERS, register_folders

register_folders((*FOLDERS, dino.FOLDER))  # before the schemas list files; the minimum host does not call on_load

from .add_subject import AddSubject  # noqa: E402
from .apply_gated import ApplyGated  # noqa: E402
from .apply_image_attention import ApplyImageAttention  # noqa: E402
from .apply_weights import ApplyAdapterWeights  # noqa: E402
from .encode_prompt import EncodePrompt  # noqa: E402
from .encode_subjects import EncodeSubjects  # noqa: E402
from .keep_best import KeepBest  # noqa: E402
from .load_adapter import LoadAdapter  # noqa: E402
from .place_subjects import PlaceSubjects  # noqa: E402
from .prepare_faces import PrepareFaces  # noqa: E402
from .preview_relevance import PreviewRelevance  # noqa: E402
from .quick_subjects import QuickSubjects  # noqa: E402
from .record_relevance import RecordRelevance  # noqa: E402
from .rehearsal import LoadRehearsalModels  # noqa: E402
from .score_subjects import ScoreSubjects  # noqa: E402
from .subject_guider import SubjectGuider  # noqa: E402

NODES: list[type[io.ComfyNode]] = [
    QuickSubjects,
    LoadAdapter,
    ApplyAdapterWeights,
    PrepareFaces,
    AddSubject,
    PlaceSubjects,
    EncodeSubjects,
    EncodePrompt,
    ApplyImageAttention,
    ApplyGated,
    SubjectGuider,
    RecordRelevance,
    PreviewRelevance,
    ScoreSubjects,
    KeepBest,
    LoadRehearsalModels,
]


class Troupe(ComfyExtension):
    """The pack, as the host sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return every node of the pack."""
        return NODES
