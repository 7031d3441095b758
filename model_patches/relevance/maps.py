"""Which part of a picture each subject affected: maps that were recorded while it was sampled, put together, measured
and described in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from ..attention.limits import WHOLE, Window, box_map, limit_map, region_map, union
from ..subjects import Box, References

BLOCKS = ("all", "coarse", "fine")
COARSE_FROM = 8  # latent cells to a cell of the grid, between 4 (half the latent's side) and 16 (a quarter)
NEXT_TO_NOTHING = 0.05  # of an equal share
MOST_PAIRS = 10  # overlaps in the report
# overlap from which on looks were right as often as by chance: 60 pairs in the rehearsal world, 73 % below 0.9, 50 %
# above this
ALIKE = 0.97
POOLED = 8  # cells a side by which a latent is known again
NOT_SAMPLED = (
    "Nothing was recorded: no run with the 'model' output of this Record Relevance has finished. Connect "
    "that output to the sampler, directly or through other "
    "nodes. If it is connected, the sampler's result was cached: change the seed and queue again."
)
NOBODY = (
    "Nothing was recorded: no subject was active in Apply Image Attention in the last run of this MODEL. "
    "Put Record Relevance on the same MODEL wire, before or after "
    "it, and check its weight, the subjects' weights and their step ranges. Apply Gated Adapter and Encode "
    "Prompt with Subjects have no relevance."
)
OTHER_LATENT = (
    "Note: this latent is not the result of the recorded run. It was changed, or comes from another "
    "sampler. The maps show the last run of this MODEL."
)


@dataclass(frozen=True, eq=False)
class MapPart:
    """Maps of one grid that show one part of the picture: total [M, h, w], the sum of what was seen; count [M], how
    often; window as in limits.py.
    """

    total: torch.Tensor
    count: torch.Tensor
    window: Window = WHOLE


@dataclass(frozen=True, eq=False)
class SubjectMap:
    """One subject's map [h, w] float32 in 0..1, None if it never acted; box and region: where it was allowed."""

    name: str
    values: torch.Tensor | None
    box: Box | None = None
    region: torch.Tensor | None = None

    @property
    def place(self) -> torch.Tensor | None:
        """Its own box or region on the map's grid, [h, w] in 0..1, or None."""
        if self.values is None:
            return None
        h, w = self.values.shape
        grid = (h, w)
        box = None if self.box is None else box_map((self.box.x, self.box.y, self.box.w, self.box.h), grid)
        return limit_map(None if self.region is None else region_map(self.region, grid), box, 1.0)


@dataclass(frozen=True, eq=False)
class AppliedMaps:
    """The subjects of one Apply Image Attention, with its adapter file and merge."""

    file: str
    merge: str
    subjects: tuple[SubjectMap, ...]


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """The record of one sampling run: the maps of each Apply node, sentences about what could not be recorded, and the
    mark of its latent.
    """

    blocks: str
    applied: tuple[AppliedMaps, ...] = ()
    notes: tuple[str, ...] = ()
    mark: torch.Tensor | None = None


def wanted(blocks: str, grid: tuple[int, int], latent: tuple[int, int]) -> bool:
    """Return whether blocks of this grid are recorded: `fine` are those with the latent's own grid or half its side,
    `coarse` those with a quarter or less.

    grid, latent: (h, w) in cells; a grid's odd sides are rounded up.
    """
    coarse = grid[0] * grid[1] * COARSE_FROM <= latent[0] * latent[1]
    return blocks == "all" or coarse == (blocks == "coarse")


