"""What every host asks when it binds references to a UNet: do the two belong together, and where and when may each subject act."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..adapter import AdapterSpec, base_name
from ..attention.limits import WHOLE, Window, box_map, limit_map, region_map, union
from ..base_mismatch import base_mismatch
from ..errors import MismatchError
from ..subjects import References, ReferenceSubject
from .settings import ImageAttentionSettings


def check_widths(spec: AdapterSpec, widths: Sequence[int], context_dim: int) -> None:
    """Raise MismatchError unless the adapter's layers are the model's: widths of its cross-attention layers in checkpoint order, and of its text."""
    if (error := base_mismatch(spec, context_dim)) is not None:
        raise error
    if context_dim != spec.context_dim or tuple(widths) != spec.widths:
        what = f"{len(widths)} cross-attention layers and text embeddings of size {context_dim}"
        wanted = f"a MODEL for {spec.file}: {spec.describe()}, text embeddings of size {spec.context_dim}"
        raise MismatchError(wanted, what, f"Sample with a checkpoint of the {spec.base} family, or load an adapter made for this model.")


def check_places(spec: AdapterSpec, widths: Mapping[str, int], context_dim: int) -> None:
    """Raise MismatchError unless the model has a transformer block of the right width for every gated layer, and the text width of the file's base.

    widths: LDM path of each transformer block of the model, as in `GatedSpec.places`, -> its width.
    """
    places = spec.gated.places
    fitting = sum(widths.get(path) == width for path, width in places.items())
    if fitting == len(places) and context_dim == spec.gated.object_dim:
        return
    if (error := base_mismatch(spec, context_dim)) is not None:
        raise error
    found = f"a MODEL for {base_name(context_dim)}, with a matching block for {fitting} of the {len(places)} layers"
    do = f"Sample with a checkpoint of the {spec.base} family, or load a file made for this model."
    raise MismatchError(f"a MODEL for {spec.file}: {spec.describe()}, text embeddings of size {spec.gated.object_dim}", found, do)


def check_names(references: References, settings: ImageAttentionSettings) -> None:
    """Raise MismatchError where the merge needs the subjects' names and they were not encoded."""
    if settings.mixing.needs_relevance(len(references.subjects)) and not references.named:
        wanted = f"the subjects' names for merge '{settings.mixing.merge}'"
        raise MismatchError(wanted, "references without names", "Wire 'clip' into Encode Subject References, or set 'merge' to uniform, joint or add.")


def limited(subjects: Sequence[ReferenceSubject], boxed: bool) -> bool:
    """Whether a region, or a box while boxes limit, holds anybody back."""
    return any(s.region is not None or (s.box is not None and boxed) for s in subjects)


def limits_on_grid(subjects: Sequence[ReferenceSubject], settings: ImageAttentionSettings, grid: tuple[int, int], boxed: bool,
                   device: torch.device | str, window: Window = WHOLE, pictures: Sequence[int] = ()) -> torch.Tensor:
    """m of every subject on a layer's grid (h, w), row-major: [1, M, h*w] float32 in 0..1, 1 where nothing limits; [B, M, h*w] with `pictures`.

    boxed: whether boxes limit in this step; window: the part of the picture that the grid shows; pictures: which of its masks each of B pictures has,
    for subjects with several. Without it they have their union.
    """
    if pictures:
        each = {i: _limits(subjects, settings, grid, boxed, window, i) for i in dict.fromkeys(pictures)}
        return torch.stack([each[i] for i in pictures]).to(device)
    return _limits(subjects, settings, grid, boxed, window, None)[None].to(device)  # made on the CPU: some devices lack float64 or uneven pooling


def with_masks_for(subjects: Sequence[ReferenceSubject], pictures: Sequence[int], whole: bool) -> tuple[list[ReferenceSubject], list[int]]:
    """The subjects, with the union in place of masks that are not one for each picture; and which subjects those are.

    pictures: numbers of the pictures that are computed; whole: whether these are all there are.
    """
    def fit(masks: int) -> bool:
        return masks == len(pictures) if whole else masks > max(pictures)

    wrong = [i for i, s in enumerate(subjects) if s.region is not None and s.region.ndim == 3 and not fit(len(s.region))]
    return [replace(s, region=union(s.region)) if i in wrong else s for i, s in enumerate(subjects)], wrong


def _limits(subjects: Sequence[ReferenceSubject], settings: ImageAttentionSettings, grid: tuple[int, int], boxed: bool, window: Window, picture: int | None) -> torch.Tensor:
    maps = []
    for subject in subjects:
        mask = subject.region
        if mask is not None and mask.ndim == 3:
            mask = union(mask) if picture is None else mask[picture]
        region = None if mask is None else region_map(mask, grid, window)
        box = None if subject.box is None or not boxed else box_map((subject.box.x, subject.box.y, subject.box.w, subject.box.h), grid, settings.box_feather, window)
        limit = limit_map(region, box, settings.box_strength)
        maps.append(torch.ones(grid) if limit is None else limit)
    return torch.stack(maps).flatten(1)
