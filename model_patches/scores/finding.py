"""Which region each subject has in each picture: what other nodes found first, then its own box, its region, the
record, and the whole picture where nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import SubjectError
from ..placement.boxes import FoundBox, checked, is_segs, read_wired
from ..placement.placing import same_word
from ..relevance.maps import NOBODY, NOT_SAMPLED, RecordedRun, SubjectMap
from ..subjects import Box, called
from .regions import MOST_FURTHER, SubjectRegion, apart, region_of_map, region_of_mask

Warn = Callable[[str], None]
Regions = list[SubjectRegion | None]  # of every subject of one picture, then what else was found in it
FULL_BOX = Box(0.0, 0.0, 1.0, 1.0)
ONE_MAP = (
    "The record has one map for the whole batch, the mean of its pictures: its places fit each picture only roughly. "
    "Sample one picture at a time, or connect 'bounding_boxes', 'segs' or 'masks'."
)
NO_REGION = (
    "No place is known for {}, so the whole picture is compared, in which the subjects cannot be told apart. Connect "
    "'record', 'bounding_boxes', 'segs' or 'masks', or give each subject a box with Place Subjects."
)


MANY_REGIONS = (
    f"{{}} places more than subjects were found in a picture: the {MOST_FURTHER} largest are compared. Set the "
    "detector to the subjects' words, or raise its threshold."
)


@dataclass(frozen=True, eq=False)
class Wanted:
    """A subject to look for: name, its own box and region [h, w] or [pictures, h, w]."""

    name: str
    box: Box | None = None
    region: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """Inputs to find the subjects by; None where nothing is connected."""

    run: RecordedRun | None = None
    recorded: bool = False
    bounding_boxes: Any = None
    segs: Any = None
    masks: torch.Tensor | None = None


def regions_in(
    wanted: Sequence[Wanted], found: Found, count: int, size: tuple[int, int], warn: Warn = lambda sentence: None
) -> list[Regions]:
    """Return the region of every subject in each of `count` pictures of `size` (width, height); None: not in it. After
    them come up to MOST_FURTHER regions that are left over, see `regions.apart`.

    The first of these that is connected decides for all subjects: masks, segs, bounding_boxes. A subject that it does
    not have is not in the picture. Without them each subject has its box, else its region, else the region of its
    recorded map (a rectangle that is much less exact than a box), else the whole picture.
    Raises:
        SubjectError: masks, segments or boxes that cannot be read or counted.
    """
    if found.masks is not None:
        return _of_masks(wanted, found.masks, count, warn)
    if found.segs is not None:
        return [_of_segs(wanted, one, size, warn) for one in _each_picture(found.segs, count, is_segs)]
    if found.bounding_boxes is not None:
        return [_of_boxes(wanted, one, size, warn) for one in _each_picture(found.bounding_boxes, count, _are_boxes)]
    recorded = _of_record(wanted, found.run, warn) if found.recorded else {}
    placeless = [i for i, subject in enumerate(wanted) if subject.box is None and subject.region is None]
    if count > 1 and any(i in recorded for i in placeless):
        warn(ONE_MAP)
    if len(wanted) > 1 and (nowhere := [i for i in placeless if i not in recorded]):
        warn(NO_REGION.format(", ".join(called(i + 1, wanted[i].name) for i in nowhere)))
    return [
        [
            recorded[i] if i in recorded and i in placeless else _own(subject, picture)
            for i, subject in enumerate(wanted)
        ]
        for picture in range(count)
    ]


def _own(subject: Wanted, picture: int) -> SubjectRegion | None:
    if subject.box is not None:
        return SubjectRegion(subject.box, "box", oval=True)
    if subject.region is not None:
        region = subject.region if subject.region.ndim == 2 else subject.region[min(picture, len(subject.region) - 1)]
        return region_of_mask(region, "region")
    return SubjectRegion(FULL_BOX, "whole picture")


def _of_record(wanted: Sequence[Wanted], run: RecordedRun | None, warn: Warn) -> dict[int, SubjectRegion | None]:
    """{subject: its region, None where it was not active or its map is flat}, of the subjects that were recorded."""
    maps = [] if run is None else [subject for applied in run.applied for subject in applied.subjects]
    if not maps:
        warn(NOT_SAMPLED if run is None else NOBODY)
    by_order = [same_word(m.name) for m in maps] == [same_word(w.name) for w in wanted]
    named: Mapping[str, SubjectMap] = {same_word(m.name): m for m in maps}
    found = {i: (maps[i] if by_order else named.get(same_word(w.name))) for i, w in enumerate(wanted)}
    return {i: None if one.values is None else region_of_map(one.values) for i, one in found.items() if one is not None}


def _of_masks(wanted: Sequence[Wanted], masks: torch.Tensor, count: int, warn: Warn) -> list[Regions]:
    layers = masks.reshape(-1, *masks.shape[-2:]).float().cpu()
    each = len(layers) // count
    if len(layers) != len(wanted) and (len(layers) != each * count or each < len(wanted)):
        raise SubjectError(
            f"a mask in 'masks' for each of the {len(wanted)} subjects, in their order, or that for each of the "
            f"{count} pictures",
            f"{len(layers)}",
            "Connect one mask for each subject, empty where it is not in the picture.",
        )
    groups = [layers] * count if len(layers) == len(wanted) else layers.split(each)
    found = [[region_of_mask(mask, "mask", cut_out=True) for mask in group] for group in groups]
    return [_with_further(regions[: len(wanted)], regions[len(wanted) :], warn) for regions in found]


def _of_boxes(wanted: Sequence[Wanted], value: Any, size: tuple[int, int], warn: Warn) -> Regions:
    return _bound(
        wanted, read_wired(value, size), lambda found, box: SubjectRegion(box, "bounding box", oval=True), warn
    )


def _of_segs(wanted: Sequence[Wanted], segs: Any, size: tuple[int, int], warn: Warn) -> Regions:
    (h, w), segments = segs[0][:2], list(segs[1])
    boxes = read_wired(segs, size)
    by_box = {id(box): segment for box, segment in zip(boxes, segments, strict=True)}

    def region(found: FoundBox, box: Box) -> SubjectRegion:
        mask = whole_mask(by_box[id(found)], int(h), int(w))
        mask = mask if mask is not None and bool(mask.any()) else None
        return SubjectRegion(box, "segment", mask, oval=mask is None)

    return _bound(wanted, boxes, region, warn)


def _bound(
    wanted: Sequence[Wanted],
    found: Sequence[FoundBox | None],
    region: Callable[[FoundBox, Box], SubjectRegion],
    warn: Warn,
) -> Regions:
    """The subjects' regions, then the others. region: makes a region of a box as it was found and as it was checked."""
    bound, left = bind(found, [w.name for w in wanted], warn)
    regions: Regions = [None] * len(wanted)
    for i, box in bound.items():
        regions[i] = region(box, checked(box, called(i + 1, wanted[i].name), warn))
    further: Regions = []
    for box in left:
        try:
            further.append(region(box, checked(box, "a further place")))
        except SubjectError as error:
            warn(f"A box is left out: {error}")
    return _with_further(regions, further, warn)