def averaged(parts: Sequence[MapPart]) -> torch.Tensor:
    """Return the mean of everything seen at each position, on the finest grid among the parts: [M, h, w] float32; 0
    where a subject never acted.

    Every grid is brought to the finest one first (bilinear), so that each block and call counts the same.
    """
    h, w = max((_whole_grid(part) for part in parts), key=lambda grid: grid[0] * grid[1])
    total = torch.zeros(len(parts[0].count), h, w)
    seen = torch.zeros_like(total)
    for part in parts:
        top, left, bottom, right = part.window
        y, x = min(round(top * h), h - 1), min(round(left * w), w - 1)
        rows, columns = slice(y, max(round(bottom * h), y + 1)), slice(x, max(round(right * w), x + 1))
        room = total[:, rows, columns]
        room += interpolate(part.total[None], room.shape[1:], mode="bilinear")[0]
        seen[:, rows, columns] += part.count.view(-1, 1, 1)
    return torch.where(seen > 0, total / seen.clamp(min=1), total)


def applied_maps(references: References, merge: str, parts: Sequence[MapPart]) -> AppliedMaps | None:
    """Return the mean maps of one Apply node's subjects, on the CPU; None if nobody acted."""
    parts = [part for part in parts if part.count.any()]  # the others were prepared and never seen
    if not parts:
        return None
    acted = torch.stack([part.count for part in parts]).sum(0) > 0
    subjects = zip(references.subjects, averaged(parts), acted.tolist(), strict=True)
    found = (
        SubjectMap(x.name, values if on else None, x.box, None if x.region is None else union(x.region))
        for x, values, on in subjects
    )
    return AppliedMaps(references.adapter.spec.file, merge, tuple(found))


def _whole_grid(part: MapPart) -> tuple[int, int]:
    """(h, w) that the part's grid would have over the whole picture."""
    (h, w), (top, left, bottom, right) = part.total.shape[1:], part.window
    return round(h / (bottom - top)), round(w / (right - left))


def mark_of(latent: torch.Tensor) -> torch.Tensor | None:
    """Return a fingerprint of a latent [B, C, h, w], the means of its parts; None for other kinds of latents."""
    return adaptive_avg_pool2d(latent.detach().float(), POOLED).cpu() if getattr(latent, "ndim", 0) == 4 else None


def same_latent(mark: torch.Tensor | None, latent: torch.Tensor) -> bool:
    """Return whether the latent is the one of the mark; True if that cannot be known."""
    found = mark_of(latent)
    return (
        mark is None
        or found is None
        or (found.shape == mark.shape and torch.allclose(found, mark, rtol=1e-2, atol=1e-2))
    )


# ---- in numbers ------------------------------------------------------------------------------------------------------


def share_inside(values: torch.Tensor, place: torch.Tensor) -> float:
    """Return the part of a map, 0..1, that lies in a place, both [h, w]; 0 if the map is empty."""
    return float((values * place).sum() / values.sum().clamp(min=1e-12))


