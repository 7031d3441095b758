"""What every host asks when it binds references to a UNet: do the two belong together, and where and when may each subject act."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .adapter import AdapterSpec, base_name
from .attention.limits import WHOLE, Window, box_map, limit_map, region_map
from .errors import MismatchError
from .settings import ImageAttentionSettings
from .subjects import References, ReferenceSubject


def check_widths(spec: AdapterSpec, widths: Sequence[int], context_dim: int) -> None:
    """Raise MismatchError unless the adapter's layers are the model's: widths of its cross-attention layers in checkpoint order, and of its text."""
    if context_dim != spec.context_dim or tuple(widths) != spec.widths:
        what = f"{len(widths)} cross-attention layers for text {context_dim} wide"
        wanted = f"a MODEL for {spec.file}: {spec.describe()}, text {spec.context_dim} wide"
        raise MismatchError(wanted, what, f"Sample with a checkpoint of the {spec.base} family, or load an adapter made for this model.")


def check_places(spec: AdapterSpec, widths: Mapping[str, int], context_dim: int) -> None:
    """Raise MismatchError unless the model has a transformer block of the right width for every gated layer, and the text width of the file's base.

    widths: LDM path of each transformer block of the model, as in `GatedSpec.places`, -> its width.
    """
    places = spec.gated.places
    fitting = sum(widths.get(path) == width for path, width in places.items())
    if fitting == len(places) and context_dim == spec.gated.object_dim:
        return
    found = f"a MODEL for {base_name(context_dim)}, with a block for {fitting} of its {len(places)} layers"
    do = f"Sample with a checkpoint of the {spec.base} family, or load a file made for this model."
    raise MismatchError(f"a MODEL for {spec.file}: {spec.describe()}, text {spec.gated.object_dim} wide", found, do)


def check_names(references: References, settings: ImageAttentionSettings) -> None:
    """Raise MismatchError where the merge needs the subjects' names and they were not encoded."""
    if settings.mixing.needs_relevance(len(references.subjects)) and not references.named:
        wanted = f"the subjects' names for merge '{settings.mixing.merge}'"
        raise MismatchError(wanted, "references without names", "Wire 'clip' into Encode Subject References, or set 'merge' to uniform, joint or add.")


def limited(subjects: Sequence[ReferenceSubject], boxed: bool) -> bool:
    """Whether a region, or a box while boxes limit, holds anybody back."""
    return any(s.region is not None or (s.box is not None and boxed) for s in subjects)


def limits_on_grid(subjects: Sequence[ReferenceSubject], settings: ImageAttentionSettings, grid: tuple[int, int], boxed: bool,
                   device: torch.device | str, window: Window = WHOLE) -> torch.Tensor:
    """m of every subject on a layer's grid (h, w), row-major: [M, h*w] float32 in 0..1, 1 where nothing limits.

    boxed: whether boxes limit in this step; window: the part of the picture that the grid shows.
    """
    maps = []
    for subject in subjects:
        region = None if subject.region is None else region_map(subject.region, grid, window)
        box = None if subject.box is None or not boxed else box_map((subject.box.x, subject.box.y, subject.box.w, subject.box.h), grid, settings.box_feather, window)
        limit = limit_map(region, box, settings.box_strength)
        maps.append(torch.ones(grid) if limit is None else limit)
    return torch.stack(maps).flatten(1).to(device)  # made on the CPU: some devices lack float64 or uneven pooling