def _with_further(regions: Regions, further: Regions, warn: Warn) -> Regions:
    left = apart(regions, [region for region in further if region is not None])
    if len(left) > MOST_FURTHER:
        warn(MANY_REGIONS.format(len(left)))
    return [*regions, *left[:MOST_FURTHER]]


def whole_mask(segment: Any, h: int, w: int) -> torch.Tensor | None:
    """Return a segment's `cropped_mask` in its region in a picture [h, w], float 0..1: at `crop_region` (x1, y1, x2,
    y2), or at `bbox` where it has none. None where it has no mask, or one of another size.
    """
    mask = getattr(segment, "cropped_mask", None)
    if mask is None:
        return None
    mask = torch.as_tensor(mask).float()
    mask = mask.reshape(-1, *mask.shape[-2:])[0]
    region = getattr(segment, "crop_region", None)
    left, top, right, bottom = (round(float(v)) for v in (segment.bbox if region is None else region))
    if mask.shape != (bottom - top, right - left) or min(left, top) < 0 or right > w or bottom > h:
        return None
    whole = torch.zeros(h, w)
    whole[top:bottom, left:right] = mask
    return whole


def bind(
    found: Sequence[FoundBox | None], names: Sequence[str], warn: Warn = lambda sentence: None
) -> tuple[dict[int, FoundBox], list[FoundBox]]:
    """Return {subject: box}, and the boxes that are left over. A box labelled with a subject's name is that subject's,
    of several the largest. A list with an element for each subject and no such label goes by order; else boxes with
    other labels, or none, go in order to the subjects that have none.
    """
    bound: dict[int, FoundBox] = {}
    left = [box for box in found if box is not None]
    words = [same_word(name) for name in names]
    for i, word in enumerate(words):
        mine = [box for box in left if word and same_word(box.label) == word]
        if mine:
            bound[i] = max(mine, key=_box_area)
            left = [box for box in left if box is not bound[i]]
    if not bound and len(found) == len(names):
        return {i: box for i, box in enumerate(found) if box is not None}, []
    strangers = iter([box for box in left if same_word(box.label) not in {word for word in words if word}])
    for i in range(len(names)):
        if i not in bound and (box := next(strangers, None)) is not None:
            if same_word(box.label):
                warn(f"No box is labelled '{names[i]}': the one labelled '{box.label}' is used for it.")
            bound[i] = box
    return bound, [box for box in left if not any(box is one for one in bound.values())]


def _box_area(box: FoundBox) -> float:
    try:
        a, b, c, d = map(float, box.sides or ())
    except (TypeError, ValueError):
        return 0.0
    return (c - a) * (d - b) if box.corners else c * d


def _each_picture(value: Any, count: int, is_one: Callable[[Any], bool]) -> list[Any]:
    """The value for each picture: its own where it is a list of as many, else the same for all."""
    several = isinstance(value, (list, tuple)) and len(value) == count and all(map(is_one, value))
    return list(value) if several and not is_one(value) else [value] * count


def _are_boxes(value: Any) -> bool:
    """Whether a value is a list of boxes rather than one box."""
    return isinstance(value, (list, tuple)) and all(
        item is None or isinstance(item, (dict, list, tuple)) and not _are_boxes(item) for item in value
    )