def map_overlap(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return `sum_p min(a, b) / min(sum_p a, sum_p b)`: 0 if the two share no position, 1 if the larger covers the
    smaller.
    """
    return float(torch.minimum(first, second).sum() / torch.minimum(first.sum(), second.sum()).clamp(min=1e-12))


def owns_next_to_nothing(subject: SubjectMap, count: int) -> bool:
    """Return whether a subject's mean share, of its own box or region or else of the picture, is below 5 % of an equal
    share among `count` subjects.
    """
    if subject.values is None or count < 2:
        return False
    place = subject.place
    place = torch.ones_like(subject.values) if place is None else place
    return float((subject.values * place).sum() / place.sum().clamp(min=1e-12)) < NEXT_TO_NOTHING / count


# ---- in words --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line of the report. warning: it says what to do."""

    text: str
    warning: bool = False


def report(run: RecordedRun | None, latent: torch.Tensor | None = None) -> str:
    """Return the text beside the maps: a paragraph for each Apply node, then the notes. latent: as in `findings`."""
    return "\n\n".join("\n".join(line.text for line in paragraph) for paragraph in findings(run, latent))


def findings(run: RecordedRun | None, latent: torch.Tensor | None = None) -> list[list[Line]]:
    """Return the findings about the maps, in paragraphs of lines. latent: what the preview was given, to warn if it is
    not of this run.
    """
    if run is None:
        return [[Line(NOT_SAMPLED, warning=True)]]
    paragraphs = [_of_node(applied, run.blocks) for applied in run.applied] or (
        [] if run.notes else [[Line(NOBODY, warning=True)]]
    )
    paragraphs += [[Line(note, warning=True)] for note in run.notes]
    if latent is not None and not same_latent(run.mark, latent):
        paragraphs.append([Line(OTHER_LATENT, warning=True)])
    return paragraphs


def _of_node(applied: AppliedMaps, blocks: str) -> list[Line]:
    subjects = list(enumerate(applied.subjects, 1))
    seen = [(i, subject, values) for i, subject in subjects if (values := subject.values) is not None]
    which = "all blocks" if blocks == "all" else f"{blocks} blocks"
    lines = [Line(f"{applied.file}, merge {applied.merge}, {which}")] + [
        _of_subject(i, subject, len(subjects)) for i, subject in subjects
    ]
    pairs = sorted(
        ((map_overlap(u, v), (i, a), (j, b)) for (i, a, u), (j, b, v) in combinations(seen, 2)),
        key=lambda pair: -pair[0],
    )
    lines += [_of_pair(value, first, second, len(applied.subjects)) for value, first, second in pairs[:MOST_PAIRS]]
    if len(pairs) > MOST_PAIRS:
        lines.append(Line(f"The other {len(pairs) - MOST_PAIRS} pairs overlap less."))
    return lines + [_warning(i, subject) for i, subject, _ in seen if owns_next_to_nothing(subject, len(subjects))]


def _of_subject(number: int, subject: SubjectMap, count: int) -> Line:
    if subject.values is None:
        return Line(f"{number} {subject.name}: not active (weight 0, or no step in its range).")
    place, values = subject.place, subject.values
    own = (
        "box and region"
        if subject.box is not None and subject.region is not None
        else "box"
        if subject.box is not None
        else "region"
    )
    inside = "" if place is None else f"; {_percent(share_inside(values, place))} of that is inside its own {own}"
    if count == 1:
        inside = "" if place is None else f" {_percent(share_inside(values, place))} of it is inside its own {own}."
        return Line(
            f"{number} {subject.name}: the only subject, so it gets every share. The map shows where its "
            f"name is relevant.{inside}"
        )
    return Line(f"{number} {subject.name}: gets {_percent(float(values.mean()))} of the picture{inside}.")


def _of_pair(value: float, first: tuple[int, SubjectMap], second: tuple[int, SubjectMap], count: int) -> Line:
    pair = [subject for _, subject in (first, second)]
    text = f"{first[0]} {pair[0].name} and {second[0]} {pair[1].name} overlap {_percent(value)}"
    if any(owns_next_to_nothing(subject, count) for subject in pair):  # a warning about it follows
        return Line(f"{text}.")
    if value < ALIKE:
        return Line(f"{text}; up to {_percent(ALIKE)} is normal.")
    return Line(f"{text}: the model cannot tell them apart. {_remedy(pair)}", warning=True)


def _remedy(pair: Sequence[SubjectMap]) -> str:
    """What separates two subjects that own the same places; a higher sharpness does not (docs/settings.md)."""
    first, second = (" ".join(subject.name.split()).casefold() for subject in pair)
    if first == second:
        return "Give each a different name that is in the prompt, or a box."
    return "Give each a box."


def _warning(number: int, subject: SubjectMap) -> Line:
    where = "the picture" if subject.place is None else "its own box or region"
    remedy = "Check that the prompt asks for it by this name, give it a box, or lower 'sharpness'."
    return Line(
        f"Warning: subject {number} '{subject.name}' has almost no share of {where} (less than "
        f"{NEXT_TO_NOTHING:.0%} of an equal share). {remedy}",
        warning=True,
    )


def _percent(value: float) -> str:
    return f"{value * 100:.0f} %" if value >= 0.1 or value == 0 else f"{value * 100:.1f} %"
