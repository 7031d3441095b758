"""Reference pictures of the rehearsal world's cast, as Load Rehearsal Models gives them."""

from __future__ import annotations

import torch

from ..pack import hide_broken_torchaudio, load_pack
from ..workflow.job_records import ReferenceJob

hide_broken_torchaudio()
load_pack()

from troupe.rehearsal.cast import shown_as_references  # noqa: E402
from troupe.rehearsal.world import reference  # noqa: E402


def drawn_reference(job: ReferenceJob) -> torch.Tensor:
    """Return a reference picture, [1, 128, 128, 3] in 0..1."""
    figure = shown_as_references(job.kinds)[job.index]
    return torch.from_numpy(reference(figure).copy())[None].float() / 255
